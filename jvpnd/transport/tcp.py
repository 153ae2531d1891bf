"""TCP connections of the tunnel: towards a gateway over one uplink, and those that come to it."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from typing import Final

from jvpnd.core.effects import host_port
from jvpnd.transport.backlog import limit_unsent
from jvpnd.transport.udp import ListenError, PathError

WINDOW_BYTES: Final = 4 * 2**20  # the kernel's own maximum; left to itself it begins with 16 KiB
BACKLOG: Final = 256  # connections that wait to be accepted
# Our own probes find a dead connection; these see to it that the kernel forgets it soon, too.
USER_TIMEOUT_MS: Final = 20_000
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


def new_connection(uplink: str, source: str, remote: tuple[str, int], mark: int) -> socket.socket:
    """A socket that is not connected yet, and can leave only through `uplink`, from `source`, with
    this firewall mark. Raises PathError."""
    six = ipaddress.ip_address(source).version == 6
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, uplink.encode() + b"\0")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sock.bind((source, 0))
        tune(sock)
    except OSError as error:
        sock.close()
        raise path_error(uplink, source, remote, error) from error
    return sock


def path_error(uplink: str, source: str, remote: tuple[str, int], error: OSError) -> PathError:
    """What went wrong with a connection, and which."""
    code = error.errno or errno.EIO
    where = f"{uplink} ({source}) to {host_port(*remote)}"
    return PathError(code, f"no connection over {where}: {os.strerror(code)}")


def open_listener(address: str, port: int) -> socket.socket:
    """A listening socket; "::" is for both IP versions. Raises ListenError."""
    six = ipaddress.ip_address(address).version == 6
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if six:
            dual = ipaddress.ip_address(address).is_unspecified
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
        sock.bind((address, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenError.of("TCP", address, port, error) from error
    return sock


def tune(sock: socket.socket) -> None:
    """Send at once, take a burst from the start, give up on a peer that is gone."""
    # What may wait unsent is bounded apart (carrier.py); this is for what is on its way.
    limit_unsent(sock, WINDOW_BYTES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
