"""More than the tunnel can carry: what is too much is lost, and nothing else happens."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from bench.link import Link
from lab.daemons import INNER, ONLY_ETH0, Pair
from lab.flood import Flood, flood
from lab.gauge import Gauge, hogs, stopped, workers
from lab.namespace import Namespace
from lab.stage import Watch
from lab.traffic import Traffic

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

LONG_S, SHORT_S = 30.0, 5.0  # both longer than it takes to call a silent path dead
STILL_S = 1.5  # longer than that too, shorter than it takes to call a worker hung
ANSWER_S = 2.0
HEARD_MS = 2000  # the policy's volatile_after_ms
GROWTH_KIB = 8 * 1024
BUSY_PER_S, IDLE_PER_S = 2.5, 0.7  # answered probes, of 10 on a busy path and 1 on an idle one
DEGRADED = ("ENTER_DEGRADED_MODE", "EXIT_DEGRADED_MODE")
SLOW = "rate 5mbit burst 20k"


@dataclass
class Load:
    """The daemons under a flood, and what is watched meanwhile."""

    hosts: tuple[Namespace, Namespace]
    watch: Watch
    gauges: list[Gauge]

    @contextlib.contextmanager
    def flood(self, seconds: float, probes_per_s: float = BUSY_PER_S) -> Iterator[Flood]:
        """Flood both ways, and wait until it is over; then everything is as it should be."""
        inner = INNER["client"][0], INNER["gateway"][0]
        with self.gauges[0], self.gauges[1], flood(self.hosts, inner, seconds) as running:
            yield running
            running.wait()
            self.arrived = running.arrived()
        self.assert_nothing_happened(seconds * probes_per_s)
        self.assert_echo()

    def assert_nothing_happened(self, probes: float) -> None:
        """The session is the same, no state changed, both ends answered and heard of each other
        all the time, and no process grew."""
        self.watch.assert_same_session()
        assert (self.watch.story("client"), self.watch.story("gateway")) == ([], [])
        for gauge in self.gauges:
            assert gauge.problem == ""
            assert max(gauge.answers_s) < ANSWER_S
            for sizes in gauge.memory_kib.values():
                assert max(sizes) < sizes[0] + GROWTH_KIB
        paths = [status["paths"][0] for status in self.gauges[0].statuses]
        sessions = [status["sessions"][0] for status in self.gauges[1].statuses]
        assert max(row["last_heard_ms"] for row in (*paths, *sessions)) < HEARD_MS
        # Each answered probe moves the smoothed round trip time a bit.
        assert len({path["rtt_ms"] for path in paths}) > probes
        self.rtts_ms = [path["rtt_ms"] for path in paths]

    def assert_echo(self) -> None:
        client, gateway = self.hosts
        with Traffic("echo", client, gateway, INNER["gateway"][0], "100") as echo:
            echo.wait_until("received", above=10)


@pytest.fixture
def policy() -> str:
    """What a flood loses is more than the floor allows, and would be told as bad quality."""
    return "loss_floor = 0.0\n"


@pytest.fixture
def load(policy: str) -> Iterator[Load]:
    with (
        Link() as link,
        Pair(link.client, link.gateway, client_policy=policy, routes=ONLY_ETH0) as pair,
    ):
        pair.start()
        gauges = [Gauge(daemon) for daemon in (pair.client, pair.gateway)]
        yield Load((link.client, link.gateway), Watch(pair), gauges)


def throttle(hosts: tuple[Namespace, Namespace], queue: str) -> None:
    for host in hosts:
        host.run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", *SLOW.split(), *queue.split())


def test_a_long_flood_both_ways_changes_nothing(load: Load) -> None:
    with load.flood(LONG_S):
        pass
    for came in load.arrived:
        assert came["udp"] > 1_000_000, load.arrived


def test_a_slow_line_that_drops_is_no_dead_one(load: Load) -> None:
    throttle(load.hosts, "limit 30k")
    with load.flood(SHORT_S):
        pass


def test_probes_do_not_wait_behind_what_a_slow_line_has_queued(load: Load) -> None:
    throttle(load.hosts, "limit 100m")  # far more than sockets are allowed to leave there
    with load.flood(SHORT_S):
        pass
    assert max(load.rtts_ms) < 1000  # 128 KiB and the send that did not quite fit, each way


@pytest.mark.parametrize("policy", [""])
def test_a_flood_that_loses_most_of_it_is_bad_quality_and_no_death(load: Load) -> None:
    throttle(load.hosts, "limit 30k")
    inner = INNER["client"][0], INNER["gateway"][0]
    with flood(load.hosts, inner, SHORT_S) as running:
        running.wait()
    load.watch.assert_same_session()
    told = {line.split()[-1] for line in load.watch.story("client")}
    assert told <= {"QUALITY_FLOOR_VIOLATION", "HEALTH_RECOVERED", *DEGRADED}
    assert load.watch.story("gateway") == []
    load.assert_echo()


def test_a_busy_cpu_does_not_look_like_a_dead_path(load: Load) -> None:
    with hogs(2 * (os.cpu_count() or 1)), load.flood(SHORT_S):
        pass


def test_nobody_reads_inside(load: Load) -> None:
    with load.flood(SHORT_S) as running, stopped(*(sink.pid for sink in running.sinks)):
        time.sleep(SHORT_S / 2)  # the state to test: receive buffers that are full


def test_a_full_tun_queue_leaves_the_probes_alone(load: Load) -> None:
    uplinks = [
        pid
        for gauge in load.gauges
        for pid, role in workers(gauge.daemon).items()
        if role == "uplink"
    ]
    assert len(uplinks) >= 2
    with load.flood(STILL_S + 1, IDLE_PER_S), stopped(*uplinks):
        time.sleep(STILL_S)  # the state to test: what is on the TUN stays there
