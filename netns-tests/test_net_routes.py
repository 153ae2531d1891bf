"""Addresses, routes, rules and sysctls against a real kernel, each test in a namespace."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from namespaced import in_namespace, new_namespace, run, spawn

from jvpnd.cleanup import main as cleanup
from jvpnd.net.routes import HostNetwork, fwmark_of
from jvpnd.net.tun import Tun, open_tun, set_persistent
from jvpnd.transport.udp import open_path

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/src_valid_mark",
    "net/ipv4/conf/all/accept_redirects",
    "net/ipv4/conf/all/send_redirects",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/upa/accept_ra",
    "net/ipv4/conf/upa/rp_filter",
)
ADDRESSES = ["10.77.0.2/32", "fd77::2/128"]


def sysctl(key: str, value: str | None = None) -> str:
    path = Path("/proc/sys", key)
    if value is not None:
        path.write_text(value)
    return path.read_text().strip()


def snapshot() -> str:
    """All that we might have changed on the host outside our TUN."""
    shown = [
        run("ip -4 rule"),
        run("ip -6 rule"),
        run("ip -4 route show table all"),
        run("ip -6 route show table all"),
        run("ip addr show dev upa"),
        run("nft list ruleset"),
    ]
    return "\n".join(shown + [f"{key}={sysctl(key)}" for key in SYSCTLS])


def uplink() -> None:
    run("ip link add upa type veth peer name pupa")
    run("ip addr add 192.0.1.5/24 dev upa")
    run("ip -6 addr add 2001:db8:1::5/64 dev upa nodad")
    run("ip link set pupa addrgenmode none")
    run("ip link set upa addrgenmode none")
    run("ip link set pupa up")
    run("ip link set upa up")
    settle("upa", "pupa")
    run("ip route add default via 192.0.1.1 dev upa")
    run("ip -6 route add default via 2001:db8:1::1 dev upa")
    # somebody else's, which must stay
    run("ip rule add from 203.0.113.9 table 77 priority 20002")
    run("ip route add 203.0.113.0/24 via 192.0.1.1 dev upa table 77")


def settle(*devices: str) -> None:
    """Until the kernel has added the routes that it adds by itself, a while after a link is up."""
    deadline = time.monotonic() + 10
    for device in devices:
        while "multicast" not in run(f"ip -6 route show table local dev {device}"):
            assert time.monotonic() < deadline, f"{device} does not come up"
            time.sleep(0.01)


def on_host(test: Callable[[Tun, Path], None]) -> Callable[[], None]:
    """Decorator: a namespace with an uplink and our TUN, and a runtime directory."""

    def body() -> None:
        uplink()
        with tempfile.TemporaryDirectory() as runtime:
            test(open_tun("jx0"), Path(runtime))

    body.__name__ = test.__name__
    return in_namespace(body)


def inner_addresses(name: str = "jx0") -> set[str]:
    words = run(f"ip -o addr show dev {name}").split()
    return {word for before, word in itertools.pairwise(words) if "inet" in before}


def way(destination: str, mark: int = 0) -> str:
    """The device that a packet takes, or what the kernel says instead."""
    try:
        words = run(f"ip route get {destination} mark {mark}").split()
    except AssertionError as error:
        return str(error).split(": ")[-1].strip()
    return words[words.index("dev") + 1]


@on_host
def test_the_interface_gets_exactly_its_addresses_again_and_again(tun: Tun, runtime: Path) -> None:
    async def body() -> None:
        network = HostNetwork("jx0", runtime)
        for _ in range(2):
            assert await network.configure(ADDRESSES, 1400) == ()
            assert inner_addresses() == set(ADDRESSES)
        assert "mtu 1400" in run("ip link show jx0")
        assert "tentative" not in run("ip addr show dev jx0")
        # the same subnet, the same address with another prefix length, and another MTU
        assert await network.configure(["10.77.0.2/24", "fd77::2/64"], 1380) == ()
        assert inner_addresses() == {"10.77.0.2/24", "fd77::2/64"}
        assert await network.configure(["10.77.0.3/24", "fd77::3/64"], 1380) == ()
        assert inner_addresses() == {"10.77.0.3/24", "fd77::3/64"}
        assert "mtu 1380" in run("ip link show jx0")

    asyncio.run(body())


@on_host
def test_the_interface_says_nothing_by_itself(tun: Tun, runtime: Path) -> None:
    asyncio.run(HostNetwork("jx0", runtime).configure(ADDRESSES, 1400))
    assert "fe80" not in run("ip -6 addr show dev jx0")


@on_host
def test_split_routes_follow_the_networks(tun: Tun, runtime: Path) -> None:
    async def body() -> None:
        network = HostNetwork("jx0", runtime)
        await network.configure(ADDRESSES, 1400)
        for _ in range(2):
            assert await network.route("split", ["10.20.0.0/16", "fd20::/32"]) == ()
            assert (way("10.20.1.1"), way("fd20::1")) == ("jx0", "jx0")
            assert (way("10.21.1.1"), way("8.8.8.8")) == ("upa", "upa")
        assert await network.route("split", ["10.21.0.0/16"]) == ()
        assert (way("10.20.1.1"), way("fd20::1"), way("10.21.1.1")) == ("upa", "upa", "jx0")
        await network.route("none")
        assert way("10.21.1.1") == "upa"

    asyncio.run(body())


@on_host
def test_routes_survive_a_change_of_the_address(tun: Tun, runtime: Path) -> None:
    async def body() -> None:
        network = HostNetwork("jx0", runtime)
        await network.configure(["10.77.0.2/32"], 1400)
        await network.route("split", ["10.20.0.0/16"])
        await network.configure(["10.77.0.9/32"], 1400)
        assert way("10.20.1.1") == "jx0"

    asyncio.run(body())


@on_host
def test_a_route_of_somebody_else_stays_and_is_reported(tun: Tun, runtime: Path) -> None:
    run("ip route add 10.20.0.0/16 via 192.0.1.1 dev upa")
    run("ip -6 route add fd20::/32 via 2001:db8:1::1 dev upa")
    before = snapshot()

    async def body() -> None:
        network = HostNetwork("jx0", runtime)
        await network.configure([*ADDRESSES, "10.30.0.1/24"], 1400)
        # the last one is on the interface's own link already
        notes = await network.route("split", ["10.20.0.0/16", "fd20::/32", "10.30.0.0/24"])
        assert notes == (
            "10.20.0.0/16 has another route on this host, which stays",
            "fd20::/32 has another route on this host, which stays",
        )
        assert way("10.20.1.1") == "upa"
        await network.remove()

    asyncio.run(body())
    assert snapshot() == before


@on_host
def test_a_full_tunnel_takes_all_but_the_marked_and_the_local(tun: Tun, runtime: Path) -> None:
    before = snapshot()

    async def body() -> None:
        network = HostNetwork("jx0", runtime)
        await network.configure(ADDRESSES, 1400)
        for _ in range(2):
            assert await network.route("full") == ()
            assert (way("8.8.8.8"), way("2001:4860::8888")) == ("jx0", "jx0")
        mark = network.fwmark
        assert (way("8.8.8.8", mark), way("2001:4860::8888", mark)) == ("upa", "upa")
        assert (way("192.0.1.9"), way("2001:db8:1::9")) == ("upa", "upa")
        assert sysctl("net/ipv4/conf/all/src_valid_mark") == "1"
        await network.route("split", ["10.20.0.0/16"])
        assert (way("8.8.8.8"), way("10.20.0.1")) == ("upa", "jx0")
        assert sysctl("net/ipv4/conf/all/src_valid_mark") == "0"
        await network.route("full")
        await network.remove()
        assert inner_addresses() == set()
        assert "state DOWN" in run("ip link show jx0")

    asyncio.run(body())
    assert snapshot() == before
    assert list(runtime.iterdir()) == []


@on_host
def test_a_family_outside_a_full_tunnel_is_closed_until_it_has_an_address(
    tun: Tun, runtime: Path
) -> None:
    async def body() -> None:
        network = HostNetwork("jx0", runtime)
        await network.configure(["10.77.0.2/32"], 1400)
        await network.route("full")
        assert way("8.8.8.8") == "jx0"
        assert way("2001:4860::8888") == "No route to host"
        await network.configure(["fd77::2/128"], 1400)
        await network.route("full")
        assert way("2001:4860::8888") == "jx0"
        assert way("8.8.8.8") == "No route to host"
        await network.configure(ADDRESSES, 1400)
        await network.route("full")
        assert (way("8.8.8.8"), way("2001:4860::8888")) == ("jx0", "jx0")
        for version in (4, 6):  # replaced, not piled up
            table = run(f"ip -{version} route show table {network.fwmark}")
            assert len(table.splitlines()) == 1

    asyncio.run(body())


@on_host
def test_excluded_networks_stay_outside_a_full_tunnel(tun: Tun, runtime: Path) -> None:
    before = snapshot()

    async def body() -> None:
        network = HostNetwork("jx0", runtime)
        await network.configure(ADDRESSES, 1400)
        for _ in range(2):
            assert await network.route("full", exclude=["198.18.0.0/15", "fd20::/32"]) == ()
            assert (way("198.19.1.1"), way("fd20::1")) == ("upa", "upa")
            assert (way("198.20.1.1"), way("fd21::1")) == ("jx0", "jx0")
        assert await network.route("full", exclude=["198.20.0.0/16"]) == ()
        assert (way("198.19.1.1"), way("fd20::1"), way("198.20.1.1")) == ("jx0", "jx0", "upa")
        # without an uplink they are out of reach, not inside
        run("ip route del default")
        assert way("198.20.1.1") == "No route to host"
        run("ip route add default via 192.0.1.1 dev upa")
        await network.route("full")
        assert way("198.20.1.1") == "jx0"
        await network.route("full", exclude=["198.20.0.0/16"])
        await network.remove()

    asyncio.run(body())
    assert snapshot() == before


def others_are_here() -> None:
    """What Docker, NetworkManager and systemd-networkd leave on a host."""
    run("ip link add docker0 type bridge")
    run("ip link set docker0 addrgenmode none")
    run("ip addr add 172.17.0.1/16 dev docker0")
    run("ip link set docker0 up")
    settle("docker0")
    run("nft add table ip nat")
    run("nft add chain ip nat POSTROUTING { type nat hook postrouting priority 100 ; }")
    run("nft add rule ip nat POSTROUTING ip saddr 172.17.0.0/16 oifname != docker0 masquerade")
    run("nft add table inet jvpn_of_somebody_else")
    run("ip -6 rule add from 2001:db8:1::5 table 254 priority 25760")  # ours for jvpn0
    run("ip rule add to 10.50.0.0/16 table 254 priority 30000 protocol static")  # NetworkManager's
    run("ip route add 10.60.0.0/16 via 192.0.1.1 dev upa proto 16")  # networkd's: RTPROT_DHCP
    run("ip route add 10.61.0.0/16 via 192.0.1.1 dev upa table 1000 proto static")
    run("ip rule add table 1000 priority 100")


@on_host
def test_what_others_made_outlives_a_full_tunnel(tun: Tun, runtime: Path) -> None:
    others_are_here()
    sysctl("net/ipv4/conf/upa/rp_filter", "1")  # so that an nft table of ours comes and goes
    before = snapshot()
    theirs = {*run("ip rule").splitlines(), *run("ip -6 rule").splitlines()}

    async def body() -> None:
        network = HostNetwork("jx0", runtime)
        await network.configure(ADDRESSES, 1400)
        await network.route("full", exclude=["172.17.0.0/16"])
        assert (way("172.17.0.2"), way("10.60.0.1"), way("10.61.0.1")) == ("docker0", "upa", "upa")
        assert theirs < {*run("ip rule").splitlines(), *run("ip -6 rule").splitlines()}
        assert "masquerade" in run("nft list table ip nat")
        await network.remove()

    asyncio.run(body())
    assert snapshot() == before


@on_host
def test_two_tunnels_keep_out_of_each_others_way(tun: Tun, runtime: Path) -> None:
    open_tun("jx1")
    (runtime / "a").mkdir()
    (runtime / "b").mkdir()

    async def body() -> None:
        one, two = HostNetwork("jx0", runtime / "a"), HostNetwork("jx1", runtime / "b")
        await one.configure(["10.77.0.2/32"], 1400)
        await two.configure(["10.78.0.2/32"], 1400)
        await one.route("full")
        await two.route("split", ["10.20.0.0/16"])
        with_both = run("ip rule")
        await two.resume()
        await two.route("none")
        await two.remove()
        assert run("ip rule") == with_both
        assert way("8.8.8.8") == "jx0"
        assert inner_addresses() == {"10.77.0.2/32"}

    asyncio.run(body())
    assert fwmark_of("jx0") != fwmark_of("jx1")


@on_host
def test_forwarding_is_switched_on_and_back(tun: Tun, runtime: Path) -> None:
    sysctl("net/ipv4/ip_forward", "0")
    sysctl("net/ipv6/conf/all/forwarding", "0")
    sysctl("net/ipv4/conf/all/accept_redirects", "0")
    sysctl("net/ipv6/conf/upa/accept_ra", "1")
    before = snapshot()

    async def body() -> None:
        network = HostNetwork("jx0", runtime)
        await network.configure(["10.77.0.1/24", "fd77::1/64"], 1400)
        network.enable_forwarding()
        assert sysctl("net/ipv4/ip_forward") == "1"
        assert sysctl("net/ipv6/conf/all/forwarding") == "1"
        assert sysctl("net/ipv6/conf/upa/accept_ra") == "2"
        await network.remove()

    asyncio.run(body())
    assert snapshot() == before


def leave_leftovers(runtime: Path, name: str) -> None:
    """A daemon that sets everything up and is killed."""
    ready, done = os.pipe()

    def daemon() -> None:
        set_persistent(open_tun(name), True)

        async def body() -> None:
            network = HostNetwork(name, runtime)
            await network.configure(["10.77.0.2/32"], 1400)
            network.enable_forwarding()
            await network.route("full")

        asyncio.run(body())
        os.write(done, b"x")
        signal.pause()

    pid, _ = spawn(daemon)
    os.close(done)
    assert os.read(ready, 1) == b"x"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def killed(test: Callable[[Path, str], None]) -> Callable[[], None]:
    """Decorator: a namespace with an uplink, where a daemon with the TUN jx0 was killed; its
    runtime directory, and what the host was like before."""

    def body() -> None:
        uplink()
        sysctl("net/ipv4/ip_forward", "0")
        sysctl("net/ipv4/conf/upa/rp_filter", "1")
        before = snapshot()
        with tempfile.TemporaryDirectory() as runtime:
            leave_leftovers(Path(runtime), "jx0")
            assert sysctl("net/ipv4/ip_forward") == "1"
            assert "proto 106" in run("ip rule")
            assert "jvpn_" in run("nft list ruleset")
            test(Path(runtime), before)

    body.__name__ = test.__name__
    return in_namespace(body)


@killed
def test_what_a_kill_left_goes_where_there_is_no_next_start(runtime: Path, before: str) -> None:
    cleanup(str(runtime))
    assert not Path("/sys/class/net/jx0").exists()
    assert snapshot() == before
    cleanup(str(runtime))  # nothing is left to do
    assert snapshot() == before


@killed
def test_what_a_kill_left_serves_the_next_start_and_goes_with_its_end(
    runtime: Path, before: str
) -> None:
    left = snapshot().replace(" linkdown", "")  # nobody has it open

    async def body() -> None:
        network = HostNetwork("jx0", runtime)
        await network.resume()
        assert network.is_left
        index = socket.if_nametoindex("jx0")
        tun = open_tun("jx0", ours=True)
        assert tun.index == index
        assert way("8.8.8.8") == "jx0"
        await network.configure(["10.77.0.2/32"], 1400)
        network.enable_forwarding()
        await network.route("full")
        assert snapshot() == left
        set_persistent(tun, False)
        await network.remove()

    asyncio.run(body())
    assert list(runtime.iterdir()) == []
    assert snapshot() == before


@killed
def test_what_a_kill_left_under_another_name_goes_at_the_next_start(
    runtime: Path, before: str
) -> None:
    network = HostNetwork("jx9", runtime)
    asyncio.run(network.resume())
    assert not network.is_left
    assert "jx0" not in [name for _, name in socket.if_nameindex()]
    assert list(runtime.iterdir()) == []
    assert snapshot() == before


@on_host
def test_remove_works_when_the_tun_has_gone(tun: Tun, runtime: Path) -> None:
    before = snapshot()

    async def body() -> None:
        network = HostNetwork("jx0", runtime)
        await network.configure(ADDRESSES, 1400)
        await network.route("full")
        os.close(tun.fd)
        await network.remove()
        await network.remove()

    asyncio.run(body())
    assert snapshot() == before


@on_host
def test_without_ipv6_the_rest_works_and_it_is_said(tun: Tun, runtime: Path) -> None:
    for scope in ("all", "default"):
        sysctl(f"net/ipv6/conf/{scope}/disable_ipv6", "1")

    async def body() -> None:
        network = HostNetwork("jx0", runtime)
        (note,) = await network.configure(ADDRESSES, 1400)
        assert "fd77::2/128 left out: it is disabled on this host" in note
        assert inner_addresses() == {"10.77.0.2/32"}
        (note,) = await network.route("split", ["10.20.0.0/16", "fd20::/32"])
        assert note == "no route to fd20::/32: the tunnel has no IPv6"
        assert await network.route("full") == ()
        assert way("8.8.8.8") == "jx0"
        await network.remove()

    asyncio.run(body())


@on_host
def test_an_mtu_too_small_for_ipv6_is_said(tun: Tun, runtime: Path) -> None:
    (note,) = asyncio.run(HostNetwork("jx0", runtime).configure(ADDRESSES, 1200))
    assert "an MTU of 1200 is below its minimum of 1280" in note


@on_host
def test_a_strict_reverse_path_filter_does_not_stop_the_transport(tun: Tun, runtime: Path) -> None:
    ready, done = os.pipe()

    def far_end() -> None:
        new_namespace()
        os.write(done, b"x")
        while "far" not in [name for _, name in socket.if_nameindex()]:
            time.sleep(0.01)
        run("ip addr add 192.0.1.1/24 dev far")
        run("ip addr add 203.0.113.1/32 dev lo")
        run("ip link set far up")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
            echo.bind(("203.0.113.1", 7700))
            os.write(done, b"x")
            while True:
                data, sender = echo.recvfrom(100)
                echo.sendto(data, sender)

    pid, _ = spawn(far_end)
    assert os.read(ready, 1) == b"x"
    run("ip link set pupa name far")
    run(f"ip link set far netns {pid}")
    assert os.read(ready, 1) == b"x"
    for scope in ("all", "upa", "jx0"):
        sysctl(f"net/ipv4/conf/{scope}/rp_filter", "1")

    async def body() -> None:
        network = HostNetwork("jx0", runtime)
        await network.configure(ADDRESSES, 1400)
        assert await network.route("full") == ()
        remote = ("203.0.113.1", 7700)
        with open_path("upa", "192.0.1.5", remote, network.fwmark) as path:
            path.sockets[0].settimeout(5)
            path.send(b"through")
            assert path.sockets[0].recv(100) == b"through"
        assert "jvpn_" in run("nft list ruleset")
        await network.route("none")
        assert "jvpn_" not in run("nft list ruleset")

    try:
        asyncio.run(body())
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
