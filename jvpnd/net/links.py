"""Watches links, addresses and default routes by rtnetlink and tells which uplinks there are.

A plain netlink socket carries the events: so everything the kernel has queued is taken in one go,
an overflow is seen at once, and an answer to a request can never be mistaken for an event. Layouts:
linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Callable, Collection, Iterator, Sequence

from jvpnd.net.netlink import HEADER, RECV_BYTES, attributes, dump, messages, subscribe
from jvpnd.net.uplinks import Address, DefaultRoute, Link, LinkTable, Uplink

__all__ = ["LinkWatcher", "Uplink"]

_log = logging.getLogger(__name__)

_IFINFOMSG = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_RTMSG = struct.Struct("=8BI")  # struct rtmsg: family, dst_len, src_len, tos, table, ...
_RTNEXTHOP = struct.Struct("=HBBi")  # length with itself and its attributes, flags, hops, index
_NUMBER = struct.Struct("=I")
_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWNEXTHOP, _DELNEXTHOP = 104, 105
# RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE, NEXTHOP
_GROUPS = (1, 5, 7, 9, 11, 32)
_BATCH = 256  # datagrams taken before the rest of the daemon gets its turn

_RUNNING = 0x1 | 0x40 | 0x10000  # IFF_UP, IFF_RUNNING (operstate UP or UNKNOWN), IFF_LOWER_UP
_TABLE_MAIN = 254
_IFLA_IFNAME, _IFLA_MTU = 3, 4
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_MULTIPATH, _RTA_TABLE = 4, 5, 6, 7, 9, 15
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
        self._events = subscribe(_GROUPS)
        self._table = LinkTable(self._interfaces, self._ignore)
        for kind, message in (*dump(_GETLINK, bytes(16)), *dump(_GETADDR, bytes(8))):
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
                data, (port, _groups) = self._events.recvfrom(RECV_BYTES)
            except BlockingIOError:
                return
            if port == 0:  # from the kernel, not from another program
                yield from messages(data)

    def _apply(self, kind: int, message: bytes) -> None:
        if kind in (_NEWLINK, _DELLINK):
            self._apply_link(kind, message)
        elif kind in (_NEWADDR, _DELADDR):
            address = _address(message)
            if kind == _NEWADDR:
                self._table.set_address(address)
            else:
                self._table.remove_address(address)
        elif kind in (_NEWNEXTHOP, _DELNEXTHOP) or _is_default_route(kind, message):
            self._table.routes_stale = True

    def _apply_link(self, kind: int, message: bytes) -> None:
        family, _, index, *_ = _IFINFOMSG.unpack_from(message, HEADER.size)
        if family != socket.AF_UNSPEC:
            return  # a bridge port or the like: its DELLINK only says that it left the bridge
        if kind == _DELLINK:
            self._table.remove_link(index)
        else:
            self._table.set_link(_link(message))

    def _reload_routes(self) -> None:
        request = struct.pack("=HHI", 8, _RTA_TABLE, _TABLE_MAIN)
        routes: list[DefaultRoute] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            header = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            for kind, message in dump(_GETROUTE, header + request):
                if _is_default_route(kind, message):
                    routes += _default_routes(message)
        self._table.set_routes(routes)


def _is_default_route(kind: int, message: bytes) -> bool:
    """Looks at the fixed part only, which keeps a full routing table cheap to walk."""
    if kind not in (_NEWROUTE, _DELROUTE) or len(message) < HEADER.size + _RTMSG.size:
        return False
    fields = _RTMSG.unpack_from(message, HEADER.size)
    dst_len, table, route_type, flags = fields[1], fields[4], fields[7], fields[8]
    wanted = table == _TABLE_MAIN and route_type == _RTN_UNICAST
    return dst_len == 0 and wanted and not flags & _RTM_F_CLONED


def _link(message: bytes) -> Link:
    _family, _kind, index, flags, _change = _IFINFOMSG.unpack_from(message, HEADER.size)
    found = attributes(message, HEADER.size + _IFINFOMSG.size)
    name = found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
    return Link(index, name, _number(found.get(_IFLA_MTU)) or 0, flags & _RUNNING == _RUNNING)


def _address(message: bytes) -> Address:
    family, prefix_len, flags, scope, index = _IFADDRMSG.unpack_from(message, HEADER.size)
    found = attributes(message, HEADER.size + _IFADDRMSG.size)
    local = _host(family, found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS))
    more = _number(found.get(_IFA_FLAGS))
    return Address(index, family, local or "", prefix_len, scope, flags if more is None else more)


def _default_routes(message: bytes) -> list[DefaultRoute]:
    """One for each live hop."""
    family, *_, flags = _RTMSG.unpack_from(message, HEADER.size)
    found = attributes(message, HEADER.size + _RTMSG.size)
    metric = _number(found.get(_RTA_PRIORITY)) or 0
    source = _host(family, found.get(_RTA_PREFSRC))
    hops = [(_number(found.get(_RTA_OIF)), flags, found)]
    if _RTA_MULTIPATH in found:
        hops = list(_hops(found[_RTA_MULTIPATH]))
    return [
        DefaultRoute(index, family, metric, _host(family, hop.get(_RTA_GATEWAY)), source)
        for index, flags, hop in hops
        if index is not None and not flags & _RTNH_F_DEAD
    ]


def _hops(data: bytes) -> Iterator[tuple[int | None, int, dict[int, bytes]]]:
    """Interface, flags and attributes of each hop of a route that has several."""
    offset = 0
    while offset + _RTNEXTHOP.size <= len(data):
        length, flags, _hops_away, index = _RTNEXTHOP.unpack_from(data, offset)
        if length < _RTNEXTHOP.size:
            return
        yield index, flags, attributes(data[offset : offset + length], _RTNEXTHOP.size)
        offset += (length + 3) & ~3


def _number(value: bytes | None) -> int | None:
    return _NUMBER.unpack(value)[0] if value is not None and len(value) == _NUMBER.size else None


def _host(family: int, packed: bytes | None) -> str | None:
    size = {socket.AF_INET: 4, socket.AF_INET6: 16}.get(socket.AddressFamily(family))
    return socket.inet_ntop(family, packed) if packed is not None and len(packed) == size else None
