"""Which policy rules and routes a tunnel interface wants: pure, from the name and the mode.

Full tunnel as wg-quick does it: whatever lacks our firewall mark looks into a table of our own,
whose default is the tunnel; before that the main table is asked, but not for its default route. For
excluded networks the main table is asked as a whole; what it does not know goes nowhere.
"""

from __future__ import annotations

import binascii
import ipaddress
from collections.abc import Collection, Iterable, Iterator
from socket import AF_INET, AF_INET6
from typing import Literal

from jvpnd.core.dataclass import dataclass

Mode = Literal["full", "split", "none"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PROTOCOL = 0x6A  # "j": who made a rule or route (rtm_protocol, FRA_PROTOCOL); free in rt_protos
TABLE_MAIN = 254
_MARK_BASE = 0x6A760000
_PRIORITY_BASE = 20000  # behind the rules that people write, before main (32766)
_PRIORITY_SPAN = 5000
_DEFAULT: dict[int, str] = {AF_INET: "0.0.0.0/0", AF_INET6: "::/0"}


@dataclass(frozen=True, slots=True)
class Rule:
    """`fwmark` None: ask main, for what is `to` a network or else but for its default; else:
    without this mark look into `table`."""

    family: int
    priority: int
    table: int
    fwmark: int | None
    to: str | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A route through the tunnel or, if `unreachable`, to nowhere."""

    family: int
    network: str
    table: int
    unreachable: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """All that should be there; whatever else is ours goes."""

    rules: frozenset[Rule] = frozenset()
    routes: frozenset[Route] = frozenset()


def fwmark_of(name: str) -> int:
    """The firewall mark of the interface's transport sockets; it is its table's number too."""
    return _MARK_BASE | binascii.crc_hqx(name.encode(), 0)


def priorities_of(name: str) -> tuple[int, int]:
    """Of the rules that ask main first, and of the one that sends the rest into the tunnel."""
    first = _PRIORITY_BASE + 2 * (fwmark_of(name) % _PRIORITY_SPAN)
    return first, first + 1


def plan(
    name: str,
    mode: Mode,
    networks: Iterable[str] = (),
    *,
    exclude: Iterable[str] = (),
    inner: Collection[int] = (),
    families: Collection[int] = (AF_INET, AF_INET6),
) -> Plan:
    """The rules and routes of `mode`, within the address families this host has.

    In full mode the networks of `exclude` stay outside.
    `inner` are the families with an address inside the tunnel. In full mode a family without one
    gets an unreachable default: its packets neither leak past the tunnel nor vanish in it, and
    programs turn to the other family at once. Raises ValueError for a default route in split mode.
    """
    if mode == "full":
        return _full(name, exclude, inner, families)
    if mode == "none":
        return Plan()
    routes = set()
    for family, network in _within(families, networks):
        if network.prefixlen == 0:
            raise ValueError(f"routes to {network} need mode full, not split")
        routes.add(Route(family, str(network), TABLE_MAIN))
    return Plan(routes=frozenset(routes))


def _full(
    name: str, exclude: Iterable[str], inner: Collection[int], families: Collection[int]
) -> Plan:
    mark = fwmark_of(name)
    main_first, tunnel = priorities_of(name)
    rules, routes = set(), set()
    for family in families:
        rules.add(Rule(family, main_first, TABLE_MAIN, None))
        rules.add(Rule(family, tunnel, mark, mark))
        routes.add(Route(family, _DEFAULT[family], mark, unreachable=family not in inner))
    for family, network in _within(families, exclude):
        rules.add(Rule(family, main_first, TABLE_MAIN, None, str(network)))
        routes.add(Route(family, str(network), mark, unreachable=True))
    return Plan(frozenset(rules), frozenset(routes))


def _within(families: Collection[int], networks: Iterable[str]) -> Iterator[tuple[int, Network]]:
    """The networks (CIDR) of these address families, each with its family."""
    for text in networks:
        network = ipaddress.ip_network(text, strict=False)
        family = AF_INET if network.version == 4 else AF_INET6
        if family in families:
            yield family, network
