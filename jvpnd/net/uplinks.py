"""Which interfaces can carry the tunnel: a model of links, addresses and default routes.

Pure: the watcher (links.py) feeds it what the kernel says and asks for the uplinks.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Sequence
from socket import AF_INET, AF_INET6

from jvpnd.core.dataclass import dataclass

# linux/if_addr.h
_IFA_F_SECONDARY = 0x01  # for IPv6 the same bit says temporary (RFC 8981)
_IFA_F_DADFAILED = 0x08
_IFA_F_DEPRECATED = 0x20
_IFA_F_TENTATIVE = 0x40
_UNUSABLE = _IFA_F_DADFAILED | _IFA_F_DEPRECATED | _IFA_F_TENTATIVE
_SCOPE_UNIVERSE = 0
_UNIQUE_LOCAL = ipaddress.IPv6Network("fc00::/7")


@dataclass(frozen=True, slots=True)
class Uplink:
    """An interface that is up, has carrier and a usable source address in at least one family."""

    name: str
    index: int
    mtu: int  # bytes
    ipv4: str | None
    ipv6: str | None


@dataclass(frozen=True, slots=True)
class Link:
    """One interface; `running` is admin up and carrier (IFF_UP, IFF_RUNNING, IFF_LOWER_UP)."""

    index: int
    name: str
    mtu: int
    running: bool


@dataclass(frozen=True, slots=True)
class Address:
    """One address of an interface, with its scope and IFA_F_* flags."""

    index: int
    family: int
    local: str
    prefix_len: int
    scope: int
    flags: int

    @property
    def usable(self) -> bool:
        """A global source address that is neither tentative nor deprecated."""
        ip = ipaddress.ip_address(self.local)
        local_only = ip.is_link_local or ip.is_loopback or ip.is_multicast
        return self.scope == _SCOPE_UNIVERSE and not self.flags & _UNUSABLE and not local_only


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """One default route (or one hop of it) of the main table."""

    index: int
    family: int
    metric: int
    gateway: str | None
    source: str | None  # the source address that the route prefers, if it names one


class LinkTable:
    """What the kernel said last, and the uplinks that follow from it.

    The kernel drops IPv4 routes of a link that goes down, or of an address that goes, without a
    word; so those changes, like any change of a default route, set `routes_stale`, which asks for
    `set_routes` with a fresh dump.
    """

    def __init__(self, interfaces: Sequence[str] | None, ignore: Collection[str]) -> None:
        """`interfaces` None: all that have a default route, but those in `ignore`; else these."""
        self._interfaces = None if interfaces is None else frozenset(interfaces)
        self._ignore = frozenset(ignore)
        self._links: dict[int, Link] = {}
        self._addresses: dict[tuple[int, int, str, int], Address] = {}
        self._routes: dict[tuple[int, int], DefaultRoute] = {}
        self.routes_stale = False

    def set_link(self, link: Link) -> None:
        """A link is new or has changed."""
        before = self._links.get(link.index)
        self._links[link.index] = link
        if before is None or before.running != link.running:
            self.routes_stale = True
        if not link.running:
            self._forget_routes(link.index)

    def remove_link(self, index: int) -> None:
        """A link has gone, and all it had with it."""
        self._links.pop(index, None)
        self._addresses = {k: a for k, a in self._addresses.items() if a.index != index}
        self._forget_routes(index)
        self.routes_stale = True

    def set_address(self, address: Address) -> None:
        """An address is new or its flags have changed; it keeps its place in the order."""
        self._addresses[_key(address)] = address

    def remove_address(self, address: Address) -> None:
        """An address has gone."""
        self._addresses.pop(_key(address), None)
        self.routes_stale = True

    def set_routes(self, routes: Iterable[DefaultRoute]) -> None:
        """The default routes as they are now; a link's best one of a family is kept."""
        self._routes = {}
        for route in routes:
            known = self._routes.get((route.index, route.family))
            if known is None or route.metric < known.metric:
                self._routes[route.index, route.family] = route
        self.routes_stale = False

    def uplinks(self) -> dict[str, Uplink]:
        """The usable uplinks by name, in the order of their index."""
        found = {}
        for link in sorted(self._links.values(), key=lambda each: each.index):
            if not link.running or not self._wanted(link.name):
                continue
            ipv4, ipv6 = self._source(link, AF_INET), self._source(link, AF_INET6)
            if ipv4 or ipv6:
                found[link.name] = Uplink(link.name, link.index, link.mtu, ipv4, ipv6)
        return found

    def _wanted(self, name: str) -> bool:
        if self._interfaces is None:
            return name not in self._ignore
        return name in self._interfaces

    def _source(self, link: Link, family: int) -> str | None:
        """The address to send from, the one that the kernel would choose where it has a say."""
        route = self._routes.get((link.index, family))
        if route is None and self._interfaces is None:
            return None
        mine = [a for a in self._addresses.values() if a.index == link.index]
        usable = [a for a in mine if a.family == family and a.usable]
        best = min(usable, key=lambda address: _rank(address, route), default=None)
        return None if best is None else best.local

    def _forget_routes(self, index: int) -> None:
        self._routes = {k: r for k, r in self._routes.items() if r.index != index}


def _key(address: Address) -> tuple[int, int, str, int]:
    return address.index, address.family, address.local, address.prefix_len


def _rank(address: Address, route: DefaultRoute | None) -> tuple[bool, bool, bool, bool]:
    """Lower is better; equals keep their order, so a new address does not move a path.

    The route's own source, then the gateway's subnet, then global before unique-local, then
    primary before secondary or temporary: a temporary address would move the path every day.
    """
    source = route.source if route else None
    gateway = route.gateway if route else None
    return (
        address.local != source,
        gateway is None or not _on_link(address, gateway),
        address.family == AF_INET6 and ipaddress.ip_address(address.local) in _UNIQUE_LOCAL,
        bool(address.flags & _IFA_F_SECONDARY),
    )


def _on_link(address: Address, gateway: str) -> bool:
    subnet = ipaddress.ip_network(f"{address.local}/{address.prefix_len}", strict=False)
    return ipaddress.ip_address(gateway) in subnet
