"""Makes the kernel's rules, routes and addresses those that are wanted, by rtnetlink.

Each function looks at what is there, removes what is ours and not wanted, and adds what is missing.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Collection, Iterator
from socket import AF_INET, AF_INET6

from jvpnd.net.hoststate import read_sysctl
from jvpnd.net.netlink import HEADER, attribute, attributes
from jvpnd.net.routeplan import (
    PROTOCOL,
    TABLE_MAIN,
    Plan,
    Route,
    Rule,
    fwmark_of,
    priorities_of,
)
from jvpnd.net.rtnetlink import (
    CREATE,
    DELADDR,
    DELROUTE,
    DELRULE,
    EXCL,
    GETADDR,
    GETROUTE,
    GETRULE,
    IFA_ADDRESS,
    IFA_LOCAL,
    IFADDRMSG,
    IFINFOMSG,
    IFLA_GSO_MAX_SEGS,
    IFLA_MTU,
    NEWADDR,
    NEWLINK,
    NEWROUTE,
    NEWRULE,
    NUMBER,
    REPLACE,
    RTA_DST,
    RTA_OIF,
    RTA_TABLE,
    RTM_F_CLONED,
    RTMSG,
    change,
    dump,
    host,
    number,
)

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

_IFF_UP = 0x1
_FIB_RULE_INVERT = 0x2  # linux/fib_rules.h
_FR_ACT_TO_TBL = 1
_FRA_DST, _FRA_PRIORITY, _FRA_FWMARK = 1, 6, 10
_FRA_SUPPRESS_PREFIXLEN, _FRA_TABLE, _FRA_PROTOCOL = 14, 15, 21
_RTN_UNICAST, _RTN_UNREACHABLE = 1, 7
_SCOPE_LINK, _SCOPE_ANY = 253, 255  # RT_SCOPE_LINK, RT_SCOPE_NOWHERE: whichever it has
GONE = (errno.ESRCH, errno.ENOENT, errno.ENODEV, errno.EADDRNOTAVAIL)


def index_of(name: str) -> int | None:
    """The index of an interface, None if there is none of that name."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def host_families() -> list[int]:
    """The IP versions of this kernel, whether or not an interface uses them."""
    ipv6 = read_sysctl("net/ipv6/conf/all/disable_ipv6")
    return [AF_INET] if ipv6 is None else [AF_INET, AF_INET6]


def set_sizes(index: int, mtu: int, gso_max_segs: int) -> None:
    """An interface's MTU, in bytes, and how many segments a super-packet for it may have."""
    sizes = attribute(IFLA_MTU, NUMBER.pack(mtu))
    sizes += attribute(IFLA_GSO_MAX_SEGS, NUMBER.pack(gso_max_segs))
    change(NEWLINK, IFINFOMSG.pack(0, 0, index, 0, 0) + sizes)


def set_up(index: int, up: bool) -> None:
    """Set an interface up, or down."""
    change(NEWLINK, IFINFOMSG.pack(0, 0, index, _IFF_UP if up else 0, _IFF_UP))


def apply_plan(name: str, plan: Plan) -> tuple[str, ...]:
    """Make rules and routes of interface `name` those of the plan.

    Returns a sentence for each network that somebody else routes already: it is left alone.
    """
    index = index_of(name)
    rules = _our_rules(name)
    for rule in sorted(rules - plan.rules, key=lambda each: -each.priority):
        with _may_be_gone():
            change(DELRULE, _rule_request(rule))
    routes, on_link = _our_routes(name, index)
    replaced = {(each.family, each.network, each.table) for each in plan.routes}
    for route in routes - plan.routes:
        if route.table == TABLE_MAIN or (route.family, route.network, route.table) not in replaced:
            with _may_be_gone():
                change(DELROUTE, _route_request(route, index, _SCOPE_ANY))
    notes: list[str] = []
    for route in sorted(plan.routes - routes, key=lambda each: each.network):
        if (route.family, route.network, route.table) not in on_link:
            notes += _add_route(route, index)
    for rule in sorted(plan.rules - rules, key=lambda each: each.priority):
        change(NEWRULE, _rule_request(rule), CREATE | EXCL)
    return tuple(notes)


def set_addresses(index: int, wanted: Collection[Interface]) -> None:
    """Give an interface exactly these addresses; link-local ones of the kernel stay.

    IPv4 addresses are added before old ones go, since the last one would take the routes along;
    IPv6 the other way round, since one address cannot be there with two prefix lengths.
    """
    have = _addresses(index)
    surplus = have.difference(wanted)
    for each in surplus:
        if each.version == 6:
            _remove_address(index, each)
    for each in sorted(set(wanted) - have, key=str):
        change(NEWADDR, _address_request(index, each), CREATE | EXCL)
    for each in surplus:
        if each.version == 4:
            _remove_address(index, each)


def _addresses(index: int) -> set[Interface]:
    found: set[Interface] = set()
    for kind, message in dump(GETADDR, IFADDRMSG.pack(0, 0, 0, 0, index)):
        family, prefix_len, _flags, scope, where = IFADDRMSG.unpack_from(message, HEADER.size)
        if kind != NEWADDR or where != index or (family, scope) == (AF_INET6, _SCOPE_LINK):
            continue
        has = attributes(message, HEADER.size + IFADDRMSG.size)
        local = host(family, has.get(IFA_LOCAL) or has.get(IFA_ADDRESS))
        found.add(ipaddress.ip_interface(f"{local}/{prefix_len}"))
    return found


def _remove_address(index: int, each: Interface) -> None:
    with _may_be_gone():
        change(DELADDR, _address_request(index, each))


def _address_request(index: int, each: Interface) -> bytes:
    family = AF_INET if each.version == 4 else AF_INET6
    header = IFADDRMSG.pack(family, each.network.prefixlen, 0, 0, index)
    address = each.ip.packed
    return header + attribute(IFA_LOCAL, address) + attribute(IFA_ADDRESS, address)


def _our_rules(name: str) -> set[Rule]:
    """The rules with our protocol number and this interface's priorities."""
    found = set()
    for family in host_families():
        for kind, message in dump(GETRULE, RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
            if kind != NEWRULE:
                continue
            _family, dst_len, *_ = RTMSG.unpack_from(message, HEADER.size)
            has = attributes(message, HEADER.size + RTMSG.size)
            priority = number(has.get(_FRA_PRIORITY))
            if has.get(_FRA_PROTOCOL) == bytes([PROTOCOL]) and priority in priorities_of(name):
                table, mark = number(has.get(_FRA_TABLE)), number(has.get(_FRA_FWMARK))
                address = host(family, has.get(_FRA_DST))
                to = f"{address}/{dst_len}" if address is not None else None
                found.add(Rule(family, priority or 0, table or 0, mark, to))
    return found


def _our_routes(
    name: str, index: int | None
) -> tuple[set[Route], set[tuple[int, str, int]]]:
    """Our routes; and the networks (family, network, table) on our link without our doing.

    Ours are all in our table, and in main those through our interface with our protocol number.
    """
    ours, on_link = set(), set()
    for family in host_families():
        for table in (TABLE_MAIN, fwmark_of(name)):
            for route, oif, protocol in _routes(family, table):
                if table != TABLE_MAIN:
                    ours.add(route)
                elif index is not None and oif == index:
                    if protocol == PROTOCOL:
                        ours.add(route)
                    else:
                        on_link.add((family, route.network, table))
    return ours, on_link


def _routes(family: int, table: int) -> Iterator[tuple[Route, int | None, int]]:
    """The routes of a table, each with its interface, if it has one, and its protocol number."""
    anywhere = "0.0.0.0" if family == AF_INET else "::"
    wanted = attribute(RTA_TABLE, NUMBER.pack(table))
    for kind, message in dump(GETROUTE, RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + wanted):
        if kind != NEWROUTE:
            continue
        _family, dst_len, *_, protocol, _scope, rtype, flags = RTMSG.unpack_from(
            message, HEADER.size
        )
        has = attributes(message, HEADER.size + RTMSG.size)
        if flags & RTM_F_CLONED or number(has.get(RTA_TABLE)) != table:
            continue
        network = f"{host(family, has.get(RTA_DST)) or anywhere}/{dst_len}"
        route = Route(family, network, table, rtype == _RTN_UNREACHABLE)
        yield route, number(has.get(RTA_OIF)), protocol


def _add_route(route: Route, index: int | None) -> list[str]:
    # in our own table nothing can be in the way, and a change must leave no gap
    flags = EXCL if route.table == TABLE_MAIN else REPLACE
    try:
        change(NEWROUTE, _route_request(route, index), CREATE | flags)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
        return [f"{route.network} has another route on this host, which stays"]
    return []


def _rule_request(rule: Rule) -> bytes:
    dst_len, flags, more = 0, 0, b""
    if rule.to is not None:
        network = ipaddress.ip_network(rule.to)
        dst_len, more = network.prefixlen, attribute(_FRA_DST, network.network_address.packed)
    elif rule.fwmark is None:
        more = attribute(_FRA_SUPPRESS_PREFIXLEN, NUMBER.pack(0))
    else:
        flags, more = _FIB_RULE_INVERT, attribute(_FRA_FWMARK, NUMBER.pack(rule.fwmark))
    header = RTMSG.pack(rule.family, dst_len, 0, 0, 0, 0, 0, _FR_ACT_TO_TBL, flags)
    which = attribute(_FRA_PRIORITY, NUMBER.pack(rule.priority))
    which += attribute(_FRA_TABLE, NUMBER.pack(rule.table))
    return header + which + attribute(_FRA_PROTOCOL, bytes([PROTOCOL])) + more


def _route_request(route: Route, index: int | None, scope: int = 0) -> bytes:
    network = ipaddress.ip_network(route.network)
    kind = _RTN_UNREACHABLE if route.unreachable else _RTN_UNICAST
    header = RTMSG.pack(
        *(route.family, network.prefixlen, 0, 0, 0, PROTOCOL, scope, kind, 0)
    )
    request = header + attribute(RTA_TABLE, NUMBER.pack(route.table))
    if network.prefixlen:
        request += attribute(RTA_DST, network.network_address.packed)
    if not route.unreachable and index is not None:
        request += attribute(RTA_OIF, NUMBER.pack(index))
    return request


@contextlib.contextmanager
def _may_be_gone() -> Iterator[None]:
    """A removal: what has gone by itself meanwhile is as good as removed."""
    try:
        yield
    except OSError as error:
        if error.errno not in GONE:
            raise
