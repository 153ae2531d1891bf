"""A cluster whose table is out of reach: for one node, for all, or by halves."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from lab.clusternet import Cluster, ClusterNet
from lab.clusterwatch import ClusterWatch, watching
from lab.daemons import Daemon
from lab.stage import until

from tests.etcd import needs_etcd

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), needs_etcd]

LOSS_TTL_S = 5.0
SHORT = f"store_loss_ttl_ms = {LOSS_TTL_S * 1000:.0f}\n"
LONG = "store_loss_ttl_ms = 600000\n"
HOLD_S = 2.0  # while nothing is to happen


@pytest.fixture(scope="module")
def whole_net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNet]:
    with ClusterNet(tmp_path_factory.mktemp("etcd")) as net:
        yield net


@pytest.fixture
def net(whole_net: ClusterNet) -> Iterator[ClusterNet]:
    yield whole_net
    whole_net.heal()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNet]:
    with ClusterNet(tmp_path_factory.mktemp("etcd"), members=3) as net:
        yield net


def reaches(node: Daemon) -> bool:
    return node.ask("cluster")["store"]["problem"] == ""


def assert_refused(watch: ClusterWatch, label: str) -> None:
    """Switches there are refused, and the session stays where it is."""
    client, owner = watch.cluster.client, watch.cluster.owner()

    def is_told() -> bool:
        if client.status()["state"] == "ATTACHED":
            client.ctl("switch", watch.cluster.path(label))
        results = watch.events("client", "REATTACH_RESULT")
        return "STORE_UNAVAILABLE" in [result["reason"] for result in results]

    until(is_told, "a refusal")
    client.wait_state("ATTACHED", after=watch.events("client", "REATTACH_RESULT")[-1]["seq"])
    assert watch.cluster.owner() == owner


def begin_anew(client: Daemon) -> None:
    """A client that knows of no session any more asks for one."""
    client.stop()
    client.lose_table()
    client.start()


def test_an_owner_that_is_cut_off_goes_on_for_a_while_and_then_lets_go(net: ClusterNet) -> None:
    with Cluster(net, gateway_policy=SHORT) as cluster:
        cluster.start()
        owner, other = cluster.owner(), cluster.other()
        with watching(cluster) as watch:
            net.cut_off(owner)
            began_s = time.monotonic()
            let_go = watch.wait_ownership(owner, "let go")
            assert time.monotonic() - began_s > LOSS_TTL_S - 2, "not before its time"
            assert let_go["reason"] == "STORE_UNAVAILABLE"
            assert let_go["details"]["store_away_ms"] >= LOSS_TTL_S * 1000
            watch.wait_ownership(other, "taken over")
            watch.wait_owner(other)
            watch.assert_flows()
            watch.assert_same_session(other)
            watch.begin()
            net.join_again(owner)
            until(lambda: reaches(cluster.nodes[owner]), "it reaches the table")
            cluster.take(owner)
            watch.assert_flows()
            watch.assert_same_session(owner)
            assert watch.ownership(other) == ["lost"]


def test_a_node_that_is_cut_off_binds_nothing(net: ClusterNet) -> None:
    with Cluster(net, gateway_policy=LONG) as cluster:
        cluster.start()
        owner, other = cluster.owner(), cluster.other()
        with watching(cluster) as watch:
            net.cut_off(other)
            until(lambda: not reaches(cluster.nodes[other]), "it knows")
            watch.forget()
            assert_refused(watch, other)
            assert watch.fate().lost == 0
            watch.assert_same_session(owner)
            assert watch.events(other, "OWNERSHIP") == []


def test_sessions_outlive_a_table_that_all_have_lost(net: ClusterNet) -> None:
    with Cluster(net, gateway_policy=LONG) as cluster:
        cluster.start()
        owner, other = cluster.owner(), cluster.other()
        with watching(cluster) as watch:
            net.kill_store()
            for node in cluster.nodes.values():
                until(lambda node=node: not reaches(node), "it knows")
            watch.forget()
            assert_refused(watch, other)
            assert watch.fate().lost == 0
            net.start_store()
            for node in cluster.nodes.values():
                until(lambda node=node: reaches(node), "it knows")
            watch.assert_same_session(owner)
            cluster.take(other)
            watch.assert_flows()
            watch.assert_same_session(other)


def test_nobody_is_born_without_the_table(net: ClusterNet) -> None:
    with Cluster(net, gateway_policy=LONG) as cluster:
        cluster.start()
        net.kill_store()
        for node in cluster.nodes.values():
            until(lambda node=node: not reaches(node), "it knows")
        births = {label: len(node.events()) for label, node in cluster.nodes.items()}
        begin_anew(cluster.client)
        time.sleep(HOLD_S)
        for label, node in cluster.nodes.items():
            told = [event["event_type"] for event in node.events()[births[label] :]]
            assert "SESSION_CREATED" not in told
        assert cluster.client.status()["state"] != "ATTACHED"
        net.start_store()
        cluster.client.wait_state("ATTACHED", timeout_s=30)
        with watching(cluster) as watch:
            watch.assert_same_session(cluster.owner())


def test_both_nodes_let_go_and_take_up_again_when_the_table_is_back(net: ClusterNet) -> None:
    with Cluster(net, gateway_policy=SHORT) as cluster:
        cluster.start()
        with watching(cluster) as watch:
            owner = cluster.owner()
            net.kill_store()
            watch.wait_ownership(owner, "let go")
            until(lambda: watch.holders() == {}, "nobody has it")
            net.start_store()
            watch.wait_client("STATE_CHANGE", "TRANSPORT_SWITCH_OK", timeout_s=40)
            watch.assert_flows()
            watch.assert_same_session(cluster.owner())


def test_a_gateway_without_the_table_comes_up_and_serves_when_it_is_there(net: ClusterNet) -> None:
    with Cluster(net) as cluster:
        net.kill_store()
        cluster.nodes["a"].start()
        cluster.client.start()
        assert not reaches(cluster.nodes["a"])
        time.sleep(HOLD_S)
        assert cluster.nodes["a"].status()["sessions"] == []
        net.start_store()
        cluster.client.wait_state("ATTACHED", timeout_s=40)
        with watching(cluster) as watch:
            watch.assert_same_session("a")


@pytest.mark.parametrize("which", ["a follower", "the leader"])
def test_one_of_three_members_may_fail(three: ClusterNet, which: str) -> None:
    with Cluster(three, gateway_policy=LONG) as cluster:
        cluster.start()
        owner, other = cluster.owner(), cluster.other()
        with watching(cluster) as watch:
            leader = three.store_leader()
            victim = leader if which == "the leader" else (leader + 1) % 3
            watch.forget()
            three.kill_store(victim)
            cluster.take(other)
            cluster.take(owner)
            # A move that etcd answers late, since it has no leader, may cost echoes.
            assert watch.fate().lost < 100
            watch.assert_flows()
            watch.assert_same_session(owner)
        begin_anew(cluster.client)
        cluster.client.wait_state("ATTACHED")
        three.heal()


def test_a_node_with_another_cluster_key_harms_nobody_and_says_so(net: ClusterNet) -> None:
    with Cluster(net) as cluster:
        cluster.start("a")
        with watching(cluster) as watch:
            cluster.set_cluster_key("b", cluster.secret)
            cluster.nodes["b"].start()
            session = watch.session
            assert f"the row of session {session} in etcd does not open" in cluster.nodes["b"].log
            names = [each["name"] for each in cluster.nodes["b"].ask("cluster")["nodes"]]
            assert names == ["b"]
            until(lambda: _answers(watch, "b"), "the client has heard of it")
            assert_refused(watch, "b")
            watch.assert_flows()
            watch.assert_same_session("a")


def _answers(watch: ClusterWatch, label: str) -> bool:
    path = watch.cluster.path(label)
    rows = watch.cluster.client.status()["paths"]
    return next(row["last_heard_ms"] for row in rows if row["id"] == path) is not None


def test_a_node_with_another_prefix_harms_nobody(net: ClusterNet) -> None:
    """It knows of no such session, and says so: the owner serves it."""
    with Cluster(net, more={"b": 'prefix = "/another/"'}) as cluster:
        cluster.start("a")
        with watching(cluster) as watch:
            cluster.nodes["b"].start()
            until(lambda: _answers(watch, "b"), "the client has heard of it")
            watch.switch("b")
            watch.wait_client("REATTACH_RESULT", "SESSION_NOT_FOUND")
            watch.assert_flows()
            watch.assert_same_session("a")
            names = [each["name"] for each in cluster.nodes["a"].ask("cluster")["nodes"]]
            assert names == ["a"]
