"""What the operator of a cluster does: drain a node, and upgrade one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from lab.clusternet import Cluster, ClusterNet
from lab.clusterwatch import watching
from lab.stage import until

from tests.etcd import needs_etcd

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), needs_etcd]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNet]:
    with ClusterNet(tmp_path_factory.mktemp("etcd")) as net:
        yield net


def test_a_drain_loses_nothing_and_keeps_sessions_away_until_it_is_stopped(
    net: ClusterNet,
) -> None:
    with Cluster(net) as cluster:
        cluster.start()
        owner, other = cluster.owner(), cluster.other()
        with watching(cluster) as watch:
            watch.forget()
            drained = cluster.nodes[owner].ctl("drain", "--timeout", "20")
            assert drained.returncode == 0, drained.stderr
            assert drained.stdout == "all 1 sessions have left\n"
            watch.wait_owner(other)
            assert watch.fate().lost == 0
            assert watch.wait_ownership(owner, "lost")["details"]["owner"] == other
            assert watch.ownership(other) == ["taken over"]
            moved = watch.wait_client("TRANSPORT_SWITCH", "TRANSPORT_SWITCH_OK")
            assert moved["details"]["outage_ms"] == 0, "make before break"
            watch.assert_same_session(other)
            states = {n["name"]: n["state"] for n in cluster.nodes[other].ask("cluster")["nodes"]}
            assert states == {owner: "draining", other: "ready"}
            watch.begin()
            watch.switch(owner)
            watch.wait_client("REATTACH_RESULT", "NODE_DRAINING")
            watch.assert_same_session(other)
            assert cluster.nodes[owner].ctl("drain", "--stop").returncode == 0
            cluster.take(owner)
            assert watch.fate().lost == 0
            watch.assert_flows()
            watch.assert_same_session(owner)


def test_a_drain_without_another_node_says_how_many_are_left(net: ClusterNet) -> None:
    with Cluster(net) as cluster:
        cluster.start("a")
        with watching(cluster) as watch:
            drained = cluster.nodes["a"].ctl("drain", "--timeout", "2")
            assert drained.returncode == 1
            assert drained.stdout.startswith("1 of 1 sessions are left: ")
            watch.wait_client("TRANSPORT_SWITCH_DENIED", "NODE_DRAINING")
            watch.assert_flows()
            watch.assert_same_session("a")


def test_an_upgrade_of_one_node_after_the_other_loses_nothing(net: ClusterNet) -> None:
    with Cluster(net) as cluster:
        cluster.start()
        with watching(cluster) as watch:
            watch.forget()
            for label, other in ("a", "b"), ("b", "a"):
                drained = cluster.nodes[label].ctl("drain", "--timeout", "30")
                assert drained.returncode == 0, drained.stdout + drained.stderr
                until(lambda other=other: watch.holders().keys() == {other}, "it has left")
                cluster.nodes[label].stop()
                cluster.start_nodes(label)
                watch.restarted(label)
            assert watch.fate().lost == 0
            watch.assert_flows()
            watch.assert_same_session("a")
