"""What the doctor makes of what it is shown, and that it looks at a real host without harm."""

from __future__ import annotations

import errno
import ipaddress
import json
import socket
from collections.abc import Iterable
from pathlib import Path

import pytest

from jvpnd.core.wire import FRAME_LEN, HEADER_LEN, TAG_LEN
from jvpnd.doctor import gather, machine, network, service
from jvpnd.doctor.finding import Finding, Level
from jvpnd.doctor.machine import ClockFacts, TunFacts
from jvpnd.doctor.network import LinkFacts, RouteFacts, RuleFacts
from jvpnd.enrol.keys import new_key
from jvpnd.enrol.texts import GatewayAnswers, gateway_text
from jvpnd.net.routeplan import PROTOCOL
from jvpnd.transport.endpoint import Listen

from .test_cli import jvpnctl

OWN = "jvpn0"
ALL_FEATURES = machine.IFF_MULTI_QUEUE | machine.IFF_VNET_HDR
SETUP = sum(1 << bit for bit in machine.CAPABILITIES.values())
YEAR_S = 365 * 86_400


def net(*texts: str) -> list[network.Network]:
    return [ipaddress.ip_network(each) for each in texts]


def route(device: str, to: str = "", table: int = network.TABLE_MAIN) -> RouteFacts:
    found = ipaddress.ip_network(to) if to else None
    return RouteFacts(device, found, table, found.version if found else 4)


def levels(*found: Finding) -> list[str]:
    return [str(each.level) for each in found]


def told(found: Iterable[Finding]) -> str:
    return "\n".join(f"{each.found} {each.remedy}" for each in found)


WIFI, LTE, ETH = route("wlan0"), route("wwan0"), route("eth0")


# --- the machine ---


@pytest.mark.parametrize(
    ("facts", "lanes", "level", "words"),
    [
        (TunFacts(0, ALL_FEATURES), 4, ["ok"], "opens"),
        (TunFacts(errno.ENOENT), 1, ["fail"], "modprobe tun"),
        (TunFacts(errno.EPERM), 1, ["fail"], "be root"),
        (TunFacts(0, machine.IFF_MULTI_QUEUE), 1, ["ok", "warn"], "IFF_VNET_HDR"),
        (TunFacts(0, machine.IFF_VNET_HDR), 1, ["ok"], "opens"),
        (TunFacts(0, machine.IFF_VNET_HDR), 2, ["ok", "fail"], "lanes = 1"),
    ],
)
def test_the_tun_device(facts: TunFacts, lanes: int, level: list[str], words: str) -> None:
    found = machine.tun_device(facts, lanes)
    assert levels(*found) == level
    assert words in told(found)


@pytest.mark.parametrize(
    ("facts", "level"),
    [
        (ClockFacts(0x2001, YEAR_S, YEAR_S), Level.OK),
        (ClockFacts(0x0040, YEAR_S, YEAR_S), Level.WARN),
        (ClockFacts(None, YEAR_S, YEAR_S), Level.WARN),
        (ClockFacts(0x2001, 0, YEAR_S), Level.FAIL),
    ],
)
def test_the_clock(facts: ClockFacts, level: Level) -> None:
    found = machine.clock(facts)
    assert found.level is level
    assert bool(found.remedy) == (level is not Level.OK)


def test_privileges_and_libraries_that_are_missing_are_named() -> None:
    assert machine.privileges(SETUP).level is Level.OK
    found = machine.privileges(SETUP & ~(1 << 12))
    assert (found.level, "CAP_NET_ADMIN" in found.found) == (Level.FAIL, True)
    found, *_ = machine.libraries({"nacl": None, "pytun": "gone"}, {})
    assert (found.level, "pytun (gone)" in found.found) == (Level.FAIL, True)
    both = machine.libraries({"nacl": None}, {"quic": "gone", "qr": None})
    assert levels(*both) == ["ok", "ok"]
    assert "jvpn[quic]" in told(both)
    assert levels(machine.udp_offloads(["UDP_GRO"]), machine.udp_offloads([])) == ["warn", "ok"]
    assert levels(machine.nft("missing"), machine.nft(None)) == ["warn", "ok"]


# --- the network ---


def test_a_client_needs_a_way_out_and_a_gateway_should_have_one() -> None:
    inner = route(OWN)
    assert network.uplinks([WIFI, inner], OWN, "client").found == "by wlan0"
    assert levels(
        network.uplinks([inner], OWN, "client"), network.uplinks([inner], OWN, "gateway")
    ) == ["fail", "warn"]
    assert network.uplinks([route("eth0", table=7)], OWN, "client").level is Level.FAIL


def test_an_uplink_must_carry_a_full_packet_in_one_piece() -> None:
    needed = 1400 + 20 + 8 + HEADER_LEN + FRAME_LEN + TAG_LEN
    for more, level in ((0, Level.OK), (-1, Level.WARN)):
        links = [LinkFacts("wlan0", needed + more), LinkFacts("lo", 100), LinkFacts(OWN, 1400)]
        assert network.mtu(links, [WIFI, route(OWN)], OWN, 1400).level is level
    six = RouteFacts("wlan0", None, version=6)
    found = network.mtu([LinkFacts("wlan0", needed)], [WIFI, six], OWN, 1400)
    assert f"wlan0 ({needed}, needs {needed + 20})" in found.found


@pytest.mark.parametrize(
    ("there", "level"),
    [
        (route("eth0", "10.77.0.0/24"), Level.FAIL),
        (route("eth0", "10.77.0.128/25"), Level.FAIL),
        (route("eth0", "fd77::/64"), Level.FAIL),
        (route("eth0", "10.0.0.0/8"), Level.WARN),
        (route("eth0", "10.78.0.0/24"), Level.OK),
        (route("eth0", "0.0.0.0/1"), Level.OK),
        (route(OWN, "10.77.0.0/24"), Level.OK),
        (route("eth0"), Level.OK),
    ],
)
def test_networks_that_are_there_twice(there: RouteFacts, level: Level) -> None:
    found = network.overlaps(net("10.77.0.0/24", "fd77::/64"), [there], OWN)
    assert found.level is level


@pytest.mark.parametrize(
    ("routes", "rules", "level", "words"),
    [
        ([ETH, route("wg0", "10.9.0.0/24")], [], Level.OK, "none"),
        ([ETH, route("wg0")], [], Level.WARN, "wg0 (wireguard) has a default route"),
        ([ETH, route("tun0", "128.0.0.0/1")], [], Level.WARN, "tun0 (tun)"),
        ([ETH, route("wg0", table=51820)], [], Level.OK, "none"),
        ([ETH, route("wg0", table=51820)], [RuleFacts(9, 51820)], Level.WARN, "wg0 (wireguard)"),
        ([ETH], [RuleFacts(9, 100)], Level.WARN, "priority 9 looks into table 100"),
        ([ETH, route(OWN, table=5)], [RuleFacts(20_000, 5, PROTOCOL)], Level.OK, "none"),
        ([ETH], [RuleFacts(0, 255), RuleFacts(32_766, 254), RuleFacts(1_000, 0)], Level.OK, ""),
    ],
)
def test_other_vpns(
    routes: list[RouteFacts], rules: list[RuleFacts], level: Level, words: str
) -> None:
    links = [
        LinkFacts("eth0", 1500),
        LinkFacts("wg0", 1420, "wireguard"),
        LinkFacts("tun0", 1500, "tun"),
        LinkFacts(OWN, 1400, "tun"),
    ]
    found = network.other_vpns(links, routes, rules, OWN, PROTOCOL)
    assert found.level is level
    assert words in found.found


def test_a_strict_reverse_path_filter_harms_only_who_has_two_uplinks() -> None:
    strict, loose = {"wlan0": 1, "wwan0": 1}, {"wlan0": 2, "wwan0": 2}
    assert levels(
        network.reverse_path(strict, [WIFI, LTE], OWN),
        network.reverse_path(strict, [WIFI, route(OWN)], OWN),
        network.reverse_path(loose, [WIFI, LTE], OWN),
    ) == ["warn", "ok", "ok"]


def test_ipv6_is_missed_only_where_the_tunnel_has_it() -> None:
    inside = net("fd77::/64")
    assert levels(
        network.ipv6(False, inside),
        network.ipv6(True, inside),
        network.ipv6(None, inside),
        network.ipv6(True, net("10.77.0.0/24")),
    ) == ["ok", "warn", "warn", "ok"]


# --- the service ---


def test_ports_and_names_that_are_no_good_are_named_each() -> None:
    refused = {"udp :: port 7700": "Address already in use"}
    assert levels(*service.ports(refused, False, 2)) == ["fail"]
    assert levels(*service.ports(refused, True, 2)) == ["ok"]
    assert levels(*service.ports({}, False, 2)) == ["ok"]
    assert service.names({}, 0) == []
    assert levels(*service.names({"a": "x", "b": "y"}, 3)) == ["fail", "fail"]
    resolved = service.resolver("/run/systemd/resolve/stub-resolv.conf", ["127.0.0.53"])
    assert "systemd-resolved" in resolved.found
    assert service.resolver("/etc/resolv.conf", []).level is Level.WARN


# --- a real host ---


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_port_that_somebody_has_is_seen(transport: str) -> None:
    kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as held:
        held.bind(("127.0.0.1", 0))
        if transport == "tcp":
            held.listen()
        port = held.getsockname()[1]
        refused = gather.refused_ports([Listen(transport, "127.0.0.1", port)])
        assert list(refused.values()) == ["Address already in use"]
    assert gather.refused_ports([Listen(transport, "127.0.0.1", port)]) == {}


def test_names_are_resolved_and_those_that_are_not_have_a_reason() -> None:
    found = gather.unresolved(["localhost", "nobody.invalid"])
    assert list(found) == ["nobody.invalid"]
    assert found["nobody.invalid"]


def test_this_host_can_be_looked_at(tmp_path: Path) -> None:
    host = gather.Netlink()
    assert any(link.name == "lo" and link.mtu > 0 for link in host.links)
    assert {0, 32_766} <= {rule.priority for rule in host.rules}
    assert gather.clock().status is not None
    file = tmp_path / "jvpnd.toml"
    key = tmp_path / "private.key"
    key.write_text(new_key())
    key.chmod(0o600)
    file.write_text(gateway_text(GatewayAnswers("gw", ["10.77.0.1/24"], "203.0.113.7", 1)))
    words = ("--socket", str(tmp_path / "none"), "doctor", "--config", str(file))
    done = jvpnctl(*words, "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode == 0) == answer["ok"]
    rows = {row["check"]: row for row in answer["checks"]}
    assert rows["configuration"]["found"] == f"{file}: gateway gw"
    assert rows["libraries"]["level"] == "ok"
    assert rows["daemon"]["level"] == "warn"
    assert all(row["remedy"] for row in answer["checks"] if row["level"] != "ok")
    file.write_text("role = 7\n")
    done = jvpnctl(*words)
    assert done.returncode == 1
    assert "fail  configuration" in done.stdout
    assert "-> mend it" in done.stdout
