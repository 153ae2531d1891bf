"""Control's hold on the TLS relay: sockets and pipes to it, checked reports from it.

The relay (tlsrelay.py) moves bytes between a pipe, one end of a stream socketpair, and a TLS 1.3
connection. Control opens and accepts the TCP sockets, and parses nothing that comes over them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Final

from jvpnd.child import ChildProcess
from jvpnd.core.dataclass import dataclass
from jvpnd.dataplane.messages import encode_command
from jvpnd.seqpacket import close_all
from jvpnd.spawn import spawn
from jvpnd.transport.tlscontext import pem_file
from jvpnd.transport.tlsmessages import MAX_REPORT, decode_report

HANDSHAKE_TIMEOUT_S: Final = 10.0  # with the proxy's answer


@dataclass(frozen=True, slots=True)
class Served:
    """What is shown to those who connect: certificates with their private key (PEM), protocols."""

    pem: bytes
    alpn: Sequence[str]


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """A way to ask an HTTP proxy for: "host:port", and the value of Proxy-Authorization."""

    target: str
    authorization: str | None


class TlsRelay:
    """A running relay; all its connections go with it.

    `on_ready(number)`: the connection has TLS. `on_failed(number, why)`: it never will, and its
    pipe is closed. From then on its end is told by the end of the pipe, in both directions.
    `on_exit` is called once if the relay ends without having been stopped. A relay that was taken
    over may give any number any time; the caller ignores those that it does not wait for.
    """

    def __init__(
        self,
        on_ready: Callable[[int], None],
        on_failed: Callable[[int, str], None],
        on_exit: Callable[[], None],
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
        served: Served | None = None,
    ) -> None:
        """`served`: for a relay that is to accept; one that cannot be used ends it."""

        def on_message(data: bytes, fds: list[int]) -> None:
            close_all(fds)  # a relay has none to give
            report = decode_report(data)
            if report is None:
                return
            if report.why is None:
                on_ready(report.number)
            else:
                on_failed(report.number, report.why)

        module, arguments = "jvpnd.transport.tlsrelay", [str(int(handshake_timeout_s * 1000))]
        spawned = spawn(module, arguments)
        self._child = ChildProcess(spawned, MAX_REPORT, on_message, on_exit)
        fds = [] if served is None else [pem_file(served.pem)]
        try:
            alpn = [] if served is None else list(served.alpn)
            self._child.send(encode_command("begin", {"alpn": alpn}), fds)
        finally:
            close_all(fds)

    @property
    def pid(self) -> int:
        return self._child.pid

    def connect(
        self,
        number: int,
        sock: socket.socket,
        pipe: socket.socket,
        server_name: str | None,
        alpn: Sequence[str],
        proxy: ProxyRequest | None,
    ) -> None:
        """Begin TLS on a socket that is connected to a gateway, or to a proxy.

        Both descriptors are duplicated: close yours. Closing the pipe's far end closes the
        connection.
        """
        arguments = {
            "number": number,
            "server_name": server_name,
            "alpn": list(alpn),
            "proxy": None if proxy is None else [proxy.target, proxy.authorization],
        }
        fds = [sock.fileno(), pipe.fileno()]
        self._child.send(encode_command("connect", arguments), fds)

    def accept(self, number: int, sock: socket.socket, pipe: socket.socket) -> None:
        """Wait for TLS to begin on a socket that a client has connected to; see `connect`."""
        fds = [sock.fileno(), pipe.fileno()]
        self._child.send(encode_command("accept", {"number": number}), fds)

    async def stop(self) -> None:
        """End the relay, and wait for it."""
        await self._child.stop()
