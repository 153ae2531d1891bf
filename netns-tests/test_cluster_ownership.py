"""One owner at any time: a node that was stopped and wakes up, and two that are asked at once."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from lab.capture import Datagram, Listener, Sender
from lab.clusternet import OUTSIDE, WELL, Cluster, ClusterNet
from lab.clusterwatch import ClusterWatch, watching
from lab.daemons import PORTS, Daemon
from lab.stage import until
from lab.wire import Conditions

from jvpnd.core.wire import PacketType
from tests.etcd import needs_etcd

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), needs_etcd]

PORT = PORTS["udp"]
LOSS_TTL_S = 4.0
SHORT = f"store_loss_ttl_ms = {LOSS_TTL_S * 1000:.0f}\n"
QUEUED = 64  # datagrams that a worker may have had in its hands when it was stopped
AWAKE_S = 2.0  # so long a node that woke up is watched
ROUNDS = 5


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNet]:
    with ClusterNet(tmp_path_factory.mktemp("etcd")) as net:
        yield net


def family(pid: int) -> list[int]:
    """The process and all that come from it."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(word) for task in tasks for word in task.read_text().split()]
    return [pid, *(each for child in children for each in family(child))]


def data_from(listener: Listener, label: str) -> int:
    """DATA that a node has sent to the client."""
    return sum(
        datagram.source[0] == OUTSIDE[label] and datagram.type == PacketType.DATA
        for datagram in listener.heard()
    )


def pid_of(daemon: Daemon) -> int:
    assert daemon.process is not None
    return daemon.process.pid


@pytest.mark.parametrize("what", ["control and workers", "control alone"])
def test_an_owner_that_slept_past_its_time_sends_nothing_more(net: ClusterNet, what: str) -> None:
    with Cluster(net, gateway_policy=SHORT) as cluster:
        cluster.start()
        owner, other = cluster.owner(), cluster.other()
        stopped = family(pid_of(cluster.nodes[owner]))
        assert len(stopped) > 2, "there are workers"
        if what == "control alone":
            stopped = stopped[:1]
        with watching(cluster) as watch, Listener(net.nodes[owner], "out", PORT) as outside:
            watch.fate()
            began_s = time.monotonic()
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            watch.wait_ownership(other, "taken over")
            watch.wait_owner(other)
            watch.assert_flows()
            time.sleep(max(0.0, began_s + LOSS_TTL_S + 1 - time.monotonic()))
            before = data_from(outside, owner)
            assert before > 0
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
            until(lambda: watch.ownership(owner), "it tells")
            assert watch.ownership(owner)[0] in ("lost", "let go")
            time.sleep(AWAKE_S)
            assert data_from(outside, owner) - before <= QUEUED
            watch.assert_flows()
            watch.assert_same_session(other)


# --- requests that are heard twice ---


def requests(listener: Listener) -> list[Datagram]:
    """What the client has asked for, the newest last."""
    return [d for d in listener.heard() if d.type == PacketType.REATTACH_REQUEST]


def at_both(request: Datagram) -> list[Datagram]:
    """The same bytes from the same client, for either node."""
    return [replace(request, target=(address, PORT)) for address in OUTSIDE.values()]


def accepted(watch: ClusterWatch) -> Counter[int]:
    """How often each attempt was bound, at whichever node."""
    return Counter(
        event["details"]["attempt"]
        for label in watch.cluster.running()
        for event in watch.events(label, "REATTACH_RESULT")
        if event["reason"] == "REATTACH_ACCEPT"
    )


def test_a_request_that_is_played_again_moves_nothing(net: ClusterNet) -> None:
    with Cluster(net) as cluster:
        cluster.start()
        owner, other = cluster.owner(), cluster.other()
        with (
            watching(cluster) as watch,
            Listener(net.client, "up-a", PORT) as uplink,
            Sender(net.net) as attacker,
        ):
            for label in other, owner, other:
                cluster.take(label)
            watch.assert_flows()
            watch.forget()
            before = accepted(watch)
            for request in requests(uplink):
                attacker.send_forged(at_both(request))
            assert watch.fate().lost == 0
            assert accepted(watch) == before
            assert set(before.values()) == {1}
            watch.assert_flows()
            watch.assert_same_session(other)


def test_of_two_nodes_that_are_asked_at_once_one_wins(net: ClusterNet) -> None:
    """What the client asks reaches nobody, until the same bytes come to both."""
    with Cluster(net) as cluster:
        cluster.start()
        with (
            watching(cluster) as watch,
            Listener(net.client, "up-a", PORT) as uplink,
            Sender(net.net) as postman,
        ):
            for _ in range(ROUNDS):
                seen, bound = len(requests(uplink)), accepted(watch).total()
                net.uplink.wire.set(a_to_b=Conditions(silent=True))
                watch.switch(cluster.other())
                until(lambda seen=seen: len(requests(uplink)) > seen, "the client asks")
                postman.send_forged(at_both(requests(uplink)[-1]), per_s=1e5)
                until(lambda bound=bound: accepted(watch).total() > bound, "somebody has it")
                net.uplink.wire.set(a_to_b=WELL)
                until(lambda: cluster.client.status()["state"] == "ATTACHED", "it is attached")
                watch.assert_flows()
                watch.assert_same_session(cluster.owner())
            assert set(accepted(watch).values()) == {1}
