"""A gateway between its tunnel and other networks: translation, the wall between clients, sites at
both ends, and answering for clients on a LAN. Real daemons, real hosts."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.daemons import INNER, Daemon, Pair, client_config, key_pair
from lab.namespace import Namespace
from lab.sites import DEVICE, HOME, HOME_NETWORKS, OFFICE, OFFICE_NETWORKS, Sites
from lab.stage import Watch, until
from lab.topology import OUTSIDE, Lab
from lab.traffic import Traffic

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

TO_OFFICE = f'[routes]\nnetworks = ["{OFFICE_NETWORKS[0]}", "{OFFICE_NETWORKS[1]}"]\n'
SECOND = ("10.77.0.3", "fd77::3")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def neighbour_host(lab: Lab) -> Namespace:
    """The host of a second client."""
    return lab.stranger()


@pytest.fixture
def sites(lab: Lab) -> Iterator[Sites]:
    with Sites(lab) as sites:
        yield sites


def forwarding(lines: str) -> str:
    return f"[forwarding]\n{lines}\n"


def start(pair: Pair) -> None:
    """Both up, and the client's routes are there."""
    pair.start()

    def routed(address: str) -> bool:
        found = pair.client.namespace.run("ip", "route", "get", address, check=False).stdout
        return "dev jvpn0" in found

    until(lambda: all(map(routed, OFFICE)), "the client's routes")


def pings(host: Namespace, address: str, wait_s: int = 10, size: int = 56) -> bool:
    """Whether one of a few echo requests is answered."""
    command = ("ping", "-n", "-q", "-i", "0.2", "-s", str(size), "-w", str(wait_s), "-c", "1")
    return host.run(*command, address, check=False).returncode == 0


def ruleset(host: Namespace) -> str:
    return host.run("nft", "list", "ruleset").stdout


def proxied(host: Namespace) -> list[str]:
    shown = host.run("ip", "neigh", "show", "proxy").stdout
    shown += host.run("ip", "-6", "neigh", "show", "proxy").stdout
    return sorted(line.split()[0] for line in set(shown.splitlines()))


# --- translation ---


def seen_by(office: Namespace, client: Namespace) -> set[str]:
    """The source addresses of echo requests from the client, as the office sees them."""
    office.nft(
        "table inet lab_seen {\nset four { type ipv4_addr; flags dynamic; }\n"
        "set six { type ipv6_addr; flags dynamic; }\n"
        "chain input {\ntype filter hook input priority 0;\n"
        "icmp type echo-request add @four { ip saddr }\n"
        "icmpv6 type echo-request add @six { ip6 saddr }\n}\n}\n"
    )
    assert all(pings(client, address) for address in OFFICE)
    shown = office.run("nft", "list", "table", "inet", "lab_seen").stdout
    office.nft("delete table inet lab_seen\n")
    lines = [line for line in shown.splitlines() if "elements" in line]
    return {each.strip() for line in lines for each in re.split("[{},]", line)[1:-1]}


def test_translation_hides_clients_and_leaves_no_trace(lab: Lab, sites: Sites) -> None:
    """The office knows no way to the tunnel: without translation nothing comes back."""
    foreign = "table inet somebody {\nchain forward {\ntype filter hook forward priority 0;\n}\n}\n"
    lab.gateway.nft(foreign)
    before = ruleset(lab.gateway)
    with Pair(lab.client, lab.gateway, routes=TO_OFFICE) as pair:
        start(pair)
        assert not any(pings(lab.client, address, wait_s=1) for address in OFFICE)
    with Pair(
        lab.client, lab.gateway, routes=TO_OFFICE, gateway_policy=forwarding("nat = true")
    ) as pair:
        start(pair)
        assert seen_by(sites.office, lab.client) == {"192.168.50.1", "fd50::1"}
        with Traffic("tcp", lab.client, sites.office, OFFICE[0]) as tcp:
            tcp.wait_until("bytes", above=200_000)
            pair.gateway.stop(signal.SIGKILL)
            assert "masquerade" in ruleset(lab.gateway)
            pair.gateway.start()
            assert ruleset(lab.gateway).count("chain postrouting") == 1
            tcp.report()
            reports = tcp.wait_until("bytes", above=200_000, timeout_s=30)
            assert {report["problem"] for report in reports} == {""}
        assert pair.gateway.stop() == 0
        assert ruleset(lab.gateway) == before
    lab.gateway.nft("delete table inet somebody\n")


def test_a_table_left_by_a_kill_goes_when_it_is_no_longer_configured(
    lab: Lab, sites: Sites
) -> None:
    extra = forwarding("nat = true\nmss_clamp = false")
    with Pair(lab.client, lab.gateway, gateway_policy=extra) as pair:
        pair.start()
        pair.gateway.stop(signal.SIGKILL)
        assert "jvpn_forward" in ruleset(lab.gateway)
        file = pair.gateway.config_file
        file.write_text(file.read_text().replace("nat = true", "nat = false"))
        pair.gateway.start()
        assert "jvpn_forward" not in ruleset(lab.gateway)


# --- client to client ---


@pytest.mark.parametrize("allowed", [True, False])
def test_clients_reach_each_other_only_where_they_may(
    lab: Lab, neighbour_host: Namespace, allowed: bool
) -> None:
    second = key_pair()
    extra = forwarding(f"client_to_client = {str(allowed).lower()}")
    with Pair(
        lab.client, lab.gateway, gateway_policy=extra, others={"other": second[1]}
    ) as pair:
        config = client_config(
            pair.gateway_keys[1], OUTSIDE[4], uplinks='[uplinks]\ninterfaces = ["eth0"]\n'
        )
        other = Daemon(neighbour_host, config, second[0])
        try:
            pair.start()
            other.start()
            other.wait_state("ATTACHED")
            until(lambda: pings(neighbour_host, INNER["gateway"][0], 1), "the other's tunnel")
            shown = lab.client.run("ping", "-n", "-c", "1", "-w", "5", SECOND[0], check=False)
            assert "Redirect" not in shown.stdout
            if allowed:
                assert all(pings(lab.client, address) for address in SECOND)
                assert all(pings(neighbour_host, address) for address in INNER["client"])
                return
            for address in SECOND:  # both versions are told, and at once
                told = lab.client.run("ping", "-n", "-c", "1", "-w", "5", address, check=False)
                assert told.returncode == 1
                assert "Packet filtered" in told.stdout or "prohibited" in told.stdout, told.stdout
            assert all(pings(lab.client, address) for address in INNER["gateway"])
        finally:
            other.close()


# --- sites at both ends ---


def with_networks(pair: Pair) -> None:
    """The networks at home are behind the client."""
    file = pair.gateway.config_file
    line = 'address = ["10.77.0.2", "fd77::2"]\n'
    text = file.read_text()
    assert line in text
    networks = ", ".join(f'"{each}"' for each in HOME_NETWORKS)
    file.write_text(text.replace(line, f"{line}networks = [{networks}]\n"))


def both_ways(sites: Sites) -> bool:
    pairs = ((sites.home, OFFICE), (sites.office, HOME))
    return all(pings(host, address) for host, addresses in pairs for address in addresses)


@pytest.mark.parametrize("nat", [False, True])
def test_hosts_of_both_sites_talk_through_reattach_and_kill(
    lab: Lab, sites: Sites, nat: bool
) -> None:
    """Both versions, begun from either side; translation does not touch the sites' addresses."""
    sites.route()
    with Pair(
        lab.client,
        lab.gateway,
        routes=TO_OFFICE,
        gateway_policy=forwarding("nat = true") if nat else "",
    ) as pair:
        with_networks(pair)
        start(pair)
        assert both_ways(sites)
        watch = Watch(pair)
        with (
            Traffic("tcp", sites.home, sites.office, OFFICE[0]) as out,
            Traffic("tcp", sites.office, sites.home, HOME[1]) as back,
        ):

            def assert_flow() -> None:
                for tcp in (out, back):
                    tcp.report()
                    reports = tcp.wait_until("bytes", above=200_000, timeout_s=30)
                    assert {report["problem"] for report in reports} == {""}

            assert_flow()
            uplink = lab.uplink(watch.bound())
            uplink.set_down()
            watch.wait_attached()
            assert_flow()
            assert both_ways(sites)
            uplink.set_up()
            pair.gateway.stop(signal.SIGKILL)
            pair.gateway.start()
            assert_flow()
            assert both_ways(sites)
        status = pair.client.status()["session"]
        assert (status["id"], status["inner_addresses"]) == (watch.session, watch.addresses)


# --- answering for clients on a LAN ---

LAN_CLIENT = ("192.168.50.202", "fd50::c:2")


def in_the_lan(pair: Pair) -> None:
    """The tunnel's networks are parts of the office's."""
    text = pair.gateway.config_file.read_text()
    for before, after in (
        ("10.77.0.1/24", "192.168.50.201/29"),
        ("fd77::1/64", "fd50::c:1/112"),
        ('"10.77.0.2", "fd77::2"', '"{}", "{}"'.format(*LAN_CLIENT)),
    ):
        assert before in text
        text = text.replace(before, after)
    pair.gateway.config_file.write_text(text)


@pytest.mark.parametrize("value", ["true", f'["{DEVICE}"]'])
def test_a_lan_reaches_clients_that_have_its_addresses(
    lab: Lab, sites: Sites, value: str
) -> None:
    lab.gateway.run("ip", "neigh", "add", "proxy", "192.168.50.77", "dev", DEVICE)
    proxy_ndp = ("sysctl", "-n", f"net.ipv6.conf.{DEVICE}.proxy_ndp")
    with Pair(
        lab.client,
        lab.gateway,
        routes=TO_OFFICE,
        gateway_policy=forwarding(f"nat = true\nproxy_neighbours = {value}"),
    ) as pair:
        in_the_lan(pair)
        start(pair)
        assert proxied(lab.gateway) == sorted(["192.168.50.77", *LAN_CLIENT])
        assert all(pings(sites.office, address) for address in LAN_CLIENT)
        assert seen_by(sites.office, lab.client) == set(LAN_CLIENT)  # untranslated there
        pair.gateway.stop(signal.SIGKILL)
        assert proxied(lab.gateway) == sorted(["192.168.50.77", *LAN_CLIENT])
        # The next run has another client, by its address.
        file = pair.gateway.config_file
        file.write_text(file.read_text().replace(LAN_CLIENT[0], "192.168.50.203"))
        pair.gateway.start()
        assert proxied(lab.gateway) == sorted(["192.168.50.77", "192.168.50.203", LAN_CLIENT[1]])
        assert pair.gateway.stop() == 0
        assert proxied(lab.gateway) == ["192.168.50.77"]  # somebody else's
        assert lab.gateway.run(*proxy_ndp).stdout.strip() == "0"


def test_where_no_clients_address_lies_in_a_lan_it_is_said(lab: Lab, sites: Sites) -> None:
    extra = forwarding(f'proxy_neighbours = ["{DEVICE}"]')
    with Pair(lab.client, lab.gateway, gateway_policy=extra) as pair:
        pair.gateway.start()
        (note,) = pair.gateway.status()["notes"]
        assert note == f"proxy_neighbours: no client's address lies in a network of {DEVICE}"


# --- MSS ---


def count_mss(host: Namespace) -> None:
    """Count the connections that begin, at the host that hears of them, by what they announce."""
    rules = "".join(
        f"meta nfproto ipv{version} tcp flags & syn == syn "
        f"tcp option maxseg size {relation} {1400 - headers} counter name {name}\n"
        for version, headers in ((4, 40), (6, 60))
        for name, relation in (("fits", "<="), ("large", ">"))
    )
    host.nft(
        "table inet lab_mss {\ncounter fits {}\ncounter large {}\n"
        f"chain input {{\ntype filter hook input priority 0;\n{rules}}}\n}}\n"
    )


def counted(host: Namespace) -> dict[str, int]:
    shown = host.run("nft", "list", "counters", "table", "inet", "lab_mss").stdout
    return {name: int(n) for name, n in re.findall(r"counter (\w+) {\s+packets (\d+)", shown)}


@pytest.mark.parametrize("clamp", [True, False])
def test_mss_is_clamped_to_the_tunnels_mtu(lab: Lab, sites: Sites, clamp: bool) -> None:
    """Between hosts whose own networks carry 1500 bytes, both ways, both versions."""
    sites.route()
    with Pair(
        lab.client,
        lab.gateway,
        routes=TO_OFFICE,
        gateway_policy=forwarding(f"mss_clamp = {str(clamp).lower()}"),
    ) as pair:
        with_networks(pair)
        start(pair)
        assert both_ways(sites)
        for host in (sites.home, sites.office):
            count_mss(host)
        for from_home, from_office in zip(OFFICE, HOME, strict=True):
            for host, other, address in (
                (sites.home, sites.office, from_home),
                (sites.office, sites.home, from_office),
            ):
                with Traffic("tcp", host, other, address) as tcp:
                    tcp.wait_until("bytes", above=1)
        counts = [counted(host) for host in (sites.home, sites.office)]
        if clamp:
            assert counts == [{"fits": 4, "large": 0}] * 2
        else:  # a host that has learned of the tunnel's MTU announces less by itself
            assert all(each["large"] > 0 for each in counts)


# --- somebody else's firewall ---


def test_a_firewall_that_drops_is_told_of_with_the_command_that_helps(
    lab: Lab, sites: Sites
) -> None:
    lab.gateway.nft(
        "table ip filter {\nchain FORWARD {\ntype filter hook forward priority 0; policy drop;\n"
        "jump DOCKER-USER\n}\nchain DOCKER-USER {\nreturn\n}\n}\n"
    )
    try:
        with Pair(
            lab.client, lab.gateway, routes=TO_OFFICE, gateway_policy=forwarding("nat = true")
        ) as pair:
            start(pair)
            assert not pings(lab.client, OFFICE[0], wait_s=1)
            (note,) = until(lambda: pair.gateway.status()["notes"], "the firewall was seen")
            assert note in pair.gateway.log
            commands = note.split("to let it: ")[1]
            assert commands == (
                "iptables -I DOCKER-USER -i jvpn0 -j ACCEPT && "
                "iptables -I DOCKER-USER -o jvpn0 -j ACCEPT"
            )
            assert note in pair.gateway.ctl("status").stdout
            # What they do, in nft's words:
            for way in ("iifname", "oifname"):
                rule = ("insert", "rule", "ip", "filter", "DOCKER-USER", way, "jvpn0", "accept")
                lab.gateway.run("nft", *rule)
            assert pings(lab.client, OFFICE[0])
            until(lambda: pair.gateway.status()["notes"] == [], "it is seen", timeout_s=30)
    finally:
        lab.gateway.nft("delete table ip filter\n")


def test_without_nft_what_must_hold_stops_the_start(lab: Lab, tmp_path: Path) -> None:
    """A wall between clients that cannot be built is no wall."""
    for tool in ("ip",):
        (tmp_path / tool).symlink_to(f"/usr/sbin/{tool}")
    for line in ("client_to_client = false", "nat = true"):
        with Pair(lab.client, lab.gateway, gateway_policy=forwarding(line)) as pair:
            pair.gateway.environment["PATH"] = str(tmp_path)
            with pytest.raises(AssertionError, match="did not come up"):
                pair.gateway.start()
            wanted = f"[forwarding] {line} needs nftables: the nft command is missing"
            assert wanted in pair.gateway.log
            assert pair.gateway.process is not None
            assert pair.gateway.process.wait(20) == 3
