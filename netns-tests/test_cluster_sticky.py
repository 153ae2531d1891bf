"""A cluster whose nodes share nothing but the key: a session stays with its node."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from lab.clusternet import Cluster, ClusterNet
from lab.clusterwatch import watching

from tests.etcd import needs_etcd

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), needs_etcd]

LOSS_TTL = "transport_loss_ttl_ms = 3000\n"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNet]:
    with ClusterNet(tmp_path_factory.mktemp("etcd")) as net:
        yield net


def test_a_request_at_another_node_is_sent_back(net: ClusterNet) -> None:
    with Cluster(net, sticky=True) as cluster:
        cluster.start()
        owner, other = cluster.owner(), cluster.other()
        with watching(cluster) as watch:
            watch.forget()
            watch.switch(other)
            watch.wait_client("REATTACH_RESULT", "WRONG_NODE")
            assert watch.fate().lost == 0
            watch.assert_flows()
            watch.assert_same_session(owner)
            net.uplink.change_address(77)  # a move that is forced: it goes to the owner
            watch.wait_client("TRANSPORT_SWITCH", "TRANSPORT_SWITCH_OK")
            watch.assert_flows()
            watch.assert_same_session(owner)


def test_a_session_ends_with_its_node_and_another_begins_elsewhere(net: ClusterNet) -> None:
    with Cluster(net, policy=LOSS_TTL, gateway_policy=LOSS_TTL, sticky=True) as cluster:
        cluster.start()
        owner, other = cluster.owner(), cluster.other()
        session = cluster.client.status()["session"]["id"]
        cluster.nodes[owner].stop(signal.SIGKILL)
        ended = cluster.client.wait_state("TERMINATED", timeout_s=30)
        assert (ended["session_id"], ended["reason"]) == (session, "TTL_TRANSPORT_LOSS_EXPIRED")
        begun = cluster.client.wait_for(
            lambda e: e["event_type"] == "SESSION_CREATED", after=ended["seq"]
        )
        assert begun["details"]["supersedes"] == session
        cluster.client.wait_state("ATTACHED", after=begun["seq"])
        assert cluster.owner() == other
        created = cluster.nodes[other].wait_for(lambda e: e["event_type"] == "SESSION_CREATED")
        assert created["details"]["supersedes"] == session
        with watching(cluster) as watch:
            watch.assert_same_session(other)
