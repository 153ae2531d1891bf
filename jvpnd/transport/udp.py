"""UDP sockets of the tunnel: one a path on the client, one a listen address on the gateway.

Both are left to the kernel's default don't-fragment policy (path MTU discovery where the route
asks for it). All descriptors are non-blocking. The data plane switches UDP_GRO on; backlog.py says
how much may wait unsent.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

from jvpnd.transport.backlog import MIN_BYTES, limit_unsent

RECEIVE_BYTES = 4 * 2**20  # a few ms of a fast line, while the worker is not scheduled

_SO_RCVBUFFORCE = 33  # asm-generic/socket.h; ignores the sysctl maximum


class SocketError(OSError):
    """A socket that could not be opened: `errno` of the kernel, and a sentence."""

    def __str__(self) -> str:
        return str(self.strerror)


class PathError(SocketError):
    """A path has no socket now: its uplink, source address or route is gone."""


class ListenError(SocketError):
    """The gateway cannot listen there: the port is taken or the address is not on this host."""


def open_path_socket(
    uplink: str, source: str, remote: tuple[str, int], mark: int
) -> socket.socket:
    """A connected client socket that can leave only through `uplink`, from `source`.

    `mark` is its firewall mark (HostNetwork.fwmark), which keeps it out of the tunnel. Raises
    PathError, with the kernel's errno, when the uplink, its address or the route has gone.
    """
    sock = socket.socket(_family(source), socket.SOCK_DGRAM)
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, uplink.encode() + b"\0")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        _tune(sock)
        sock.bind((source, 0))
        sock.connect(remote)
    except OSError as error:
        sock.close()
        code = error.errno or errno.EIO
        where = f"{uplink} ({source}) to {_text(*remote)}"
        raise PathError(code, f"no path over {where}: {os.strerror(code)}") from error
    return sock


def open_listen_socket(address: str, port: int) -> socket.socket:
    """The gateway's socket. "::" listens on both IP versions, any other address on its own.

    On a host with several addresses give each its own listen entry: behind a wildcard the kernel,
    not the client, chooses which address the replies leave from. A dual-stack socket shows IPv4
    peers as ::ffff:a.b.c.d. Raises ListenError, naming address and port.
    """
    sock = socket.socket(_family(address), socket.SOCK_DGRAM)
    try:
        if sock.family == socket.AF_INET6:
            dual = ipaddress.ip_address(address).is_unspecified
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
        _tune(sock)
        sock.bind((address, port))
    except OSError as error:
        sock.close()
        raise _listen_error(address, port, error.errno or errno.EIO) from error
    return sock


def _listen_error(address: str, port: int, code: int) -> ListenError:
    reasons = {
        errno.EADDRINUSE: "another program has this port",
        errno.EADDRNOTAVAIL: "this host has no such address",
        errno.EACCES: "no permission for a port below 1024",
    }
    reason = reasons.get(code, os.strerror(code))
    return ListenError(code, f"cannot listen on UDP {_text(address, port)}: {reason}")


def _family(address: str) -> socket.AddressFamily:
    six = ipaddress.ip_address(address).version == 6
    return socket.AF_INET6 if six else socket.AF_INET


def _tune(sock: socket.socket) -> None:
    """Non-blocking, little to wait unsent, much to wait unread as far as privilege allows."""
    sock.setblocking(False)
    limit_unsent(sock, MIN_BYTES)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BYTES)
    except PermissionError:  # no CAP_NET_ADMIN: as much as the sysctl allows
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)


def _text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
