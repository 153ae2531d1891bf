"""A gateway's ways in: UDP sockets, and connections over TCP, TLS and QUIC, kept within bounds.

Who connects is a stranger until a packet of a session has come that way. Strangers have little time
and are few, from one source fewer still; where there are too many the oldest gives way.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import resource
import socket
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from jvpnd.core.dataclass import dataclass
from jvpnd.core.effects import Origin, host_port
from jvpnd.core.ratelimit import source_key
from jvpnd.dataplane.messages import remote_of
from jvpnd.dataplane.plane import DataPlane
from jvpnd.transport import quic
from jvpnd.transport.carrier import Messages, Stream, Transport
from jvpnd.transport.dial import ALPN
from jvpnd.transport.endpoint import Listen
from jvpnd.transport.group import SocketGroup
from jvpnd.transport.limits import DEFAULT_LIMITS, ConnectionLimits
from jvpnd.transport.tcp import open_listener, tune
from jvpnd.transport.tls import Served, TlsRelay
from jvpnd.transport.udp import ListenError
from jvpnd.transport.udp import open_listener as open_udp

_log = logging.getLogger("jvpnd")

STRANGER_S: Final = 10.0
SILENT_S: Final = 600.0  # of a connection that a session has used: metered ones are probed seldom
ACCEPTS_A_TURN: Final = 16
SWEEP_S: Final = 1.0

FIRST_CONNECTION: Final = 1 << 16  # below are the numbers of [[listen]]
_DESCRIPTORS: Final = 8  # of a connection, at most
_CERTIFICATE: Final = "tls.pem"


@dataclass(slots=True)
class Connection:
    """One that was accepted."""

    origin: Origin
    transport: Transport
    listener: int
    since_s: float
    heard_s: float | None = None  # when a session last used it; None: a stranger's


class Listeners:
    """Everything that a gateway listens on, and what has connected."""

    def __init__(
        self,
        listen: Sequence[Listen],
        lanes: int,
        node: str,
        runtime: Path,
        limits: ConnectionLimits = DEFAULT_LIMITS,
    ) -> None:
        """Opens all sockets. Raises ListenError: which of `listen`, and why."""
        self._listen = dict(enumerate(listen, start=1))
        self._node = node
        self._runtime = runtime
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._udp: dict[int, SocketGroup] = {}
        self._sockets: dict[int, socket.socket] = {}
        self._connections: dict[int, Connection] = {}
        self._strangers: dict[int, bytes] = {}  # their sources, the oldest first
        self._of_source: Counter[bytes] = Counter()
        self._numbers = itertools.count(FIRST_CONNECTION)
        self._pipes: dict[int, int] = {}  # QUIC's number: ours
        self._tls: TlsRelay | None = None
        self._quic: quic.QuicRelay | None = None
        self._plane: DataPlane | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self.dropped: Counter[str] = Counter()
        if any(each.transport != "udp" for each in listen):
            _make_room(limits.connections)
        try:
            for number, each in self._listen.items():
                self._open(number, each, lanes)
        except ListenError:
            self.close_sockets()
            raise

    def _open(self, number: int, listen: Listen, lanes: int) -> None:
        try:
            if listen.transport == "udp":
                self._udp[number] = open_udp(listen.address, listen.port, lanes)
            elif listen.transport == "quic":
                (self._sockets[number],) = open_udp(listen.address, listen.port).sockets
            else:
                self._sockets[number] = open_listener(listen.address, listen.port)
        except ListenError as error:
            raise ListenError(error.errno, f"listen[{number}]: {error}") from error

    def start(self, plane: DataPlane) -> None:
        """Let packets and connections in."""
        self._plane = plane
        for number, group in self._udp.items():
            group.hand_to(plane, number)
        if self._sockets:
            self._sweep()
        for number, sock in self._sockets.items():
            self._begin(number, sock)

    def _begin(self, number: int, sock: socket.socket) -> None:
        listen = self._listen[number]
        if listen.transport == "quic":
            relay = self._quic_relay()
            relay.listen(number, sock, self._pem(listen), listen.alpn or ALPN["quic"])
            return
        if listen.transport == "tls":
            self._start_tls(listen)
        self._loop.add_reader(sock, self._accept, number)

    def close_sockets(self) -> None:
        """No more packets, and no connection."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for sock in self._sockets.values():
            self._loop.remove_reader(sock)
            sock.close()
        for group in self._udp.values():
            group.close()
        for connection in self._connections.values():
            connection.transport.close()

    async def stop(self) -> None:
        """All of it, the relays too."""
        self.close_sockets()
        for relay in (self._tls, self._quic):
            if relay is not None:
                await relay.stop()

    # --- look-up ---

    def origin(self, socket_id: int, remote: tuple[str, int]) -> Origin | None:
        """Where a packet came from; None if that connection has ended."""
        connection = self._connections.get(socket_id)
        if connection is not None:
            return connection.origin
        return Origin(socket_id, remote) if socket_id in self._udp else None

    def transport(self, socket_id: int) -> Transport | None:
        connection = self._connections.get(socket_id)
        return connection.transport if connection is not None else self._udp.get(socket_id)

    def address_for(self, origin: Origin) -> tuple[str, int] | None:
        """What its packets have to be addressed to; None for a connection."""
        return origin.remote if origin.socket_id in self._udp else None

    def label(self, socket_id: int) -> str | None:
        """Which of ours that is."""
        connection = self._connections.get(socket_id)
        listen = self._listen.get(connection.listener if connection is not None else socket_id)
        return _shown(listen) if listen is not None else None

    def labels(self) -> list[str]:
        return [_shown(listen) for listen in self._listen.values()]

    def connections(self) -> dict[str, int]:
        """How many there are, and how many of them are strangers'."""
        return {"open": len(self._connections), "strangers": len(self._strangers)}

    # --- what becomes of connections ---

    def vouch(self, socket_id: int) -> None:
        """A session has used it."""
        connection = self._connections.get(socket_id)
        if connection is not None:
            connection.heard_s = self._loop.time()
            self._no_stranger(socket_id)

    def failed(self, socket_id: int) -> None:
        """The other end has closed it, or broken it."""
        if socket_id in self._connections:
            self._close(socket_id)

    def limit_unsent(self, limit: int) -> None:
        """Let so many bytes wait unsent, of each."""
        for group in self._udp.values():
            group.limit_unsent(limit)
        for connection in self._connections.values():
            if connection.heard_s is not None:
                connection.transport.limit_unsent(limit)

    def _close(self, socket_id: int, why: str | None = None) -> None:
        connection = self._connections.pop(socket_id)
        self._no_stranger(socket_id)
        if why is not None:
            self.dropped[why] += 1
        if self._plane is not None:
            self._plane.remove_socket(socket_id)
        connection.transport.close()

    def _no_stranger(self, socket_id: int) -> None:
        source = self._strangers.pop(socket_id, None)
        if source is not None:
            self._of_source -= Counter([source])

    def _sweep(self) -> None:
        now_s = self._loop.time()
        for socket_id, each in list(self._connections.items()):
            if each.heard_s is None and now_s - each.since_s > STRANGER_S:
                self._close(socket_id, "connection without a session")
            elif each.heard_s is not None and now_s - each.heard_s > SILENT_S:
                self._close(socket_id, "silent connection")
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    # --- accepting ---

    def _accept(self, number: int) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                sock, address = self._sockets[number].accept()
            except BlockingIOError:
                return
            except OSError as error:
                self.dropped["connection not accepted"] += 1
                if error.errno in (errno.EMFILE, errno.ENFILE):  # it waits: look again later
                    self._loop.remove_reader(self._sockets[number])
                    self._loop.call_later(SWEEP_S, self._look_again, number)
                return
            with sock:
                self._take(number, sock, remote_of(address))

    def _look_again(self, number: int) -> None:
        sock = self._sockets[number]
        if sock.fileno() >= 0:
            self._loop.add_reader(sock, self._accept, number)

    def _take(self, number: int, sock: socket.socket, remote: tuple[str, int]) -> None:
        if not self._admits(remote):
            return
        over_tls = self._listen[number].transport == "tls"
        try:
            sock.setblocking(False)
            tune(sock)
            stream = Stream(self._through_relay(number, sock) if over_tls else sock.dup())
        except OSError:  # out of descriptors, or over already
            self.dropped["connection not accepted"] += 1
            return
        self._add(next(self._numbers), number, remote, stream)

    def _through_relay(self, number: int, sock: socket.socket) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            if self._tls is None:
                self._start_tls(self._listen[number])
            assert self._tls is not None
            self._tls.accept(next(self._numbers), sock, theirs)
        return ours

    def _add(
        self, socket_id: int, number: int, remote: tuple[str, int], transport: Transport
    ) -> None:
        assert self._plane is not None
        origin = Origin(socket_id, remote, self._listen[number].transport)
        self._connections[socket_id] = Connection(origin, transport, number, self._loop.time())
        source = self._strangers[socket_id] = source_key(remote[0])
        self._of_source[source] += 1
        transport.hand_to(self._plane, socket_id)

    def _admits(self, remote: tuple[str, int]) -> bool:
        """Whether one more may come from there; it may cost the oldest stranger its place."""
        if len(self._connections) >= self._limits.connections:
            self.dropped["too many connections"] += 1
            return False
        if self._of_source[source_key(remote[0])] >= self._limits.strangers_of_source:
            self.dropped["too many connections of one source"] += 1
            return False
        if len(self._strangers) >= self._limits.strangers:
            self._close(next(iter(self._strangers)), "too many connections without a session")
        return True

    # --- the relays ---

    def _start_tls(self, listen: Listen) -> None:
        if self._tls is None:
            served = Served(self._pem(listen), listen.alpn or ALPN["tls"])
            self._tls = TlsRelay(
                lambda _: None, lambda _number, _why: None, self._tls_exited, served=served
            )

    def _tls_exited(self) -> None:
        """Its pipes have ended, and so their connections; the next one starts it again."""
        _log.error("the TLS relay ended")
        self._tls = None

    def _quic_relay(self) -> quic.QuicRelay:
        if self._quic is None:
            self._quic = quic.QuicRelay(
                lambda _number, _size: None,
                self._quic_accepted,
                self._quic_resized,
                lambda _number, _why: None,
                self._quic_exited,
            )
        return self._quic

    def _quic_accepted(
        self, listener: int, number: int, remote: tuple[str, int], size: int, pipe: socket.socket
    ) -> None:
        if not self._admits(remote):
            pipe.close()
            return
        socket_id = next(self._numbers)
        self._add(socket_id, listener, remote, Messages(pipe, size))
        self._pipes = {n: i for n, i in self._pipes.items() if i in self._connections}
        self._pipes[number] = socket_id

    def _quic_resized(self, number: int, size: int) -> None:
        connection = self._connections.get(self._pipes.get(number, 0))
        if connection is not None and isinstance(connection.transport, Messages):
            connection.transport.resize(size)

    def _quic_exited(self) -> None:
        _log.error("the QUIC relay ended, and is started again")
        self._quic = None
        self._loop.call_later(SWEEP_S, self._begin_quic)

    def _begin_quic(self) -> None:
        for number, sock in self._sockets.items():
            if self._listen[number].transport == "quic" and sock.fileno() >= 0:
                self._begin(number, sock)

    def _pem(self, listen: Listen) -> bytes:
        """The certificate of the configuration, or one of our own, which lasts until a reboot."""
        if listen.pem is not None:
            return listen.pem
        file = self._runtime / _CERTIFICATE
        if not file.exists():
            from jvpnd.transport.certificate import self_signed  # slow to import

            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
                out.write(self_signed(self._node))
        return file.read_bytes()


def _shown(listen: Listen) -> str:
    return f"{listen.transport}/{host_port(listen.address, listen.port)}"


def _make_room(connections: int) -> None:
    """A connection takes several descriptors, also of the workers, which are to inherit this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, min(_DESCRIPTORS * connections, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
