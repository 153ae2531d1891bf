"""The TLS relay: `helper.py jvpnd.transport.tlsrelay TIMEOUT_MS CHANNEL_FD PARENT_PID`.

Started by tls.py only. It parses what strangers send before anybody has proved who they are, so it
holds nothing but descriptors and the certificate's key, has no privilege, and ends with its control
process, however that ends.
"""

from __future__ import annotations

import resource
import signal
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from select import EPOLLIN, EPOLLOUT
from typing import Final

from jvpnd.dataplane.messages import receive_command
from jvpnd.privileges import give_up_all
from jvpnd.seqpacket import close_all
from jvpnd.transport.limits import MAX_CONNECTIONS
from jvpnd.transport.poll import Poll
from jvpnd.transport.proxy import connect_request
from jvpnd.transport.tlsconnection import UNSENT, Connection, TlsOver
from jvpnd.transport.tlscontext import client_context, server_context, sni
from jvpnd.transport.tlsmessages import Report, encode_report

_SPARE_FDS: Final = 64  # standard streams, the channel, what a message brings


class Channel:
    """The relay's end of the socket pair to control."""

    def __init__(self, sock: socket.socket, poll: Poll) -> None:
        self._sock = sock
        self._reports: deque[bytes] = deque()
        self._watch = poll.watch(sock.fileno(), self._on_event)
        self._watch.want(EPOLLIN)
        self.commands: dict[str, Callable[..., None]] = {}
        self._has_commands = False

    def report(self, report: Report) -> None:
        """Tell control, without ever waiting for it."""
        self._reports.append(encode_report(report))
        self._send()

    def take_commands(self) -> bool:
        """Carry out the commands that have come; False once control is gone.

        None while reports wait, of which there are never more than two a command.
        """
        while self._has_commands and not self._reports:
            try:
                command = receive_command(self._sock)
            except BlockingIOError:
                self._has_commands = False
                return True
            except ConnectionResetError:
                return False
            if command is None:
                return False
            name, arguments, fds = command
            self.commands[name](fds=fds, **arguments)
        return True

    def _on_event(self, events: int) -> None:
        self._send()
        self._has_commands = bool(events & ~EPOLLOUT)

    def _send(self) -> None:
        while self._reports:
            try:
                self._sock.send(self._reports[0], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                break
            except (BrokenPipeError, ConnectionResetError):
                pass  # control is gone; the next read says so
            self._reports.popleft()
        self._watch.want(EPOLLOUT if self._reports else EPOLLIN)


class Relay:
    """All connections, in one loop."""

    def __init__(
        self,
        poll: Poll,
        report: Callable[[Report], None],
        timeout_s: float,
        server: ssl.SSLContext | None,
    ) -> None:
        self._poll = poll
        self._report = report
        self._timeout_s = timeout_s
        self._server = server
        self._connections: set[Connection] = set()
        self._deadlines: dict[Connection, float] = {}  # in order: all wait for the same time
        self.commands: dict[str, Callable[..., None]] = {
            "connect": self._connect,
            "accept": self._accept,
        }

    def turn(self) -> None:
        """Wait for something to happen, and see to it."""
        first = next(iter(self._deadlines.values()), None)
        self._poll.turn(None if first is None else max(first - time.monotonic(), 0.0))
        now = time.monotonic()
        while self._deadlines:
            connection, deadline = next(iter(self._deadlines.items()))
            if deadline > now:
                break
            connection.expire(self._timeout_s)

    def on_ready(self, connection: Connection) -> None:
        del self._deadlines[connection]
        self._report(Report(connection.number))

    def on_failed(self, connection: Connection, why: str) -> None:
        del self._deadlines[connection]
        self._report(Report(connection.number, why))

    def on_end(self, connection: Connection) -> None:
        self._deadlines.pop(connection, None)
        self._connections.remove(connection)

    def _connect(
        self,
        fds: list[int],
        number: int,
        server_name: str | None,
        alpn: list[str],
        proxy: tuple[str, str | None] | None,
    ) -> None:
        def tls_over(incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
            context = client_context(alpn)
            return context.wrap_bio(incoming, outgoing, server_hostname=sni(server_name))

        self._add(number, fds, tls_over, None if proxy is None else connect_request(*proxy))

    def _accept(self, fds: list[int], number: int) -> None:
        def tls_over(incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
            if self._server is None:
                raise ValueError("there is no certificate")
            return self._server.wrap_bio(incoming, outgoing, server_side=True)

        self._add(number, fds, tls_over, None)

    def _add(
        self, number: int, fds: list[int], tls_over: TlsOver, proxy_request: bytes | None
    ) -> None:
        if len(fds) != 2 or len(self._connections) >= MAX_CONNECTIONS:
            close_all(fds)
            self._report(Report(number, "the relay has too many connections"))
            return
        sock, pipe = (socket.socket(fileno=fd) for fd in fds)
        try:
            _tune(sock, pipe)
            connection = Connection(
                number, self, self._poll, sock, pipe, tls_over, proxy_request
            )
        except (OSError, ValueError) as error:
            sock.close()
            pipe.close()
            self._report(Report(number, f"not begun: {error}"))
            return
        self._connections.add(connection)
        self._deadlines[connection] = time.monotonic() + self._timeout_s
        connection.start()


def _tune(sock: socket.socket, pipe: socket.socket) -> None:
    sock.setblocking(False)
    pipe.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)


def _make_room() -> None:
    """Two descriptors a connection, as far as the hard limit goes."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = min(hard, 2 * MAX_CONNECTIONS + _SPARE_FDS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (room, hard))


def main(timeout_ms: int, channel_fd: int, parent: int) -> None:
    """Run the relay until control goes away."""
    for noise in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(noise, signal.SIG_IGN)  # control decides when this ends, and sees to it
    _make_room()
    sock = socket.socket(fileno=channel_fd)
    begun = receive_command(sock)
    if begun is None:
        return
    _name, arguments, fds = begun
    server = server_context(fds[0], arguments["alpn"]) if fds else None
    close_all(fds)
    "".encode("idna")  # what that takes is loaded while there are files
    poll = Poll()
    give_up_all(parent)
    sock.setblocking(False)
    channel = Channel(sock, poll)
    relay = Relay(poll, channel.report, timeout_ms / 1000, server)
    channel.commands = relay.commands
    while channel.take_commands():
        relay.turn()
