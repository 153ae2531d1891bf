"""The configuration file: read, checked whole, and turned into values. docs/configuration.md."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jvpnd.core.policy import Policy, PolicyError

ROLES = ("client", "gateway")
TRANSPORTS = ("udp",)  # those that this version can carry
ROUTE_MODES = ("split", "full", "none")
KEY_TEXT = "base64 of 32 bytes (jvpnctl keygen | jvpnctl pubkey)"
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*\.?")
_MIN_MTU = {4: 576, 6: 1280}
MAX_MTU = 9000


class ConfigError(Exception):
    """One line: file, key, what is wrong, what is allowed."""

    def __init__(self, file: Path, key: str, problem: str, allowed: str) -> None:
        where = f"{file}: {key}" if key else str(file)
        super().__init__(f"{where}: {problem} (allowed: {allowed})")
        self.file, self.key, self.problem, self.allowed = file, key, problem, allowed


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a gateway listens; `address` is numeric, or for a client a host name too."""

    transport: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Interface:
    """The TUN. `address` (CIDR) is the gateway's own; a client gets its from the gateway."""

    name: str = "jvpn0"
    mtu: int = 1400
    address: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GatewayPeer:
    """The gateway as a client knows it."""

    public_key: bytes
    endpoints: tuple[Endpoint, ...]
    preshared_key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Routes:
    """What a client sends into the tunnel."""

    mode: str = "split"
    networks: tuple[str, ...] = ()
    kill_switch: bool = False


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
    """A whole, valid configuration."""

    role: str
    node: str
    interface: Interface
    private_key: bytes = field(repr=False)
    policy: Policy
    gateway: GatewayPeer | None = None
    uplinks: tuple[str, ...] | None = None
    routes: Routes = Routes()
    listen: tuple[Endpoint, ...] = ()
    clients: tuple[Client, ...] = ()


def load(file: Path) -> Config:
    """Read and check `file`. Raises ConfigError at the first thing that is wrong."""
    try:
        table = tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(file, "", error.strerror or str(error), "a readable file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(file, "", f"is not TOML: {error}", "TOML 1.0 in UTF-8") from None
    return _Reader(file).config(table)


class _Table:
    """One table of the file; every key must be taken, and be of the right type."""

    def __init__(self, reader: _Reader, where: str, values: dict[str, Any]) -> None:
        self._reader, self._where, self._values = reader, where, values
        self._known: list[str] = []

    def path(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key

    def take(self, key: str, kind: type, allowed: str, default: Any = None) -> Any:
        self._known.append(key)
        if key not in self._values:
            if default is None:
                self._reader.fail(self.path(key), "is missing", allowed)
            return default
        value = self._values[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self._reader.fail(self.path(key), f"{value!r} is of the wrong type", allowed)
        return value

    def strings(self, key: str, allowed: str) -> tuple[str, ...]:
        values = self.take(key, list, allowed, [])
        if any(not isinstance(value, str) for value in values):
            self._reader.fail(self.path(key), f"{values!r} is of the wrong type", allowed)
        return tuple(values)

    def table(self, key: str, default: dict[str, Any] | None = None) -> _Table:
        values = self.take(key, dict, "a table", default)
        return _Table(self._reader, self.path(key), values)

    def tables(self, key: str) -> list[_Table]:
        rows = self.take(key, list, f"[[{self.path(key)}]] tables", [])
        if any(not isinstance(row, dict) for row in rows):
            self._reader.fail(self.path(key), "is not a list of tables", f"[[{self.path(key)}]]")
        return [
            _Table(self._reader, f"{self.path(key)}[{n}]", row) for n, row in enumerate(rows, 1)
        ]

    def done(self) -> None:
        for key in self._values:
            if key not in self._known:
                self._reader.fail(self.path(key), "unknown key", ", ".join(self._known))


class _Reader:
    """Turns tables into values; every failure names file, key and what is allowed."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def fail(self, key: str, problem: str, allowed: str) -> Any:
        raise ConfigError(self._file, key, problem, allowed)

    def config(self, values: dict[str, Any]) -> Config:
        top = _Table(self, "", values)
        role = self._choice(top, "role", ROLES)
        node = self._name(top, "node")
        self._refuse_other_role(role, values)
        identity = top.table("identity", {})
        secret = self._key_file(identity, "private_key_file", private=True)
        identity.done()
        interface = self._interface(top.table("interface", {}), role)
        policy = self._policy(top)
        if role == "client":
            config = self._client(top, node, interface, secret, policy)
        else:
            config = self._gateway(top, node, interface, secret, policy)
        top.done()
        return config

    def _refuse_other_role(self, role: str, values: dict[str, Any]) -> None:
        foreign = ("listen", "client") if role == "client" else ("gateway", "uplinks", "routes")
        for key in foreign:
            if key in values:
                other = "gateway" if role == "client" else "client"
                self.fail(key, f"belongs to role = {other!r}, not {role!r}", "remove it")

    def _client(
        self, top: _Table, node: str, interface: Interface, secret: bytes, policy: Policy
    ) -> Config:
        gateway = self._gateway_peer(top.table("gateway"))
        uplinks_table = top.table("uplinks", {})
        uplinks = uplinks_table.strings("interfaces", "a list of interface names")
        for name in uplinks:
            self._check_interface_name(uplinks_table.path("interfaces"), name)
        uplinks_table.done()
        routes = self._routes(top.table("routes", {}))
        return Config(
            "client", node, interface, secret, policy, gateway, uplinks or None, routes
        )

    def _gateway(
        self, top: _Table, node: str, interface: Interface, secret: bytes, policy: Policy
    ) -> Config:
        rows = top.tables("listen")
        if not rows:
            self.fail("listen", "is missing", "one or more [[listen]] tables")
        listen = tuple(self._endpoint(row, numeric=True) for row in rows)
        if len(set(listen)) != len(listen):
            self.fail("listen", "the same endpoint twice", "each endpoint once")
        clients = tuple(self._one_client(row, interface) for row in top.tables("client"))
        self._unique(clients)
        return Config(
            "gateway", node, interface, secret, policy, listen=listen, clients=clients
        )

    def _gateway_peer(self, table: _Table) -> GatewayPeer:
        public = self._key(table.path("public_key"), table.take("public_key", str, KEY_TEXT))
        rows = table.tables("endpoint")
        if not rows:
            self.fail("gateway.endpoint", "is missing", "one or more [[gateway.endpoint]] tables")
        endpoints = tuple(self._endpoint(row, numeric=False) for row in rows)
        psk = self._optional_psk(table)
        table.done()
        return GatewayPeer(public, endpoints, psk)

    def _one_client(self, table: _Table, interface: Interface) -> Client:
        name = self._name(table, "name")
        public = self._key(table.path("public_key"), table.take("public_key", str, KEY_TEXT))
        addresses = table.strings("address", 'addresses like ["10.77.0.2"]')
        if not addresses:
            self.fail(table.path("address"), "is missing", 'addresses like ["10.77.0.2"]')
        hosts = tuple(self._inner_host(table.path("address"), a, interface) for a in addresses)
        networks = table.strings("networks", 'networks like ["10.9.0.0/16"]')
        for network in networks:
            self._network(table.path("networks"), network)
        psk = self._optional_psk(table)
        table.done()
        return Client(name, public, hosts, networks, psk)

    def _inner_host(self, key: str, text: str, interface: Interface) -> str:
        networks = [ipaddress.ip_interface(address) for address in interface.address]
        inside = ", ".join(str(n.network) for n in networks)
        try:
            host = ipaddress.ip_address(text)
        except ValueError:
            return str(self.fail(key, f"{text!r} is not an address", f"an address in {inside}"))
        if not any(host in n.network for n in networks):
            self.fail(key, f"{text} is outside [interface] address", f"an address in {inside}")
        if any(host == n.ip for n in networks):
            self.fail(key, f"{text} is the gateway's own", f"another address in {inside}")
        return str(host)

    def _unique(self, clients: tuple[Client, ...]) -> None:
        for what, values in (
            ("name", [client.name for client in clients]),
            ("public_key", [client.public_key for client in clients]),
            ("address", [address for client in clients for address in client.address]),
        ):
            twice = _first_twice(values)
            if twice is not None:
                shown = base64.b64encode(twice).decode() if isinstance(twice, bytes) else twice
                self.fail(f"client.{what}", f"{shown} is used twice", "each client its own")

    def _routes(self, table: _Table) -> Routes:
        mode = self._choice(table, "mode", ROUTE_MODES, "split")
        networks = table.strings("networks", 'networks like ["10.20.0.0/16"]')
        for network in networks:
            parsed = self._network(table.path("networks"), network)
            if parsed.prefixlen == 0:
                self.fail(table.path("networks"), f"{network} is everything", 'mode = "full"')
        if networks and mode != "split":
            self.fail(table.path("networks"), f"not used with mode = {mode!r}", 'mode = "split"')
        kill_switch = table.take("kill_switch", bool, "true or false", False)
        if kill_switch:
            self.fail(table.path("kill_switch"), "is not supported by this version", "false")
        table.done()
        return Routes(mode, networks, kill_switch)

    def _interface(self, table: _Table, role: str) -> Interface:
        name = table.take("name", str, "an interface name", "jvpn0")
        self._check_interface_name(table.path("name"), name)
        addresses: tuple[str, ...] = ()
        if role == "gateway":
            example = 'addresses with prefix length like ["10.77.0.1/24", "fd77::1/64"]'
            addresses = table.strings("address", example)
            if not addresses:
                self.fail(table.path("address"), "is missing", example)
            for address in addresses:
                self._interface_address(table.path("address"), address)
        low = _MIN_MTU[6 if any(":" in address for address in addresses) else 4]
        allowed = f"a whole number from {low} to {MAX_MTU}"
        mtu = table.take("mtu", int, allowed, 1400)
        if not low <= mtu <= MAX_MTU:
            self.fail(table.path("mtu"), f"{mtu} is out of range", allowed)
        table.done()
        return Interface(name, mtu, addresses)

    def _interface_address(self, key: str, text: str) -> None:
        allowed = "an address with prefix length, like 10.77.0.1/24"
        try:
            parsed = ipaddress.ip_interface(text)
        except ValueError:
            self.fail(key, f"{text!r} is not an address", allowed)
            return
        if "/" not in text or parsed.network.prefixlen == 0:
            self.fail(key, f"{text!r} has no prefix length", allowed)

    def _policy(self, top: _Table) -> Policy:
        values = top.take("policy", dict, "a table", {})
        try:
            return Policy.from_table(values)
        except PolicyError as error:
            raise ConfigError(
                self._file, f"policy.{error.key}", error.problem, error.allowed
            ) from None

    def _endpoint(self, table: _Table, numeric: bool) -> Endpoint:
        transport = self._choice(table, "transport", TRANSPORTS, "udp")
        allowed = "an IP address" if numeric else "an IP address or a host name"
        address = table.take("address", str, allowed)
        try:
            address = str(ipaddress.ip_address(address))
        except ValueError:
            if numeric or not _HOST_NAME.fullmatch(address) or len(address) > 253:
                self.fail(table.path("address"), f"{address!r} is not one", allowed)
        port = table.take("port", int, "1 to 65535")
        if not 1 <= port <= 65535:
            self.fail(table.path("port"), f"{port} is out of range", "1 to 65535")
        table.done()
        return Endpoint(transport, address, port)

    def _network(self, key: str, text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        try:
            return ipaddress.ip_network(text)
        except ValueError as error:
            self.fail(key, str(error), "a network like 10.20.0.0/16, host bits zero")
            raise

    def _choice(
        self, table: _Table, key: str, allowed: tuple[str, ...], default: str | None = None
    ) -> str:
        text = ", ".join(allowed)
        value = table.take(key, str, text, default)
        if value not in allowed:
            self.fail(table.path(key), f"{value!r} is not one of them", text)
        return str(value)

    def _name(self, table: _Table, key: str) -> str:
        allowed = "1 to 64 letters, digits, '.', '_' or '-'"
        value = table.take(key, str, allowed)
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value):
            self.fail(table.path(key), f"{value!r} is no name", allowed)
        return str(value)

    def _check_interface_name(self, key: str, name: str) -> None:
        allowed = "1 to 15 letters, digits, '.', '_' or '-'"
        taken = name in (".", "..", "all", "default")
        if taken or not re.fullmatch(r"[A-Za-z0-9._-]{1,15}", name):
            self.fail(key, f"{name!r} is no interface name", allowed)

    def _optional_psk(self, table: _Table) -> bytes | None:
        given = table.take("preshared_key_file", str, "a file", "")
        if not given:
            return None
        return self._read_key_file(table.path("preshared_key_file"), given, private=True)

    def _key_file(self, table: _Table, key: str, private: bool) -> bytes:
        given = table.take(key, str, "a file", "/etc/jvpn/private.key")
        return self._read_key_file(table.path(key), given, private)

    def _read_key_file(self, key: str, given: str, private: bool) -> bytes:
        file = (self._file.parent / given).resolve()
        try:
            mode = file.stat().st_mode
            text = file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not text"
            self.fail(key, f"{file}: {why}", f"a file holding {KEY_TEXT}")
            raise
        if private and mode & 0o077:
            self.fail(key, f"{file} can be read by others", f"chmod 600 {file}")
        return self._key(key, text)

    def _key(self, key: str, text: str) -> bytes:
        try:
            raw = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != 32 or not any(raw):
            self.fail(key, "is not a key", KEY_TEXT)
        return raw


def _first_twice(values: Iterable[Any]) -> Any:
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
