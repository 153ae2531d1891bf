"""Client and gateway in the simulated network: the real core, a model data plane, and an echo."""

from __future__ import annotations

import itertools
import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey

from jvpnd.core.client import ClientAgent
from jvpnd.core.effects import (
    BindReceive,
    BindSend,
    Destination,
    Effect,
    Emit,
    Expect,
    Keep,
    Origin,
    PauseTun,
    ReleaseReceive,
    ReleaseSend,
    SaveTimestamp,
    Seek,
    Send,
    Swap,
    Unexpect,
)
from jvpnd.core.entropy import Entropy
from jvpnd.core.gateway import Gateway, Stored
from jvpnd.core.handshake import ClientHandshake, Handshake
from jvpnd.core.nodes import NO_NODE, node_tag
from jvpnd.core.path import PathInfo
from jvpnd.core.policy import Policy
from jvpnd.core.sessionrow import Row
from jvpnd.core.states import State
from jvpnd.core.watch import Traffic
from jvpnd.core.wire import PacketType
from jvpnd.recording.recorder import RecordedAgent, RecordedEntropy, RecordedHandshake
from jvpnd.recording.tape import Tape

from .invariants import LATE_MS, History
from .plane import Ledger, Plane
from .retold import Books
from .world import Packet, Peer, Whereabouts

ECHO_EVERY_MS = 5
QUEUE_MAX = 500  # packets that the kernel keeps while the TUN is left unread
SENT_MAX = 20_000  # packets kept for tests that play them again: half are forgotten beyond that
_ECHO = struct.Struct("<Q")
PUSHED = b"pushed"  # traffic that the gateway sends by itself
SOCKETS = ("udp", "tcp", "tls", "quic")  # what the gateway's socket of this number carries


def path_info(name: str) -> PathInfo:
    """A path is called by its uplink, behind an @ by the node of a cluster to which it leads, and
    behind a slash by its transport if that is not UDP."""
    where, _, transport = name.partition("/")
    uplink, _, node = where.partition("@")
    tag = node_tag(node) if node else NO_NODE
    return PathInfo(name, transport or "udp", uplink, "local", "remote", tag)


@dataclass(frozen=True)
class Identity:
    """Who a client is and whom it trusts."""

    name: str
    secret: bytes
    gateway_public: bytes
    psk: bytes | None = None
    has_aes: bool = False

    def handshake(self, entropy: Entropy) -> Handshake:
        return ClientHandshake(self.secret, self.gateway_public, self.psk, entropy)

    def agent(
        self,
        policy: Policy,
        entropy: Entropy,
        floor: int = 0,
        handshake: Handshake | None = None,
    ) -> ClientAgent:
        handshake = handshake or self.handshake(entropy)
        return ClientAgent(self.name, handshake, policy, entropy, 1e12, floor, self.has_aes)


class SeededEntropy:
    """The boot's dice. ML-KEM cannot be seeded: its bytes, and no more, differ between runs."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def draw(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def encapsulate(self, public_key: bytes) -> tuple[bytes, bytes]:
        return MLKEM768PublicKey.from_public_bytes(public_key).encapsulate()


@dataclass(slots=True)
class Load:
    """The traffic in the tunnel, which both ends look at all the time. An interval of 0 is none."""

    up_every_ms: int = ECHO_EVERY_MS
    answered: bool = True
    down_every_ms: int = 0  # what the gateway sends by itself


@dataclass(slots=True)
class Table:
    """The session table: versions, and how it is just now."""

    versions: dict[bytes, int] = field(default_factory=dict)
    rows: dict[bytes, Row] = field(default_factory=dict)
    late_ms: Callable[[], int] = lambda: 0  # how long it takes to answer
    answer: Stored | None = None  # what it says instead, in tests of its failure

    def swap(self, effect: Swap) -> Stored:
        held = self.versions.get(effect.session_id, 0)
        outcome = Stored.OK if held == effect.expected else Stored.CONFLICT
        outcome = self.answer or outcome
        if outcome is Stored.OK:
            version = effect.record["state_version"]
            assert isinstance(version, int)
            self.versions[effect.session_id] = version
            self.rows[effect.session_id] = effect.record
            if effect.record["state"] == State.TERMINATED:
                del self.versions[effect.session_id], self.rows[effect.session_id]
        return outcome

    def clear(self) -> None:
        self.versions.clear()
        self.rows.clear()


def _destination(source: Whereabouts) -> Destination:
    if isinstance(source, str):
        return source
    return Origin(source.socket_id, source.remote, SOCKETS[source.socket_id])


def _whereabouts(to: Destination) -> Whereabouts:
    return to if isinstance(to, str) else Peer(to.socket_id, to.remote)


class _End(ABC):
    """What both ends share: perform effects in order, collect packets, keep the history."""

    def __init__(self, core: Any, ledger: Ledger, history: History, load: Load) -> None:
        self.core, self.plane, self.history, self.load = core, Plane(ledger), history, load
        self.inspected = core  # what the history has to agree with
        self.now_ms = 0
        self.books = Books()
        self._out: list[Packet] = []
        self.sent: list[bytes] = []  # everything but DATA, for tests that play it again

    def receive(self, now_ms: int, source: Whereabouts, data: bytes) -> None:
        self.now_ms = now_ms
        if data and data[0] == PacketType.DATA:
            self._data(_destination(source), data)
        else:
            self.core.packet_received(now_ms, _destination(source), data)

    def drain(self) -> list[Packet]:
        while effects := self.core.drain():
            for effect in effects:
                self._perform(effect)
        self._check()
        out, self._out = self._out, []
        return out

    def _perform(self, effect: Effect) -> None:
        plane = self.plane
        if isinstance(effect, Send):
            self._out.append(Packet(_whereabouts(effect.to), effect.data))
            self.sent.append(effect.data)
            self.books.sent(effect.data)
            if len(self.sent) > SENT_MAX:
                del self.sent[: SENT_MAX // 2]
        elif isinstance(effect, Emit):
            self.history.note(self.now_ms, effect)
            self.books.told(effect)
        elif isinstance(effect, BindSend):
            plane.bind_send(effect)
        elif isinstance(effect, BindReceive):
            for source, packet in plane.bind_receive(effect):
                self._data(source, packet)
        elif isinstance(effect, ReleaseSend):
            plane.sending.pop(effect.session_id, None)
        elif isinstance(effect, ReleaseReceive):
            plane.release_receive(effect.index)
        elif isinstance(effect, Expect):
            plane.expected.add(effect.index)
        elif isinstance(effect, Unexpect):
            plane.expected.discard(effect.index)
        else:
            self._perform_own(effect)

    def _check(self) -> None:
        self.history.check(self.inspected, self.now_ms)
        self.books.check(self.inspected.dropped)

    def _send_data(self, session_id: bytes, plain: bytes) -> bool:
        sealed = self.plane.seal(self.now_ms, session_id, plain)
        if sealed is not None:
            self._out.append(Packet(_whereabouts(sealed[0]), sealed[1]))
        return sealed is not None

    @abstractmethod
    def _perform_own(self, effect: Effect) -> None:
        """Effects that only one of the ends has."""

    @abstractmethod
    def _data(self, source: Destination, packet: bytes) -> None:
        """DATA came in."""


class ClientEnd(_End):
    """A client that sends an echo every 5 ms while `busy`; `disk` survives its crashes."""

    def __init__(
        self,
        random: Random,
        identity: Identity,
        policy: Policy,
        paths: list[str],
        ledger: Ledger,
        history: History,
        disk: dict[str, int],
        load: Load,
        tape: Tape | None = None,
        kept: list[Row] | None = None,
    ) -> None:
        """`kept`: what it keeps of its session, the newest last; None: nothing."""
        seeded, floor = SeededEntropy(random), disk.get("timestamp", 0)
        core: ClientAgent | RecordedAgent
        if tape is None:
            agent = core = identity.agent(policy, seeded, floor)
        else:
            entropy = RecordedEntropy(seeded, tape)
            handshake = RecordedHandshake(identity.handshake(seeded), tape)
            agent = identity.agent(policy, entropy, floor, handshake)
            core = RecordedAgent(agent, tape, entropy, handshake)
        super().__init__(core, ledger, history, load)
        self.agent = self.inspected = agent
        self.busy = True
        self._disk = disk
        self._kept = kept
        self._paths = paths
        self._paused = True
        self._queue: deque[bytes] = deque(maxlen=QUEUE_MAX)
        self._number = 0
        self._next_echo_ms = 0
        self.sent_ms: dict[int, int] = {}
        self.back_ms: list[int] = []  # when echoes came back, in order
        self.lost: set[int] = set()
        self.sought: list[tuple[int, bool]] = []  # when more paths were wanted, and no longer

    def start(self, now_ms: int) -> None:
        self.now_ms = self._next_echo_ms = now_ms
        if self._kept:
            assert self.agent.restore(now_ms, self._kept[-1])
        for name in self._paths:
            self.add_path(now_ms, name)

    def add_path(self, now_ms: int, name: str) -> None:
        self.now_ms = now_ms
        self.core.path_added(now_ms, path_info(name))

    def remove_path(self, now_ms: int, name: str) -> None:
        self.now_ms = now_ms
        self.core.path_removed(now_ms, name, "uplink lost")

    def loaded(self, now_ms: int) -> None:
        """The load is another one now."""
        self.now_ms = self._next_echo_ms = now_ms

    def next_timer_ms(self) -> int:
        core_ms = -int(-self.core.next_timer_ms(self.now_ms) // 1)
        core_ms = max(core_ms, self.now_ms + 1)
        return min(core_ms, max(self._next_echo_ms, self.now_ms)) if self._asks() else core_ms

    def _asks(self) -> bool:
        return self.busy and self.load.up_every_ms > 0

    def timer(self, now_ms: int) -> None:
        self.now_ms = now_ms
        if self._asks() and now_ms >= self._next_echo_ms:
            self._next_echo_ms = now_ms + self.load.up_every_ms
            self._number += 1
            self.sent_ms[self._number] = now_ms
            self.lost.add(self._number)
            self._queue.append(_ECHO.pack(self._number))
            self._read_tun()
        plane = self.plane
        self.core.traffic(
            now_ms,
            Traffic(
                plane.tx,
                plane.last_tx_ms,
                plane.rx,
                plane.last_rx_ms,
                plane.rx_index,
                *plane.report(),
                *plane.peer_report,
            ),
        )
        self.core.timer(now_ms)
        self.history.check_bounds(self.agent, now_ms)

    def _check(self) -> None:
        super()._check()
        reading, session = not self._paused, self.agent.session
        if reading and session is not None:
            assert session.id in self.plane.sending, "the TUN is read, and nothing can send"

    def _read_tun(self) -> None:
        while self._queue and not self._paused:
            session = self.agent.session
            if session is None or session.id is None:
                self._queue.clear()
            else:
                self._send_data(session.id, self._queue.popleft())

    def _data(self, source: Destination, packet: bytes) -> None:
        opened = self.plane.open(self.now_ms, source, packet)
        if opened is not None and opened[1] != PUSHED:
            (number,) = _ECHO.unpack(opened[1])
            assert number in self.lost, f"echo {number} delivered twice"
            self.lost.discard(number)
            self.back_ms.append(self.now_ms)

    def _perform_own(self, effect: Effect) -> None:
        if isinstance(effect, PauseTun):
            self._paused = effect.paused
            self._read_tun()
        elif isinstance(effect, SaveTimestamp):
            assert effect.value > self._disk.get("timestamp", 0)
            self._disk["timestamp"] = effect.value
        elif isinstance(effect, Keep):
            if self._kept is not None:
                self._kept[:] = [effect.row]
        elif isinstance(effect, Seek):
            self.sought.append((self.now_ms, effect.wanted))

    def longest_gap_ms(self, since_ms: int) -> int:
        """The longest time between two echoes that came back, from `since_ms` to now."""
        times = [t for t in self.back_ms if t >= since_ms]
        before = [t for t in self.back_ms if t < since_ms][-1:]
        times = [*(before or [since_ms]), *times, self.now_ms]
        return max(later - earlier for earlier, later in itertools.pairwise(times))


class GatewayEnd(_End):
    """A gateway that answers echoes."""

    def __init__(
        self, gateway: Gateway, ledger: Ledger, history: History, load: Load, table: Table
    ) -> None:
        super().__init__(gateway, ledger, history, load)
        self.gateway: Gateway = gateway
        self.table = table
        self._answers: list[tuple[int, int, Stored]] = []  # at, token, outcome
        self._next_push_ms = 0
        self._slow_until_ms = -1

    def start(self, now_ms: int) -> None:
        self.now_ms = self._next_push_ms = now_ms
        self.history.restored(self.table.rows.values())
        assert self.gateway.restore(now_ms, list(self.table.rows.values())) == []

    def loaded(self, now_ms: int) -> None:
        """The load is another one now."""
        self.now_ms = self._next_push_ms = now_ms

    def next_timer_ms(self) -> int:
        core_ms = max(self.now_ms + 1, -int(-self.gateway.next_timer_ms(self.now_ms) // 1))
        pushes = [max(self._next_push_ms, self.now_ms)] if self.load.down_every_ms else []
        return min([core_ms, *(at_ms for at_ms, _, _ in self._answers), *pushes])

    def timer(self, now_ms: int) -> None:
        self.now_ms = now_ms
        for answer in sorted(a for a in self._answers if a[0] <= now_ms):
            self._answers.remove(answer)
            self._stored(*answer[1:])
        if self.load.down_every_ms and now_ms >= self._next_push_ms:
            self._next_push_ms = now_ms + self.load.down_every_ms
            self.push(now_ms)
        self.core.timer(now_ms)
        self.history.check_bounds(self.gateway, now_ms, now_ms > self._slow_until_ms)

    def push(self, now_ms: int) -> None:
        """Send something to every client without being asked."""
        self.now_ms = now_ms
        for session_id in self.gateway.sessions:
            self._send_data(session_id, PUSHED)

    def _data(self, source: Destination, packet: bytes) -> None:
        opened = self.plane.open(self.now_ms, source, packet)
        if opened is None:
            return
        session_id, plain = opened
        index = self.plane.rx_index
        self.gateway.data_heard(self.now_ms, session_id, self.now_ms, index)
        if source != self.plane.receiving[index].binding.to:
            assert isinstance(source, Origin)
            self.gateway.heard_from_elsewhere(self.now_ms, index, source)
        if self.load.answered:
            self._answer(session_id, plain)

    def _answer(self, session_id: bytes, plain: bytes) -> None:
        self._send_data(session_id, plain)

    def _perform_own(self, effect: Effect) -> None:
        if not isinstance(effect, Swap):
            return
        outcome, late_ms = self.table.swap(effect), self.table.late_ms()
        if late_ms:
            self._slow_until_ms = self.now_ms + late_ms + LATE_MS
            self._answers.append((self.now_ms + late_ms, effect.token, outcome))
        else:
            self._stored(effect.token, outcome)

    def _stored(self, token: int, outcome: Stored) -> None:
        self.books.stored(outcome)
        self.gateway.store_result(self.now_ms, token, outcome)
