"""A network in virtual time: seeded, so that the same seed and script give the same run.

A *node* runs one sans-IO endpoint, which can crash and boot again. A *path* joins its near end (a
client behind a NAT) to a socket of its far end (a gateway): the near end names the path it sends
over, the far end sees a `Peer` and answers to that. Whole milliseconds; what happens in the same
millisecond happens in the order in which it was scheduled.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

Address: TypeAlias = tuple[str, int]
Direction: TypeAlias = Literal["up", "down"]

MAX_EVENTS_PER_MS = 10_000  # more in one millisecond is a loop that makes no progress
FROZEN_MAX = 500  # what a node's kernel keeps for it while its process stands still


@dataclass(frozen=True, slots=True)
class Peer:
    """The near end of a path as its far end sees it: through this socket, from this address."""

    socket_id: int
    remote: Address


Whereabouts: TypeAlias = str | Peer  # a path's name at its near end, a Peer at its far end


@dataclass(frozen=True, slots=True)
class Packet:
    """What an endpoint sends."""

    to: Whereabouts
    data: bytes


class Endpoint(Protocol):
    """An adapter around a core object. The world drains it after each call and rearms its timer."""

    def start(self, now_ms: int) -> None:
        """The node has booted."""

    def receive(self, now_ms: int, source: Whereabouts, data: bytes) -> None:
        """A packet has come in."""

    def next_timer_ms(self) -> int | None:
        """When `timer` wants to be called, None for never."""

    def timer(self, now_ms: int) -> None:
        """The deadline has come."""

    def drain(self) -> list[Packet]:
        """Take what is to be sent, in order. Every other effect is the adapter's to perform."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """One direction of a path. Jitter is uniform from 0 on top of the delay, so it reorders. With
    `burst_ms`, time is cut into pieces of that length, and a share `loss` of them lose everything.
    """

    delay_ms: int = 20
    jitter_ms: int = 0
    loss: float = 0.0
    duplicate: float = 0.0
    blackhole: bool = False
    burst_ms: int = 0


BLACKHOLE = Conditions(blackhole=True)


@dataclass(slots=True)
class Path:
    """Change `up` (near to far) and `down` at any time: packets sent from then on feel it."""

    name: str
    near: str
    far: str
    socket_id: int
    remote: Address  # the NAT's outside address; World.rebind changes it
    up: Conditions
    down: Conditions
    random: dict[Direction, Random] = field(repr=False)

    @property
    def peer(self) -> Peer:
        return Peer(self.socket_id, self.remote)

    def cut(self) -> None:
        """Nothing gets through any more, either way."""
        self.up = self.down = BLACKHOLE


@dataclass(slots=True)
class _Node:
    name: str
    boot: Callable[[Random], Any]
    boots: int = 0
    endpoint: Any = None  # None while it is down
    timer_ms: int | None = None  # armed for
    timer_token: int = 0  # an older timer in the queue is void
    held: deque[Callable[[Any, int], None]] | None = None  # calls to come, while it stands still


class StuckError(Exception):
    """The simulation makes no progress, or what was waited for does not come."""


class Line(NamedTuple):
    """One line of the trace: what happened to which path or node, and to how many bytes of what."""

    at_ms: int
    what: str
    subject: str
    kind: int = -1  # first byte of the packet
    length: int = 0


class World:
    """The event queue, the nodes and the paths between them."""

    def __init__(self, seed: int, trace_max: int | None = None) -> None:
        """Of the trace only the last `trace_max` lines are kept (None: all)."""
        self.seed = seed
        self.now_ms = 0
        self.trace: deque[Line] = deque(maxlen=trace_max)
        self.paths: dict[str, Path] = {}
        self._nodes: dict[str, _Node] = {}
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()

    # Building

    def add_node(self, name: str, boot: Callable[[Random], Endpoint]) -> None:
        """Boot a node. `boot` makes its endpoint, now and after each crash, from a seeded source of
        randomness that differs each time; what survives a crash is what `boot` keeps outside."""
        self._nodes[name] = _Node(name, boot)
        self.restart(name)

    def add_path(
        self,
        name: str,
        near: str,
        far: str,
        remote: Address,
        socket_id: int = 0,
        up: Conditions = Conditions(),
        down: Conditions = Conditions(),
    ) -> Path:
        """Join two nodes. Each direction has dice of its own, thrown equally often whatever the
        conditions, so that a change on one path leaves the fate of all other packets alone."""
        dice: dict[Direction, Random] = {
            "up": Random(f"{self.seed}/{name}/up"),
            "down": Random(f"{self.seed}/{name}/down"),
        }
        path = Path(name, near, far, socket_id, remote, up, down, dice)
        if self._path_of(far, path.peer) is not None:
            raise ValueError(f"path {name}: {path.peer} is taken")
        self.paths[name] = path
        return path

    # Steering

    def at(self, time_ms: int, action: Callable[[], None]) -> None:
        """Do this then; a time in the past means at once."""
        heapq.heappush(self._queue, (max(time_ms, self.now_ms), next(self._order), action))

    def endpoint(self, name: str) -> Any:
        """The running endpoint (of the type that `boot` made), None while the node is down."""
        return self._nodes[name].endpoint

    def is_running(self, name: str) -> bool:
        """Neither down nor frozen."""
        return self._nodes[name].endpoint is not None and self._nodes[name].held is None

    def call(self, name: str, action: Callable[[Any, int], None]) -> None:
        """Call the endpoint with the time and send what comes of it; nothing if it is down, and
        later if it is frozen."""
        node = self._nodes[name]
        if node.endpoint is None:
            return
        if node.held is not None:
            if len(node.held) < FROZEN_MAX:
                node.held.append(action)
            return
        action(node.endpoint, self.now_ms)
        for packet in node.endpoint.drain():
            self._send(node, packet)
        self._arm(node)

    def crash(self, name: str) -> None:
        """The node is gone in this instant, with its timers; packets to it are lost."""
        node = self._nodes[name]
        node.endpoint = node.timer_ms = node.held = None
        node.timer_token += 1
        self._note("crash", name)

    def freeze(self, name: str) -> None:
        """The node's process stands still (SIGSTOP, suspend): packets, timers and orders wait."""
        node = self._nodes[name]
        if node.endpoint is not None and node.held is None:
            node.held = deque()
            self._note("freeze", name)

    def thaw(self, name: str) -> None:
        """It goes on: everything that waited comes at once, in the order in which it came."""
        held, self._nodes[name].held = self._nodes[name].held, None
        if held is not None:
            self._note("thaw", name)
            for action in held:
                self.call(name, action)

    def restart(self, name: str) -> None:
        """Boot the node anew, crashing it first if it runs."""
        node = self._nodes[name]
        if node.endpoint is not None:
            self.crash(name)
        node.boots += 1
        self._note("boot", name)
        node.endpoint = node.boot(Random(f"{self.seed}/{name}/{node.boots}"))
        self.call(name, lambda endpoint, now_ms: endpoint.start(now_ms))

    def rebind(self, name: str) -> Address:
        """The NAT of a path gives it a new outside port: answers to the old one get nowhere, also
        those that are on their way."""
        path = self.paths[name]
        host, port = path.remote
        while self._path_of(path.far, Peer(path.socket_id, (host, port))) is not None:
            port = port % 65535 + 1
        path.remote = (host, port)
        self._note("rebind", name)
        return path.remote

    def inject(
        self, name: str, direction: Direction, data: bytes, remote: Address | None = None
    ) -> None:
        """An attacker's packet arrives at once, as if over this path or (up) from `remote`."""
        path = self.paths[name]
        self._note("inject", f"{name} {direction}", data)
        if direction == "up":
            peer = Peer(path.socket_id, remote or path.remote)
            self.at(self.now_ms, lambda: self._deliver_up(path, peer, data))
        else:
            self.at(self.now_ms, lambda: self._deliver_down(path, path.remote, data))

    # Running

    def run(self, until_ms: int) -> None:
        """Let everything up to and including that time happen."""
        self._advance(until_ms, lambda: False)
        self.now_ms = max(self.now_ms, until_ms)

    def run_until(self, condition: Callable[[], bool], limit_ms: int) -> int:
        """Run until the condition holds and return the time. StuckError if it still does not hold
        at `limit_ms` (a time, not a duration)."""
        if not self._advance(limit_ms, condition):
            tail = "\n".join(map(str, list(self.trace)[-20:]))
            raise StuckError(f"condition not met at {limit_ms} ms; the trace ends with\n{tail}")
        return self.now_ms

    def count(self, what: str, subject: str) -> int:
        """How often the trace has this."""
        return sum((line.what, line.subject) == (what, subject) for line in self.trace)

    def _advance(self, until_ms: int, condition: Callable[[], bool]) -> bool:
        events = 0
        while not condition():
            if not self._queue or self._queue[0][0] > until_ms:
                return False
            at_ms, _, action = heapq.heappop(self._queue)
            events = events + 1 if at_ms == self.now_ms else 1
            if events > MAX_EVENTS_PER_MS:
                raise StuckError(f"more than {MAX_EVENTS_PER_MS} events at {at_ms} ms")
            self.now_ms = at_ms
            action()
        return True

    # Inside

    def _send(self, node: _Node, packet: Packet) -> None:
        if isinstance(packet.to, str):
            path = self.paths[packet.to]
            if path.near != node.name:
                raise ValueError(f"{node.name} sends over {path.name}, a path of {path.near}")
            peer = path.peer
            self._travel(path, "up", packet, lambda: self._deliver_up(path, peer, packet.data))
            return
        found = self._path_of(node.name, packet.to)
        if found is None:
            self._note("no mapping", node.name, packet.data)
            return
        remote = found.remote
        self._travel(found, "down", packet, lambda: self._deliver_down(found, remote, packet.data))

    def _travel(
        self, path: Path, direction: Direction, packet: Packet, deliver: Callable[[], None]
    ) -> None:
        """Throw the dice for one packet and schedule what is left of it."""
        conditions = path.up if direction == "up" else path.down
        roll = path.random[direction].random
        lost, doubled, *jitters = roll(), roll(), roll(), roll()
        where = f"{path.name} {direction}"
        if conditions.burst_ms:
            piece = self.now_ms // conditions.burst_ms
            lost = Random(f"{self.seed}/{where}/{piece}").random()
        self._note("send", where, packet.data)
        if conditions.blackhole or lost < conditions.loss:
            self._note("lost", where, packet.data)
            return
        for jitter in jitters if doubled < conditions.duplicate else jitters[:1]:
            late_ms = int(jitter * (conditions.jitter_ms + 1))
            self.at(self.now_ms + conditions.delay_ms + late_ms, deliver)

    def _deliver_up(self, path: Path, peer: Peer, data: bytes) -> None:
        self._deliver(path, "up", path.far, peer, data)

    def _deliver_down(self, path: Path, remote: Address, data: bytes) -> None:
        if remote == path.remote:
            self._deliver(path, "down", path.near, path.name, data)
        else:
            self._note("no mapping", f"{path.name} down", data)

    def _deliver(
        self, path: Path, direction: Direction, to: str, source: Whereabouts, data: bytes
    ) -> None:
        up = self._nodes[to].endpoint is not None
        self._note("deliver" if up else "node down", f"{path.name} {direction}", data)
        self.call(to, lambda endpoint, now_ms: endpoint.receive(now_ms, source, data))

    def _arm(self, node: _Node) -> None:
        deadline_ms = node.endpoint.next_timer_ms()
        if deadline_ms == node.timer_ms:
            return
        node.timer_ms = deadline_ms
        node.timer_token += 1
        token = node.timer_token
        if deadline_ms is not None:
            self.at(deadline_ms, lambda: self._fire(node, token))

    def _fire(self, node: _Node, token: int) -> None:
        if token != node.timer_token:
            return
        node.timer_ms = None
        self._note("timer", node.name)
        self.call(node.name, lambda endpoint, now_ms: endpoint.timer(now_ms))

    def _path_of(self, far: str, peer: Peer) -> Path | None:
        for path in self.paths.values():
            if path.remote == peer.remote and path.far == far and path.socket_id == peer.socket_id:
                return path
        return None

    def _note(self, what: str, subject: str, data: bytes = b"") -> None:
        kind = data[0] if data else -1
        self.trace.append(Line(self.now_ms, what, subject, kind, len(data)))
