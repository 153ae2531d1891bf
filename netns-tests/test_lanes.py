"""Several lanes: a session's flows over several pairs of workers, and the two ends may differ."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from bench.link import Link
from lab.capture import Datagram, Listener, Sender
from lab.daemons import INNER, ONLY_ETH0, PORT, Daemon, Pair
from lab.flows import Datagrams, exchange, run_all
from lab.namespace import Namespace, ip
from lab.stage import Watch, until
from lab.topology import OUTSIDE, Lab

from jvpnd.core.wire import PacketType
from jvpnd.transport.group import SocketGroup
from jvpnd.transport.udp import open_listener

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

STREAMS, SIZE = 4, 1_000_000
FLOWS, BURSTS = 32, 15
OFTEN = "max_switches_per_minute = 600\nswitch_cooldown_ms = 0\n"
GATEWAY = (OUTSIDE[4], PORT)
REPLAYS = 20
UDP_GRO = 104  # linux/udp.h
DATAGRAMS = 400


@contextlib.contextmanager
def daemons(
    client: Namespace, gateway: Namespace, lanes: tuple[int, int], routes: str = ""
) -> Iterator[Pair]:
    """A client and a gateway with so many lanes, attached."""
    policies = {"client_policy": OFTEN, "gateway_policy": OFTEN}
    with Pair(client, gateway, routes=routes, **policies) as pair:
        for daemon, number in zip((pair.client, pair.gateway), lanes, strict=True):
            daemon.use_lanes(number)
        pair.start()
        until(partial(has_addresses, client), "the client has its addresses")
        yield pair


def has_addresses(client: Namespace) -> bool:
    shown = client.run("ip", "addr", "show", "dev", "jvpn0").stdout
    return all(f" {address}/" in shown for address in INNER["client"])


def packets(daemon: Daemon, way: str) -> list[int]:
    """Inner packets sent ("tx") or received ("rx") so far, by lane."""
    return [row[f"{way}_packets"] for row in daemon.status()["lanes"]]


def dropped(daemon: Daemon, cause: str) -> int:
    return int(daemon.status()["traffic"]["dropped"].get(cause, 0))


# --- over a plain cable ---


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with Link() as link:
        yield link


@pytest.mark.parametrize("lanes", [(2, 2), (2, 1), (1, 2), (3, 2)])
def test_flows_arrive_whole_and_in_order(link: Link, lanes: tuple[int, int]) -> None:
    with daemons(link.client, link.gateway, lanes, ONLY_ETH0) as pair:
        hosts = link.client, link.gateway
        for inner in INNER["gateway"]:
            exchange(*hosts, inner, STREAMS, SIZE)
        before = {daemon: packets(daemon, "tx") for daemon in (pair.client, pair.gateway)}
        with (
            Datagrams(*hosts, INNER["gateway"][0], FLOWS) as up,
            Datagrams(*hosts[::-1], INNER["client"][0], FLOWS) as down,
        ):
            run_all([up, down], BURSTS)
            for flow in (*up.flows, *down.flows):
                assert flow.numbers == list(range(flow.sent)), "lost, doubled or out of order"
        for (daemon, sent), number in zip(before.items(), lanes, strict=True):
            now = packets(daemon, "tx")
            assert len(now) == number
            assert all(later > earlier + 50 for earlier, later in zip(sent, now, strict=True))
            causes = set(daemon.status()["traffic"]["dropped"])
            assert not causes & {"wrong_lane", "replayed", "bad_tag", "malformed", "foreign"}


def test_status_tells_the_lanes(link: Link) -> None:
    with daemons(link.client, link.gateway, (2, 1), ONLY_ETH0) as pair:
        exchange(link.client, link.gateway, INNER["gateway"][0], 1, 100_000)
        status = pair.client.status()
        total = [status["traffic"][f"{way}_packets"] for way in ("tx", "rx")]
        for way, sum_of_all in zip(("tx", "rx"), total, strict=True):
            assert sum(packets(pair.client, way)) >= sum_of_all > 0
        assert "lanes     2 (packets: " in pair.client.ctl("status").stdout
        assert "lanes" not in pair.gateway.ctl("status").stdout


def test_a_client_hears_its_gateway_only(link: Link) -> None:
    """Its sockets are not connected, so the kernel passes on what others send to their port."""
    with daemons(link.client, link.gateway, (2, 2), ONLY_ETH0) as pair:
        (row,) = pair.gateway.status()["sessions"]
        host, _, port = row["binding"]["remote"].rpartition(":")
        with Sender(link.gateway) as sender:  # the right address, another port
            sender.send((host, int(port)), [b"\x08\x01" + bytes(60), b"\x07" + bytes(60)] * 10)
        until(lambda: dropped(pair.client, "foreign") == 20, "all are counted")
        exchange(link.client, link.gateway, INNER["gateway"][0], 1, 100_000)


@contextlib.contextmanager
def behind_a_router() -> Iterator[tuple[Namespace, Namespace, Namespace]]:
    """Two hosts and a router between them, who all handle datagrams singly but for GRO. Without
    the router the sender's kernel would tell the receiver's which socket each one is from."""
    with Namespace("near") as near, Namespace("router") as router, Namespace("far") as far:
        router.sysctl("net.ipv4.ip_forward", "1")
        router.sysctl("net.ipv6.conf.all.forwarding", "1")
        for number, host in enumerate((near, far), start=1):
            port = f"eth{number}"
            ip(
                *("link", "add", port, "netns", router.name, "type", "veth"),
                *("peer", "name", "eth0", "netns", host.name),
            )
            for end, device, last in ((router, port, 1), (host, "eth0", 2)):
                end.run("ethtool", "-K", device, "tx", "off", "gso", "off", "gro", "on")
                end.ip("addr", "add", f"10.0.{number}.{last}/24", "dev", device)
                end.ip("addr", "add", f"fd0{number}::{last}/64", "dev", device, "nodad")
                end.ip("link", "set", device, "up")
            host.ip("route", "add", "default", "via", f"10.0.{number}.1")
            host.ip("-6", "route", "add", "default", "via", f"fd0{number}::1")
        yield near, router, far


@pytest.mark.parametrize(("near", "far"), [("10.0.1.2", "10.0.2.2"), ("fd01::2", "fd02::2")])
def test_a_receiver_that_joins_datagrams_does_not_join_lanes(near: str, far: str) -> None:
    """A batch of GRO goes to one socket: with another lane's in it they would be lost."""
    with behind_a_router() as (sender, router, receiver), contextlib.ExitStack() as opened:
        into = opened.enter_context(receiver.within(lambda: open_listener(far, PORT, 2)))
        out = opened.enter_context(sender.within(lambda: open_listener(near, 0, 2)))
        for sock in into.sockets:
            sock.setsockopt(socket.SOL_UDP, UDP_GRO, 1)
        out.limit_unsent(8 << 20)

        def send(lane: int) -> None:
            out.sockets[lane].sendto(of_lane(lane), (far, PORT))

        send(0)
        assert take(into) == 1  # they know each other's addresses now
        queue = ("dev", "eth2", "root", "tbf", "burst", "2k", "limit", "8m", "rate")
        router.run("tc", "qdisc", "add", *queue, "8kbit")  # wait here, all of you
        for number in range(DATAGRAMS):
            send(number // 8 % 2)
        router.run("tc", "qdisc", "change", *queue, "10gbit")
        batches, seen = 0, 0
        while seen < DATAGRAMS:
            batches, seen = batches + 1, seen + take(into)
    assert batches < DATAGRAMS / 2, "next to nothing was joined: this tests nothing"


def of_lane(lane: int) -> bytes:
    return bytes([PacketType.DATA, lane]) * 500


def take(group: SocketGroup) -> int:
    """Datagrams in a batch, which must be of its socket's lane."""
    ready, _, _ = select.select(group.sockets, [], [], 10)
    assert ready, "datagrams are lost"
    batch, one = ready[0].recv(1 << 16), of_lane(group.sockets.index(ready[0]))
    assert batch == one * (len(batch) // len(one)), "lanes are mixed"
    return len(batch) // len(one)


# --- with two uplinks, address translation and an attacker on the way ---


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        for uplink in (lab.a, lab.b):
            uplink.translate()
        yield lab


@pytest.fixture(scope="module")
def pair(lab: Lab) -> Iterator[Pair]:
    with daemons(lab.client, lab.gateway, (2, 2)) as pair:
        until(lambda: len(pair.client.status()["paths"]) == 2, "both paths")
        yield pair


@pytest.fixture
def flows(lab: Lab, pair: Pair) -> Iterator[tuple[Datagrams, Datagrams]]:
    """Some flows each way, which are on both lanes."""
    with (
        Datagrams(lab.client, lab.gateway, INNER["gateway"][0], FLOWS) as up,
        Datagrams(lab.gateway, lab.client, INNER["client"][0], FLOWS) as down,
    ):
        before = packets(pair.client, "tx"), packets(pair.gateway, "tx")
        up.all_arrive()
        down.all_arrive()
        after = packets(pair.client, "tx"), packets(pair.gateway, "tx")
        for earlier, later in zip(before, after, strict=True):
            assert all(b > a for a, b in zip(earlier, later, strict=True)), "a lane is unused"
        yield up, down


def assert_all_flow(flows: tuple[Datagrams, Datagrams], watch: Watch) -> None:
    for group in flows:
        group.all_arrive()
    watch.assert_same_session()


def worker(daemon: Daemon, role: str, lane: int) -> int:
    """Pid of one of a daemon's data plane processes."""
    assert daemon.process is not None
    pid = daemon.process.pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        if words[4:7] == ["jvpnd.dataplane.worker", role, str(lane)]:
            return int(child)
    raise AssertionError(f"no {role} worker of lane {lane}:\n{daemon.log}")


def test_a_switch_takes_every_lane_along(
    lab: Lab, pair: Pair, flows: tuple[Datagrams, Datagrams]
) -> None:
    for _ in range(2):
        watch = Watch(pair)
        goal = "up-b" if watch.bound() == "up-a" else "up-a"
        done = pair.client.ctl("switch", goal)
        assert done.returncode == 0, done.stderr
        watch.wait_attached()
        assert watch.bound() == goal
        sent = packets(pair.client, "tx"), packets(pair.gateway, "tx")
        assert_all_flow(flows, watch)
        for earlier, daemon in zip(sent, (pair.client, pair.gateway), strict=True):
            assert all(b > a for a, b in zip(earlier, packets(daemon, "tx"), strict=True))


def test_nat_rebinding(lab: Lab, pair: Pair, flows: tuple[Datagrams, Datagrams]) -> None:
    watch = Watch(pair)
    lab.uplink(watch.bound()).rebind("40000-49999")
    for group in flows:
        group.all_arrive()
    watch.wait_attached()
    assert any("NAT_REBIND" in line for line in watch.story("client"))
    assert_all_flow(flows, watch)


@pytest.mark.parametrize(
    ("side", "role", "lane"), [("client", "uplink", 1), ("gateway", "downlink", 1)]
)
def test_a_killed_worker_of_one_lane_is_replaced(
    pair: Pair, flows: tuple[Datagrams, Datagrams], side: str, role: str, lane: int
) -> None:
    daemon: Daemon = getattr(pair, side)
    watch, epoch = Watch(pair), pair.client.status()["session"]["epoch"]
    old = worker(daemon, role, lane)
    os.kill(old, signal.SIGKILL)
    watch.wait_attached()
    assert_all_flow(flows, watch)
    assert worker(daemon, role, lane) != old
    assert f"the lane {lane} {role} worker was started again" in daemon.log
    assert pair.client.status()["session"]["epoch"] > epoch


def test_replayed_data_is_refused_in_every_lane(
    lab: Lab, pair: Pair, flows: tuple[Datagrams, Datagrams]
) -> None:
    """Also with the lane changed: it goes to another worker, or another window, and is no longer
    what was sealed."""
    router = lab.uplink(Watch(pair).bound()).router
    up, _down = flows
    with Listener(router, "wan", PORT) as ear, Sender(router) as sender:
        up.all_arrive()
        up.run(2)
        data = [d for d in ear.heard() if d.type == PacketType.DATA and d.target == GATEWAY]
        by_lane = {d.payload[1]: d for d in data}
        assert by_lane.keys() == {0, 1}
        for datagram in by_lane.values():
            received = packets(pair.gateway, "rx")
            for lane in (datagram.payload[1], 0, 1, 2, 3, 15):
                changed = datagram.payload[:1] + bytes([lane]) + datagram.payload[2:]
                cause = "replayed" if changed == datagram.payload else "bad_tag"
                count_drops(pair.gateway, sender, replace(datagram, payload=changed), cause)
            assert packets(pair.gateway, "rx") == received


def count_drops(gateway: Daemon, sender: Sender, datagram: Datagram, cause: str) -> None:
    before = dropped(gateway, cause)
    sender.send_forged([datagram] * REPLAYS)
    until(lambda: dropped(gateway, cause) >= before + REPLAYS, f"all are {cause}")
