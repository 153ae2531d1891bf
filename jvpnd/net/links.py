"""Watches links, addresses and default routes by rtnetlink and tells which uplinks there are.

A plain netlink socket carries the events and pyroute2 decodes them: so everything the kernel has
queued is taken in one go, an overflow is seen at once, and an answer to a request can never be
mistaken for an event. Layouts: linux/rtnetlink.h, linux/netlink.h.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from jvpnd.net.uplinks import Address, DefaultRoute, Link, LinkTable, Uplink

__all__ = ["LinkWatcher", "Uplink"]

_log = logging.getLogger(__name__)

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_RTMSG = struct.Struct("=8BI")  # struct rtmsg: family, dst_len, src_len, tos, table, ...
_NLM_F_DUMP_REQUEST = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWNEXTHOP, _DELNEXTHOP = 104, 105
# RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE, NEXTHOP
_GROUPS = (1, 5, 7, 9, 11, 32)
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_GET_STRICT_CHK = 12
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 2**20
_RECV_BYTES = 2**16
_BATCH = 256  # datagrams taken before the rest of the daemon gets its turn

_RUNNING = 0x1 | 0x40 | 0x10000  # IFF_UP, IFF_RUNNING (operstate UP or UNKNOWN), IFF_LOWER_UP
_TABLE_MAIN = 254
_RTA_TABLE = 15
_RTM_F_CLONED = 0x200
_RTN_UNICAST = 1
_RTNH_F_DEAD = 1

_Message = tuple[int, bytes]  # type, whole message


class LinkWatcher:
    """Keeps the set of uplinks and calls back as soon as it changes.

    `interfaces` None: every interface with a default route in the main table and not in `ignore`
    (our own TUNs); else the named ones, which need an address only. `on_change` gets the whole set
    by name, on the event loop, at once; only what the kernel has already queued is merged. It is
    not called for the state found by `start`: that is `uplinks()`.
    """

    def __init__(
        self,
        interfaces: Sequence[str] | None,
        ignore: Collection[str],
        on_change: Callable[[dict[str, Uplink]], None],
    ) -> None:
        self._interfaces = interfaces
        self._ignore = ignore
        self._on_change = on_change
        self._table = LinkTable(interfaces, ignore)
        self._reported: dict[str, Uplink] = {}
        self._events: socket.socket | None = None
        self._decoder = MarshalRtnl()

    async def start(self) -> None:
        """Subscribe, then take stock. Raises OSError when the kernel gives no netlink socket."""
        self._resync()
        self._reported = self._table.uplinks()

    def uplinks(self) -> dict[str, Uplink]:
        """The uplinks as last reported."""
        return dict(self._reported)

    async def close(self) -> None:
        """Stop watching; no call back comes after this."""
        self._unsubscribe()

    def _resync(self) -> None:
        """Start over: the new subscription is older than the dump, so nothing falls between."""
        self._unsubscribe()
        self._events = _subscribe()
        self._table = LinkTable(self._interfaces, self._ignore)
        for kind, message in (*_dump(_GETLINK, bytes(16)), *_dump(_GETADDR, bytes(8))):
            self._apply(kind, message)
        self._reload_routes()
        asyncio.get_running_loop().add_reader(self._events.fileno(), self._readable)

    def _unsubscribe(self) -> None:
        if self._events is not None:
            asyncio.get_running_loop().remove_reader(self._events.fileno())
            self._events.close()
            self._events = None

    def _readable(self) -> None:
        try:
            for kind, message in self._queued():
                self._apply(kind, message)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            _log.info("more network changes than the kernel could queue: taking stock again")
            self._resync()
        if self._table.routes_stale:
            self._reload_routes()
        current = self._table.uplinks()
        if current != self._reported:
            self._reported = current
            self._on_change(dict(current))

    def _queued(self) -> Iterator[_Message]:
        """The events that wait, up to a batch; the loop comes back for more."""
        assert self._events is not None
        for _ in range(_BATCH):
            try:
                data, (port, _groups) = self._events.recvfrom(_RECV_BYTES)
            except BlockingIOError:
                return
            if port == 0:  # from the kernel, not from another program
                yield from _split(data)

    def _apply(self, kind: int, message: bytes) -> None:
        if kind in (_NEWLINK, _DELLINK):
            self._apply_link(kind, message)
        elif kind in (_NEWADDR, _DELADDR):
            address = _address(self._decode(message))
            if kind == _NEWADDR:
                self._table.set_address(address)
            else:
                self._table.remove_address(address)
        elif kind in (_NEWNEXTHOP, _DELNEXTHOP) or _is_default_route(kind, message):
            self._table.routes_stale = True

    def _apply_link(self, kind: int, message: bytes) -> None:
        decoded = self._decode(message)
        if decoded["family"] != socket.AF_UNSPEC:
            return  # a bridge port or the like: its DELLINK only says that it left the bridge
        if kind == _DELLINK:
            self._table.remove_link(decoded["index"])
        else:
            self._table.set_link(_link(decoded))

    def _reload_routes(self) -> None:
        request = struct.pack("=HHI", 8, _RTA_TABLE, _TABLE_MAIN)
        routes: list[DefaultRoute] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            header = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            for kind, message in _dump(_GETROUTE, header + request):
                if _is_default_route(kind, message):
                    routes += _default_routes(self._decode(message))
        self._table.set_routes(routes)

    def _decode(self, message: bytes) -> Any:
        return next(self._decoder.parse(message))


def _subscribe() -> socket.socket:
    """A non-blocking event socket of this network namespace."""
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    try:
        events.setblocking(False)
        try:
            events.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        except PermissionError:
            events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        events.bind((0, 0))
        for group in _GROUPS:
            events.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
    except OSError:
        events.close()
        raise
    return events


def _dump(kind: int, body: bytes) -> Iterator[_Message]:
    """The answer to a dump request, on a socket of its own.

    Each receive runs the kernel's dump on our own time, so it never waits for anybody.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        try:
            sock.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        except OSError:
            _log.debug("this kernel cannot filter dumps; filtering here")
        sock.bind((0, 0))
        sock.send(_HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_DUMP_REQUEST, 1, 0) + body)
        while True:
            for got, message in _split(sock.recv(_RECV_BYTES)):
                if got == _NLMSG_DONE:
                    return
                if got == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", message, _HEADER.size)
                    if code == -errno.EOPNOTSUPP or code == -errno.EAFNOSUPPORT:
                        return  # no IPv6 in this kernel
                    raise OSError(-code, f"netlink dump {kind} refused")
                yield got, message


def _split(data: bytes) -> Iterator[_Message]:
    """The messages of one datagram."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, data[offset : offset + length]
        offset += (length + 3) & ~3


def _is_default_route(kind: int, message: bytes) -> bool:
    """Looks at the fixed part only, which keeps a full routing table cheap to walk."""
    if kind not in (_NEWROUTE, _DELROUTE) or len(message) < _HEADER.size + _RTMSG.size:
        return False
    fields = _RTMSG.unpack_from(message, _HEADER.size)
    dst_len, table, route_type, flags = fields[1], fields[4], fields[7], fields[8]
    wanted = table == _TABLE_MAIN and route_type == _RTN_UNICAST
    return dst_len == 0 and wanted and not flags & _RTM_F_CLONED


def _link(message: Any) -> Link:
    running = message["flags"] & _RUNNING == _RUNNING
    name, mtu = message.get_attr("IFLA_IFNAME"), message.get_attr("IFLA_MTU")
    return Link(message["index"], name, mtu or 0, running)


def _address(message: Any) -> Address:
    flags = message.get_attr("IFA_FLAGS")
    return Address(
        index=message["index"],
        family=message["family"],
        local=message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"),
        prefix_len=message["prefixlen"],
        scope=message["scope"],
        flags=message["flags"] if flags is None else flags,
    )


def _default_routes(message: Any) -> list[DefaultRoute]:
    """One for each live hop."""
    metric, source = message.get_attr("RTA_PRIORITY") or 0, message.get_attr("RTA_PREFSRC")
    hops = message.get_attr("RTA_MULTIPATH")
    if hops is None:
        found = [(message.get_attr("RTA_OIF"), message)]
    else:
        found = [(hop["oif"], hop) for hop in hops]
    return [
        DefaultRoute(index, message["family"], metric, hop.get_attr("RTA_GATEWAY"), source)
        for index, hop in found
        if index is not None and not hop["flags"] & _RTNH_F_DEAD
    ]
