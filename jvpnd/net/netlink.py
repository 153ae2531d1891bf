"""Netlink messages and what is in them, cut. Layouts: linux/netlink.h.

pyroute2 could do it; but a client waits for this at each start, and importing pyroute2 takes as
long as all the rest of a start.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections.abc import Collection, Iterator
from typing import Final

_log = logging.getLogger(__name__)

HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
NLMSG_ERROR, NLMSG_DONE = 2, 3
DUMP_REQUEST: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
SOL_NETLINK: Final = 270
ADD_MEMBERSHIP: Final = 1
RECV_BYTES: Final = 2**16

_ATTRIBUTE: Final = struct.Struct("=HH")  # struct nlattr: length with itself, type
_TYPE_MASK: Final = 0x3FFF  # without NLA_F_NESTED, NLA_F_NET_BYTEORDER
_NETLINK_GET_STRICT_CHK: Final = 12
_SO_RCVBUFFORCE: Final = 33
_BUFFER_BYTES: Final = 2**20


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and whole message of each in one datagram."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, *_ = HEADER.unpack_from(data, offset)
        if length < HEADER.size:
            return
        yield kind, data[offset : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes, offset: int) -> dict[int, bytes]:
    """The attributes behind `offset`, by type."""
    found: dict[int, bytes] = {}
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


def subscribe(groups: Collection[int]) -> socket.socket:
    """A non-blocking socket of this network namespace that hears these groups of rtnetlink."""
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    try:
        events.setblocking(False)
        try:
            events.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        except PermissionError:
            events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        events.bind((0, 0))
        for group in groups:
            events.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, group)
    except OSError:
        events.close()
        raise
    return events


def dump(kind: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    """The answer to a dump request of rtnetlink, on a socket of its own: types, whole messages.

    Each receive runs the kernel's dump on our own time, so it never waits for anybody.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        try:
            sock.setsockopt(SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        except OSError:
            _log.debug("this kernel cannot filter dumps; filtering here")
        sock.bind((0, 0))
        sock.send(HEADER.pack(HEADER.size + len(body), kind, DUMP_REQUEST, 1, 0) + body)
        while True:
            for got, message in messages(sock.recv(RECV_BYTES)):
                if got == NLMSG_DONE:
                    return
                if got == NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", message, HEADER.size)
                    if code == -errno.EOPNOTSUPP or code == -errno.EAFNOSUPPORT:
                        return  # no IPv6 in this kernel
                    raise OSError(-code, f"netlink dump {kind} refused")
                yield got, message
