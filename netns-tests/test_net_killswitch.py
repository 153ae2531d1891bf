"""The kill switch's rules against a real kernel: what passes them, each test in a namespace."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable

import pytest
from namespaced import in_namespace, run

from jvpnd.net import killswitch, nft
from jvpnd.net.routeplan import fwmark_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

EXCLUDED = ["198.18.0.0/16", "198.18.7.0/24", "fd20::/32"]  # one inside another
SOLICIT, ADVERTISE, ROUTER_SOLICIT, ROUTER_ADVERT, ECHO, MLD = 135, 136, 133, 134, 128, 143


def host() -> None:
    """An uplink and what stands for the tunnel, and the kill switch."""
    for name in ("upa", "jx0"):
        run(f"ip link add {name} type veth peer name p{name}")
        run(f"ip link set p{name} up")
        run(f"ip link set {name} up")
    run("ip addr add 192.0.2.5/24 dev upa")
    run("ip -6 addr add 2001:db8:1::5/64 dev upa nodad")
    run("ip -6 addr add fe80::5/64 dev upa nodad")
    run("ip addr add 10.77.0.2/24 dev jx0")
    run("ip -6 addr add fd77::2/64 dev jx0 nodad")
    run("ip route add default via 192.0.2.1")
    run("ip -6 route add default via 2001:db8:1::1")
    assert nft.load_now(killswitch.ruleset("jx0", EXCLUDED)) is None


def on_host(test: Callable[[], None]) -> Callable[[], None]:
    def body() -> None:
        host()
        test()

    body.__name__ = test.__name__
    return in_namespace(body)


def may_send(
    target: str, port: int = 53, source: tuple[str, int] | None = None, mark: int = 0
) -> bool:
    """Whether a datagram gets past the rules."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if source is not None:
            address, own_port = source
            scope = socket.if_nametoindex("upa") if address.startswith("fe80") else 0
            ends = (address, own_port, 0, scope) if ":" in address else (address, own_port)
            sock.bind(ends)
        return _passes(sock, target, port)


def may_say(kind: int, target: str, hops: int) -> bool:
    """Whether an ICMPv6 message gets past the rules."""
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        for option in (socket.IPV6_UNICAST_HOPS, socket.IPV6_MULTICAST_HOPS):
            sock.setsockopt(socket.IPPROTO_IPV6, option, hops)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"upa")
        return _passes(sock, target, 0, struct.pack("!BB22x", kind, 0))


def _passes(sock: socket.socket, target: str, port: int, data: bytes = b"leak") -> bool:
    try:
        sock.sendto(data, (target, port))
    except PermissionError:  # what the kernel says when a rule drops
        return False
    return True


@on_host
def test_the_tunnel_its_transport_loopback_and_what_is_excluded_pass() -> None:
    mark = fwmark_of("jx0")
    for target in ("10.77.0.1", "fd77::1", "127.0.0.1", "::1", "192.0.2.5"):
        assert may_send(target), target
    for target in ("198.18.7.1", "198.18.255.1", "fd20::1"):
        assert may_send(target), target
    for target in ("203.0.113.7", "2001:db8:7::7", "192.0.2.9"):
        assert not may_send(target), target
        assert not may_send(target, mark=mark ^ 1), target
        assert may_send(target, mark=mark), target
    assert not may_send("198.19.0.1")
    assert not may_send("fd21::1")


@on_host
def test_an_uplink_gets_its_address_and_finds_its_neighbours() -> None:
    assert may_send("192.0.2.1", 67, ("192.0.2.5", 68))
    assert may_send("255.255.255.255", 67, ("192.0.2.5", 68))
    assert not may_send("192.0.2.1", 67, ("192.0.2.5", 6868))
    assert not may_send("192.0.2.1", 53, ("192.0.2.5", 68))
    assert may_send("ff02::1:2", 547, ("fe80::5", 546))
    assert not may_send("2001:db8:9::1", 547, ("2001:db8:1::5", 546))
    assert not may_send("ff02::1:2", 53, ("fe80::5", 546))
    assert may_say(SOLICIT, "ff02::1:ff00:1", 255)
    assert may_say(SOLICIT, "2001:db8:1::1", 255)
    assert may_say(ADVERTISE, "2001:db8:1::1", 255)
    assert may_say(ROUTER_SOLICIT, "ff02::2", 255)
    assert may_say(MLD, "ff02::16", 1)
    assert not may_say(SOLICIT, "2001:db8:1::1", 64)  # a router would pass it on
    assert not may_say(MLD, "2001:db8:1::1", 64)
    assert not may_say(ROUTER_ADVERT, "ff02::1", 255)
    assert not may_say(ECHO, "ff02::1", 255)


@on_host
def test_a_change_leaves_no_gap() -> None:
    """Old and new are one transaction: while it is replaced again and again, nothing passes."""
    pid = os.fork()
    if pid == 0:
        for _ in range(200):
            assert nft.load_now(killswitch.ruleset("jx0", EXCLUDED)) is None
        os._exit(0)
    tried = 0
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        assert not may_send("203.0.113.7")
        tried += 1
    assert tried > 200


@on_host
def test_off_takes_all_of_them_off_and_on_brings_one_back() -> None:
    assert nft.load_now(killswitch.ruleset("jx1")) is None
    run("nft add table inet jvpn_kill_somebodys")
    assert killswitch.switched_on() == {killswitch.table_of(name) for name in ("jx0", "jx1")}
    assert not killswitch.is_meant_off()
    assert nft.load_now(killswitch.off(killswitch.switched_on())) is None
    assert (killswitch.switched_on(), killswitch.is_meant_off()) == (set(), True)
    assert may_send("203.0.113.7")
    assert "jvpn_kill_somebodys" in run("nft list tables")
    assert nft.load_now(killswitch.ruleset("jx0")) is None
    assert (killswitch.is_on("jx0"), killswitch.is_meant_off()) == (True, False)
    assert not may_send("203.0.113.7")
    assert nft.load_now(killswitch.without("jx0")) is None
    assert may_send("203.0.113.7")


@in_namespace
def test_many_tables_are_all_seen() -> None:
    names = {f"t{n}_" + "x" * 150 for n in range(500)}
    text = "".join(f"add table inet {name}\nadd table ip {name}\n" for name in names)
    assert nft.load_now(text + killswitch.ruleset("jx0")) is None
    assert killswitch.switched_on() == {killswitch.table_of("jx0")}
