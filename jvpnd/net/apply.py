"""Makes the kernel's rules, routes and addresses those that are wanted, by rtnetlink.

Each function looks at what is there, removes what is ours and not wanted, and adds what is missing.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Collection
from socket import AF_INET, AF_INET6
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from jvpnd.net.hoststate import read_sysctl
from jvpnd.net.routeplan import (
    PROTOCOL,
    TABLE_MAIN,
    Plan,
    Route,
    Rule,
    fwmark_of,
    priorities_of,
)

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

_FIB_RULE_INVERT = 0x2  # linux/fib_rules.h
_RTN_UNREACHABLE = 7
_RTM_F_CLONED = 0x200
_SCOPE_LINK = 253
_GONE = (errno.ESRCH, errno.ENOENT, errno.ENODEV, errno.EADDRNOTAVAIL)


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


async def apply_plan(ip: AsyncIPRoute, name: str, plan: Plan) -> tuple[str, ...]:
    """Make rules and routes of interface `name` those of the plan.

    Returns a sentence for each network that somebody else routes already: it is left alone.
    """
    index = index_of(name)
    rules = await _our_rules(ip, name)
    for rule in sorted(rules - plan.rules, key=lambda each: -each.priority):
        await ignore_gone(ip.rule("del", **_rule_request(rule)))
    routes, on_link = await _our_routes(ip, name, index)
    replaced = {(each.family, each.network, each.table) for each in plan.routes}
    for route in routes - plan.routes:
        if route.table == TABLE_MAIN or (route.family, route.network, route.table) not in replaced:
            await ignore_gone(ip.route("del", **_route_request(route, index)))
    notes: list[str] = []
    for route in sorted(plan.routes - routes, key=lambda each: each.network):
        if (route.family, route.network, route.table) not in on_link:
            notes += await _add_route(ip, route, index)
    for rule in sorted(plan.rules - rules, key=lambda each: each.priority):
        await ip.rule("add", **_rule_request(rule))
    return tuple(notes)


async def set_addresses(ip: AsyncIPRoute, index: int, wanted: Collection[Interface]) -> None:
    """Give an interface exactly these addresses; link-local ones of the kernel stay.

    IPv4 addresses are added before old ones go, since the last one would take the routes along;
    IPv6 the other way round, since one address cannot be there with two prefix lengths.
    """
    have = await _addresses(ip, index)
    surplus = have.difference(wanted)
    for each in surplus:
        if each.version == 6:
            await ignore_gone(_change_address(ip, "del", index, each))
    for each in sorted(set(wanted) - have, key=str):
        await _change_address(ip, "add", index, each)
    for each in surplus:
        if each.version == 4:
            await ignore_gone(_change_address(ip, "del", index, each))


async def _addresses(ip: AsyncIPRoute, index: int) -> set[Interface]:
    found: set[Interface] = set()
    async for message in await ip.addr("dump", index=index):
        if message["family"] == AF_INET6 and message["scope"] == _SCOPE_LINK:
            continue
        local = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        found.add(ipaddress.ip_interface(f"{local}/{message['prefixlen']}"))
    return found


async def _change_address(ip: AsyncIPRoute, command: str, index: int, each: Interface) -> None:
    prefix_len = each.network.prefixlen
    await ip.addr(command, index=index, address=str(each.ip), prefixlen=prefix_len)


async def _our_rules(ip: AsyncIPRoute, name: str) -> set[Rule]:
    """The rules with our protocol number and this interface's priorities."""
    found = set()
    for family in host_families():
        async for message in await ip.rule("dump", family=family):
            priority = message.get_attr("FRA_PRIORITY")
            ours = message.get_attr("FRA_PROTOCOL") == PROTOCOL
            if ours and priority in priorities_of(name):
                table, mark = message.get_attr("FRA_TABLE"), message.get_attr("FRA_FWMARK")
                address = message.get_attr("FRA_DST")
                to = f"{address}/{message['dst_len']}" if address is not None else None
                found.add(Rule(family, priority, table, mark, to))
    return found


async def _our_routes(
    ip: AsyncIPRoute, name: str, index: int | None
) -> tuple[set[Route], set[tuple[int, str, int]]]:
    """Our routes; and the networks (family, network, table) on our link without our doing.

    Ours are all in our table, and in main those through our interface with our protocol number.
    """
    ours, on_link = set(), set()
    for family in host_families():
        for table in (TABLE_MAIN, fwmark_of(name)):
            async for message in await ip.route("dump", family=family, table=table):
                if message["flags"] & _RTM_F_CLONED:
                    continue
                route = _route_of(message, family, table)
                if table != TABLE_MAIN:
                    ours.add(route)
                elif index is not None and message.get_attr("RTA_OIF") == index:
                    if message["proto"] == PROTOCOL:
                        ours.add(route)
                    else:
                        on_link.add((family, route.network, table))
    return ours, on_link


def _route_of(message: Any, family: int, table: int) -> Route:
    anywhere = "0.0.0.0" if family == AF_INET else "::"
    network = f"{message.get_attr('RTA_DST') or anywhere}/{message['dst_len']}"
    return Route(family, network, table, message["type"] == _RTN_UNREACHABLE)


async def _add_route(ip: AsyncIPRoute, route: Route, index: int | None) -> list[str]:
    # in our own table nothing can be in the way, and a change must leave no gap
    command = "add" if route.table == TABLE_MAIN else "replace"
    try:
        await ip.route(command, **_route_request(route, index))
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
        return [f"{route.network} has another route on this host, which stays"]
    return []


def _rule_request(rule: Rule) -> dict[str, Any]:
    request: dict[str, Any] = {
        "family": rule.family,
        "priority": rule.priority,
        "table": rule.table,
        "protocol": PROTOCOL,
    }
    if rule.to is not None:
        address, _, prefix_len = rule.to.partition("/")
        request |= {"dst": address, "dst_len": int(prefix_len)}
    elif rule.fwmark is None:
        request["suppress_prefixlen"] = 0
    else:
        request |= {"fwmark": rule.fwmark, "flags": _FIB_RULE_INVERT}
    return request


def _route_request(route: Route, index: int | None) -> dict[str, Any]:
    request: dict[str, Any] = {
        "family": route.family,
        "dst": route.network,
        "table": route.table,
        "proto": PROTOCOL,
    }
    if route.unreachable:
        request["type"] = "unreachable"
    else:
        request["oif"] = index
    return request


async def ignore_gone(change: Any) -> None:
    """Await a removal; what has gone by itself meanwhile is as good as removed."""
    try:
        await change
    except NetlinkError as error:
        if error.code not in _GONE:
            raise
