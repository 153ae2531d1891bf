"""What the configuration says of endpoints: where a client calls, where a gateway listens."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Hashable, Iterable
from typing import TypeVar

from jvpnd.configfile import Table
from jvpnd.core.nodes import NO_NODE, node_tag
from jvpnd.core.policy import shown
from jvpnd.core.wire import TRANSPORTS
from jvpnd.transport.endpoint import Endpoint, Listen, missing
from jvpnd.transport.proxy import Proxy, from_environment, parse_proxy

ENDPOINT_KEYS = ("transport", "address", "port", "server_name", "alpn", "node")
LISTEN_KEYS = (
    *("transport", "address", "port", "alpn"),
    *("certificate_file", "certificate_key_file", "advertise"),
)
_MADE_OF_TLS = ("tls", "quic")
_DEFAULT_PORTS = {"tls": 443, "quic": 443}
MAX_ALPN = 8  # protocols in a list
# The last label is not all digits: 203.0.113.300 is a mistyped address, not a name.
_LABEL = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$)({_LABEL}\.)*(?![0-9]+\.?$){_LABEL}\.?")
_ANY = (ipaddress.ip_address("0.0.0.0"), ipaddress.ip_address("::"))

_H = TypeVar("_H", bound=Hashable)


def endpoint_of(table: Table) -> Endpoint:
    """One of the gateway's, as a client calls it."""
    transport = _transport(table)
    allowed = "an IP address or a host name"
    address = address_of(table, "address", allowed, names=True)
    name = None
    if "server_name" in table:
        _only_for(table, "server_name", transport, _MADE_OF_TLS)
        name = table.text("server_name", "a host name")
        if not _HOST_NAME.fullmatch(name):
            raise table.error("server_name", f"{shown(name)} is not a name", "a host name")
    port, alpn = _port(table, transport), _alpn(table, transport)
    node = node_tag(table.node_name("node")) if "node" in table else NO_NODE
    return Endpoint(transport, address, port, name, alpn, node)


def listen_of(table: Table) -> Listen:
    """Where a gateway listens."""
    transport = _transport(table)
    address = address_of(table, "address", "an IP address of this host, or ::")
    advertise = "" if ip_of(address) in _ANY else address
    if "advertise" in table:
        allowed = "the IP address or host name that clients reach"
        advertise = address_of(table, "advertise", allowed, names=True)
    pem, alpn = _certificate(table, transport), _alpn(table, transport)
    return Listen(transport, address, _port(table, transport), alpn, pem, advertise)


def _transport(table: Table) -> str:
    transport = table.choice("transport", TRANSPORTS, "udp")
    if problem := missing(transport):
        raise table.error("transport", problem, "udp, tcp, tls, or quic with that library")
    return transport


def _port(table: Table, transport: str) -> int:
    return table.number("port", 1, 65535, _DEFAULT_PORTS.get(transport))


def address_of(table: Table, key: str, allowed: str, names: bool = False) -> str:
    """`names`: as a client calls a gateway, so host names are good too."""
    text = table.text(key, allowed)
    address = ip_of(text)
    if address is None and not (names and _HOST_NAME.fullmatch(text)):
        raise table.error(key, f"{shown(text)} is not an address", allowed)
    if address is not None:
        wild = address.is_unspecified and names
        if address.is_multicast or wild:
            raise table.error(key, f"{text} is not one host's", allowed)
        text = str(address)
    return text


def _alpn(table: Table, transport: str) -> tuple[str, ...]:
    if "alpn" not in table:
        return ()
    _only_for(table, "alpn", transport, _MADE_OF_TLS)
    allowed = f'at most {MAX_ALPN} protocols like ["http/1.1"]'
    names = table.texts("alpn", allowed)
    if len(names) > MAX_ALPN or not all(re.fullmatch(r"[!-~]{1,255}", name) for name in names):
        raise table.error("alpn", "is too long or has what is no protocol", allowed)
    once(table, "alpn", names)
    return tuple(names)


def _certificate(table: Table, transport: str) -> bytes | None:
    """The certificate with its key, from the files that are named; None if none are."""
    key = "certificate_file"
    for each in (key, "certificate_key_file"):
        if each in table:
            _only_for(table, each, transport, _MADE_OF_TLS)
    if key not in table:
        if "certificate_key_file" in table:
            raise table.error("certificate_key_file", f"has no {key}", f"both, or {key} alone")
        return None
    allowed = "a PEM file, with its private key in it or in certificate_key_file"
    names = [table.text(each, allowed) for each in (key, "certificate_key_file") if each in table]
    files = [table.file.parent / name for name in names]
    from jvpnd.transport.certificate import load_certificate  # slow to import

    try:
        return load_certificate(files[0], files[1] if len(files) > 1 else None)
    except ValueError as error:
        raise table.error(key, str(error), allowed) from None


def _only_for(table: Table, key: str, transport: str, transports: Collection[str]) -> None:
    if transport not in transports:
        problem = f"has no meaning with transport = '{transport}'"
        raise table.error(key, problem, f"transport = {' or '.join(transports)}")


def proxy_of(table: Table) -> Proxy | None:
    """An HTTP proxy for TLS: configured, or that of the environment."""
    try:
        if "proxy" not in table:
            return from_environment()
        return parse_proxy(table.text("proxy", "http://[user:password@]host[:port]"))
    except ValueError as error:
        whose = "" if "proxy" in table else "https_proxy of the environment "
        raise table.error("proxy", f"{whose}cannot be used", str(error)) from None


def without_names(peer: Table, endpoints: Iterable[Table], proxy: Proxy | None) -> None:
    """With a kill switch no host name may be looked up: that would leave beside the tunnel."""
    allowed = "an IP address, since [routes] kill_switch lets no lookup out"
    for table in endpoints:
        text = table.text("address", allowed)
        if ip_of(text) is None:
            raise table.error("address", f"{shown(text)} is a name", allowed)
    if proxy is not None and ip_of(proxy.host) is None:
        whose = "" if "proxy" in peer else "https_proxy of the environment: "
        raise peer.error("proxy", f"{whose}{shown(proxy.host)} is a name", allowed)


def shown_endpoint(transport: str, address: str, port: int) -> str:
    return f"{transport} {address} port {port}"


def once(table: Table, key: str, values: Iterable[_H]) -> None:
    seen: set[_H] = set()
    for value in values:
        if value in seen:
            raise table.error(key, f"{value} is there twice", "each once")
        seen.add(value)


def ip_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address without a scope; None for anything else."""
    try:
        return None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        return None
