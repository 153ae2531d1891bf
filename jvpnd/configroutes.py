"""What the configuration says of interface names, networks and routes.

The kill switch is loaded at boot from these tables alone: whatever else is wrong with a file, it
must not open the host. So this imports little.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

from jvpnd.configfile import Table, read
from jvpnd.core.dataclass import dataclass
from jvpnd.core.policy import shown

ROUTE_MODES = ("split", "full", "none")
ROUTES_KEYS = ("mode", "networks", "exclude", "kill_switch")
MAX_EXCLUDED = 256  # each is a rule that every packet is held against
DEFAULT_NAME = "jvpn0"
_NETWORKS_TEXT = 'networks like ["10.20.0.0/16"], host bits zero'
_IFNAME_TEXT = "1 to 15 letters, digits, '.', '_' or '-'"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Routes:
    """What a client sends into the tunnel. `networks` (CIDR) go into a split one, `exclude` stay
    out of a full one; with `kill_switch` nothing else leaves the host beside it."""

    mode: str = "split"
    networks: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    kill_switch: bool = False


@dataclass(frozen=True, slots=True)
class HostRoutes:
    """As much of a configuration as the kill switch needs."""

    role: str
    interface: str
    routes: Routes


def host_routes(file: Path) -> HostRoutes:
    """Read these tables of `file`, and check nothing else. Raises ConfigError."""
    top = read(file)
    role = top.choice("role", ("client", "gateway"))
    name = interface_name_of(top.table("interface"))
    is_client = role == "client"
    return HostRoutes(role, name, routes_of(top.table("routes")) if is_client else Routes())


def routes_of(table: Table) -> Routes:
    """The table [routes]. Raises ConfigError."""
    mode = table.choice("mode", ROUTE_MODES, "split")
    networks, excluded = networks_of(table, "networks"), networks_of(table, "exclude")
    kill_switch = table.flag("kill_switch", False)
    for key, wanted, is_there in (
        ("networks", "split", bool(networks)),
        ("exclude", "full", bool(excluded)),
        ("kill_switch", "full", kill_switch),
    ):
        if is_there and mode != wanted:
            problem = f"has no meaning with mode = '{mode}'"
            raise table.error(key, problem, f"mode = '{wanted}'")
    if len(excluded) > MAX_EXCLUDED:
        raise table.error("exclude", f"{len(excluded)} of them", f"at most {MAX_EXCLUDED}")
    return Routes(mode, tuple(map(str, networks)), tuple(map(str, excluded)), kill_switch)


def networks_of(table: Table, key: str) -> list[Network]:
    """A list of networks, none of them everything. Raises ConfigError."""
    found: list[Network] = []
    for text in table.texts(key, _NETWORKS_TEXT, ()):
        try:
            network = ipaddress.ip_network(text)
        except ValueError as error:
            host_bits = "has host bits set" in str(error)
            problem = "has host bits set" if host_bits else "is not a network"
            raise table.error(key, f"{shown(text)} {problem}", _NETWORKS_TEXT) from None
        if "%" in text or network.prefixlen == 0:
            raise table.error(key, f"{text} is not a part of the network", _NETWORKS_TEXT)
        found.append(network)
    return found


def interface_name_of(table: Table) -> str:
    """The name in the table [interface]. Raises ConfigError."""
    name = table.text("name", _IFNAME_TEXT, DEFAULT_NAME)
    check_interface_name(table, "name", name)
    return name


def check_interface_name(table: Table, key: str, name: str) -> None:
    # "all" and "default" mean something else below /proc/sys/net
    reserved = name in (".", "..", "all", "default")
    if reserved or not re.fullmatch(r"[A-Za-z0-9._-]{1,15}", name):
        raise table.error(key, f"{shown(name)} is not an interface name", _IFNAME_TEXT)
