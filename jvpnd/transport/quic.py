"""Control's side of QUIC: tunnel datagrams as DATAGRAM frames (RFC 9221), in a process of its own.

Each connection has a pipe: a SOCK_SEQPACKET pair, one message a tunnel datagram a frame. When one
end is closed, by its last owner, the connection ends; when the connection ends, the pipe does.

The relay parses what strangers send, so nothing that it says is believed unchecked. Pipes are made
here: on a pair of the relay's making it could switch control's end to blocking.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

from jvpnd.child import ChildProcess
from jvpnd.dataplane.messages import canonical, encode_command
from jvpnd.seqpacket import close_all
from jvpnd.spawn import spawn
from jvpnd.transport.limits import MAX_CONNECTIONS

FIRST_ACCEPTED: Final = 2**32  # numbers of accepted connections, from here up
HANDSHAKE_S: Final = 10.0  # for either end; what is not ready by then is given up
MAX_REPORT: Final = 512
UNREAD_BYTES: Final = 1024 * 1024  # in a UDP socket or a pipe: 50 ms of what a relay can read

_SIZES: Final = range(1024, 65508)
_NUMBERS: Final = range(2**63)
_MAX_HOST: Final = 64
_MAX_REASON: Final = 200
_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h; these ignore the sysctl maximum
_SO_RCVBUFFORCE: Final = 33

_SHAPES: Final[dict[str, tuple[type, ...]]] = {
    "ready": (int, int),  # number, size
    "accepted": (int, int, str, int, int),  # listener, number, host, port, size
    "size": (int, int),  # number, size
    "failed": (int, str),  # number, why
}


def new_pipe() -> tuple[socket.socket, socket.socket]:
    """Our end and the relay's, neither of which blocks."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    _limit(theirs, _SO_SNDBUFFORCE, socket.SO_SNDBUF)
    return ours, theirs


def _limit(sock: socket.socket, forced: int, allowed: int) -> None:
    """More would not be faster: what waits delays the probes behind it."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, UNREAD_BYTES // 2)  # the kernel doubles it
    except PermissionError:  # no CAP_NET_ADMIN: as much as the sysctl allows
        sock.setsockopt(socket.SOL_SOCKET, allowed, UNREAD_BYTES // 2)


class QuicRelay:
    """The running relay. Descriptors are duplicated on sending, the caller closes its own.

    A connection tells its end by its pipe alone, so a callback may name one that just ended.
    """

    def __init__(
        self,
        on_ready: Callable[[int, int], None],
        on_accepted: Callable[[int, int, tuple[str, int], int, socket.socket], None],
        on_size: Callable[[int, int], None],
        on_failed: Callable[[int, str], None],
        on_exit: Callable[[], None],
    ) -> None:
        """`on_ready` and `on_size`: number, and the largest tunnel datagram in bytes.
        `on_accepted`: listener, number, remote, size, our end of the pipe, which is the callee's.
        `on_failed`: number, why it did not get ready, be it that its pipe was closed. `on_exit`:
        every connection is gone.
        """
        self._on_ready = on_ready
        self._on_accepted = on_accepted
        self._on_size = on_size
        self._on_failed = on_failed
        self._connecting: set[int] = set()
        self._listeners: set[int] = set()
        self._last_accepted = FIRST_ACCEPTED - 1
        self._accepted: list[socket.socket] = []
        spawned = spawn("jvpnd.transport.quicrelay")
        self._child = ChildProcess(spawned, MAX_REPORT, self._on_message, on_exit)

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
    ) -> None:
        """Begin a connection over a connected UDP socket; `pipe` is the relay's end. What is
        written to ours before it is ready goes out once it is. `number`: below FIRST_ACCEPTED,
        and never used before.
        """
        _limit(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF)
        self._connecting.add(number)
        arguments = {"number": number, "server_name": server_name, "alpn": list(alpn)}
        fds = [sock.fileno(), pipe.fileno()]
        self._send("connect", arguments | {"limit_s": HANDSHAKE_S}, fds)

    def listen(
        self, listener: int, sock: socket.socket, pem: bytes, alpn: Sequence[str]
    ) -> None:
        """Accept connections on a bound UDP socket. `pem`: certificates, own first, and the key."""
        _limit(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF)
        self._listeners.add(listener)
        arguments = {"listener": listener, "pem": pem.decode(), "alpn": list(alpn)}
        self._send("listen", arguments | {"limit_s": HANDSHAKE_S}, [sock.fileno()])

    async def stop(self) -> None:
        """Close every connection and end the relay."""
        await self._child.stop()

    def _send(self, name: str, arguments: dict[str, Any], fds: Sequence[int] = ()) -> None:
        self._child.send(encode_command(name, arguments), fds)

    def _on_message(self, data: bytes, fds: list[int]) -> None:
        close_all(fds)  # it has none to give
        name, values = parse_report(data)
        if name == "ready" and values[0] in self._connecting and values[1] in _SIZES:
            self._connecting.discard(values[0])
            self._on_ready(*values)
        elif name == "failed" and values[0] in self._connecting:
            self._connecting.discard(values[0])
            self._on_failed(values[0], _printable(values[1]))
        elif name == "size" and values[0] in _NUMBERS and values[1] in _SIZES:
            self._on_size(*values)
        elif name == "accepted":
            self._take(*values)

    def _take(self, listener: int, number: int, host: str, port: int, size: int) -> None:
        remote = _remote(host, port)
        fresh = self._last_accepted < number and number in _NUMBERS
        if remote is None or not fresh or size not in _SIZES or listener not in self._listeners:
            return
        self._last_accepted = number
        if self._is_full():
            self._send("refuse", {"number": number})
            return
        ours, theirs = new_pipe()
        with theirs:
            self._send("pipe", {"number": number}, [theirs.fileno()])
        self._accepted.append(ours)
        self._on_accepted(listener, number, remote, size, ours)

    def _is_full(self) -> bool:
        if len(self._accepted) >= MAX_CONNECTIONS:
            self._accepted = [pipe for pipe in self._accepted if pipe.fileno() >= 0]
        return len(self._accepted) >= MAX_CONNECTIONS


def parse_report(data: bytes) -> tuple[str, list[Any]]:
    """Name and values of a report whose values have the right types, ("", []) for anything else."""
    if len(data) > MAX_REPORT:
        return "", []
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return "", []
    if not isinstance(message, list) or not message or not isinstance(message[0], str):
        return "", []
    name, *values = message
    if _SHAPES.get(name) != tuple(map(type, values)):
        return "", []
    return name, values


def _remote(host: str, port: int) -> tuple[str, int] | None:
    if len(host) > _MAX_HOST or port not in range(1, 65536):
        return None
    try:
        return canonical((host, port))
    except ValueError:
        return None


def _printable(why: str) -> str:
    return "".join(filter(str.isprintable, why))[:_MAX_REASON]
