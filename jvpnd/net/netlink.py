"""Netlink messages and what is in them, cut and made. Layouts: linux/netlink.h.

pyroute2 could do it; but a restart waits for links, addresses and routes, and importing pyroute2
takes as long as all the rest of a start. It does what nobody waits for.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterator
from typing import Final

HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
NLMSG_ERROR, NLMSG_DONE = 2, 3
DUMP_REQUEST: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
SOL_NETLINK: Final = 270
ADD_MEMBERSHIP: Final = 1
RECV_BYTES: Final = 2**16

_ATTRIBUTE: Final = struct.Struct("=HH")  # struct nlattr: length with itself, type
_TYPE_MASK: Final = 0x3FFF  # without NLA_F_NESTED, NLA_F_NET_BYTEORDER
_SO_RCVBUFFORCE: Final = 33
_BUFFER_BYTES: Final = 2**20


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded, for a request."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


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
