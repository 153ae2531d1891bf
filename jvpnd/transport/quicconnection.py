"""One QUIC connection: what its pipe gives becomes DATAGRAM frames, and the other way round.

Frames whose first byte is 0 are the relays' own (tunnel packets begin with 1 to 8): probes of the
size, padded to it, and the short answers to them.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from typing import Any, Final, Protocol

from aioquic.quic import events

from jvpnd.transport.quicengine import LOST_TRACK, MAX_PENDING, Quic
from jvpnd.transport.quicsize import BASE, SIZES_4, SIZES_6, SizeSearch
from jvpnd.transport.quicsocket import MAX_PAYLOAD, UdpSocket

LARGE_LOST: Final = 16  # in a row: has the path become narrower?
MANY_UNACKNOWLEDGED: Final = 8192  # then a datagram in TRICKLE_S, to notice when the path is back
TRICKLE_S: Final = 0.002  # 15000 more before the connection is idle, so LOST_TRACK is far
MIN_TIMER_S: Final = 0.001

_OURS: Final = 0
_PROBE: Final = 1
_ANSWER: Final = 2
_ANSWER_FORMAT: Final = struct.Struct("!BBH")  # _OURS, _ANSWER, length of the probe


class Owner(Protocol):
    """Who holds a connection."""

    def ready(self, connection: Connection) -> None: ...
    def resized(self, connection: Connection) -> None: ...
    def ended(self, connection: Connection, why: str) -> None: ...
    def identified(self, connection: Connection, identity: bytes, added: bool) -> None: ...


class Connection:
    """Given up unless it is ready within `limit_s`."""

    def __init__(
        self, quic: Quic, udp: UdpSocket, remote: Any, limit_s: float, owner: Owner
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._quic = quic
        self._udp = udp
        self._owner = owner
        self._pipe: socket.socket | None = None
        self._reading = False
        self._held_back = False
        self._early: deque[bytes] = deque(maxlen=MAX_PENDING)  # before there is a pipe
        self._search = SizeSearch(_sizes_towards(remote))
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = self._loop.call_later(limit_s, self.close, f"not ready in {limit_s:g} s")
        self._next_probe: asyncio.TimerHandle | None = None
        self._resting = False
        self.remote = remote
        self.size = BASE - quic.overhead  # largest tunnel datagram
        self.is_ready = False
        self.has_ended = False

    # --- from its owner ---

    def start(self) -> None:
        """Begin the handshake, as the client."""
        self._quic.connect(self.remote, now=self._loop.time())
        self._transmit()

    def attach(self, pipe: socket.socket) -> None:
        """Carry this pipe's messages from now on."""
        pipe.setblocking(False)
        self._pipe = pipe
        while self._early and not self.has_ended:
            self._deliver(self._early.popleft())
        self._read_while_room()

    def receive(self, data: bytes, address: Any) -> None:
        """One UDP payload; `flush` follows behind the last of a batch."""
        if self.has_ended:
            return
        try:
            self._quic.receive_datagram(data, address, now=self._loop.time())
        except Exception:  # hostile input that aioquic did not foresee ends this connection only
            self._finish("malformed packet")

    def flush(self) -> None:
        """Act on what came, and send what there is to send."""
        self._search.heard()
        self._take_events()
        self._transmit()

    def close(self, why: str) -> None:
        """End it, and tell the other end."""
        self._quic.close(reason_phrase=why)
        self._transmit()
        self._finish(why)

    # --- QUIC to pipe ---

    def _take_events(self) -> None:
        while not self.has_ended and (event := self._quic.next_event()) is not None:
            if isinstance(event, events.DatagramFrameReceived):
                self._take(event.data)
            elif isinstance(event, events.HandshakeCompleted):
                self._get_ready()
            elif isinstance(event, events.ConnectionIdIssued):
                self._owner.identified(self, event.connection_id, True)
            elif isinstance(event, events.ConnectionIdRetired):
                self._owner.identified(self, event.connection_id, False)

    def _get_ready(self) -> None:
        if not self._quic.takes_datagrams:
            self.close("the other end takes no DATAGRAM frames")
            return
        self._deadline.cancel()
        self.is_ready = True
        self.size = BASE - self._quic.overhead
        self._owner.ready(self)
        self._next_probe = self._loop.call_later(0, self._probe)

    def _take(self, data: bytes) -> None:
        if not data:  # on the pipe it would look like the end
            return
        if data[0] == _OURS:
            self._take_ours(data)
        elif self._pipe is None:
            self._early.append(data)
        else:
            self._deliver(data)

    def _deliver(self, data: bytes) -> None:
        assert self._pipe is not None
        try:
            self._pipe.send(data)
        except BlockingIOError:  # who does not read loses own packets only
            return
        except OSError:
            self.close("closed")

    # --- pipe to QUIC ---

    def _read_while_room(self) -> None:
        """Leave in the pipe, where it costs its sender only, what could not go out."""
        if self._udp.is_full:
            self._udp.when_free(self._transmit)
        room = self._quic.pending < MAX_PENDING and not self._udp.is_full
        wanted = room and not self._held_back
        if self._pipe is None or wanted == self._reading:
            return
        self._reading = wanted
        if wanted:
            self._loop.add_reader(self._pipe, self._read)
        else:
            self._loop.remove_reader(self._pipe)

    def _read(self) -> None:
        assert self._pipe is not None
        try:
            for _ in range(self._allowance()):
                data = self._pipe.recv(MAX_PAYLOAD)
                if not data:
                    self.close("closed")
                    return
                if len(data) <= self.size:
                    self._quic.send_datagram_frame(data)
        except BlockingIOError:
            pass
        except OSError:
            self.close("closed")
            return
        self._transmit()

    def _allowance(self) -> int:
        """How much to read now. Nothing else holds back: there is no congestion control."""
        if self._quic.unacknowledged < MANY_UNACKNOWLEDGED:
            return MAX_PENDING - self._quic.pending
        self._held_back = True
        self._loop.call_later(TRICKLE_S, self._go_on)
        return 1

    def _go_on(self) -> None:
        self._held_back = False
        self._transmit()

    def _transmit(self) -> None:
        if self.has_ended:
            return
        try:
            self._udp.send(self._quic.datagrams_to_send(self._loop.time()))
        except Exception:  # as in receive()
            self._finish("malformed packet")
            return
        why = self._quic.why_ended
        if self._quic.unacknowledged >= LOST_TRACK:
            why = "nothing arrives"
        if why is not None:
            self._finish(why)
            return
        self._read_while_room()
        self._arm()

    # --- time ---

    def _arm(self) -> None:
        """One that goes off too early asks again: cheaper than to move it each time."""
        at = self._quic.get_timer()
        if at is None or (self._timer is not None and self._timer.when() <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        at = max(at, self._loop.time() + MIN_TIMER_S)
        self._timer = self._loop.call_at(at, self._time_passed)

    def _time_passed(self) -> None:
        self._timer = None
        try:
            self._quic.handle_timer(now=self._loop.time())
        except Exception:  # as in receive()
            self._finish("malformed packet")
            return
        if self._quic.lost_large(LARGE_LOST) and self._resting:
            self._probe()
        self._take_events()
        self._transmit()

    # --- size ---

    def _probe(self) -> None:
        if self._next_probe is not None:
            self._next_probe.cancel()
        sizes, wait_s = self._search.tick()
        self._resize()
        self._transmit()
        for size in sizes:
            if self.has_ended or self._quic.pending:
                break
            data = bytes((_OURS, _PROBE))
            self._udp.send(self._quic.probe(size, data, self._loop.time()))
        self._resting = not sizes
        if not self.has_ended:
            self._next_probe = self._loop.call_later(wait_s, self._probe)

    def _take_ours(self, data: bytes) -> None:
        if len(data) < 2 or not self.is_ready:
            return
        if data[1] == _PROBE and self._quic.pending < MAX_PENDING:
            self._quic.send_datagram_frame(_ANSWER_FORMAT.pack(_OURS, _ANSWER, len(data)))
        elif data[1] == _ANSWER and len(data) == _ANSWER_FORMAT.size:
            _ours, _answer, length = _ANSWER_FORMAT.unpack(data)
            self._search.answered(length + self._quic.overhead)
            self._resize()

    def _resize(self) -> None:
        size = self._search.size - self._quic.overhead
        if size != self.size:
            self.size = size
            self._quic.resize(self._search.size)
            self._owner.resized(self)

    def _finish(self, why: str) -> None:
        if self.has_ended:
            return
        self.has_ended = True
        for timer in (self._timer, self._next_probe, self._deadline):
            if timer is not None:
                timer.cancel()
        if self._pipe is not None:
            self._loop.remove_reader(self._pipe)
            self._pipe.close()
        self._owner.ended(self, why)


def _sizes_towards(remote: Any) -> tuple[int, ...]:
    host: str = remote[0]
    return SIZES_4 if "." in host else SIZES_6  # ::ffff:a.b.c.d is IPv4 on the way
