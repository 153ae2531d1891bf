"""The kill switch: an nft table that lets nothing but the tunnel's own transport leave the host.

It hangs behind every routing decision (postrouting), for what the host sends and what it forwards:
rules of others may change where a packet goes until then, and a chain at `output` would still see
the interface that it had before. The table outlives the daemon; it goes with `jvpnctl kill-switch
off`, with a start that is configured without it, or at a reboot. docs/routing.md.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Final

from jvpnd.net import nftables
from jvpnd.net.routeplan import fwmark_of

_log = logging.getLogger(__name__)

_PREFIX: Final = "jvpn_kill_"
_OFF: Final = f"{_PREFIX}off"  # an empty table: the operator does not want one until the next start
_OURS: Final = re.compile(rf"{_PREFIX}[0-9a-f]{{8}}")

_HOOK: Final = "type filter hook postrouting priority filter; policy drop;\n"
# What an interface needs to have an address and neighbours, none of which a router passes on.
_LINK: Final = """\
meta nfproto ipv4 udp sport 68 udp dport 67 accept
ip6 daddr { fe80::/10, ff02::1:2 } udp sport 546 udp dport 547 accept
ip6 hoplimit 255 icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } accept
ip6 hoplimit 1 ip6 daddr ff02::/16 icmpv6 type { 131, 132, 143 } accept comment "MLD"
"""


def table_of(name: str) -> str:
    """The table's name for the tunnel interface `name`."""
    return f"{_PREFIX}{fwmark_of(name):08x}"


def ruleset(name: str, exclude: Sequence[str] = ()) -> str:
    """Puts the kill switch of interface `name` on, or its rules in place of those that are there.

    That is one transaction, and the chain stays: where a kernel takes one chain away and hangs
    another one in, now and then a packet passes between them, though nft calls it atomic.
    `exclude`: networks (CIDR) that may be reached beside the tunnel.
    """
    table = table_of(name)
    rules = (
        f'oifname {{ "lo", "{name}" }} accept\n'
        f"meta mark {fwmark_of(name):#x} accept\n"
        f"{_excluded(exclude)}{_LINK}counter\n"
    )
    return (
        f"{_without(_OFF)}{_chain(table, _HOOK)}flush table inet {table}\n{_chain(table, rules)}"
    )


def without(name: str) -> str:
    """Takes the kill switch of interface `name` off, whether or not it is on."""
    return _without(table_of(name))


def off(tables: Iterable[str]) -> str:
    """Takes these kill switches off, and tells daemons that this is meant."""
    return "".join(map(_without, tables)) + f"add table inet {_OFF}\n"


def switched_on() -> set[str]:
    """The tables of kill switches that are on, of whatever interface. Raises OSError."""
    return {table for table in nftables.inet_tables() if _OURS.fullmatch(table)}


def is_meant_off() -> bool:
    """Whether the operator has switched off since the last `ruleset`. Raises OSError."""
    return _OFF in nftables.inet_tables()


def is_on(name: str) -> bool:
    """Whether that of interface `name` is on. Raises OSError."""
    return table_of(name) in switched_on()


def _chain(table: str, body: str) -> str:
    return f"table inet {table} {{\nchain leaving {{\n{body}}}\n}}\n"


def _without(table: str) -> str:
    return f"add table inet {table}\ndelete table inet {table}\n"


def _excluded(networks: Sequence[str]) -> str:
    four = [ipaddress.IPv4Network(text) for text in networks if ":" not in text]
    six = [ipaddress.IPv6Network(text) for text in networks if ":" in text]
    text = ""
    # nft refuses a set of overlapping networks
    for key, found in (
        ("ip", list(map(str, ipaddress.collapse_addresses(four)))),
        ("ip6", list(map(str, ipaddress.collapse_addresses(six)))),
    ):
        if found:
            text += f"{key} daddr {{ {', '.join(found)} }} accept\n"
    return text
