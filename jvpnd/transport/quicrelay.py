"""The QUIC relay: `helper.py jvpnd.transport.quicrelay CHANNEL_FD PARENT_PID`.

Started by quic.py only. It parses what strangers send, so it gives up every privilege at once, and
ends with its control process, however that ends: but for a goodbye, since nobody else can tell the
other ends, which would wait for QUIC's idle time.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from jvpnd.dataplane.messages import receive_command, remote_of
from jvpnd.privileges import give_up_all
from jvpnd.transport import quicengine
from jvpnd.transport.quic import FIRST_ACCEPTED
from jvpnd.transport.quicconnection import Connection
from jvpnd.transport.quiclistener import Listener
from jvpnd.transport.quicsocket import UdpSocket

MAX_REPORTS: Final = 16384  # that control leaves lying
GOODBYE_S: Final = 1


class Outgoing:
    """A connection that we begin, over a socket of its own."""

    def __init__(
        self, fd: int, pipe: socket.socket, quic: quicengine.Quic, limit_s: float, relay: Relay
    ) -> None:
        self._relay = relay
        self._udp = UdpSocket(fd, self._received, self._failed)
        self.connection = Connection(quic, self._udp, self._udp.peer, limit_s, self)
        self.connection.attach(pipe)

    def ready(self, connection: Connection) -> None:
        self._relay.tell("ready", connection)

    def resized(self, connection: Connection) -> None:
        self._relay.tell("size", connection)

    def ended(self, connection: Connection, why: str) -> None:
        self._udp.close()
        self._relay.ended(connection, why)

    def identified(self, connection: Connection, identity: bytes, added: bool) -> None:
        pass

    def _received(self, datagrams: quicengine.Datagrams) -> None:
        for data, address in datagrams:
            self.connection.receive(data, address)
        if datagrams:
            self.connection.flush()

    def _failed(self, number: int) -> None:
        """Later the tunnel's own probes decide: an ICMP error is easily forged."""
        if not self.connection.is_ready:
            self.connection.close(os.strerror(number))


class Relay:
    """Carries out control's commands, and tells it what becomes of its connections."""

    def __init__(self, channel: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._channel = channel
        self._reports: deque[bytes] = deque()
        self._numbers = itertools.count(FIRST_ACCEPTED)
        self._connections: dict[int, Connection] = {}
        self._number_of: dict[Connection, int] = {}
        self._listeners: list[Listener] = []
        self._commands: dict[str, Callable[..., None]] = {
            "connect": self._connect,
            "listen": self._listen,
            "pipe": self._pipe,
            "refuse": self._refuse,
        }
        self.done = self._loop.create_future()
        self._loop.add_reader(channel, self._take_commands)

    def close(self) -> None:
        """End all connections, so that the other ends need not find out."""
        for listener in self._listeners:
            listener.close()
        for connection in list(self._connections.values()):
            connection.close("shut down")

    def tell(self, what: str, connection: Connection) -> None:
        self._report(what, self._number_of[connection], connection.size)

    def ended(self, connection: Connection, why: str) -> None:
        number = self._number_of.pop(connection)
        del self._connections[number]
        if not connection.is_ready:
            self._report("failed", number, why[:100])

    def _connect(
        self,
        number: int,
        server_name: str | None,
        alpn: Sequence[str],
        limit_s: float,
        fds: Sequence[int],
    ) -> None:
        fd, pipe = fds
        quic = quicengine.Quic(quicengine.client(server_name, alpn))
        outgoing = Outgoing(fd, socket.socket(fileno=pipe), quic, limit_s, self)
        self._add(number, outgoing.connection)
        outgoing.connection.start()

    def _listen(
        self, listener: int, pem: str, alpn: Sequence[str], limit_s: float, fds: Sequence[int]
    ) -> None:
        def accepted(connection: Connection) -> None:
            number = next(self._numbers)
            self._add(number, connection)
            remote = remote_of(connection.remote)
            self._report("accepted", listener, number, *remote, connection.size)

        def resized(connection: Connection) -> None:
            self.tell("size", connection)

        def ended(connection: Connection) -> None:
            self.ended(connection, "")

        (fd,) = fds
        configuration = quicengine.server(pem.encode(), alpn)
        self._listeners.append(
            Listener(fd, configuration, limit_s, accepted, resized, ended)
        )

    def _pipe(self, number: int, fds: Sequence[int]) -> None:
        (fd,) = fds
        pipe = socket.socket(fileno=fd)
        connection = self._connections.get(number)
        if connection is None:  # it has just ended
            pipe.close()
        else:
            connection.attach(pipe)

    def _refuse(self, number: int) -> None:
        connection = self._connections.get(number)
        if connection is not None:
            connection.close("too many connections")

    def _add(self, number: int, connection: Connection) -> None:
        self._connections[number] = connection
        self._number_of[connection] = number

    def _take_commands(self) -> None:
        try:
            command = receive_command(self._channel)
        except BlockingIOError:
            return
        except ConnectionResetError:
            command = None
        if command is None:
            self._loop.remove_reader(self._channel)
            self.done.set_result(None)
            return
        name, arguments, fds = command
        if fds:
            arguments["fds"] = fds
        try:
            self._commands[name](**arguments)
        except Exception as error:  # better gone, which control notices, than deaf
            self._loop.remove_reader(self._channel)
            self.done.set_exception(error)

    def _report(self, name: str, *values: Any) -> None:
        """Tell control, without ever waiting for it."""
        if len(self._reports) >= MAX_REPORTS:
            os._exit(1)
        if not self._reports:
            self._loop.add_writer(self._channel, self._write_reports)
        self._reports.append(json.dumps([name, *values]).encode())

    def _write_reports(self) -> None:
        try:
            while self._reports:
                self._channel.send(self._reports[0])
                self._reports.popleft()
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self._reports.clear()  # control is gone; the next read says so
        self._loop.remove_writer(self._channel)


async def run(channel: socket.socket) -> None:
    relay = Relay(channel)
    await relay.done
    relay.close()


def main(channel_fd: int, parent: int) -> None:
    """Relay until control goes away."""
    for noise in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(noise, signal.SIG_IGN)  # control decides when this ends, and sees to it
    logging.getLogger("quic").disabled = True  # strangers decide how much it would say
    channel = socket.socket(fileno=channel_fd)
    channel.setblocking(False)
    with asyncio.Runner() as runner:
        runner.get_loop()  # has descriptors of its own
        give_up_all(parent, GOODBYE_S)
        runner.run(run(channel))
