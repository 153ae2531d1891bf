"""A cluster in virtual time: nodes of one key, clients with a path to each over each uplink, and
the table that the nodes share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from jvpnd.core.client import ClientAgent
from jvpnd.core.gateway import Gateway
from jvpnd.core.nodes import Sharing
from jvpnd.core.noise import public_key
from jvpnd.core.peer import ClientEntry
from jvpnd.core.policy import Policy
from jvpnd.core.session import Session
from jvpnd.core.sessionrow import Row
from jvpnd.core.states import State

from .ends import ClientEnd, Identity, Load, SeededEntropy
from .invariants import History
from .net import WELL
from .nodeend import NodeEnd
from .owners import Owners
from .plane import Ledger
from .sharedtable import Link, SharedTable, Weather
from .world import BLACKHOLE, Conditions, World

DAY_MS = 86_400_000


class _Client:
    """Who it is and what survives its crashes."""

    def __init__(self, name: str, number: int, dice: Random, gateway_public: bytes) -> None:
        secret = dice.randbytes(32)
        self.name = name
        self.identity = Identity(name, secret, gateway_public, has_aes=True)
        addresses = (f"10.77.0.{number + 1}/24", f"fd77::{number + 1:x}/64")
        self.entry = ClientEntry(name, public_key(secret), addresses)
        self.history = History()
        self.disk: dict[str, int] = {}
        self.kept: list[Row] = []


class Cluster:
    """Nodes are gw1, gw2..., clients c1, c2...; the path `wlan@gw2` of c1 is `c1:wlan@gw2` in the
    world if there are several clients."""

    def __init__(
        self,
        seed: int = 1,
        nodes: int = 2,
        policy: Policy | None = None,
        sharing: Sharing = Sharing.STORE,
        uplinks: Sequence[str] = ("wlan",),
        clients: int = 1,
        gateway_policy: Policy | None = None,
        load: Load | None = None,
        trace_max: int | None = None,
        skew_ms: int = 0,
    ) -> None:
        """`skew_ms`: how far apart the nodes' wall clocks are at most."""
        self.policy = policy or Policy()
        self.gateway_policy = gateway_policy or self.policy
        self.sharing, self.load, self.uplinks = sharing, load or Load(), tuple(uplinks)
        self.world, self.ledger, self.owners = World(seed, trace_max), Ledger(), Owners()
        dice = Random(f"cluster {seed}")
        self._secret = dice.randbytes(32)
        self.nodes = [f"gw{number}" for number in range(1, nodes + 1)]
        public = public_key(self._secret)
        names = [f"c{number}" for number in range(1, clients + 1)]
        self.clients = {
            name: _Client(name, number, dice, public) for number, name in enumerate(names, 1)
        }
        self.histories = {name: History() for name in self.nodes}
        common = SharedTable(self.world, self.owners)
        shared = sharing is Sharing.STORE
        self.tables = {
            name: common if shared else SharedTable(self.world, self.owners)
            for name in self.nodes
        }
        self.links = {
            name: Link(self.world, self.tables[name], Random(f"{seed} {name} table"))
            for name in self.nodes
        }
        self._skews_ms = {name: dice.randint(0, skew_ms) for name in self.nodes}
        for name in self.nodes:
            self.world.add_node(name, self._booter(name))
        for number, name in enumerate(names, 1):
            self._add_client(number, name)

    def _booter(self, name: str) -> Callable[[Random], NodeEnd]:
        def boot(random: Random) -> NodeEnd:
            ahead_ms = self._skews_ms[name] + random.randrange(DAY_MS)
            entries = [client.entry for client in self.clients.values()]
            gateway = Gateway(
                name,
                self._secret,
                entries,
                self.gateway_policy,
                SeededEntropy(random),
                has_aes=True,
                sharing=self.sharing,
            )
            link, is_shared = self.links[name], self.sharing is Sharing.STORE
            end = NodeEnd(
                name,
                gateway,
                self.ledger,
                self.histories[name],
                self.load,
                link,
                self.owners,
                ahead_ms,
                is_shared,
                self._lan,
            )
            self.owners.began(name, ())

            def enter(action: Callable[[NodeEnd, float], None]) -> None:
                def act(now: NodeEnd, now_ms: int) -> None:
                    if now is end:
                        end.now_ms = now_ms + end.ahead_ms
                        action(end, now_ms)

                self.world.call(name, act)

            link.begin(enter, ahead_ms)
            return end

        return boot

    def _lan(self, session_id: bytes, plain: bytes) -> None:
        for end in self.running():
            if session_id in end.plane.sending:
                self.world.call(end.name, lambda it, now_ms: it.send(now_ms, session_id, plain))
                return

    def _add_client(self, number: int, name: str) -> None:
        for path in self.path_names(name):
            node = path.partition("@")[2]
            remote = (f"198.51.{number}.{len(self.world.paths) + 1}", 40_000)
            self.world.add_path(path, name, node, remote, 0, WELL, WELL)
        client = self.clients[name]

        def boot(random: Random) -> ClientEnd:
            if not client.kept:
                client.history.rebooted()
            return _ClientEnd(
                random,
                client.identity,
                self.policy,
                self.path_names(name),
                self.ledger,
                client.history,
                client.disk,
                self.load,
                None,
                client.kept,
                self,
            )

        self.world.add_node(name, boot)

    def path_names(self, client: str = "c1") -> list[str]:
        """Its paths, by uplink and node. Of the first client they have no name in front."""
        front = "" if client == "c1" else f"{client}."
        return [f"{front}{uplink}@{node}" for uplink in self.uplinks for node in self.nodes]

    # --- looking ---

    @property
    def now_ms(self) -> int:
        return self.world.now_ms

    def node(self, name: str) -> NodeEnd:
        end = self.world.endpoint(name)
        assert isinstance(end, NodeEnd)
        return end

    def client(self, name: str = "c1") -> ClientEnd:
        end = self.world.endpoint(name)
        assert isinstance(end, ClientEnd)
        return end

    def agent(self, name: str = "c1") -> ClientAgent:
        return self.client(name).agent

    def session(self, name: str = "c1") -> Session:
        session = self.agent(name).session
        assert session is not None
        return session

    @property
    def table(self) -> SharedTable:
        return self.tables["gw1"]

    def home(self, client: str = "c1") -> str:
        """The node to which the client is bound."""
        bound = self.agent(client).bound
        assert bound is not None
        return bound.id.partition("@")[2]

    def others(self, name: str) -> list[str]:
        return [node for node in self.nodes if node != name]

    def running(self) -> list[NodeEnd]:
        ends = [self.world.endpoint(name) for name in self.nodes if self.world.is_running(name)]
        return [end for end in ends if end.is_ready]

    def holders(self, client: str = "c1") -> list[str]:
        """The nodes that have the client's session."""
        session_id = self.session(client).id
        return [end.name for end in self.running() if session_id in end.gateway.sessions]

    def is_attached(self, client: str = "c1") -> bool:
        end = self.world.endpoint(client)
        session = end.agent.session if end is not None else None
        if session is None or session.state is not State.ATTACHED:
            return False
        peers = [end.gateway.sessions.get(session.id) for end in self.running()]
        return any(
            peer is not None
            and peer.session.state is State.ATTACHED
            and peer.session.epoch == session.epoch
            for peer in peers
        )

    def owner_events(self, node: str) -> list[str]:
        """What the node told of its ownership, in order."""
        return [str(event.details.get("what")) for event in self.histories[node].of("OWNERSHIP")]

    def check_client(self, client: ClientEnd) -> None:
        """It hears nobody whom it must not hear."""
        keys = {each.binding.key for each in client.plane.receiving.values()}
        accepted = {
            sending.binding.key: name
            for name in self.nodes
            if (end := self.world.endpoint(name)) is not None
            for sending in end.plane.sending.values()
            if sending.binding.key in keys
        }
        self.owners.check_client(accepted)

    def check_rest(self) -> None:
        nodes = [(end.name, end.gateway) for end in self.running()]
        for name, gateway in nodes:
            self.owners.check_rest(self.tables[name].rows, [(name, gateway)])

    # --- steering ---

    def run(self, for_ms: int) -> None:
        self.world.run(self.now_ms + for_ms)

    def attach(self, settle_ms: int = 1_500) -> list[bytes]:
        """Run until every client is attached and settled; returns their SessionIDs."""
        for name in self.clients:
            self.world.run_until(lambda name=name: self.is_attached(name), self.now_ms + 20_000)
        self.run(settle_ms)
        return [self.session(name).id or b"" for name in self.clients]

    def crash(self, node: str) -> None:
        self.world.crash(node)
        if node in self.links:
            self.links[node].end()

    def boot(self, node: str) -> None:
        self.world.restart(node)

    def freeze(self, node: str) -> None:
        self.world.freeze(node)

    def thaw(self, node: str) -> None:
        end = self.world.endpoint(node)
        if isinstance(end, NodeEnd) and not self.world.is_running(node):
            end.woke(self.now_ms)
        self.world.thaw(node)

    def table_away(self, node: str, is_cut: bool = True) -> None:
        """The node cannot reach the table, or can again."""
        link = self.links[node]
        link.change(replace(link.weather, is_cut=is_cut))

    def table_rough(self, node: str, weather: Weather) -> None:
        self.links[node].change(weather)

    def leave(self, node: str, leave: bool = True) -> None:
        self.world.call(node, lambda end, now_ms: end.leave(now_ms, leave))

    def cut(self, node: str, conditions: Conditions = BLACKHOLE) -> None:
        """No client reaches the node, nobody is told."""
        for path in self.world.paths.values():
            if path.far == node:
                path.up = path.down = conditions

    def heal(self, node: str) -> None:
        self.cut(node, WELL)


class _ClientEnd(ClientEnd):
    """A client that looks, whenever it has done something, at who could be heard."""

    def __init__(self, *args: object) -> None:
        *rest, self._cluster = args
        super().__init__(*rest)

    def _check(self) -> None:
        super()._check()
        self._cluster.check_client(self)
