"""A cluster without a shared table: a session stays with the node where it was born, or ends."""

from __future__ import annotations

from jvpnd.core.nodes import Sharing
from jvpnd.core.policy import Policy

from .cluster import Cluster
from .ends import Load

TTL_MS = 6_000


def sticky(ttl_ms: int = 60_000, nodes: int = 2) -> Cluster:
    policy = Policy(transport_loss_ttl_ms=ttl_ms)
    return Cluster(nodes=nodes, policy=policy, sharing=Sharing.STICKY, load=Load(up_every_ms=25))


def refusals(cluster: Cluster) -> list[str]:
    return cluster.clients["c1"].history.reasons("REATTACH_RESULT")


def test_a_client_that_asks_another_node_is_sent_back_to_its_own() -> None:
    cluster = sticky(nodes=3)
    before = cluster.attach()
    home, at_ms = cluster.home(), cluster.now_ms
    path = cluster.agent().paths[f"wlan@{cluster.others(home)[0]}"]
    cluster.world.call("c1", lambda end, now_ms: end.core.switch(now_ms, path.id) and None)
    cluster.run(3_000)
    assert refusals(cluster) == ["WRONG_NODE"]
    assert (cluster.session().id, cluster.home()) == (before[0], home)
    assert cluster.client().longest_gap_ms(at_ms) <= 50
    cluster.check_rest()


def test_a_node_that_cannot_be_reached_for_a_while_has_its_session_still() -> None:
    cluster = sticky()
    before = cluster.attach()
    home = cluster.home()
    cluster.cut(home)
    cluster.run(15_000)
    assert "WRONG_NODE" in refusals(cluster)
    assert cluster.session().id == before[0]
    cluster.heal(home)
    cluster.run(5_000)
    assert (cluster.session().id, cluster.home()) == (before[0], home)
    assert cluster.is_attached()


def test_a_node_that_is_gone_for_good_costs_the_session_after_its_ttl_and_says_so() -> None:
    cluster = sticky(TTL_MS)
    (before,) = cluster.attach()
    home, at_ms = cluster.home(), cluster.now_ms
    cluster.crash(home)
    cluster.run(TTL_MS - 1_000)
    assert cluster.session().id == before
    assert cluster.holders() == []
    cluster.world.run_until(cluster.is_attached, cluster.now_ms + 5_000)
    assert cluster.now_ms - at_ms >= TTL_MS
    assert cluster.home() != home
    history = cluster.clients["c1"].history
    assert "TTL_TRANSPORT_LOSS_EXPIRED" in history.reasons()
    assert history.of("SESSION_CREATED")[-1].details["supersedes"] == before.hex()


def test_a_node_that_is_started_again_has_its_sessions_and_nobody_took_them() -> None:
    cluster = sticky()
    before = cluster.attach()
    home = cluster.home()
    cluster.crash(home)
    cluster.run(3_000)
    cluster.boot(home)
    cluster.run(3_000)
    assert (cluster.session().id, cluster.home()) == (before[0], home)
    assert cluster.is_attached()
    assert all(not cluster.owner_events(node) for node in cluster.nodes)
    cluster.check_rest()


def test_a_drained_node_keeps_what_is_its_own() -> None:
    cluster = sticky()
    before = cluster.attach()
    home, at_ms = cluster.home(), cluster.now_ms
    cluster.leave(home)
    cluster.run(5_000)
    assert (cluster.session().id, cluster.home()) == (before[0], home)
    assert cluster.client().longest_gap_ms(at_ms) <= 50
