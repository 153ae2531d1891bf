"""What the configuration says of name servers inside the tunnel. docs/routing.md."""

from __future__ import annotations

import re
from typing import Final

from jvpnd.configendpoint import ip_of, once
from jvpnd.configfile import Table
from jvpnd.core.dataclass import dataclass
from jvpnd.core.policy import shown

MAX_SERVERS: Final = 3  # MAXNS of resolv.h: programs ask no more
MAX_DOMAINS: Final = 32
_SERVERS_TEXT = f'1 to {MAX_SERVERS} addresses like ["10.77.0.1"]'
_DOMAINS_TEXT = f'at most {MAX_DOMAINS} domains like ["corp.example"]'
_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_DOMAIN = re.compile(rf"(?=.{{1,253}}$)({_LABEL}\.)*{_LABEL}")


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """`servers`: addresses, none: names are none of our business. They are asked for names in
    `domains`, or for all names if that is empty."""

    servers: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()


def dns_of(top: Table) -> DnsSettings:
    """The table [dns]. Raises ConfigError."""
    if "dns" not in top:
        return DnsSettings()
    table = top.table("dns", ("servers", "domains"))
    servers = tuple(_server(table, text) for text in table.texts("servers", _SERVERS_TEXT))
    domains = tuple(_domain(table, text) for text in table.texts("domains", _DOMAINS_TEXT, ()))
    for key, values, most in (
        ("servers", servers, MAX_SERVERS),
        ("domains", domains, MAX_DOMAINS),
    ):
        if len(values) > most:
            raise table.error(key, f"{len(values)} of them", f"at most {most}")
        once(table, key, values)
    return DnsSettings(servers, domains)


def _server(table: Table, text: str) -> str:
    address = ip_of(text)
    if address is None:
        raise table.error("servers", f"{shown(text)} is not an address", _SERVERS_TEXT)
    if address.is_multicast or address.is_unspecified or address.is_link_local:
        raise table.error("servers", f"{text} cannot be asked through a tunnel", _SERVERS_TEXT)
    return str(address)


def _domain(table: Table, text: str) -> str:
    name = text.rstrip(".").lower()
    if not _DOMAIN.fullmatch(name):
        raise table.error("domains", f"{shown(text)} is not a domain", _DOMAINS_TEXT)
    return name
