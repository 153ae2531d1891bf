"""Where races for ownership are run: bare cores, a shared table, and clients that only ask."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from random import Random

from jvpnd.core.effects import BindSend, Emit, Load, ReleaseSend, Send, Swap
from jvpnd.core.effects import Origin as From
from jvpnd.core.gateway import Gateway
from jvpnd.core.messages import Cause
from jvpnd.core.nodes import Sharing
from jvpnd.core.noise import public_key
from jvpnd.core.ownership import RowSeen
from jvpnd.core.path import Path
from jvpnd.core.peer import ClientEntry, Stored
from jvpnd.core.policy import Policy
from jvpnd.core.reattach import Attempt, Credentials, Proof, make_attempt, read_ack, read_reject
from jvpnd.core.session import Session
from jvpnd.core.sessionrow import Row
from jvpnd.core.wire import PacketType

from .ends import Identity, SeededEntropy, path_info
from .owners import Owners
from .sharedtable import Link, SharedTable, Weather
from .world import World

BLOCK = 500  # races of one seed
NODES = ("gw1", "gw2", "gw3")
CLIENTS = 3
ROUGH_MS = 1_500  # then every way to the table is well again,
RACE_MS = 6_000  # and by now everything has come to rest
POLICY = Policy(max_switches_per_minute=600, switch_cooldown_ms=0, rekey_after_ms=3_600_000)
CALM = Weather()


@dataclass
class Score:
    """What was seen in the races."""

    races: int = 0
    requests: int = 0
    takeovers: int = 0
    conflicts: int = 0
    accepted: int = 0
    refused: int = 0
    unknown: int = 0
    crashes: int = 0
    freezes: int = 0

    def add(self, other: Score) -> None:
        for each in fields(self):
            mine, its = getattr(self, each.name), getattr(other, each.name)
            setattr(self, each.name, mine + its)


class Node:
    """A gateway whose effects are performed at once, and whose data plane is a set of sessions."""

    def __init__(self, name: str, arena: Arena, link: Link, ahead_ms: int) -> None:
        self.name, self.link, self.ahead_ms = name, link, ahead_ms
        self._arena = arena
        self._life = 0
        self._held: deque[Callable[[], None]] | None = None  # while it stands still
        self.sending: set[bytes] = set()
        self.boot()

    def boot(self) -> None:
        """Begin anew; it serves once it has its rows."""
        arena = self._arena
        self._life += 1
        self.sending.clear()
        self._held, self.is_ready = None, False
        self._early: list[tuple[bytes, RowSeen | None]] = []
        self.gateway = arena.gateway(self.name)
        arena.owners.began(self.name, ())
        life = self._life

        def enter(action: Callable[[Node, float], None]) -> None:
            if self._life == life:
                self.call(lambda: action(self, arena.world.now_ms))

        self.link.begin(enter, self.ahead_ms)
        self._ask_rows()

    def _ask_rows(self) -> None:
        self.link.rows(self.name, Node._restore)

    def _restore(self, rows: list[Row] | None) -> None:
        if rows is None:
            self._ask_rows()
            return
        self.is_ready = True
        useless = set(self.gateway.restore(self.now_ms, rows))
        ids = [str(row["session_id"]) for row in rows]
        self._arena.owners.began(self.name, (bytes.fromhex(i) for i in ids if i not in useless))
        for session_id, seen in self._early:
            self.heard_of(session_id, seen)

    # --- time ---

    @property
    def now_ms(self) -> int:
        return self._arena.world.now_ms + self.ahead_ms

    def call(self, action: Callable[[], None]) -> None:
        if self._held is not None:
            self._held.append(action)
            return
        action()
        self._perform()

    def freeze(self) -> None:
        if self._held is None:
            self._held = deque()

    def thaw(self) -> None:
        held, self._held = self._held, None
        for action in held or ():
            self.call(action)

    def timer(self) -> None:
        if self.is_ready:
            self.call(lambda: self.gateway.timer(self.now_ms))

    def receive(self, origin: From, packet: bytes) -> None:
        if self.is_ready:
            self.call(lambda: self.gateway.packet_received(self.now_ms, origin, packet))

    # --- the table's answers ---

    def answered(self, asked_ms: float, came: bool) -> None:
        if came:
            self.gateway.store_seen(self.now_ms, asked_ms + self.ahead_ms)

    def stored(self, token: int, outcome: Stored) -> None:
        self._arena.score.unknown += outcome is Stored.UNAVAILABLE
        self.gateway.store_result(self.now_ms, token, outcome)

    def loaded_row(self, token: int, row: Row | None, outcome: Stored) -> None:
        self.gateway.loaded(self.now_ms, token, row, outcome)

    def heard_of(self, session_id: bytes, seen: RowSeen | None) -> None:
        if not self.is_ready:
            self._early.append((session_id, seen))
        elif seen is None:
            self.gateway.row_gone(self.now_ms, session_id)
        else:
            self.gateway.row_seen(self.now_ms, seen)

    # --- effects ---

    def _perform(self) -> None:
        owners, gateway = self._arena.owners, self.gateway
        effects = gateway.drain()
        if not effects:
            return
        for effect in effects:
            if isinstance(effect, Swap):
                self.link.swap(effect.token, effect.session_id, effect.expected, effect.record)
            elif isinstance(effect, Load):
                self.link.load(effect.token, effect.session_id)
            elif isinstance(effect, Send):
                assert isinstance(effect.to, From)
                self._arena.answer(self, effect.to, effect.data)
            elif isinstance(effect, Emit):
                owners.told(self.name, effect)
            elif isinstance(effect, BindSend):
                self.sending.add(effect.session_id)
                owners.bound(self.name, gateway, effect)
            elif isinstance(effect, ReleaseSend):
                self.sending.discard(effect.session_id)
        owners.check_node(self.name, gateway, self.sending)


class Asker:
    """A client with a session, which asks nodes to bind it and reads what they say."""

    def __init__(self, number: int, session: Session, proof: Proof, arena: Arena) -> None:
        self.session, self._proof, self._arena = session, proof, arena
        self._random = arena.random
        self._entropy = SeededEntropy(self._random)
        self.remote = (f"198.51.{number}.1", 40_000)
        self._path = Path(path_info("wlan"), number, 0, POLICY)
        self._attempt: Attempt | None = None
        self.old: list[bytes] = []  # requests that anybody may play again

    def ask(self) -> bytes:
        """The next attempt: of the one before no answer is wanted any more."""
        cause = self._random.choice((Cause.TRANSPORT_DEAD, Cause.RETRY, Cause.SWITCH))
        now_ms = self._arena.world.now_ms
        attempt = make_attempt(
            self.session, self._proof, self._path, cause, now_ms, 0, self._entropy
        )
        self._attempt = attempt
        self.old.append(attempt.packet)
        del self.old[:-20]
        return attempt.packet

    def hear(self, node: Node, packet: bytes) -> None:
        attempt, score = self._attempt, self._arena.score
        if attempt is None:
            return
        if packet[0] == PacketType.REATTACH_REJECT:
            score.refused += read_reject(attempt, packet) is not None
            return
        answer = read_ack(attempt, packet)
        if answer is None:
            return
        keys, ack = answer
        self._arena.owners.check_heard(node.name, self.session.id or b"", keys.epoch)
        self._attempt, self.session.epoch = None, keys.epoch
        its = Credentials(ack.ticket, ack.next_index, self._proof.credentials.reset_key)
        self._proof = Proof(self._proof.root, self._proof.anchor_ms, its)
        score.accepted += 1
        if self._random.random() < 0.5:  # it sends something
            self._arena.heard(node, self.session.id or b"", keys.peer_index)


class Arena:
    """Three nodes and some sessions; all of it follows from the seed."""

    def __init__(self, seed: int) -> None:
        self.score = Score()
        self.random = Random(f"races {seed}")
        self.world, self.owners = World(seed, trace_max=0), Owners()
        self.table = SharedTable(self.world, self.owners)
        self._secret = self.random.randbytes(32)
        self._secrets = [self.random.randbytes(32) for _ in range(CLIENTS)]
        self._entries = [
            ClientEntry(f"c{number}", public_key(secret), (f"10.77.0.{number + 2}/24",))
            for number, secret in enumerate(self._secrets)
        ]
        self.nodes = {
            name: Node(name, self, Link(self.world, self.table, self.random), ahead_ms)
            for name, ahead_ms in zip(NODES, (0, 10**6, 10**9), strict=True)
        }
        self.askers: dict[str, Asker] = {}  # by the address that they have
        self._heard_first: deque[tuple[From, bytes]] = deque()  # before there are askers

    def gateway(self, name: str) -> Gateway:
        entropy = SeededEntropy(self.random)
        sharing = Sharing.STORE
        return Gateway(name, self._secret, self._entries, POLICY, entropy, sharing=sharing)

    # --- births ---

    def open(self) -> None:
        """Every client gets its session, by the handshake that all begin with."""
        self.world.run(100)
        for number, secret in enumerate(self._secrets):
            asker = self._born(number, secret)
            self.askers[asker.remote[0]] = asker
        self.world.run(self.world.now_ms + RACE_MS)

    def _born(self, number: int, secret: bytes) -> Asker:
        identity = Identity(f"c{number}", secret, public_key(self._secret))
        agent = identity.agent(POLICY, SeededEntropy(self.random))
        home, origin = self.nodes[NODES[number % len(NODES)]], From(0, (f"198.51.{number}.1", 1))
        agent.path_added(self.world.now_ms, path_info(f"wlan@{home.name}"))
        while effects := [each for each in agent.drain() if isinstance(each, Send)]:
            for effect in effects:
                home.receive(origin, effect.data)
            self.world.run(self.world.now_ms + 10)
            while self._heard_first:
                _, packet = self._heard_first.popleft()
                agent.packet_received(self.world.now_ms, f"wlan@{home.name}", packet)
        assert agent.session is not None
        return Asker(number, agent.session, agent._state.proof(), self)

    # --- answers ---

    def answer(self, node: Node, to: From, packet: bytes) -> None:
        asker = self.askers.get(to.remote[0])
        if asker is None:
            self._heard_first.append((to, packet))
        elif packet[0] in (PacketType.REATTACH_ACK, PacketType.REATTACH_REJECT):
            if self.random.random() > self._loss:
                late_ms = self.random.randrange(self._spread_ms)
                self.world.at(self.world.now_ms + late_ms, lambda: asker.hear(node, packet))

    def heard(self, node: Node, session_id: bytes, index: int) -> None:
        """DATA of the client came to the node."""
        node.call(lambda: node.gateway.data_heard(node.now_ms, session_id, node.now_ms, index))

    # --- races ---

    _spread_ms = 1  # over which requests and answers come
    _loss = 0.0

    def race(self) -> None:
        """One race, until everything has come to rest."""
        roll, world = self.random, self.world
        asker = list(self.askers.values())[roll.randrange(CLIENTS)]
        self._spread_ms, self._loss = roll.choice((1, 2, 5, 20, 80)), roll.choice((0, 0, 0, 0.3))
        began_ms, conflicts, takeovers = world.now_ms, self.table.conflicts, self.owners.takeovers
        for node in self.nodes.values():
            node.call(lambda node=node: node.gateway.store_seen(node.now_ms, node.now_ms))
            if roll.random() < 0.5:
                self._trouble(node)
        for number in range(roll.choice((1, 1, 2, 3))):
            at_ms = began_ms + (number and roll.randrange(4 * self._spread_ms))
            world.at(at_ms, lambda: self._ask(asker))
        world.run(began_ms + ROUGH_MS)
        self._calm()
        world.run(began_ms + RACE_MS)
        for node in self.nodes.values():
            assert node.is_ready
            self.owners.check_rest(self.table.rows, [(node.name, node.gateway)])
        self.score.races += 1
        self.score.conflicts += self.table.conflicts - conflicts
        self.score.takeovers += self.owners.takeovers - takeovers

    def _ask(self, asker: Asker) -> None:
        """One attempt, to one node or played again to others; and perhaps an older one."""
        roll = self.random
        packet = asker.ask()
        for node in roll.sample(NODES, roll.choice((1, 2, 2, 3))):
            self._send(asker, node, packet)
        if roll.random() < 0.1:
            self._send(asker, roll.choice(NODES), roll.choice(asker.old))

    def _send(self, asker: Asker, name: str, packet: bytes) -> None:
        node, port = self.nodes[name], 40_000 + (self.random.random() < 0.1)
        origin = From(0, (asker.remote[0], port))
        at_ms = self.world.now_ms + self.random.randrange(self._spread_ms)
        self.world.at(at_ms, lambda: node.receive(origin, packet))
        self.score.requests += 1

    def _trouble(self, node: Node) -> None:
        roll, world = self.random, self.world
        node.link.weather = Weather(
            roll.choice((0, 1, 1, 5, 30)),
            roll.choice((0, 2, 10, 50)),
            roll.choice((0.0, 0.0, 0.0, 0.2)),
            roll.random() < 0.04,
        )
        soon_ms = world.now_ms + roll.randrange(2 * self._spread_ms + 5)
        kind = roll.random()
        if kind < 0.03:
            self.score.crashes += 1
            world.at(soon_ms, node.boot)
        elif kind < 0.08:
            self.score.freezes += 1
            world.at(soon_ms, node.freeze)
            world.at(soon_ms + roll.choice((3, 30, 300, 1_400)), node.thaw)
        elif kind < 0.3:
            world.at(soon_ms, node.timer)  # it finds that clients are silent, and writes so

    def _calm(self) -> None:
        for node in self.nodes.values():
            node.thaw()
            node.link.change(CALM)
