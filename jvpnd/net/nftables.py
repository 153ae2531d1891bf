"""Which nft tables there are, and word of every change, straight from the kernel.

Layouts: linux/netlink.h, linux/netfilter/nfnetlink.h, nf_tables.h.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Final

from jvpnd.net.netlink import (
    ADD_MEMBERSHIP,
    DUMP_REQUEST,
    HEADER,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOL_NETLINK,
    attributes,
    messages,
)

_NFGENMSG: Final = struct.Struct("=BBH")  # family, version, resource
_NETLINK_NETFILTER: Final = 12
_SUBSYSTEM: Final = 10 << 8  # NFNL_SUBSYS_NFTABLES
_NEWTABLE, _GETTABLE = _SUBSYSTEM, _SUBSYSTEM | 1
_NFPROTO_INET: Final = 1
_NFTA_TABLE_NAME: Final = 1
_NFNLGRP_NFTABLES: Final = 7
_RECV_BYTES: Final = 2**16


def inet_tables() -> set[str]:
    """The names of the tables of family inet. Raises OSError, PermissionError without privilege."""
    found: set[str] = set()
    body = _NFGENMSG.pack(_NFPROTO_INET, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
        sock.bind((0, 0))
        sock.send(HEADER.pack(HEADER.size + len(body), _GETTABLE, DUMP_REQUEST, 1, 0) + body)
        while True:
            for kind, message in messages(sock.recv(_RECV_BYTES)):
                if kind == NLMSG_DONE:
                    return found
                if kind == NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", message, HEADER.size)
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
        events.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
    except OSError:
        events.close()
        raise
    return events


def _name(message: bytes) -> str:
    """The name in a NEWTABLE message."""
    found = attributes(message, HEADER.size + _NFGENMSG.size)
    return found.get(_NFTA_TABLE_NAME, b"").rstrip(b"\0").decode(errors="replace")
