"""One UDP address for several lanes: a socket for each, and the kernel sorts what comes in.

All sockets of a group are bound to the same address (SO_REUSEPORT); a small program in the kernel
(SO_ATTACH_REUSEPORT_CBPF) hands DATA to the socket of the lane that it names, and everything else
to the first. The kernel passes connected sockets by, so those of a group are not connected. A
single lane needs nothing of this.
"""

from __future__ import annotations

import array
import contextlib
import socket
import struct
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final

from jvpnd.core.dataclass import dataclass
from jvpnd.core.wire import PacketType
from jvpnd.dataplane.plane import DataPlane
from jvpnd.transport.backlog import MIN_BYTES, limit_unsent, send_ahead

_SO_ATTACH_REUSEPORT_CBPF: Final = 51  # asm-generic/socket.h
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter, linux/filter.h
_PROGRAM = struct.Struct("@HP")  # struct sock_fprog: how many, and where they are
_LOAD_BYTE, _JUMP_IF_EQUAL, _MODULO, _RETURN, _RETURN_A = 0x30, 0x15, 0x94, 0x06, 0x16


@dataclass(frozen=True, slots=True)
class SocketGroup:
    """The sockets of one path or listen address by lane; control sends through the first.

    `peer` is the only address that they are for, where they cannot be connected to it.
    """

    sockets: tuple[socket.socket, ...]
    peer: tuple[str, int] | None = None

    def send(self, data: bytes, remote: tuple[str, int] | None = None) -> None:
        """Send to `remote`, by default to the peer. Raises OSError."""
        send_ahead(self.sockets[0], data, remote or self.peer)

    def limit_unsent(self, limit: int) -> None:
        """Let so many bytes wait unsent, in all sockets together unless that is too few for one."""
        for sock in self.sockets:
            limit_unsent(sock, max(limit // len(self.sockets), MIN_BYTES))

    def hand_to(self, plane: DataPlane, socket_id: int) -> None:
        """Let the data plane use them, under this number."""
        plane.add_socket(socket_id, [sock.fileno() for sock in self.sockets], self.peer)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()

    def __enter__(self) -> SocketGroup:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def bind_group(
    prepare: Callable[[], socket.socket], address: tuple[str, int], lanes: int
) -> tuple[socket.socket, ...]:
    """Sockets made by `prepare`, bound to `address` (port 0: any free one), one for each lane.

    Raises OSError; EADDRINUSE also where the present owner of the port would share it.
    """
    with contextlib.ExitStack() as building:
        first = building.enter_context(prepare())
        first.bind(address)  # alone: a second daemon must not join the group of the first
        sockets = [first]
        if lanes > 1:
            _share(first)
            for lane in range(1, lanes):
                sock = building.enter_context(prepare())
                _share(sock)
                _set_apart(sock, lane)
                sock.bind(first.getsockname())
                sockets.append(sock)
            _attach(first, steering(lanes))
        building.pop_all()
        return tuple(sockets)


def steering(lanes: int) -> Sequence[tuple[int, int, int, int]]:
    """The program: which socket of the group, by order of binding, gets a datagram.

    Offset 0 is the first byte of the payload; one that is too short goes to the first socket.
    """
    return (
        (_LOAD_BYTE, 0, 0, 0),
        (_JUMP_IF_EQUAL, 0, 3, PacketType.DATA),
        (_LOAD_BYTE, 0, 0, 1),
        (_MODULO, 0, 0, lanes),
        (_RETURN_A, 0, 0, 0),
        (_RETURN, 0, 0, 0),
    )


def _attach(sock: socket.socket, program: Sequence[tuple[int, int, int, int]]) -> None:
    code = array.array("B", b"".join(_INSTRUCTION.pack(*each) for each in program))
    address, _length = code.buffer_info()
    value = _PROGRAM.pack(len(program), address)
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, value)


def _share(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def _set_apart(sock: socket.socket, lane: int) -> None:
    """Send with a TTL of the lane's own: the peer's GRO then keeps the lanes apart.

    Datagrams that GRO joins reach one socket as one batch, but those of two lanes belong to two
    sockets. It joins none with different TTLs (inet_gro_receive, ipv6_gro_receive).
    """
    options = [(socket.IPPROTO_IP, socket.IP_TTL)]
    if sock.family == socket.AF_INET6:  # which sends IPv4 too where it is dual-stack
        options.append((socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS))
    for level, option in options:
        sock.setsockopt(level, option, sock.getsockopt(level, option) - lane)
