"""Judges links, routes and rules: what the tunnel goes over, and who is in its way."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from jvpnd.core.dataclass import dataclass
from jvpnd.core.wire import FRAME_LEN, HEADER_LEN, TAG_LEN
from jvpnd.doctor.finding import Finding, fail, ok, warn

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

TABLE_MAIN: Final = 254
STRICT: Final = 1  # rp_filter
_VPN_KINDS: Final = ("wireguard", "tun", "ppp", "xfrm", "vti", "ipip", "gre")
_LOCAL_TABLES: Final = (0, 253, TABLE_MAIN, 255)  # 0: a rule that names none
_SEAL: Final = 8 + HEADER_LEN + FRAME_LEN + TAG_LEN  # behind the IP header: UDP, and ours
_IP: Final = {4: 20, 6: 40}


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """An interface; `kind` is "" for real ones, else as `ip -d link` names it."""

    name: str
    mtu: int
    kind: str = ""


@dataclass(frozen=True, slots=True)
class RouteFacts:
    """A route; `network` None is a default route."""

    device: str
    network: Network | None
    table: int = TABLE_MAIN
    version: int = 4


@dataclass(frozen=True, slots=True)
class RuleFacts:
    """A policy rule: who looks where. `protocol` tells who made it."""

    priority: int
    table: int
    protocol: int = 0


def uplinks(routes: Iterable[RouteFacts], own: str, role: str) -> Finding:
    """What there is to reach the other end by."""
    names = sorted({r.device for r in _defaults(routes) if r.device != own})
    if names:
        return ok("default route", f"by {', '.join(names)}")
    remedy = "bring a network up, or name interfaces in [uplinks]"
    if role == "client":
        return fail("default route", "there is none but the tunnel's", remedy)
    return warn("default route", "there is none: only neighbours reach this gateway", "add one")


def mtu(links: Iterable[LinkFacts], routes: Sequence[RouteFacts], own: str, inner: int) -> Finding:
    """Whether a full packet of the tunnel, `inner` bytes, goes through each uplink in one piece."""
    at = {r.device: r.version for r in _defaults(routes)}  # IPv6 comes last, and needs more
    small = [
        f"{link.name} ({link.mtu}, needs {inner + _SEAL + _IP[at[link.name]]})"
        for link in links
        if link.name in at and link.name != own and link.mtu < inner + _SEAL + _IP[at[link.name]]
    ]
    if small:
        what = f"too small for [interface] mtu = {inner}: {', '.join(small)}"
        return warn("MTU", what, "lower [interface] mtu on both ends")
    return ok("MTU", f"packets of {inner} bytes fit every uplink")


def overlaps(inside: Iterable[Network], routes: Iterable[RouteFacts], own: str) -> Finding:
    """Whether the host has other ways to what is to go through the tunnel. A wider route gives
    way, as the longest prefix counts, but who is behind it may be hidden."""
    wanted, name = list(inside), "overlapping networks"
    narrow: set[str] = set()
    wide: set[str] = set()
    for route in routes:
        network = route.network
        if network is None or network.prefixlen <= 1 or route.device in (own, "lo"):
            continue
        for each in wanted:
            if each.version == network.version and each.overlaps(network):
                is_wide = network.prefixlen < each.prefixlen
                (wide if is_wide else narrow).add(f"{each} and {network} on {route.device}")
    remedy = "choose other networks for the tunnel, or renumber the LAN"
    if narrow:
        return fail(name, "; ".join(sorted(narrow)[:5]), remedy)
    if wide:
        return warn(name, "; ".join(sorted(wide)[:5]), remedy)
    return ok(name, "none")


def other_vpns(
    links: Iterable[LinkFacts],
    routes: Iterable[RouteFacts],
    rules: Iterable[RuleFacts],
    own: str,
    protocol: int,
) -> Finding:
    """`protocol`: of our own rules."""
    rules = list(rules)
    tables = {TABLE_MAIN, *(rule.table for rule in rules)}
    kinds = {link.name: link.kind for link in links if link.kind in _VPN_KINDS}
    taking = [
        f"{r.device} ({kinds[r.device]}) has a default route"
        for r in routes
        if r.device in kinds and r.device != own and r.table in tables
        and (r.network is None or r.network.prefixlen == 1)  # OpenVPN takes two halves
    ]
    foreign = [
        f"a rule of priority {rule.priority} looks into table {rule.table}"
        for rule in rules
        if rule.protocol != protocol and rule.table not in _LOCAL_TABLES
    ]
    if taking:
        what = "; ".join(sorted({*taking, *foreign})[:5])
        return warn("other VPNs", what, "stop it, or take it out of [uplinks]")
    if foreign:
        remedy = "see ip rule: it may lead past the tunnel"
        return warn("policy routing", "; ".join(foreign[:5]), remedy)
    return ok("other VPNs", "none in the way")


def reverse_path(values: Mapping[str, int], routes: Iterable[RouteFacts], own: str) -> Finding:
    """`values`: rp_filter, the larger of the interface's and that of all, by interface."""
    names = sorted({r.device for r in _defaults(routes) if r.version == 4 and r.device != own})
    strict = [name for name in names if values.get(name) == STRICT]
    if len(names) > 1 and strict:
        what = f"strict on {', '.join(strict)}: what comes back by the second uplink is dropped"
        return warn("reverse-path filter", what, "sysctl -w net.ipv4.conf.all.rp_filter=2")
    return ok("reverse-path filter", "in nobody's way")


def ipv6(is_disabled: bool | None, inside: Iterable[Network]) -> Finding:
    """`is_disabled` None: the kernel has none. `inside`: what goes through the tunnel."""
    wanted = any(each.version == 6 for each in inside)
    if is_disabled is False:
        return ok("IPv6", "enabled")
    what = "the kernel has none" if is_disabled is None else "disabled on this host"
    if not wanted:
        return ok("IPv6", what)
    remedy = "sysctl -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0"
    return warn("IPv6", f"{what}, and the tunnel has IPv6 addresses", remedy)


def _defaults(routes: Iterable[RouteFacts]) -> list[RouteFacts]:
    return [each for each in routes if each.network is None and each.table == TABLE_MAIN]
