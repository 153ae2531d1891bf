"""A client with two paths to a gateway, ready to be mistreated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from jvpnd.core.client import ClientAgent
from jvpnd.core.gateway import Gateway
from jvpnd.core.noise import public_key
from jvpnd.core.peer import ClientEntry
from jvpnd.core.policy import Policy
from jvpnd.core.session import Session
from jvpnd.core.sessionrow import Row
from jvpnd.core.states import State
from jvpnd.recording.tape import Tape

from .ends import SOCKETS, ClientEnd, GatewayEnd, Identity, Load, SeededEntropy, Table, path_info
from .invariants import History
from .plane import Ledger
from .world import Conditions, World

PATHS = ("wlan", "wwan")
ADDRESS = ("10.77.0.2/24", "fd77::2/64")
WELL = Conditions(delay_ms=10)


class Net:
    """The world of most tests. `policy` holds on both ends, if the gateway has none of its own."""

    def __init__(
        self,
        seed: int = 1,
        policy: Policy | None = None,
        conditions: Conditions = WELL,
        tape: Callable[[], Tape] | None = None,
        paths: Sequence[str] = PATHS,
        gateway_policy: Policy | None = None,
        load: Load | None = None,
        trace_max: int | None = None,
        keeps: bool = False,
    ) -> None:
        """`tape` makes one for each boot of the client; `self.tape` is the newest. `keeps`: what
        the nodes keep of their sessions survives a crash, as in /run; else it is a reboot."""
        self.kept: list[Row] | None = [] if keeps else None
        self._new_tape = tape
        self.tape: Tape | None = None
        self.policy = policy or Policy()
        self.gateway_policy = gateway_policy or self.policy
        self.load = load or Load()
        self.world = World(seed, trace_max)
        self.ledger = Ledger()
        self.client_history, self.gateway_history = History(), History()
        self.disk: dict[str, int] = {}
        self.table = Table()
        dice = Random(seed)
        self.secret, self.gateway_secret = dice.randbytes(32), dice.randbytes(32)
        self.identity = Identity(
            "laptop", self.secret, public_key(self.gateway_secret), has_aes=True
        )
        self.entry = ClientEntry("laptop", public_key(self.secret), ADDRESS)
        self.up = set(paths)
        self.world.add_node("gateway", self._boot_gateway)
        for number, name in enumerate(paths, start=1):
            remote, into = (f"198.51.100.{number}", 40000), SOCKETS.index(path_info(name).transport)
            self.world.add_path(name, "client", "gateway", remote, into, conditions, conditions)
        self.world.add_node("client", self._boot_client)

    def _boot_client(self, random: Random) -> ClientEnd:
        if not self.kept:
            self.client_history.rebooted()
        if self._new_tape is not None:
            self.tape = self._new_tape()
        return ClientEnd(
            random,
            self.identity,
            self.policy,
            sorted(self.up),
            self.ledger,
            self.client_history,
            self.disk,
            self.load,
            self.tape,
            self.kept,
        )

    def _boot_gateway(self, random: Random) -> GatewayEnd:
        if self.kept is None:
            self.table.clear()
            self.gateway_history.retold.rebooted()
        secret, entropy = self.gateway_secret, SeededEntropy(random)
        gateway = Gateway("gw", secret, [self.entry], self.gateway_policy, entropy, has_aes=True)
        return GatewayEnd(gateway, self.ledger, self.gateway_history, self.load, self.table)

    @property
    def client(self) -> ClientEnd:
        end = self.world.endpoint("client")
        assert isinstance(end, ClientEnd)
        return end

    @property
    def gateway(self) -> GatewayEnd:
        end = self.world.endpoint("gateway")
        assert isinstance(end, GatewayEnd)
        return end

    @property
    def agent(self) -> ClientAgent:
        return self.client.agent

    @property
    def session(self) -> Session:
        assert self.agent.session is not None
        return self.agent.session

    @property
    def now_ms(self) -> int:
        return self.world.now_ms

    @property
    def bound(self) -> str:
        assert self.agent.bound is not None
        return self.agent.bound.id

    def lines(self) -> list[str]:
        """What is on the tape."""
        assert self.tape is not None
        return self.tape.lines()

    def run(self, for_ms: int) -> None:
        self.world.run(self.world.now_ms + for_ms)

    def attach(self) -> bytes:
        """Run until attached on both ends and settled; returns the SessionID."""
        self.world.run_until(self.is_attached, self.now_ms + 20_000)
        self.run(1_500)
        assert self.session.id is not None
        return self.session.id

    def is_attached(self) -> bool:
        end = self.world.endpoint("client")
        session = end.agent.session if end is not None else None
        return (
            session is not None
            and session.state is State.ATTACHED
            and session.id in self.gateway.gateway.sessions
        )

    def link_down(self, name: str) -> None:
        """The uplink goes, and the client's kernel says so."""
        self.up.discard(name)
        self.world.call("client", lambda end, now_ms: end.remove_path(now_ms, name))

    def link_up(self, name: str) -> None:
        self.up.add(name)
        self.world.call("client", lambda end, now_ms: end.add_path(now_ms, name))

    def blackhole(self, name: str) -> None:
        self.world.paths[name].cut()

    def heal(self, name: str, conditions: Conditions = WELL) -> None:
        self.world.paths[name].up = self.world.paths[name].down = conditions
