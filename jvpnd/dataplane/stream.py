"""Packets on a byte stream, each behind its length. A stream has one reader and one writer.

The reader is the downlink of lane 0, the writer the uplink of lane 0: a packet that was written in
part must be finished before the next one begins. Whoever else has something to send (control, the
uplinks of other lanes) gives it to the writer whole, through a SOCK_SEQPACKET pair, its feed.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from jvpnd.core.wire import (
    HEADER,
    HEADER_LEN,
    MAX_CONTROL_LEN,
    STREAM_LENGTH,
    PacketType,
)
from jvpnd.dataplane.seal import MAX_RECORD, OVERHEAD

MAX_PACKET: Final = MAX_RECORD + OVERHEAD
READ_BYTES: Final = 256 * 1024  # of one read
FEEDS_A_TURN: Final = 16

_PREFIX: Final = STREAM_LENGTH.size
_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_DATA: Final = int(PacketType.DATA)


class StreamError(Exception):
    """What came is no sequence of packets: the rest of the stream means nothing."""


class StreamReader:
    """Cuts what one stream brings into packets; it keeps no more than the beginning of one.

    Only DATA that somebody waits for may be longer than control's packets: what else is longer is
    left out unread, so that many strangers cost little memory.
    """

    def __init__(self, stream: socket.socket, is_awaited: Callable[[int], bool]) -> None:
        """`is_awaited`: whether DATA with this receiver index may come now."""
        self._stream = stream
        self._is_awaited = is_awaited
        self._rest = b""
        self._leaving_out = 0  # bytes yet to come of a packet that nobody wants
        self.left_out = 0  # packets

    def read(self, memory: memoryview) -> Iterator[memoryview]:
        """Read once, and give the packets that are complete, as views of `memory`, which has room
        for a packet and READ_BYTES.

        Raises BlockingIOError if there is nothing now, EOFError at the end, StreamError, OSError.
        """
        end = len(self._rest)
        memory[:end] = self._rest
        size = self._stream.recv_into(memory[end : end + READ_BYTES], 0, socket.MSG_DONTWAIT)
        if size == 0:
            raise EOFError
        return self._packets(memory[: end + size])

    def _packets(self, memory: memoryview) -> Iterator[memoryview]:
        at, end = self._leave_out(0, len(memory)), len(memory)
        while end - at >= _PREFIX:
            (length,) = STREAM_LENGTH.unpack_from(memory, at)
            begin = at + _PREFIX
            if not 0 < length <= MAX_PACKET:
                raise StreamError
            if length > MAX_CONTROL_LEN and self._is_unwanted(memory, begin):
                self.left_out += 1
                self._leaving_out = length
                at = self._leave_out(begin, end)
                continue
            if end - begin < length:
                break
            at = begin + length
            yield memory[begin:at]
        self._rest = bytes(memory[at:])

    def _leave_out(self, at: int, end: int) -> int:
        size = min(self._leaving_out, end - at)
        self._leaving_out -= size
        return at + size

    def _is_unwanted(self, memory: memoryview, begin: int) -> bool:
        if len(memory) - begin < HEADER_LEN:
            return False  # that is not known yet, and so little is kept
        kind, _lane, _parts, index, _counter = HEADER.unpack_from(memory, begin)
        return kind != _DATA or not self._is_awaited(index)


class StreamWriter:
    """The writer of one stream. What the stream did not take of a packet goes first; so long the
    feed waits."""

    def __init__(
        self, stream: socket.socket, feed: socket.socket, poll: select.epoll
    ) -> None:
        """`feed`: our end. `poll` says when to call `ready`: for either descriptor."""
        self.stream = stream
        self._feed = feed
        self._poll = poll
        self._rest = memoryview(b"")
        self._polled = feed
        poll.register(feed, select.EPOLLIN)

    def descriptors(self) -> tuple[int, int]:
        return self.stream.fileno(), self._feed.fileno()

    def send(self, data: Sequence[memoryview]) -> None:
        """Send one packet, in pieces. BlockingIOError: nothing of it was taken; OSError."""
        # The feed has waited as long as we have, and has the probes.
        if self._rest and not self._go_on(1):
            raise BlockingIOError(errno.EAGAIN, "the stream is full")
        self._begin([STREAM_LENGTH.pack(sum(map(len, data))), *data])

    def ready(self) -> None:
        """The stream takes more, or the feed has something. That the stream is over is told by who
        reads it."""
        with contextlib.suppress(OSError):
            self._go_on(FEEDS_A_TURN)

    def close(self) -> None:
        self._poll.unregister(self._polled)
        self._feed.close()
        self.stream.close()

    def _go_on(self, most: int) -> bool:
        """Send what is left of a packet, then at most so many of the feed's; whether the stream has
        taken it all."""
        if self._rest and not self._push():
            return False
        for _ in range(most):
            try:
                packet = self._feed.recv(MAX_PACKET, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            if not packet:  # control has given it up, and says so in a moment
                break
            pieces = [STREAM_LENGTH.pack(len(packet)), packet]
            try:
                self._begin(pieces)
            except BlockingIOError:
                self._keep(pieces, 0)
            if self._rest:
                return False
        return True

    def _begin(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Send what the stream takes of a packet, which is something, or BlockingIOError."""
        sent = self.stream.sendmsg(pieces, (), _FLAGS)
        if sent < sum(map(len, pieces)):
            self._keep(pieces, sent)

    def _keep(self, pieces: Sequence[bytes | memoryview], sent: int) -> None:
        self._rest = memoryview(b"".join(pieces))[sent:]
        self._look_at(self.stream, select.EPOLLOUT)

    def _push(self) -> bool:
        """Send what is left of a packet; whether all of it went out."""
        try:
            sent = self.stream.send(self._rest, _FLAGS)
        except BlockingIOError:
            return False
        except OSError:  # the stream is over, and with it the packet
            sent = len(self._rest)
        self._rest = self._rest[sent:]
        if not self._rest:
            self._look_at(self._feed, select.EPOLLIN)
        return not self._rest

    def _look_at(self, sock: socket.socket, events: int) -> None:
        self._poll.unregister(self._polled)
        self._poll.register(sock, events)
        self._polled = sock
