"""UDP sockets of the tunnel: a group for each path of a client, and for each address that a gateway
listens on; of one socket, if there is one lane.

None of them lets anybody fragment what it sends: how long a datagram may be is found by probing
(pathsizes.py), whatever routers tell or do not tell. All descriptors are non-blocking. The data
plane switches UDP_GRO on; backlog.py says how much may wait unsent.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket

from jvpnd.core.effects import host_port
from jvpnd.transport.backlog import MIN_BYTES, limit_unsent
from jvpnd.transport.group import SocketGroup, bind_group

RECEIVE_BYTES = 8 * 2**20  # a few ms of a fast line, while the worker is not scheduled

_SO_RCVBUFFORCE = 33  # asm-generic/socket.h; ignores the sysctl maximum
_IP_MTU_DISCOVER = 10  # linux/in.h
_IPV6_MTU_DISCOVER = 23  # linux/in6.h
_PMTUDISC_PROBE = 3  # don't fragment, and no notice of what the kernel thinks of the path
_IP_RECVERR = 11  # linux/in.h
_IPV6_RECVERR = 25  # linux/in6.h


class SocketError(OSError):
    """A socket that could not be opened: `errno` of the kernel, and a sentence."""

    def __str__(self) -> str:
        return str(self.strerror)


class PathError(SocketError):
    """A path has no socket now: its uplink, source address or route is gone."""


class ListenError(SocketError):
    """The gateway cannot listen there: the port is taken or the address is not on this host."""

    @classmethod
    def of(cls, protocol: str, address: str, port: int, error: OSError) -> ListenError:
        """What the kernel said about listening there."""
        code = error.errno or errno.EIO
        reasons = {
            errno.EADDRINUSE: "another program has this port",
            errno.EADDRNOTAVAIL: "this host has no such address",
            errno.EACCES: "no permission for a port below 1024",
        }
        reason = reasons.get(code, os.strerror(code))
        return cls(code, f"cannot listen on {protocol} {host_port(address, port)}: {reason}")


def open_path(
    uplink: str, source: str, remote: tuple[str, int], mark: int, lanes: int = 1
) -> SocketGroup:
    """A client's sockets that can leave only through `uplink`, from `source`.

    With one lane the socket is connected to `remote`, with more there is a `peer`, and ICMP errors
    are in the error queues. `mark` is their firewall mark (HostNetwork.fwmark), which keeps them
    out of the tunnel. Raises PathError, with the kernel's errno, when the uplink, its address or
    the route has gone.
    """

    def prepare() -> socket.socket:
        sock = _new_socket(source, dual=False)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, uplink.encode() + b"\0")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            if lanes > 1:
                _queue_errors(sock)
        except OSError:
            sock.close()
            raise
        return sock

    try:
        (first,) = bind_group(prepare, (source, 0), 1)
        with contextlib.ExitStack() as opened:
            opened.enter_context(first)
            first.connect(remote)  # is there a route?
            if lanes == 1:
                opened.pop_all()
                return SocketGroup((first,))
        return SocketGroup(bind_group(prepare, (source, 0), lanes), remote)
    except OSError as error:
        code = error.errno or errno.EIO
        where = f"{uplink} ({source}) to {host_port(*remote)}"
        raise PathError(code, f"no path over {where}: {os.strerror(code)}") from error


def open_listener(address: str, port: int, lanes: int = 1) -> SocketGroup:
    """The gateway's sockets. "::" listens on both IP versions, any other address on its own.

    On a host with several addresses give each its own listen entry: behind a wildcard the kernel,
    not the client, chooses which address the replies leave from. A dual-stack socket shows IPv4
    peers as ::ffff:a.b.c.d. Raises ListenError, naming address and port.
    """
    dual = ipaddress.ip_address(address).is_unspecified
    try:
        return SocketGroup(
            bind_group(lambda: _new_socket(address, dual), (address, port), lanes)
        )
    except OSError as error:
        raise ListenError.of("UDP", address, port, error) from error


def _new_socket(address: str, dual: bool) -> socket.socket:
    """A socket for the IP version of `address`, or for both."""
    six = ipaddress.ip_address(address).version == 6
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
        _tune(sock)
    except OSError:
        sock.close()
        raise
    return sock


def _queue_errors(sock: socket.socket) -> None:
    """Be told of ICMP errors without being connected."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)


def _tune(sock: socket.socket) -> None:
    """Non-blocking, little to wait unsent, much to wait unread as far as privilege allows."""
    sock.setblocking(False)
    limit_unsent(sock, MIN_BYTES)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BYTES)
    except PermissionError:  # no CAP_NET_ADMIN: as much as the sysctl allows
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
