"""A closed world without dice, in which every order of events can be tried.

Two real cores, two paths, a model data plane each. Handshake and reattach packets, and the answers
of a slow session table, are *held* until an action lets one arrive, be lost, be doubled or be
overtaken (smallactions.py). CONTROL and DATA take 10 ms over a path that is not cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from jvpnd.core.channel import ControlChannel
from jvpnd.core.client import ClientAgent
from jvpnd.core.effects import (
    BindReceive,
    BindSend,
    Effect,
    Emit,
    Expect,
    Origin,
    PauseTun,
    ReleaseReceive,
    ReleaseSend,
    SaveTimestamp,
    Send,
    Swap,
    Unexpect,
)
from jvpnd.core.gateway import Gateway, Stored
from jvpnd.core.noise import public_key
from jvpnd.core.path import PathInfo
from jvpnd.core.peer import ClientEntry
from jvpnd.core.policy import Policy
from jvpnd.core.watch import Traffic
from jvpnd.core.wire import PacketType

from .ends import Identity, SeededEntropy
from .plane import Plane

PATHS = ("a", "b")
DELAY_MS = 10
HELD_MAX = 4  # the oldest is lost when there are more
INNER = b"inner packet"
CLIENT_SECRET, GATEWAY_SECRET = bytes(range(32)), bytes(range(32, 64))
# Every bound is within reach of a few actions.
POLICY = Policy(
    session_ttl_ms=9_000,
    transport_loss_ttl_ms=3_000,
    max_recovery_window_ms=1_000,
    max_switches_per_minute=4,
    switch_cooldown_ms=50,
    heartbeat_active_ms=50,
    heartbeat_idle_ms=100,
    volatile_after_ms=200,
    volatile_to_degraded_ms=600,
    stability_window_ms=400,
    loss_window_ms=500,
    proof_max_age_ms=1_500,
    drain_ms=100,
    rekey_after_ms=3_600_000,
)


class Draws:
    """Bytes that never repeat, from a state of a few bytes."""

    def __init__(self, name: str) -> None:
        self._name, self._count = name, 0

    def randbytes(self, count: int) -> bytes:
        self._count += 1
        out = b""
        while len(out) < count:
            out += blake2b(f"{self._name} {self._count} {len(out)}".encode()).digest()
        return out[:count]


class Nonces:
    """The highest counter used under each key by anybody: it only rises."""

    def __init__(self) -> None:
        self.highest: dict[bytes, int] = {}

    def note(self, key: bytes, counter: int) -> None:
        assert counter > self.highest.get(key, -1), f"nonce {counter} used again"
        self.highest[key] = counter


@dataclass(frozen=True)
class Held:
    """A packet under way, or (`swap`) what the session table is about to say."""

    kind: str
    path: str = ""
    up: bool = True
    remote: tuple[str, int] = ("", 0)  # the outside address that it was sent from or to
    data: bytes = b""
    swap: Swap | None = None
    outcome: Stored = Stored.OK
    number: int = 0  # of its kind


class Side:
    """What both ends have: a core, a data plane, and what their events have told."""

    def __init__(self, core: Any, nonces: Nonces) -> None:
        self.core, self.plane = core, Plane(nonces)  # type: ignore[arg-type]
        self.events: list[Emit] = []  # of this step
        self.paused = True  # the client's TUN
        self.retired: dict[int, int] = {}  # receiver index -> when a newer one was bound
        self.told: dict[bytes, tuple[str, int]] = {}  # state and version, by session
        self.switched_ms: dict[bytes, list[int]] = {}
        self.epochs: dict[bytes, int] = {}
        self.opened_with: set[bytes] = set()

    def bind_receive(self, now_ms: int, effect: BindReceive) -> list[Any]:
        assert effect.key not in self.opened_with, "a key is bound again, with an empty window"
        self.opened_with.add(effect.key)
        for index, receiving in self.plane.receiving.items():
            if receiving.binding.session_id == effect.session_id:
                self.retired.setdefault(index, now_ms)
        self.retired.pop(effect.index, None)
        return self.plane.bind_receive(effect)

    def release_receive(self, index: int) -> None:
        self.retired.pop(index, None)
        self.plane.release_receive(index)


class SmallWorld:
    """Client "laptop" and gateway, and all that is between them."""

    now: SmallWorld  # the one that runs, for `watch_control`

    def __init__(self, policy: Policy = POLICY, gateway_policy: Policy | None = None) -> None:
        self.now_ms = 0
        self.policy = policy
        self.gateway_policy = gateway_policy or policy
        self.nonces = Nonces()
        self.timestamp = 0  # the client's disk
        self.table = "quick"
        self.versions: dict[bytes, int] = {}
        self.granted: set[tuple[bytes, int]] = set()  # what the gateway was allowed to write
        self.remotes = {name: (f"198.51.100.{n}", 40_000) for n, name in enumerate(PATHS, 1)}
        self.up = set(PATHS)
        self.cut: set[str] = set()
        self.held: list[Held] = []
        self.flying: list[tuple[int, str, bool, tuple[str, int], bytes]] = []
        self.boots = 0
        self.sent: dict[str, int] = {}
        self.delivered = 0  # inner packets that came back
        self.superseded: str | None = None  # the client's last session, as it should name it
        self.answered: tuple[int, int] | None = None  # bytes to a stranger, for bytes from it
        self.identity = Identity("laptop", CLIENT_SECRET, public_key(GATEWAY_SECRET), has_aes=True)
        self.boot_gateway()
        self.boot_client()

    # --- nodes ---

    def boot_gateway(self) -> None:
        self.boots += 1
        entry = ClientEntry("laptop", public_key(CLIENT_SECRET), ("10.77.0.2/24",))
        entropy = SeededEntropy(Draws(f"gateway {self.boots}"))  # type: ignore[arg-type]
        core = Gateway("gw", GATEWAY_SECRET, [entry], self.gateway_policy, entropy, has_aes=True)
        self.gateway = Side(core, self.nonces)
        self.versions.clear()
        self.held = [held for held in self.held if held.swap is None]

    def boot_client(self) -> None:
        self.boots += 1
        entropy = SeededEntropy(Draws(f"client {self.boots}"))  # type: ignore[arg-type]
        agent = self.identity.agent(self.policy, entropy, self.timestamp)
        self.client, self.superseded = Side(agent, self.nonces), None
        for name in sorted(self.up):
            self.link_up(name)

    @property
    def agent(self) -> ClientAgent:
        agent: ClientAgent = self.client.core
        return agent

    @property
    def gate(self) -> Gateway:
        gateway: Gateway = self.gateway.core
        return gateway

    def link_up(self, name: str) -> None:
        self.up.add(name)
        self.agent.path_added(self.now_ms, PathInfo(name, "udp", name, "local", "remote"))
        self.drain(self.client)

    def link_down(self, name: str) -> None:
        self.up.discard(name)
        self.agent.path_removed(self.now_ms, name, "uplink lost")
        self.drain(self.client)

    # --- effects ---

    def drain(self, side: Side) -> None:
        while effects := side.core.drain():
            for effect in effects:
                self._perform(side, effect)

    def _perform(self, side: Side, effect: Effect) -> None:
        plane = side.plane
        if isinstance(effect, Send):
            self._send(effect)
        elif isinstance(effect, Emit):
            side.events.append(effect)
        elif isinstance(effect, BindSend):
            plane.bind_send(effect)
        elif isinstance(effect, BindReceive):
            for source, packet in side.bind_receive(self.now_ms, effect):
                self._data(side, source, packet)
        elif isinstance(effect, ReleaseSend):
            plane.sending.pop(effect.session_id, None)
        elif isinstance(effect, ReleaseReceive):
            side.release_receive(effect.index)
        elif isinstance(effect, Expect):
            plane.expected.add(effect.index)
        elif isinstance(effect, Unexpect):
            plane.expected.discard(effect.index)
        elif isinstance(effect, PauseTun):
            side.paused = effect.paused
        elif isinstance(effect, SaveTimestamp):
            assert effect.value > self.timestamp, "a handshake timestamp went back"
            self.timestamp = effect.value
        elif isinstance(effect, Swap):
            self._swap(effect)

    def _swap(self, effect: Swap) -> None:
        held = self.versions.get(effect.session_id, 0)
        outcome = Stored.OK if held == effect.expected else Stored.CONFLICT
        if self.table == "conflict":
            outcome = Stored.CONFLICT
        if outcome is Stored.OK:
            self.versions[effect.session_id] = effect.record["state_version"]  # type: ignore[assignment]
        if self.table == "slow":
            self._hold(Held("ANSWER", outcome=outcome, swap=effect))
        else:
            self._answer(effect, outcome)

    def _answer(self, effect: Swap, outcome: Stored) -> None:
        if outcome is Stored.OK:
            self.granted.add((effect.session_id, effect.record["state_version"]))  # type: ignore[arg-type]
        self.gate.store_result(self.now_ms, effect.token, outcome)

    # --- packets ---

    def _send(self, effect: Send) -> None:
        if isinstance(effect.to, Origin):
            remote = effect.to.remote
            path = next((p for p, at in self.remotes.items() if at == remote), None)
            if self.answered is not None:
                asked, said = self.answered
                self.answered = asked, said + len(effect.data)
        else:
            path, remote = effect.to, self.remotes[effect.to]
            assert path in self.up, f"sent over {path}, which is gone"
        if path is not None:
            self._carry(path, not isinstance(effect.to, Origin), remote, effect.data)

    def _carry(self, path: str, up: bool, remote: tuple[str, int], data: bytes) -> None:
        kind = PacketType(data[0])
        if kind in (PacketType.CONTROL, PacketType.DATA):
            if path not in self.cut:
                self.flying.append((self.now_ms + DELAY_MS, path, up, remote, data))
        else:
            self._hold(Held(kind.name, path, up, remote, data))

    def _hold(self, held: Held) -> None:
        number = self.sent[held.kind] = self.sent.get(held.kind, 0) + 1
        self.held.append(Held(**{**held.__dict__, "number": number}))
        if len(self.held) > HELD_MAX:
            self.lose(self.held.pop(0))

    def lose(self, held: Held) -> None:
        if held.swap is not None:
            self._answer(held.swap, Stored.UNAVAILABLE)
            self.drain(self.gateway)

    def arrive(self, held: Held) -> None:
        if held.swap is not None:
            self._answer(held.swap, held.outcome)
            self.drain(self.gateway)
        elif held.path not in self.cut:
            self._arrive(held.path, held.up, held.remote, held.data)

    def _arrive(self, path: str, up: bool, remote: tuple[str, int], data: bytes) -> None:
        is_data = data[0] == PacketType.DATA
        if up and is_data:
            self._data(self.gateway, Origin(0, remote), data)
        elif up:
            self._to_gateway(remote, data)
        elif self.remotes[path] == remote and path in self.up:
            if is_data:
                self._data(self.client, path, data)
            else:
                self.agent.packet_received(self.now_ms, path, data)
                self.drain(self.client)

    def _to_gateway(self, remote: tuple[str, int], data: bytes) -> None:
        known = remote in [peer.origin.remote for peer in self.gate.sessions.values()]
        self.answered = None if known or data[0] == PacketType.CONTROL else (len(data), 0)
        self.gate.packet_received(self.now_ms, Origin(0, remote), data)
        self.drain(self.gateway)
        if self.answered is not None:
            asked, said = self.answered
            assert said <= 3 * asked, f"{said} bytes to a stranger for {asked}"
        self.answered = None

    def _data(self, side: Side, source: Any, packet: bytes) -> None:
        opened = side.plane.open(self.now_ms, source, packet)
        if opened is None:
            return
        session_id, plain = opened
        assert plain == INNER
        if side is self.client:
            self.delivered += 1
            return
        index = side.plane.rx_index
        self.gate.data_heard(self.now_ms, session_id, self.now_ms, index)
        if source != side.plane.receiving[index].binding.to:
            self.gate.heard_from_elsewhere(self.now_ms, index, source)
        self.drain(side)
        self._seal(side, session_id)

    def _seal(self, side: Side, session_id: bytes) -> None:
        sealed = side.plane.seal(self.now_ms, session_id, INNER)
        if sealed is not None:
            self._send(Send(*sealed))

    def talk(self) -> None:
        """A program of the client's sends one packet, if the TUN is read."""
        session = self.agent.session
        if not self.client.paused:
            assert session is not None
            assert session.id in self.client.plane.sending, "the TUN is read, and nothing can send"
            self._seal(self.client, session.id)

    # --- time ---

    def run(self, for_ms: int) -> None:
        """CONTROL and DATA arrive and timers fire; what is held stays where it is."""
        end_ms = self.now_ms + for_ms
        while True:
            client_ms = max(self.now_ms + 1, -int(-self.agent.next_timer_ms(self.now_ms) // 1))
            gateway_ms = max(self.now_ms + 1, -int(-self.gate.next_timer_ms(self.now_ms) // 1))
            flying_ms = self.flying[0][0] if self.flying else end_ms + 1
            next_ms = min(client_ms, gateway_ms, flying_ms)
            if next_ms > end_ms:
                break
            self.now_ms = max(next_ms, self.now_ms)
            if next_ms == flying_ms:
                _, path, up, remote, data = self.flying.pop(0)
                if path not in self.cut:
                    self._arrive(path, up, remote, data)
            elif next_ms == client_ms:
                self._client_timer()
            else:
                self.gate.timer(self.now_ms)
                self.drain(self.gateway)
        self.now_ms = end_ms

    def _client_timer(self) -> None:
        plane = self.client.plane
        times = plane.tx, plane.last_tx_ms, plane.rx, plane.last_rx_ms, plane.rx_index
        self.agent.traffic(self.now_ms, Traffic(*times, *plane.report(), *plane.peer_report))
        self.agent.timer(self.now_ms)
        self.drain(self.client)

    def mend(self, within_ms: int) -> bool:
        """All is well from now on. Whether the session, or a new one, carries packets in time."""
        self.cut.clear()
        self.table = "quick"
        for name in set(PATHS) - self.up:
            self.link_up(name)
        before, end_ms = self.delivered, self.now_ms + within_ms
        while self.now_ms < end_ms:
            while self.held:
                self.arrive(self.held.pop(0))
            self.talk()
            self.run(DELAY_MS)
            if self.is_attached() and self.delivered > before:
                return True
        return False

    def is_attached(self) -> bool:
        """Both ends are, in the same session and epoch."""
        mine = self.agent.session
        peer = self.gate.sessions.get(mine.id or b"") if mine is not None else None
        if mine is None or peer is None:
            return False
        same = mine.epoch == peer.session.epoch
        return same and mine.state == peer.session.state == "ATTACHED"


def watch_control(monkeypatch: Any) -> None:
    """Account for the nonces of CONTROL packets, which the core seals itself."""
    seal = ControlChannel.seal

    def noted(channel: ControlChannel, body: bytes) -> bytes:
        SmallWorld.now.nonces.note(channel._send_key, channel._counter)
        return seal(channel, body)

    monkeypatch.setattr(ControlChannel, "seal", noted)
