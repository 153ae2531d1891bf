"""Which nft tables there are, and word of every change, straight from the kernel.

Layouts: linux/netlink.h, linux/netfilter/nfnetlink.h, nf_tables.h.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Final

_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_NFGENMSG: Final = struct.Struct("=BBH")  # family, version, resource
_ATTRIBUTE: Final = struct.Struct("=HH")  # length with this header, type
_NETLINK_NETFILTER: Final = 12
_SUBSYSTEM: Final = 10 << 8  # NFNL_SUBSYS_NFTABLES
_NEWTABLE, _GETTABLE = _SUBSYSTEM, _SUBSYSTEM | 1
_NFPROTO_INET: Final = 1
_NFTA_TABLE_NAME: Final = 1
_DUMP_REQUEST: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_NFNLGRP_NFTABLES: Final = 7
_RECV_BYTES: Final = 2**16


def inet_tables() -> set[str]:
    """The names of the tables of family inet. Raises OSError, PermissionError without privilege."""
    found: set[str] = set()
    body = _NFGENMSG.pack(_NFPROTO_INET, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
        sock.bind((0, 0))
        sock.send(_HEADER.pack(_HEADER.size + len(body), _GETTABLE, _DUMP_REQUEST, 1, 0) + body)
        while True:
            data, offset = sock.recv(_RECV_BYTES), 0
            while offset + _HEADER.size <= len(data):
                length, kind, *_ = _HEADER.unpack_from(data, offset)
                message = data[offset + _HEADER.size : offset + length]
                offset += max(length + 3 & ~3, _HEADER.size)
                if kind == _NLMSG_DONE:
                    return found
                if kind == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", message)
                    raise OSError(-code, f"nft tables: {os.strerror(-code)}")
                if kind == _NEWTABLE:
                    found.add(_name(message))


def subscribe() -> socket.socket:
    """A non-blocking socket that can be read whenever rules have changed. Raises OSError."""
    events = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER
    )
    try:
        events.bind((0, 0))
        events.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
    except OSError:
        events.close()
        raise
    return events


def _name(message: bytes) -> str:
    """The name in a NEWTABLE message."""
    offset = _NFGENMSG.size
    while offset + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, offset)
        if kind == _NFTA_TABLE_NAME:
            return message[offset + _ATTRIBUTE.size : offset + length].rstrip(b"\0").decode()
        offset += max(length + 3 & ~3, _ATTRIBUTE.size)
    return ""
