"""Questions to the kernel's rtnetlink, and changes by it. Layouts: linux/rtnetlink.h and beside it.

Each runs in the kernel on our own time and is answered at once, so none of them waits for anybody.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

from jvpnd.net.netlink import (
    DUMP_REQUEST,
    HEADER,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOL_NETLINK,
    messages,
)

IFINFOMSG: Final = struct.Struct("=BxHiII")  # family, type, index, flags, change
IFADDRMSG: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
RTMSG: Final = struct.Struct("=8BI")
"""struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags; and struct
fib_rule_hdr, which has the action in place of the type."""
NUMBER: Final = struct.Struct("=I")

NEWLINK, DELLINK, GETLINK = 16, 17, 18
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWRULE, DELRULE, GETRULE = 32, 33, 34
REPLACE, EXCL, CREATE = 0x100, 0x200, 0x400  # NLM_F_*

IFLA_IFNAME, IFLA_MTU, IFLA_GSO_MAX_SEGS = 3, 4, 40
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC = 1, 4, 5, 6, 7
RTA_MULTIPATH, RTA_TABLE = 9, 15
RTM_F_CLONED: Final = 0x200
TABLE_MAIN: Final = 254

_REQUEST_ACK: Final = 0x1 | 0x4  # NLM_F_REQUEST, NLM_F_ACK
_NETLINK_GET_STRICT_CHK: Final = 12
_RECV_BYTES: Final = 2**16
_NOTHING = (errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.ENOENT)  # no IPv6, or no such table

_log = logging.getLogger(__name__)


def dump(kind: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and whole message of each that answers a request for all. Raises OSError.

    Old kernels do not look at what the body asks for: filter again.
    """
    with _opened() as sock:
        try:
            sock.setsockopt(SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        except OSError:
            _log.debug("this kernel cannot filter dumps; filtering here")
        sock.send(HEADER.pack(HEADER.size + len(body), kind, DUMP_REQUEST, 1, 0) + body)
        while True:
            for got, message in messages(sock.recv(_RECV_BYTES)):
                if got == NLMSG_DONE:
                    return
                if got == NLMSG_ERROR:
                    code = _code(message)
                    if code in _NOTHING:
                        return
                    raise OSError(code, f"netlink dump {kind} refused")
                yield got, message


def change(kind: int, body: bytes, flags: int = 0) -> None:
    """Ask for one change. Raises OSError with what the kernel says."""
    header = HEADER.pack(HEADER.size + len(body), kind, _REQUEST_ACK | flags, 1, 0)
    with _opened() as sock:
        sock.send(header + body)
        for got, message in messages(sock.recv(_RECV_BYTES)):
            if got == NLMSG_ERROR and (code := _code(message)):
                raise OSError(code, f"netlink request {kind} refused: {os.strerror(code)}")


def _opened() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    sock.bind((0, 0))
    return sock


def _code(message: bytes) -> int:
    """The errno in an NLMSG_ERROR; 0: it is the acknowledgement."""
    (code,) = struct.unpack_from("=i", message, HEADER.size)
    return -int(code)


def number(value: bytes | None) -> int | None:
    """A 32-bit attribute; None where there is none, or another."""
    return NUMBER.unpack(value)[0] if value is not None and len(value) == NUMBER.size else None


def host(family: int, packed: bytes | None) -> str | None:
    """An address attribute as text; None where there is none, or another."""
    size = {socket.AF_INET: 4, socket.AF_INET6: 16}.get(socket.AddressFamily(family))
    return socket.inet_ntop(family, packed) if packed is not None and len(packed) == size else None
