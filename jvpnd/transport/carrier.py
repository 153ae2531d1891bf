"""What a path or a connection sends through: UDP sockets, byte streams, pipes of messages."""

from __future__ import annotations

import contextlib
import socket
from typing import Final, Protocol

from jvpnd.dataplane.plane import DataPlane
from jvpnd.transport.backlog import MIN_BYTES, limit_unsent, send_ahead

_TCP_NOTSENT_LOWAT: Final = 25  # linux/tcp.h
_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Transport(Protocol):
    """One way for tunnel datagrams; SocketGroup is one too."""

    @property
    def peer(self) -> tuple[str, int] | None:
        """Where packets have to be addressed to, if it is not connected."""

    def send(self, data: bytes, remote: tuple[str, int] | None = None) -> None:
        """Send one of control's packets without waiting; OSError. `remote` is for UDP alone."""

    def limit_unsent(self, limit: int) -> None:
        """Let so many bytes wait unsent."""

    def hand_to(self, plane: DataPlane, socket_id: int) -> None:
        """Let the data plane use it, under this number."""

    def close(self) -> None:
        """Ours; the data plane has descriptors of its own."""


class Stream:
    """A byte stream: a TCP connection, or the pipe of a relay. The data plane's writer sends, also
    what control has to send: it comes to it through a pair of sockets, the feed."""

    peer = None

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._feed, self._intake = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for each in (stream, self._feed, self._intake):  # whoever does not read holds up nobody
            each.setblocking(False)
        self.limit_unsent(MIN_BYTES)

    def send(self, data: bytes, remote: tuple[str, int] | None = None) -> None:
        send_ahead(self._feed, data)  # other lanes may have filled it

    def limit_unsent(self, limit: int) -> None:
        if self._stream.family == socket.AF_UNIX:
            limit_unsent(self._stream, limit)
        else:
            with contextlib.suppress(OSError):  # it may be over already
                self._stream.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, limit)

    def hand_to(self, plane: DataPlane, socket_id: int) -> None:
        stream, feed, intake = (s.fileno() for s in (self._stream, self._feed, self._intake))
        plane.add_stream(socket_id, stream, feed, intake)

    def close(self) -> None:
        for each in (self._stream, self._feed, self._intake):
            each.close()


class Messages:
    """A pipe to a relay that carries each message as a datagram, of at most `limit` bytes."""

    peer = None

    def __init__(self, pipe: socket.socket, limit: int) -> None:
        self._pipe = pipe
        self._limit = limit
        self._used_by: tuple[DataPlane, int] | None = None

    def send(self, data: bytes, remote: tuple[str, int] | None = None) -> None:
        self._pipe.send(data, _FLAGS)

    def limit_unsent(self, limit: int) -> None:
        """The relay drops what it cannot send in time."""

    def hand_to(self, plane: DataPlane, socket_id: int) -> None:
        self._used_by = plane, socket_id
        plane.add_relay(socket_id, self._pipe.fileno(), self._limit)

    def resize(self, limit: int) -> None:
        """The relay has found out that its path carries more, or less."""
        self._limit = limit
        if self._used_by is not None and self._pipe.fileno() >= 0:
            plane, socket_id = self._used_by
            plane.set_limit(socket_id, limit)

    def close(self) -> None:
        self._pipe.close()
