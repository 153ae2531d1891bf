"""Configuration files: what a valid one means, and the one line that a wrong one gets."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jvpnd import config
from jvpnd.config import (
    Client,
    Config,
    ConfigError,
    Endpoint,
    GatewayPeer,
    Interface,
    Listen,
    Routes,
    load,
)
from jvpnd.configfile import MAX_FILE_BYTES
from jvpnd.configroutes import MAX_EXCLUDED, HostRoutes, host_routes
from jvpnd.core.noise import public_key
from jvpnd.core.policy import Policy
from jvpnd.host import default_lanes
from jvpnd.keyfile import parse_key
from jvpnd.transport.certificate import load_certificate, self_signed
from jvpnd.transport.proxy import Proxy

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs" / "configuration.md"
SECRET, OTHER_SECRET, PSK = b"\x11" * 32, b"\x22" * 32, b"\x33" * 32
OWN, OTHER, THIRD = (
    base64.b64encode(public_key(secret)).decode() for secret in (SECRET, OTHER_SECRET, PSK)
)
LOW_ORDER = base64.b64encode(b"\x01" + bytes(31)).decode()

CLIENT = f"""
role = "client"
node = "laptop"
[identity]
private_key_file = "private.key"
[interface]
name = "jvpn0"
mtu = 1380
[gateway]
public_key = "{OTHER}"
[[gateway.endpoint]]
transport = "udp"
address = "203.0.113.7"
port = 7700
[uplinks]
interfaces = ["wlan0", "wwan0"]
[routes]
mode = "split"
networks = ["10.20.0.0/16"]
[policy]
max_switches_per_minute = 6
"""

GATEWAY = f"""
role = "gateway"
node = "gw1"
[identity]
private_key_file = "private.key"
[interface]
name = "jvpn0"
mtu = 1400
address = ["10.77.0.1/24", "fd77::1/64"]
[[listen]]
transport = "udp"
address = "::"
port = 7700
[[client]]
name = "laptop"
public_key = "{OTHER}"
address = ["10.77.0.2", "fd77::2"]
networks = ["192.168.5.0/24"]
[[client]]
name = "phone"
public_key = "{THIRD}"
address = ["10.77.0.3"]
"""

Loader = Callable[[str], Config]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower() == "https_proxy"]:
        monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_key(tmp_path / "private.key", SECRET)
    write_key(tmp_path / "psk.key", PSK)
    return tmp_path


@pytest.fixture
def loaded(folder: Path) -> Loader:
    def load_text(text: str) -> Config:
        file = folder / "jvpnd.toml"
        file.write_text(text)
        return load(file)

    return load_text


def write_key(file: Path, secret: bytes, mode: int = 0o600) -> None:
    file.write_text(base64.b64encode(secret).decode() + "\n")
    file.chmod(mode)


def swap(text: str, old: str, new: str) -> str:
    """`text` with its one `old` replaced: a case that no longer fits its base file fails."""
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in the base file"
    return text.replace(old, new)


def refused(loaded: Loader, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        loaded(text)
    error = caught.value
    line = str(error)
    assert line.isprintable(), "an error is one line"
    assert line.startswith(f"{error.file}: ")
    assert line.endswith(")")
    assert " (allowed: " in line
    return error


# --- what is valid ---


def test_a_client_file_becomes_a_client_config(loaded: Loader) -> None:
    assert loaded(CLIENT) == Config(
        role="client",
        node="laptop",
        interface=Interface("jvpn0", 1380),
        private_key=SECRET,
        policy=Policy(max_switches_per_minute=6),
        gateway=GatewayPeer(parse_key(OTHER), (Endpoint("udp", "203.0.113.7", 7700),)),
        uplinks=("wlan0", "wwan0"),
        routes=Routes("split", ("10.20.0.0/16",)),
        lanes=default_lanes(),
    )


def test_a_gateway_file_becomes_a_gateway_config(loaded: Loader) -> None:
    assert loaded(GATEWAY) == Config(
        role="gateway",
        node="gw1",
        interface=Interface("jvpn0", 1400, ("10.77.0.1/24", "fd77::1/64")),
        private_key=SECRET,
        policy=Policy(),
        listen=(Listen("udp", "::", 7700),),
        clients=(
            Client("laptop", parse_key(OTHER), ("10.77.0.2", "fd77::2"), ("192.168.5.0/24",)),
            Client("phone", parse_key(THIRD), ("10.77.0.3",)),
        ),
        lanes=default_lanes(),
    )


def test_a_short_client_file_gets_the_defaults(loaded: Loader) -> None:
    config = loaded(f"""
        role = "client"
        node = "n"
        identity.private_key_file = "private.key"
        gateway.public_key = "{OTHER}"
        gateway.endpoint = [{{ address = "vpn.example.org", port = 7700 }}]
    """)
    assert config.interface == Interface("jvpn0", 1400, ())
    assert config.gateway is not None
    assert config.gateway.endpoints == (Endpoint("udp", "vpn.example.org", 7700),)
    assert config.uplinks is None
    assert config.routes == Routes("split")
    assert config.policy == Policy()


def test_a_gateway_may_wait_for_its_first_client(loaded: Loader) -> None:
    assert loaded(GATEWAY[: GATEWAY.index("[[client]]")]).clients == ()


@pytest.mark.parametrize(
    ("base", "table"), [(CLIENT, "[gateway]"), (GATEWAY, '[[client]]\nname = "phone"')]
)
def test_the_preshared_key_is_read_from_its_file(loaded: Loader, base: str, table: str) -> None:
    config = loaded(swap(base, table, f'{table}\npreshared_key_file = "psk.key"'))
    peer = config.gateway or config.clients[1]
    assert peer.preshared_key == PSK


def test_key_files_may_be_absolute(loaded: Loader, folder: Path) -> None:
    absolute = swap(CLIENT, '"private.key"', f'"{folder / "private.key"}"')
    assert loaded(absolute).private_key == SECRET


def test_addresses_and_networks_come_out_in_one_spelling(loaded: Loader) -> None:
    text = swap(GATEWAY, '"fd77::1/64"', '"FD77:0:0::1/64"')
    text = swap(text, '"fd77::2"', '"fd77:0::0002"')
    text = swap(text, "192.168.5.0/24", "192.168.5.0/255.255.255.0")
    assert loaded(text) == loaded(GATEWAY)


@pytest.mark.parametrize("mtu", [576, 9000])
def test_the_mtu_bounds_are_inclusive(loaded: Loader, mtu: int) -> None:
    assert loaded(swap(CLIENT, "1380", str(mtu))).interface.mtu == mtu


@pytest.mark.parametrize(
    "address", ["vpn.example.org", "vpn.example.org.", "gw", "2001:db8::7", "4.example", "a-1.b"]
)
def test_an_endpoint_is_an_address_or_a_host_name(loaded: Loader, address: str) -> None:
    config = loaded(swap(CLIENT, "203.0.113.7", address))
    assert config.gateway is not None
    assert config.gateway.endpoints[0].address == address


def full(text: str, more: str) -> str:
    """A client with a full tunnel, and these lines in [routes]."""
    return swap(swap(text, 'mode = "split"', 'mode = "full"'), 'networks = ["10.20.0.0/16"]', more)


def test_networks_may_stay_outside_a_full_tunnel(loaded: Loader) -> None:
    routes = loaded(full(CLIENT, 'exclude = ["172.17.0.0/16", "FD20::/32"]')).routes
    assert routes == Routes("full", exclude=("172.17.0.0/16", "fd20::/32"))
    many = [f"10.{n // 256}.{n % 256}.0/24" for n in range(MAX_EXCLUDED + 1)]
    assert len(loaded(full(CLIENT, f"exclude = {json.dumps(many[1:])}")).routes.exclude) == 256
    error = refused(loaded, full(CLIENT, f"exclude = {json.dumps(many)}"))
    assert (error.key, error.allowed) == ("routes.exclude", "at most 256")


def test_with_a_kill_switch_nothing_is_a_name(
    loaded: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = full(CLIENT, "kill_switch = true")
    assert loaded(text).routes.kill_switch
    error = refused(loaded, swap(text, '"203.0.113.7"', '"vpn.example.org"'))
    assert (error.key, error.problem) == (
        "gateway.endpoint[1].address", "'vpn.example.org' is a name"
    )
    through = "[gateway]\nproxy = 'http://{}:3128'"
    assert loaded(swap(text, "[gateway]", through.format("[2001:db8::1]"))).gateway
    error = refused(loaded, swap(text, "[gateway]", through.format("proxy.example")))
    assert (error.key, error.problem) == ("gateway.proxy", "'proxy.example' is a name")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    error = refused(loaded, text)
    assert error.problem == "https_proxy of the environment: 'proxy.example' is a name"


def test_what_a_kill_switch_needs_is_read_whatever_else_is_wrong(folder: Path) -> None:
    file = folder / "jvpnd.toml"
    broken = swap(full(CLIENT, "kill_switch = true"), 'private_key_file = "private.key"', "x = 1")
    file.write_text(swap(broken, '"203.0.113.7"', '"vpn.example.org"'))
    assert host_routes(file) == HostRoutes("client", "jvpn0", Routes("full", kill_switch=True))
    file.write_text(GATEWAY)
    assert host_routes(file) == HostRoutes("gateway", "jvpn0", Routes())


def test_a_point_to_point_network_has_two_hosts(loaded: Loader) -> None:
    text = swap(GATEWAY, '"10.77.0.1/24", "fd77::1/64"', '"10.77.0.0/31"')
    text = swap(text, '"10.77.0.2", "fd77::2"', '"10.77.0.1"')
    text = text[: text.rindex("[[client]]")]
    assert loaded(text).clients[0].address == ("10.77.0.1",)


@pytest.mark.parametrize("base", [CLIENT, GATEWAY])
def test_features_may_be_disabled_and_take_what_needs_them_along(
    loaded: Loader, base: str
) -> None:
    assert loaded(base).disabled == frozenset()
    for text, meant in (
        ("", set()),
        ('"udp_gro", "aes"', {"udp_gro", "aes"}),
        ('"vnet"', {"vnet", "tso", "uso"}),
        ('"tso", "vnet"', {"vnet", "tso", "uso"}),
    ):
        assert loaded(f"{base}[debug]\ndisable = [{text}]\n").disabled == meant


@pytest.mark.parametrize("base", [CLIENT, GATEWAY])
def test_lanes_are_as_many_as_said(loaded: Loader, base: str) -> None:
    for lanes in (1, 2, 16):
        assert loaded(f"lanes = {lanes}\n{base}").lanes == lanes


@pytest.mark.parametrize(("cpus", "lanes"), [(1, 1), (2, 1), (7, 1), (8, 2), (12, 3), (128, 8)])
def test_lanes_follow_from_the_cpus_allowed(
    loaded: Loader, monkeypatch: pytest.MonkeyPatch, cpus: int, lanes: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
    assert loaded(CLIENT).lanes == lanes


def test_secrets_are_not_in_a_printed_config(loaded: Loader, folder: Path) -> None:
    more = '[gateway]\npreshared_key_file = "psk.key"\nproxy = "http://me:geheim@between"'
    config = loaded(swap(CLIENT, "[gateway]", more))
    assert config.gateway is not None
    assert config.gateway.proxy is not None
    for secret in (repr(SECRET)[2:-1], repr(PSK)[2:-1], "geheim", config.gateway.proxy.host):
        assert secret not in repr(config)
    (folder / "tls.pem").write_bytes(self_signed("gw1"))
    gateway = loaded(swap(GATEWAY, 'transport = "udp"', TLS_LISTEN))
    assert "PRIVATE KEY" not in repr(gateway)


# --- transports ---

TLS_LISTEN = 'transport = "tls"\ncertificate_file = "tls.pem"'


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls", "quic"])
def test_every_transport_can_be_called_and_listened_on(loaded: Loader, transport: str) -> None:
    wanted = f'transport = "{transport}"'
    client = loaded(swap(CLIENT, 'transport = "udp"', wanted))
    assert client.gateway is not None
    assert client.gateway.endpoints == (Endpoint(transport, "203.0.113.7", 7700),)
    gateway = loaded(swap(GATEWAY, 'transport = "udp"', wanted))
    assert gateway.listen == (Listen(transport, "::", 7700),)


@pytest.mark.parametrize("transport", ["tls", "quic"])
def test_what_looks_like_the_web_is_on_its_port_and_says_what_it_is_told(
    loaded: Loader, transport: str
) -> None:
    text = swap(CLIENT, "port = 7700\n", 'server_name = "www.example"\nalpn = ["h3", "x/1"]\n')
    client = loaded(swap(text, 'transport = "udp"', f'transport = "{transport}"'))
    assert client.gateway is not None
    told = Endpoint(transport, "203.0.113.7", 443, "www.example", ("h3", "x/1"))
    assert client.gateway.endpoints == (told,)
    text = swap(GATEWAY, "port = 7700\n", 'alpn = ["h3"]\n')
    gateway = loaded(swap(text, 'transport = "udp"', f'transport = "{transport}"'))
    assert gateway.listen == (Listen(transport, "::", 443, ("h3",)),)


def test_the_same_port_is_free_for_another_transport(loaded: Loader) -> None:
    more = '[[listen]]\ntransport = "tcp"\naddress = "::"\nport = 7700\n[[listen]]'
    gateway = loaded(swap(GATEWAY, "[[listen]]", more))
    assert [each.transport for each in gateway.listen] == ["tcp", "udp"]


@pytest.mark.parametrize("transport", ["tls", "quic"])
def test_a_certificate_comes_with_its_key_or_names_the_file_that_has_it(
    loaded: Loader, folder: Path, transport: str
) -> None:
    whole = self_signed("gw1")
    at = whole.index(b"-----BEGIN PRIVATE")
    files = {"tls.pem": whole, "cert.pem": whole[:at], "key.pem": whole[at:]}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for keys in (
        'certificate_file = "tls.pem"',
        'certificate_file = "cert.pem"\ncertificate_key_file = "key.pem"',
        f'certificate_file = "{folder / "tls.pem"}"',
    ):
        wanted = f'transport = "{transport}"\n{keys}'
        (listen,) = loaded(swap(GATEWAY, 'transport = "udp"', wanted)).listen
        assert listen.pem is not None
        assert listen.pem.count(b"-----BEGIN") == 2
    assert listen.pem == load_certificate(folder / "tls.pem", None)


@pytest.mark.parametrize(
    ("address", "keys", "advertised"),
    [
        ("::", "", ""),
        ("0.0.0.0", "", ""),
        ("203.0.113.7", "", "203.0.113.7"),
        ("10.0.0.5", 'advertise = "203.0.113.7"', "203.0.113.7"),
        ("::", 'advertise = "2001:DB8:0::7"', "2001:db8::7"),
        ("::", 'advertise = "gw.example"', "gw.example"),
    ],
)
def test_clients_are_told_where_the_gateway_listens_or_what_it_says(
    loaded: Loader, address: str, keys: str, advertised: str
) -> None:
    """Nothing at all where it listens on every address: they know one."""
    text = swap(GATEWAY, 'address = "::"', f'address = "{address}"\n{keys}')
    assert loaded(text).listen[0].advertise == advertised


def test_a_proxy_is_the_configured_one_or_that_of_the_environment(
    loaded: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def proxy(text: str) -> Proxy | None:
        gateway = loaded(text).gateway
        assert gateway is not None
        return gateway.proxy

    configured = swap(CLIENT, "[gateway]", '[gateway]\nproxy = "http://me:a%40b@proxy.example"')
    assert proxy(CLIENT) is None
    assert proxy(configured) == Proxy("proxy.example", 80, "Basic bWU6YUBi")
    monkeypatch.setenv("https_proxy", "http://[2001:db8::1]:3128/")
    assert proxy(CLIENT) == Proxy("2001:db8::1", 3128, None)
    assert proxy(configured) == Proxy("proxy.example", 80, "Basic bWU6YUBi")
    monkeypatch.setenv("https_proxy", "proxy.example:3128")
    assert proxy(CLIENT) == Proxy("proxy.example", 3128, None)
    monkeypatch.setenv("https_proxy", "socks5://proxy.example")
    error = refused(loaded, CLIENT)
    assert error.key == "gateway.proxy"
    assert "https_proxy of the environment" in error.problem
    monkeypatch.setenv("https_proxy", "")
    assert proxy(CLIENT) is None


@pytest.mark.parametrize(
    ("base", "key"), [(CLIENT, "gateway.endpoint[1]"), (GATEWAY, "listen[1]")]
)
def test_quic_without_its_library_says_what_to_install(
    loaded: Loader, monkeypatch: pytest.MonkeyPatch, base: str, key: str
) -> None:
    monkeypatch.setitem(sys.modules, "aioquic", None)
    error = refused(loaded, swap(base, 'transport = "udp"', 'transport = "quic"'))
    assert error.key == f"{key}.transport"
    assert "which is not installed" in error.problem
    assert "udp, tcp, tls" in error.allowed
    assert loaded(base)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file"),
        (b"no PEM", "no private key in PEM form"),
        (b"certificate only", "no private key"),
        (b"another's", "not the key of the first certificate"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_refused_in_one_line(
    loaded: Loader, folder: Path, content: bytes | None, problem: str
) -> None:
    ours, other = self_signed("gw1"), self_signed("gw2")
    at = ours.index(b"-----BEGIN PRIVATE")
    if content == b"certificate only":
        content = ours[:at]
    elif content == b"another's":
        content = ours[:at] + other[other.index(b"-----BEGIN PRIVATE") :]
    if content is not None:
        (folder / "tls.pem").write_bytes(content)
    error = refused(loaded, swap(GATEWAY, 'transport = "udp"', TLS_LISTEN))
    assert error.key == "listen[1].certificate_file"
    assert problem in error.problem


# --- what is refused: (old text, new text, key, part of the problem, part of what is allowed) ---

Case = tuple[str, str, str, str, str]


def _tls(line: str, key: str, problem: str, allowed: str) -> Case:
    """An endpoint over TLS with this line."""
    text = f'transport = "tls"\n{line}'
    return 'transport = "udp"', text, f"gateway.endpoint[1].{key}", problem, allowed


CLIENT_CASES: list[Case] = [
    ('role = "client"', 'role = "server"', "role", "'server' is not supported", "client, gateway"),
    ('role = "client"', "", "role", "is missing", "client, gateway"),
    ('role = "client"', "role = 1", "role", "1 is of the wrong type", "client, gateway"),
    ('role = "client"', 'rolle = "client"', "rolle", "unknown key", "role, node"),
    ('node = "laptop"', 'node = "my laptop"', "node", "'my laptop' is not a name", "letters"),
    ('node = "laptop"', 'node = ""', "node", "'' is not a name", "1 to 64"),
    ('node = "laptop"', 'node = "n"\nlanes = 0', "lanes", "0 is out of range", "1 to 16"),
    ('node = "laptop"', 'node = "n"\nlanes = 17', "lanes", "17 is out of range", "1 to 16"),
    ('node = "laptop"', 'node = "n"\nlanes = "2"', "lanes", "of the wrong type", "1 to 16"),
    ("mtu = 1380", "mtu = 575", "interface.mtu", "575 is out of range", "576 to 9000"),
    ("mtu = 1380", "mtu = 9001", "interface.mtu", "9001 is out of range", "576 to 9000"),
    ("mtu = 1380", "mtu = true", "interface.mtu", "True is of the wrong type", "whole number"),
    ("mtu = 1380", "mtu = 1380.0", "interface.mtu", "wrong type", "whole number"),
    ("mtu = 1380", f"mtu = 0x{'f' * 9999}", "interface.mtu", "a huge number", "576 to 9000"),
    ("mtu = 1380", "speed = 1", "interface.speed", "unknown key", "name, mtu"),
    ("mtu = 1380", 'address = ["10.0.0.1/24"]', "interface.address", "from the gateway", "mtu"),
    ("mtu = 1380", "'mtu\\u000a' = 1", "interface.mtu\\u000a", "unknown key", "name, mtu"),
    ("mtu = 1380", '"mtu\\n" = 1', "interface.mtu\n", "unknown key", "name, mtu"),
    ('"jvpn0"', '"a-name-too-long0"', "interface.name", "is not an interface name", "1 to 15"),
    ('"jvpn0"', '"jvpn/0"', "interface.name", "'jvpn/0'", "letters, digits"),
    ('"jvpn0"', '"jvpn 0"', "interface.name", "'jvpn 0'", "letters, digits"),
    ('"jvpn0"', '""', "interface.name", "''", "1 to 15"),
    ('"jvpn0"', '".."', "interface.name", "'..'", "1 to 15"),
    ('"jvpn0"', '"all"', "interface.name", "'all'", "1 to 15"),
    (OTHER, OTHER[:-2], "gateway.public_key", "is not base64", "base64 of 32 bytes"),
    (OTHER, "!" + OTHER[1:], "gateway.public_key", "is not base64", "base64 of 32 bytes"),
    (OTHER, "é" + OTHER[1:], "gateway.public_key", "is not base64", "base64 of 32 bytes"),
    (OTHER, "AAAA", "gateway.public_key", "holds 3 bytes, not 32", "base64 of 32 bytes"),
    (OTHER, "A" * 43 + "=", "gateway.public_key", "all zeros", "base64 of 32 bytes"),
    (OTHER, LOW_ORDER, "gateway.public_key", "low-order point", "base64 of 32 bytes"),
    (OTHER, OWN, "gateway.public_key", "this node's own private key", "the other end's"),
    ("public_key", "pubic_key", "gateway.pubic_key", "unknown key", "public_key, endpoint"),
    (f'public_key = "{OTHER}"', "", "gateway.public_key", "is missing", "base64"),
    ('"private.key"', '"none.key"', "identity.private_key_file", "No such file", "a file with"),
    ('"private.key"', '"."', "identity.private_key_file", "Is a directory", "a file with"),
    ('"private.key"', '"/dev/zero"', "identity.private_key_file", "not a regular", "a file with"),
    ('"private.key"', '"a\\u0000b"', "identity.private_key_file", "null byte", "a file with"),
    ('"private.key"', '"jvpnd.toml"', "identity.private_key_file", "open to others", "chmod 600"),
    ("private_key_file", "secret", "identity.secret", "unknown key", "private_key_file"),
    ('transport = "udp"', 'transport = "sctp"', "gateway.endpoint[1].transport", "'sctp'", "udp"),
    ('transport = "udp"', "transport = 1", "gateway.endpoint[1].transport", "wrong type", "udp"),
    *(
        (
            'transport = "udp"',
            f'transport = "{transport}"\n{key} = {value}',
            f"gateway.endpoint[1].{key}",
            f"no meaning with transport = '{transport}'",
            "tls or quic",
        )
        for transport in ("udp", "tcp")
        for key, value in (("server_name", '"www.example"'), ("alpn", '["h3"]'))
    ),
    _tls("server_name = 7", "server_name", "wrong type", "a host name"),
    _tls('server_name = ""', "server_name", "'' is not a name", "a host name"),
    _tls('server_name = "a_b"', "server_name", "'a_b' is not a name", "a host name"),
    _tls('server_name = "192.0.2.1"', "server_name", "is not a name", "a host name"),
    _tls("alpn = []", "alpn", "is empty", "at most 8"),
    _tls('alpn = "h3"', "alpn", "wrong type", "at most 8"),
    _tls("alpn = [3]", "alpn", "wrong type", "at most 8"),
    _tls('alpn = [""]', "alpn", "has what is no protocol", "at most 8"),
    _tls('alpn = ["a b"]', "alpn", "has what is no protocol", "at most 8"),
    _tls(f'alpn = ["{"a" * 256}"]', "alpn", "has what is no protocol", "at most 8"),
    _tls(f"alpn = {[str(n) for n in range(9)]}", "alpn", "too long", "at most 8"),
    _tls('alpn = ["h3", "h3"]', "alpn", "h3 is there twice", "each once"),
    ("[gateway]", "[gateway]\nproxy = 7", "gateway.proxy", "wrong type", "http://"),
    *(
        ("[gateway]", f'[gateway]\nproxy = "{url}"', "gateway.proxy", "cannot be used", allowed)
        for url, allowed in (
            ("", "http://"),
            ("https://proxy", "scheme 'https'"),
            ("http://proxy:0", "1 to 65535"),
            ("http://", "no host"),
        )
    ),
    ('transport = "udp"', "protocol = 1", "gateway.endpoint[1].protocol", "unknown", "transport"),
    ("port = 7700", "port = 0", "gateway.endpoint[1].port", "0 is out of range", "1 to 65535"),
    ("port = 7700", "port = 65536", "gateway.endpoint[1].port", "out of range", "1 to 65535"),
    ("port = 7700", "", "gateway.endpoint[1].port", "is missing", "1 to 65535"),
    ("203.0.113.7", "203.0.113.300", "gateway.endpoint[1].address", "not an address", "host name"),
    ("203.0.113.7", "203.0.113.7:7700", "gateway.endpoint[1].address", "not an", "host name"),
    ("203.0.113.7", "vpn_1.example", "gateway.endpoint[1].address", "not an", "host name"),
    ("203.0.113.7", "-vpn.example", "gateway.endpoint[1].address", "not an", "host name"),
    ("203.0.113.7", "vpn-.example", "gateway.endpoint[1].address", "not an", "host name"),
    ("203.0.113.7", "a..b", "gateway.endpoint[1].address", "not an", "host name"),
    ("203.0.113.7", "a." * 127 + "a", "gateway.endpoint[1].address", "not an", "host name"),
    ("203.0.113.7", "fe80::1%eth0", "gateway.endpoint[1].address", "not an", "host name"),
    ("203.0.113.7", "0.0.0.0", "gateway.endpoint[1].address", "not one host's", "host name"),
    ("203.0.113.7", "224.0.0.1", "gateway.endpoint[1].address", "not one host's", "host name"),
    (
        "[uplinks]",
        '[[gateway.endpoint]]\naddress = "203.0.113.7"\nport = 7700\n[uplinks]',
        "gateway.endpoint",
        "udp 203.0.113.7 port 7700 is there twice",
        "each once",
    ),
    ('"wlan0", "wwan0"', "", "uplinks.interfaces", "is empty", "leave the key out"),
    ('"wwan0"', '"wlan0"', "uplinks.interfaces", "wlan0 is there twice", "each once"),
    ('"wwan0"', '"jvpn0"', "uplinks.interfaces", "jvpn0 is the tunnel itself", "other"),
    ('"wwan0"', '"wwan 0"', "uplinks.interfaces", "'wwan 0'", "1 to 15"),
    ('"wwan0"', "7", "uplinks.interfaces", "of the wrong type", "wlan0"),
    ("10.20.0.0/16", "10.20.0.1/16", "routes.networks", "has host bits set", "host bits zero"),
    ("10.20.0.0/16", "10.20.0.0/33", "routes.networks", "is not a network", "10.20.0.0/16"),
    ("10.20.0.0/16", "0.0.0.0/0", "routes.networks", "not a part", "10.20.0.0/16"),
    ('mode = "split"', 'mode = "full"', "routes.networks", "no meaning", "mode = 'split'"),
    ('mode = "split"', 'mode = "all"', "routes.mode", "'all'", "split, full, none"),
    ('mode = "split"', "kill_switch = true", "routes.kill_switch", "no meaning", "mode = 'full'"),
    ('mode = "split"', 'exclude = ["10.9.0.0/16"]', "routes.exclude", "no meaning", "'full'"),
    ('networks = ["10.20.0.0/16"]', 'exclude = ["::/0"]', "routes.exclude", "not a part", "10.20."),
    ('networks = ["10.20.0.0/16"]', "exclude = [1]", "routes.exclude", "wrong type", "10.20."),
    ('mode = "split"', "kill_switch = 1", "routes.kill_switch", "wrong type", "true or false"),
    ("[policy]", "[[client]]\n[policy]", "client", "is for role = 'gateway'", "gateway, uplinks"),
    ("[policy]", "[[listen]]\n[policy]", "listen", "is for role = 'gateway'", "gateway, uplinks"),
    ("[policy]", "[polices]", "polices", "unknown key", "policy"),
    ("[policy]", "[debug]\ndisabled = []\n[policy]", "debug.disabled", "unknown key", "disable"),
    ("[policy]", '[debug]\ndisable = "tso"\n[policy]', "debug.disable", "wrong type", "vnet, tso"),
    ("[policy]", '[debug]\ndisable = ["gso"]\n[policy]', "debug.disable", "'gso' is", "udp_gso"),
    ("[policy]", '[debug]\ndisable = ["tso", "tso"]\n[policy]', "debug.disable", "tso is", "once"),
    (
        "max_switches_per_minute = 6",
        'allowed_transports = ["tcp", "tls"]',
        "policy.allowed_transports",
        "leaves no endpoint to use",
        "a list with udp",
    ),
]

GATEWAY_CASES: list[Case] = [
    ('"10.77.0.1/24", ', '"10.77.0.1", ', "interface.address", "no prefix length", "10.77.0.1/24"),
    ('"10.77.0.1/24", ', '"10.77.0.0/24", ', "interface.address", "not a host", "10.77.0.1/24"),
    ('"10.77.0.1/24", ', '"10.77.0.255/24", ', "interface.address", "not a host", "10.77.0.1/24"),
    ('"10.77.0.1/24", ', '"10.77.0.1/0", ', "interface.address", "prefix length", "10.77.0.1/24"),
    ('"10.77.0.1/24", ', '"nonsense", ', "interface.address", "not an address", "10.77.0.1/24"),
    ('"10.77.0.1/24", ', '"127.0.0.1/8", ', "interface.address", "cannot be", "10.77.0.1/24"),
    ('"10.77.0.1/24", ', '"fd77::1/48", ', "interface.address", "twice", "each once"),
    ('"10.77.0.1/24", "fd77::1/64"', "", "interface.address", "is empty", "10.77.0.1/24"),
    ('address = ["10.77.0.1/24", "fd77::1/64"]', "", "interface.address", "missing", "10.77.0.1"),
    ("mtu = 1400", "mtu = 1279", "interface.mtu", "1279 is out of range", "1280 to 9000"),
    ('address = "::"', 'address = "gw.example"', "listen[1].address", "'gw.example'", "or ::"),
    ('address = "::"', 'address = "ff02::1"', "listen[1].address", "not one host's", "or ::"),
    ("[[listen]]", "[listen]", "listen", "of the wrong type", "[[listen]] tables"),
    *(
        (
            'transport = "udp"',
            f'transport = "{transport}"\n{key} = {value}',
            f"listen[1].{key}",
            f"no meaning with transport = '{transport}'",
            "tls or quic",
        )
        for transport in ("udp", "tcp")
        for key, value in (
            ("alpn", '["h3"]'),
            ("certificate_file", '"tls.pem"'),
            ("certificate_key_file", '"key.pem"'),
        )
    ),
    (
        'transport = "udp"',
        'transport = "tls"\ncertificate_key_file = "key.pem"',
        "listen[1].certificate_key_file",
        "has no certificate_file",
        "both",
    ),
    *(
        ('address = "::"', f'address = "::"\nadvertise = {value}', "listen[1].advertise", *words)
        for value, words in (
            ("7", ("wrong type", "that clients reach")),
            ('"203.0.113.300"', ("'203.0.113.300' is not an address", "that clients reach")),
            ('"0.0.0.0"', ("not one host's", "that clients reach")),
            ('"ff02::1"', ("not one host's", "that clients reach")),
        )
    ),
    (
        'transport = "udp"',
        'transport = "tls"\nserver_name = "x"',
        "listen[1].server_name",
        "unknown key",
        "certificate_file",
    ),
    (
        '[[listen]]\ntransport = "udp"\naddress = "::"\nport = 7700',
        "",
        "listen",
        "is missing",
        "[[listen]] tables",
    ),
    (
        "[[listen]]",
        '[[listen]]\naddress = "0::0"\nport = 7700\n[[listen]]',
        "listen",
        "udp :: port 7700 is there twice",
        "each once",
    ),
    ('name = "phone"', 'name = "laptop"', "client.name", "laptop is there twice", "each once"),
    ('name = "phone"', 'name = "a b"', "client[2].name", "'a b' is not a name", "letters"),
    ('name = "phone"', 'nick = "phone"', "client[2].nick", "unknown key", "name, public_key"),
    (THIRD, OTHER, "client.public_key", f"{OTHER} is there twice", "each once"),
    (THIRD, OWN, "client[2].public_key", "own private key", "the other end's"),
    ('["10.77.0.3"]', '["10.77.0.2"]', "client.address", "10.77.0.2 is there twice", "each"),
    ('["10.77.0.3"]', '["fd77:0::2"]', "client.address", "fd77::2 is there twice", "each"),
    ('["10.77.0.3"]', '["10.78.0.3"]', "client[2].address", "is outside", "10.77.0.0/24"),
    ('["10.77.0.3"]', '["10.77.0.1"]', "client[2].address", "gateway's own", "10.77.0.0/24"),
    ('["10.77.0.3"]', '["10.77.0.0"]', "client[2].address", "not a host", "10.77.0.0/24"),
    ('["10.77.0.3"]', '["10.77.0.255"]', "client[2].address", "not a host", "10.77.0.0/24"),
    ('["10.77.0.3"]', '["10.77.0.3/24"]', "client[2].address", "not an address", "without prefix"),
    ('["10.77.0.3"]', '"10.77.0.3"', "client[2].address", "wrong type", "10.77.0.0/24"),
    ('["10.77.0.3"]', "[]", "client[2].address", "is empty", "10.77.0.0/24"),
    (
        '["10.77.0.3"]',
        str([f"10.77.0.{n}" for n in range(3, 12)]),
        "client[2].address",
        "9 of them",
        "at most 8",
    ),
    ("192.168.5.0/24", "192.168.5.1/24", "client[1].networks", "has host bits set", "host bits"),
    ("192.168.5.0/24", "::/0", "client[1].networks", "not a part", "10.20.0.0/16"),
    ("192.168.5.0/24", "10.0.0.0/8", "client[1].networks", "tunnel's own", "10.77.0.0/24"),
    (
        'address = ["10.77.0.3"]',
        'address = ["10.77.0.3"]\nnetworks = ["10.9.0.0/16", "192.168.0.0/16"]',
        "client.networks",
        "192.168.5.0/24 of laptop overlaps 192.168.0.0/16 of phone",
        "do not overlap",
    ),
    ("[interface]", "[gateway]\n[interface]", "gateway", "is for role = 'client'", "listen, cl"),
    ("[interface]", "[routes]\n[interface]", "routes", "is for role = 'client'", "listen, client"),
    ("[interface]", "[uplinks]\n[interface]", "uplinks", "is for role = 'client'", "listen"),
]


@pytest.mark.parametrize(
    ("base", "case"),
    [(CLIENT, case) for case in CLIENT_CASES] + [(GATEWAY, case) for case in GATEWAY_CASES],
    ids=lambda value: f"{value[2]}: {value[3]}"[:70] if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_told_in_one_line(loaded: Loader, base: str, case: Case) -> None:
    old, new, key, problem, allowed = case
    error = refused(loaded, swap(base, old, new))
    assert error.key == key
    assert problem in error.problem
    assert allowed in error.allowed


def test_a_client_needs_a_gateway(loaded: Loader) -> None:
    text = CLIENT[: CLIENT.index("[gateway]")]
    assert refused(loaded, text).key == "gateway"


def test_ipv6_routes_need_an_ipv6_mtu(loaded: Loader) -> None:
    error = refused(loaded, swap(swap(CLIENT, "1380", "1000"), "10.20.0.0/16", "fd20::/48"))
    assert (error.key, error.allowed) == ("interface.mtu", "a whole number from 1280 to 9000")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
@pytest.mark.parametrize("name", ["private.key", "psk.key"])
def test_a_secret_open_to_others_is_refused(
    loaded: Loader, folder: Path, name: str, mode: int
) -> None:
    (folder / name).chmod(mode)
    error = refused(loaded, swap(CLIENT, "[gateway]", '[gateway]\npreshared_key_file = "psk.key"'))
    assert f"mode {mode:04o}" in error.problem
    assert error.allowed == f"chmod 600 {folder / name}"


def test_a_broken_key_file_is_named_and_its_text_is_not_shown(loaded: Loader, folder: Path) -> None:
    almost = base64.b64encode(SECRET).decode()[:-4]
    (folder / "private.key").write_text(almost)
    error = refused(loaded, CLIENT)
    assert error.key == "identity.private_key_file"
    assert str(folder / "private.key") in error.problem
    assert almost not in str(error)


def test_a_fifo_for_a_key_is_refused_at_once(loaded: Loader, folder: Path) -> None:
    os.mkfifo(folder / "fifo.key", 0o600)
    error = refused(loaded, swap(CLIENT, '"private.key"', '"fifo.key"'))
    assert "not a regular file" in error.problem


def test_a_missing_file_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "none.toml")
    line = f"{tmp_path}/none.toml: No such file or directory (allowed: a readable file)"
    assert str(caught.value) == line


@pytest.mark.parametrize(
    "raw", [b"role = ", b"\xff\xfe", b"a = 1\na = 2", b"a = " + b"[" * 9999, b"a = " + b"9" * 9999]
)
def test_what_is_not_toml_is_told_in_one_line(folder: Path, raw: bytes) -> None:
    file = folder / "jvpnd.toml"
    file.write_bytes(raw)
    with pytest.raises(ConfigError, match="is not TOML") as caught:
        load(file)
    assert str(caught.value).isprintable()


def test_a_file_without_an_end_is_not_read_to_it(tmp_path: Path) -> None:
    file = tmp_path / "huge.toml"
    file.touch()
    os.truncate(file, MAX_FILE_BYTES + 1)  # sparse
    with pytest.raises(ConfigError, match="is too large"):
        load(file)


def test_more_clients_than_there_may_be_are_refused(
    loaded: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "MAX_CLIENTS", 2)
    assert len(loaded(GATEWAY).clients) == 2
    monkeypatch.setattr(config, "MAX_CLIENTS", 1)
    error = refused(loaded, GATEWAY)
    assert (error.key, error.problem, error.allowed) == ("client", "2 of them", "at most 1")


def test_many_clients_are_checked_against_each_other_quickly_enough(loaded: Loader) -> None:
    head = GATEWAY[: GATEWAY.index("[[client]]")].replace("10.77.0.1/24", "10.77.0.1/16")
    rows = [
        f'[[client]]\nname = "c{n}"\naddress = ["10.77.{n >> 8}.{n & 255}"]\n'
        f'public_key = "{base64.b64encode(public_key((n << 64).to_bytes(32, "big"))).decode()}"\n'
        f'networks = ["172.{16 + (n >> 8)}.{n & 255}.0/24"]\n'
        for n in range(2, 1000)
    ]
    assert len(loaded(head + "".join(rows)).clients) == 998


# --- any file ---

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


def _toml(value: object) -> str:
    if value is None:
        return "1979-05-27"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    assert isinstance(value, dict)
    return "{" + ", ".join(f"{_toml(k)} = {_toml(v)}" for k, v in value.items()) + "}"


def _lines(base: str) -> list[str]:
    return [line for line in base.splitlines() if " = " in line]


_WEB_CLIENT = CLIENT.replace(
    'transport = "udp"', 'transport = "tls"\nserver_name = "a.example"\nalpn = ["h2"]'
).replace("[gateway]", '[gateway]\nproxy = "http://proxy:3128"')
_WEB_GATEWAY = GATEWAY.replace(
    'transport = "udp"', f'{TLS_LISTEN}\nadvertise = "203.0.113.7"\nalpn = ["h2"]'
)
_PEM = self_signed("gw1")
_BASES = (CLIENT, GATEWAY, _WEB_CLIENT, _WEB_GATEWAY)


@settings(max_examples=300, deadline=None)
@given(
    line=st.sampled_from([(b, line) for b in _BASES for line in _lines(b)]),
    value=_VALUES,
    rename=st.none() | st.text(max_size=12),
)
def test_any_value_of_any_key_is_taken_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, line: tuple[str, str], value: object, rename: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    write_key(folder / "private.key", SECRET)
    (folder / "tls.pem").write_bytes(_PEM)
    base, old = line
    assume(f"\n{rename} = " not in base)  # no key twice
    key = old.split(" = ")[0] if rename is None else _toml(rename)
    file = folder / "jvpnd.toml"
    file.write_text(base.replace(old, f"{key} = {_toml(value)}", 1), encoding="utf-8")
    tomllib.loads(file.read_text(encoding="utf-8"))  # else this would test nothing
    try:
        result: Config | str = load(file)
    except ConfigError as error:
        result = str(error)
    if isinstance(result, str):
        assert result.isprintable()
        assert len(result) < 1000
        assert " (allowed: " in result


# --- the policy, as a file has it (its values: test_policy.py) ---


def test_a_wrong_policy_is_told_in_one_line_with_file_and_key(loaded: Loader) -> None:
    error = refused(loaded, swap(CLIENT, "max_switches_per_minute = 6", "drain_ms = 1001"))
    assert error.key == "policy.drain_ms"
    assert "1001 is out of range" in error.problem
    assert "0 to 1000" in error.allowed


# --- the daemon's own words ---


def check(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jvpnd", "--config", str(file), "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_jvpnd_check_says_yes_or_one_line_and_status_2(folder: Path) -> None:
    file = folder / "jvpnd.toml"
    file.write_text(CLIENT)
    good = check(file)
    assert (good.returncode, good.stderr) == (0, "")
    file.write_text(swap(CLIENT, "port = 7700", "port = 77000"))
    bad = check(file)
    assert bad.returncode == 2
    assert bad.stdout == ""
    assert bad.stderr == (
        f"jvpnd: {file}: gateway.endpoint[1].port: 77000 is out of range "
        "(allowed: a whole number from 1 to 65535)\n"
    )


# --- docs/configuration.md ---


def test_the_examples_of_the_docs_are_valid(loaded: Loader) -> None:
    examples = re.findall(r"```toml\n(role = .*?)```", DOCS.read_text(), re.DOTALL)
    roles = []
    for example in examples:
        text = re.sub(r'"/etc/jvpn/(\w+\.key)"', r'"\1"', example)
        for number, gap in enumerate(set(re.findall(r"<[^>]*public key>", text))):
            text = text.replace(gap, (OTHER, THIRD)[number])
        roles.append(loaded(text).role)
    assert sorted(roles) == ["client", "gateway"]


def test_the_docs_have_every_key() -> None:
    text = DOCS.read_text()
    headings = re.findall(r"^## `\[*([a-z.]+)\]*`", text, re.MULTILINE)
    for name in ("identity", "interface", "gateway", "gateway.endpoint", "uplinks", "routes"):
        assert name in headings
    for name in ("dns", "listen", "client", "cluster", "policy", "debug", "audit"):
        assert name in headings
    for name in ("export.journald", "export.syslog", "export.prometheus"):
        assert name in headings
