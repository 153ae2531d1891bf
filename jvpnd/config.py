"""The configuration file: read, checked whole, and turned into values. docs/configuration.md."""

from __future__ import annotations

import base64
import ipaddress
import itertools
from collections.abc import Collection, Hashable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from jvpnd.configcluster import ClusterSettings, cluster_of
from jvpnd.configdns import DnsSettings, dns_of
from jvpnd.configendpoint import (
    ENDPOINT_KEYS,
    LISTEN_KEYS,
    endpoint_of,
    ip_of,
    listen_of,
    once,
    proxy_of,
    shown_endpoint,
    without_names,
)
from jvpnd.configfile import ConfigError, Table, read
from jvpnd.configforwarding import forwarding_of
from jvpnd.configlimits import LimitSettings, limits_of
from jvpnd.configroutes import (
    DEFAULT_NAME,
    ROUTES_KEYS,
    Routes,
    check_interface_name,
    interface_name_of,
    networks_of,
    routes_of,
)
from jvpnd.configtelemetry import TelemetrySettings, telemetry_of
from jvpnd.core.dataclass import dataclass, field
from jvpnd.core.offloads import FEATURES, with_implied
from jvpnd.core.policy import Policy, PolicyError, shown
from jvpnd.core.wire import MAX_ADDRESSES, MAX_LANES
from jvpnd.host import default_lanes
from jvpnd.keyfile import own_key, peer_key, preshared_key
from jvpnd.net.forwardplan import Forwarding
from jvpnd.transport.endpoint import Endpoint, Listen
from jvpnd.transport.proxy import Proxy

__all__ = [
    "Client",
    "Config",
    "ConfigError",
    "Endpoint",
    "GatewayPeer",
    "Interface",
    "Listen",
    "Routes",
    "load",
]

ROLES = ("client", "gateway")
MAX_MTU = 9000
MIN_MTU, MIN_MTU_IPV6 = 576, 1280  # RFC 791, RFC 8200 section 5
MAX_CLIENTS = 16_384  # as many as may have a session, and some

_COMMON_KEYS = (
    *("role", "node", "lanes", "interface", "identity", "policy", "debug"),
    *("limits", "audit", "export"),
)
_ROLE_KEYS = {
    "client": ("gateway", "uplinks", "routes", "dns"),
    "gateway": ("listen", "client", "forwarding", "cluster"),
}
_ALL_KEYS = (*_COMMON_KEYS, *_ROLE_KEYS["client"], *_ROLE_KEYS["gateway"])
_PSK_KEYS = ("preshared_key", "preshared_key_file")
_CLIENT_KEYS = ("name", "public_key", "address", "networks", *_PSK_KEYS)
_ADDRESS_TEXT = 'addresses with prefix length like ["10.77.0.1/24", "fd77::1/64"]'
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_H = TypeVar("_H", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Interface:
    """The TUN. `address` (CIDR) is the gateway's own; a client gets its from the gateway."""

    name: str = DEFAULT_NAME
    mtu: int = 1400
    address: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GatewayPeer:
    """The gateway as a client knows it."""

    public_key: bytes
    endpoints: tuple[Endpoint, ...]
    preshared_key: bytes | None = field(default=None, repr=False)
    proxy: Proxy | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Client:
    """A client as a gateway knows it. `networks` are behind it (site to site)."""

    name: str
    public_key: bytes
    address: tuple[str, ...]
    networks: tuple[str, ...] = ()
    preshared_key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Config:
    """A whole, valid configuration. `uplinks` None: every interface with a default route.

    `disabled`: features of core/offloads.py that are to be treated as missing. `lanes`: pairs of
    data plane workers.
    """

    role: str
    node: str
    interface: Interface
    private_key: bytes = field(repr=False)
    policy: Policy
    gateway: GatewayPeer | None = None
    uplinks: tuple[str, ...] | None = None
    routes: Routes = field(default_factory=Routes)
    dns: DnsSettings = field(default_factory=DnsSettings)
    listen: tuple[Listen, ...] = ()
    clients: tuple[Client, ...] = ()
    forwarding: Forwarding = field(default_factory=Forwarding)
    cluster: ClusterSettings | None = None
    disabled: frozenset[str] = frozenset()
    lanes: int = 1
    limits: LimitSettings = field(default_factory=LimitSettings)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)


def load(file: Path) -> Config:
    """Read and check `file` and the key files it names. Raises ConfigError for the first fault."""
    top = read(file, _ALL_KEYS)
    role = top.choice("role", ROLES)
    other = "gateway" if role == "client" else "client"
    for key in _ROLE_KEYS[other]:
        if key in top:
            allowed = ", ".join((*_COMMON_KEYS, *_ROLE_KEYS[role]))
            raise top.error(key, f"is for role = '{other}', and this is a {role}", allowed)
    config = _client(top) if role == "client" else _gateway(top)
    return replace(
        config,
        disabled=_disabled(top.table("debug", ("disable",))),
        lanes=top.number("lanes", 1, MAX_LANES, default_lanes()),
        limits=limits_of(top, role),
        telemetry=telemetry_of(top),
    )


def load_policy(file: Path) -> dict[str, Any]:
    """The [policy] table of `file`, which is a whole configuration or has nothing else. Only that
    table is checked. Raises ConfigError."""
    top = read(file, _ALL_KEYS)
    table = top.raw_table("policy", required=True)
    _policy(top)
    return table


def transports(config: Config) -> set[str]:
    """The transports that the configuration has endpoints for."""
    if config.gateway is not None:
        return {endpoint.transport for endpoint in config.gateway.endpoints}
    return {listen.transport for listen in config.listen}


# --- roles ---


def _client(top: Table) -> Config:
    node, secret = top.node_name("node"), _identity(top)
    table = top.table("interface", ("name", "mtu", "address"))
    if "address" in table:
        raise table.error("address", "a client gets its addresses from the gateway", "name, mtu")
    name = interface_name_of(table)
    routes = routes_of(top.table("routes", ROUTES_KEYS))
    interface = Interface(name, _mtu(table, routes.networks))
    keys = ("public_key", "endpoint", *_PSK_KEYS, "proxy")
    peer = top.table("gateway", keys, required=True)
    rows = peer.tables("endpoint", ENDPOINT_KEYS, required=True)
    endpoints = tuple(map(endpoint_of, rows))
    once(peer, "endpoint", (shown_endpoint(e.transport, e.address, e.port) for e in endpoints))
    policy = _policy(top, {endpoint.transport for endpoint in endpoints})
    gateway = GatewayPeer(peer_key(peer, secret), endpoints, preshared_key(peer), proxy_of(peer))
    if routes.kill_switch:
        without_names(peer, rows, gateway.proxy)
    uplinks = _uplinks(top.table("uplinks", ("interfaces",)), name)
    dns = dns_of(top)
    return Config("client", node, interface, secret, policy, gateway, uplinks, routes, dns)


def _gateway(top: Table) -> Config:
    node, secret = top.node_name("node"), _identity(top)
    table = top.table("interface", ("name", "mtu", "address"), required=True)
    own = [_own_address(table, text) for text in table.texts("address", _ADDRESS_TEXT)]
    addresses = tuple(each.with_prefixlen for each in own)
    once(table, "address", (str(each.ip) for each in own))
    rows = top.tables("listen", LISTEN_KEYS, required=True)
    listen = tuple(map(listen_of, rows))
    once(top, "listen", (shown_endpoint(e.transport, e.address, e.port) for e in listen))
    policy = _policy(top, {endpoint.transport for endpoint in listen})
    rows = top.tables("client", _CLIENT_KEYS)
    if len(rows) > MAX_CLIENTS:
        raise top.error("client", f"{len(rows)} of them", f"at most {MAX_CLIENTS}")
    clients = tuple(_listed_client(row, own, secret) for row in rows)
    _check_clients_together(top, clients)
    inside = (*addresses, *(network for client in clients for network in client.networks))
    interface = Interface(interface_name_of(table), _mtu(table, inside), addresses)
    forwarding = forwarding_of(top, interface.name)
    return Config(
        *("gateway", node, interface, secret, policy),
        listen=listen,
        clients=clients,
        forwarding=forwarding,
        cluster=cluster_of(top, interface.name),
    )


def _listed_client(
    table: Table, own: Collection[ipaddress.IPv4Interface | ipaddress.IPv6Interface], secret: bytes
) -> Client:
    name, public = table.node_name("name"), peer_key(table, secret)
    within = ", ".join(str(each.network) for each in own)
    allowed = f"addresses in {within}, without prefix length"
    texts = table.texts("address", allowed)
    if len(texts) > MAX_ADDRESSES:
        raise table.error("address", f"{len(texts)} of them", f"at most {MAX_ADDRESSES}")
    addresses = []
    for text in texts:
        address = ip_of(text)
        if address is None:
            raise table.error("address", f"{shown(text)} is not an address", allowed)
        network = next((each.network for each in own if address in each.network), None)
        if network is None:
            raise table.error("address", f"{text} is outside [interface] address", allowed)
        if not is_host(address, network):
            raise table.error("address", f"{text} names the network, not a host", allowed)
        if any(address == each.ip for each in own):
            raise table.error("address", f"{text} is the gateway's own", allowed)
        addresses.append(str(address))
    networks = networks_of(table, "networks")
    for network in networks:
        if any(network.overlaps(each.network) for each in own):
            problem = f"{network} overlaps the tunnel's own network"
            raise table.error("networks", problem, f"networks outside {within}")
    psk = preshared_key(table)
    return Client(name, public, tuple(addresses), tuple(map(str, networks)), psk)


def _check_clients_together(top: Table, clients: Collection[Client]) -> None:
    """A packet from or to an inner address must be one client's and nobody else's."""
    once(top, "client.name", (client.name for client in clients))
    keys = (base64.b64encode(client.public_key).decode() for client in clients)
    once(top, "client.public_key", keys)
    once(top, "client.address", (text for client in clients for text in client.address))
    owned = [
        (ipaddress.ip_network(text), client.name) for client in clients for text in client.networks
    ]
    # Sorted, a network is right behind the one that holds it, or behind another one held by it.
    owned.sort(key=lambda row: (row[0].version, int(row[0].network_address), row[0].prefixlen))
    for (wide, first), (narrow, second) in itertools.pairwise(owned):
        if wide.overlaps(narrow):
            problem = f"{narrow} of {second} overlaps {wide} of {first}"
            raise top.error("client.networks", problem, "networks that do not overlap")


# --- sections ---


def _identity(top: Table) -> bytes:
    return own_key(top.table("identity", ("private_key", "private_key_file")))


def _policy(top: Table, carried: Collection[str] | None = None) -> Policy:
    """`carried`: the transports that there are endpoints for, where that is known."""
    try:
        policy = Policy.from_table(top.raw_table("policy"))
        if carried is not None:
            policy.require_any(carried)
    except PolicyError as error:
        raise top.error(f"policy.{error.key}", error.problem, error.allowed) from None
    return policy

def _disabled(table: Table) -> frozenset[str]:
    allowed = f"any of {', '.join(FEATURES)}, each once"
    names = table.texts("disable", allowed, ())
    for name in names:
        if name not in FEATURES:
            raise table.error("disable", f"{shown(name)} is not known", allowed)
    once(table, "disable", names)
    return with_implied(names)


def _uplinks(table: Table, own: str) -> tuple[str, ...] | None:
    if "interfaces" not in table:
        return None
    names = table.texts("interfaces", 'interfaces like ["wlan0", "wwan0"], or leave the key out')
    for name in names:
        check_interface_name(table, "interfaces", name)
        if name == own:
            raise table.error("interfaces", f"{name} is the tunnel itself", "other interfaces")
    once(table, "interfaces", names)
    return tuple(names)


def _mtu(table: Table, inside: Iterable[str]) -> int:
    """IPv6, if any network `inside` the tunnel is of it, needs more than IPv4."""
    low = MIN_MTU_IPV6 if any(":" in text for text in inside) else MIN_MTU
    return table.number("mtu", low, MAX_MTU, 1400)


# --- single values ---


def is_host(address: _Address, network: _Network) -> bool:
    """Not the network's own address, nor its IPv4 broadcast; /31 and /127 have neither."""
    if network.prefixlen >= network.max_prefixlen - 1:
        return True
    broadcast = address.version == 4 and address == network.broadcast_address
    return address != network.network_address and not broadcast


def _own_address(table: Table, text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    try:
        own = ipaddress.ip_interface(text)
    except ValueError:
        raise table.error("address", f"{shown(text)} is not an address", _ADDRESS_TEXT) from None
    if "%" in text or own.ip.is_multicast or own.ip.is_loopback or own.ip.is_unspecified:
        raise table.error("address", f"{text} cannot be a tunnel's", _ADDRESS_TEXT)
    if "/" not in text or own.network.prefixlen == 0:
        raise table.error("address", f"{text} has no prefix length", _ADDRESS_TEXT)
    if not is_host(own.ip, own.network):
        raise table.error("address", f"{text} names the network, not a host", _ADDRESS_TEXT)
    return own
