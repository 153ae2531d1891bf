"""Watches links, addresses and default routes by rtnetlink and tells which uplinks there are.

A plain netlink socket carries the events: so everything the kernel has queued is taken in one go,
an overflow is seen at once, and an answer to a request can never be mistaken for an event. Layouts:
linux/rtnetlink.h.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Callable, Collection, Iterator, Sequence

from jvpnd.net.netlink import HEADER, RECV_BYTES, attributes, messages, subscribe
from jvpnd.net.rtnetlink import (
    DELADDR,
    DELLINK,
    DELROUTE,
    GETADDR,
    GETLINK,
    GETROUTE,
    IFA_ADDRESS,
    IFA_FLAGS,
    IFA_LOCAL,
    IFADDRMSG,
    IFINFOMSG,
    IFLA_IFNAME,
    IFLA_MTU,
    NEWADDR,
    NEWLINK,
    NEWROUTE,
    RTA_GATEWAY,
    RTA_MULTIPATH,
    RTA_OIF,
    RTA_PREFSRC,
    RTA_PRIORITY,
    RTA_TABLE,
    RTM_F_CLONED,
    RTMSG,
    TABLE_MAIN,
    dump,
    host,
    number,
)
from jvpnd.net.uplinks import Address, DefaultRoute, Link, LinkTable, Uplink

__all__ = ["LinkWatcher", "Uplink"]

_log = logging.getLogger(__name__)

_RTNEXTHOP = struct.Struct("=HBBi")  # length with itself and its attributes, flags, hops, index
_NEWNEXTHOP, _DELNEXTHOP = 104, 105
# RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE, NEXTHOP
_GROUPS = (1, 5, 7, 9, 11, 32)
_BATCH = 256  # datagrams taken before the rest of the daemon gets its turn

_RUNNING = 0x1 | 0x40 | 0x10000  # IFF_UP, IFF_RUNNING (operstate UP or UNKNOWN), IFF_LOWER_UP
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
        for kind, message in (*dump(GETLINK, bytes(16)), *dump(GETADDR, bytes(8))):
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
        if kind in (NEWLINK, DELLINK):
            self._apply_link(kind, message)
        elif kind in (NEWADDR, DELADDR):
            address = _address(message)
            if kind == NEWADDR:
                self._table.set_address(address)
            else:
                self._table.remove_address(address)
        elif kind in (_NEWNEXTHOP, _DELNEXTHOP) or _is_default_route(kind, message):
            self._table.routes_stale = True

    def _apply_link(self, kind: int, message: bytes) -> None:
        family, _, index, *_ = IFINFOMSG.unpack_from(message, HEADER.size)
        if family != socket.AF_UNSPEC:
            return  # a bridge port or the like: its DELLINK only says that it left the bridge
        if kind == DELLINK:
            self._table.remove_link(index)
        else:
            self._table.set_link(_link(message))

    def _reload_routes(self) -> None:
        request = struct.pack("=HHI", 8, RTA_TABLE, TABLE_MAIN)
        routes: list[DefaultRoute] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            header = RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            for kind, message in dump(GETROUTE, header + request):
                if _is_default_route(kind, message):
                    routes += _default_routes(message)
        self._table.set_routes(routes)


def _is_default_route(kind: int, message: bytes) -> bool:
    """Looks at the fixed part only, which keeps a full routing table cheap to walk."""
    if kind not in (NEWROUTE, DELROUTE) or len(message) < HEADER.size + RTMSG.size:
        return False
    fields = RTMSG.unpack_from(message, HEADER.size)
    dst_len, table, route_type, flags = fields[1], fields[4], fields[7], fields[8]
    wanted = table == TABLE_MAIN and route_type == _RTN_UNICAST
    return dst_len == 0 and wanted and not flags & RTM_F_CLONED


def _link(message: bytes) -> Link:
    _family, _kind, index, flags, _change = IFINFOMSG.unpack_from(message, HEADER.size)
    found = attributes(message, HEADER.size + IFINFOMSG.size)
    name = found.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
    return Link(index, name, number(found.get(IFLA_MTU)) or 0, flags & _RUNNING == _RUNNING)


def _address(message: bytes) -> Address:
    family, prefix_len, flags, scope, index = IFADDRMSG.unpack_from(message, HEADER.size)
    found = attributes(message, HEADER.size + IFADDRMSG.size)
    local = host(family, found.get(IFA_LOCAL) or found.get(IFA_ADDRESS))
    more = number(found.get(IFA_FLAGS))
    return Address(index, family, local or "", prefix_len, scope, flags if more is None else more)


def _default_routes(message: bytes) -> list[DefaultRoute]:
    """One for each live hop."""
    family, *_, flags = RTMSG.unpack_from(message, HEADER.size)
    found = attributes(message, HEADER.size + RTMSG.size)
    metric = number(found.get(RTA_PRIORITY)) or 0
    source = host(family, found.get(RTA_PREFSRC))
    hops = [(number(found.get(RTA_OIF)), flags, found)]
    if RTA_MULTIPATH in found:
        hops = list(_hops(found[RTA_MULTIPATH]))
    return [
        DefaultRoute(index, family, metric, host(family, hop.get(RTA_GATEWAY)), source)
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
