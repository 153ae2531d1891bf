"""Several lanes over one connection: one worker reads it, one writes it, and others feed it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator

import pytest
from bench.link import GATEWAY, Link
from lab.daemons import INNER, ONLY_ETH0, PORTS, Daemon, Pair, key_pair
from lab.flows import Datagrams, exchange
from lab.liar import Liar
from lab.stage import Watch, until

from jvpnd.keyfile import parse_key

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

STREAMS, SIZE = 4, 500_000
FLOWS, ROUNDS = 16, 5
KEYS = key_pair()
LIAR = "10.77.0.3"
NEVER = {"wrong_lane", "replayed", "bad_tag", "malformed", "foreign", "send_error", "too_big"}


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with Link() as link:
        yield link


@contextlib.contextmanager
def daemons(link: Link, transport: str, lanes: tuple[int, int]) -> Iterator[Pair]:
    """A client and a gateway with so many lanes, attached over this transport."""
    more = {"transports": (transport,), "others": {"liar": KEYS[1]}}
    with Pair(link.client, link.gateway, routes=ONLY_ETH0, **more) as pair:
        for daemon, number in zip((pair.client, pair.gateway), lanes, strict=True):
            daemon.use_lanes(number)
        pair.start()
        until(lambda: has_addresses(link), "the client has its addresses")
        yield pair


def has_addresses(link: Link) -> bool:
    shown = link.client.run("ip", "addr", "show", "dev", "jvpn0").stdout
    return all(f" {address}/" in shown for address in INNER["client"])


@contextlib.contextmanager
def flows(link: Link) -> Iterator[tuple[Datagrams, Datagrams]]:
    """Some each way, which are on all lanes."""
    with (
        Datagrams(link.client, link.gateway, INNER["gateway"][0], FLOWS) as up,
        Datagrams(link.gateway, link.client, INNER["client"][0], FLOWS) as down,
    ):
        yield up, down


def sent(daemon: Daemon) -> list[int]:
    """Inner packets sent so far, by lane."""
    return [row["tx_packets"] for row in daemon.status()["lanes"]]


def assert_all_arrive(groups: tuple[Datagrams, Datagrams]) -> None:
    """And in order; some may be lost where a connection is full."""
    for group in groups:
        for _ in range(ROUNDS):
            group.all_arrive()
        for flow in group.flows:
            assert flow.numbers == sorted(set(flow.numbers)), "doubled or out of order"


@pytest.mark.parametrize("lanes", [(2, 2), (2, 1), (1, 3)])
@pytest.mark.parametrize("transport", ["tcp", "quic"])
def test_flows_of_every_lane_arrive_whole_and_in_order(
    link: Link, transport: str, lanes: tuple[int, int]
) -> None:
    with daemons(link, transport, lanes) as pair:
        watch = Watch(pair)
        for inner in INNER["gateway"]:
            exchange(link.client, link.gateway, inner, STREAMS, SIZE)
        before = {daemon: sent(daemon) for daemon in (pair.client, pair.gateway)}
        with flows(link) as groups:
            assert_all_arrive(groups)
        for (daemon, earlier), number in zip(before.items(), lanes, strict=True):
            later = sent(daemon)
            assert len(later) == number
            assert all(b > a for a, b in zip(earlier, later, strict=True)), "a lane is unused"
            assert not NEVER & daemon.status()["traffic"]["dropped"].keys()
        watch.assert_same_session()
        assert watch.story("client") == watch.story("gateway") == []
        assert pair.client.status()["session"]["binding"]["transport"] == transport


def test_a_client_that_does_not_read_holds_up_no_lane(link: Link) -> None:
    """Neither the worker that writes to its connection nor those that write to its feed."""
    with daemons(link, "tcp", (2, 2)) as pair, flows(link) as groups:
        keys = parse_key(KEYS[0]), parse_key(pair.gateway_keys[1])
        assert_all_arrive(groups)
        watch = Watch(pair)

        def dropped() -> int:
            return int(pair.gateway.status()["traffic"]["dropped"].get("send_buffer", 0))

        with contextlib.ExitStack() as opened:
            liar = opened.enter_context(
                Liar(link.client, *keys, (GATEWAY, PORTS["tcp"]), "tcp")
            )
            assert liar.is_answered()
            bulk = [
                opened.enter_context(
                    link.gateway.within(lambda: socket.socket(type=socket.SOCK_DGRAM))
                )
                for _ in range(FLOWS)
            ]
            for sock in bulk:
                sock.connect((LIAR, 9))
            deadline, before = time.monotonic() + 20, sent(pair.gateway)
            while dropped() < 2_000:
                assert time.monotonic() < deadline, "nothing is dropped"
                for _ in range(20):
                    for sock in bulk:
                        sock.send(bytes(1_300))
                    time.sleep(0.004)  # no more than the TUN's queues hold
            assert all(b > a for a, b in zip(before, sent(pair.gateway), strict=True))
            assert_all_arrive(groups)
        assert watch.story("client") == []
        assert pair.client.status()["session"]["id"] == watch.session
