"""Two gateways that are one to their client: one of them dies, or is started again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator

import pytest
from lab.cluster import HOST, NODES
from lab.clusternet import CLIENT, Cluster, ClusterNet
from lab.clusterwatch import watching
from lab.namespace import Namespace
from lab.stage import until

from tests.etcd import needs_etcd

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), needs_etcd]

HOW = [signal.SIGTERM, signal.SIGKILL]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNet]:
    with ClusterNet(tmp_path_factory.mktemp("etcd")) as net:
        yield net


@pytest.mark.parametrize("how", HOW)
def test_connections_survive_the_end_of_their_gateway(
    net: ClusterNet, how: signal.Signals
) -> None:
    with Cluster(net) as cluster:
        cluster.start()
        owner, other = cluster.owner(), cluster.other()
        with watching(cluster) as watch:
            watch.forget()
            cluster.nodes[owner].stop(how)
            taken = watch.wait_ownership(other, "taken over")
            assert (taken["reason"], taken["details"]["from"]) == ("OWNER_MOVED", owner)
            watch.wait_owner(other)
            assert watch.fate().longest_gap_ms < 5000
            watch.assert_flows()
            died = watch.events("client", "STATE_CHANGE")[0]
            assert died["reason"] == "TRANSPORT_DEAD"
            watch.assert_same_session(other)
            assert watch.ownership(other) == ["taken over"]


@pytest.mark.parametrize("how", HOW)
def test_a_node_that_is_started_again_takes_up_its_sessions(
    net: ClusterNet, how: signal.Signals
) -> None:
    """From the table that all share: there is no other."""
    with Cluster(net) as cluster:
        cluster.start("a")
        with watching(cluster) as watch:
            cluster.nodes["a"].stop(how)
            cluster.start_nodes("a")
            watch.restarted("a")
            watch.wait_client("STATE_CHANGE", "TRANSPORT_SWITCH_OK")
            watch.assert_flows()
            watch.assert_same_session("a")
            assert watch.ownership("a") == []
            died = watch.events("client", "STATE_CHANGE")[0]
            assert died["details"]["why"] == "gateway started again"


def test_a_killed_owner_that_comes_back_leaves_the_session_where_it_went(net: ClusterNet) -> None:
    with Cluster(net) as cluster:
        cluster.start()
        owner, other = cluster.owner(), cluster.other()
        with watching(cluster) as watch:
            cluster.nodes[owner].stop(signal.SIGKILL)
            watch.wait_owner(other)
            cluster.start_nodes(owner)
            watch.restarted(owner)
            watch.assert_flows()
            watch.assert_same_session(other)
            route = net.nodes[owner].run("ip", "route", "get", CLIENT).stdout
            assert f"via {NODES[other][0]}" in route
            cluster.nodes[other].stop(signal.SIGKILL)
            watch.wait_ownership(owner, "taken over")
            watch.wait_owner(owner)
            watch.assert_flows()
            watch.assert_same_session(owner)


def test_a_client_that_knows_one_node_is_told_of_the_other(net: ClusterNet) -> None:
    with Cluster(net, named=False) as cluster:
        cluster.start()
        assert cluster.owner() == "a"
        with watching(cluster) as watch:
            cluster.nodes["a"].stop(signal.SIGKILL)
            watch.wait_owner("b")
            watch.assert_flows()
            watch.assert_same_session("b")


def reaches(host: Namespace, address: str) -> bool:
    return host.run("ip", "route", "get", address, check=False).returncode == 0


def test_a_connection_through_nat_ends_at_once_instead_of_hanging(net: ClusterNet) -> None:
    with Cluster(net, nat=True) as cluster, contextlib.ExitStack() as stack:
        cluster.start()
        owner, other = cluster.owner(), cluster.other()
        listener = net.host.within(lambda: socket.create_server((HOST[0], 0)))
        near = net.client.within(socket.socket)
        for end in (listener, near):
            stack.enter_context(end)
            end.settimeout(20)
        until(lambda: reaches(net.client, HOST[0]), "the route is there")
        near.connect(listener.getsockname())
        far, (seen_from, _) = listener.accept()
        stack.enter_context(far)
        assert seen_from == NODES[owner][0], "it is translated"
        cluster.nodes[owner].stop(signal.SIGKILL)
        until(lambda: cluster.owner() == other, "the session is at the other node")
        near.send(b"anybody there?")
        with pytest.raises(ConnectionResetError):
            near.recv(1)
