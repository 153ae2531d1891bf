"""Nodes of a cluster that die, hang, lose the table or are drained under traffic."""

from __future__ import annotations

import pytest

from jvpnd.core.policy import Policy
from jvpnd.core.reasons import Reason
from jvpnd.core.states import State
from jvpnd.core.wire import PacketType

from .cluster import Cluster
from .ends import Load
from .sharedtable import TIMEOUT_MS, Weather
from .world import Conditions

SELDOM = Load(up_every_ms=25)  # echoes, where a test is long


def settled(cluster: Cluster, for_ms: int = 3_000) -> None:
    cluster.run(for_ms)
    cluster.check_rest()


@pytest.mark.parametrize("nodes", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_an_owner_that_is_killed_is_left_within_half_a_second(seed: int, nodes: int) -> None:
    cluster = Cluster(seed, nodes)
    before = cluster.attach(1_500 + 37 * seed)
    home, at_ms = cluster.home(), cluster.now_ms
    cluster.crash(home)
    settled(cluster)
    assert cluster.session().id == before[0]
    assert cluster.home() != home
    assert cluster.holders() == [cluster.home()]
    assert cluster.owner_events(cluster.home()) == ["taken over"]
    assert cluster.client().longest_gap_ms(at_ms) <= 500
    assert len(cluster.clients["c1"].history.of("SESSION_CREATED")) == 1


def test_an_owner_that_lost_the_table_serves_on_and_takes_no_new_binding() -> None:
    cluster = Cluster(load=SELDOM)
    before = cluster.attach()
    home, at_ms = cluster.home(), cluster.now_ms
    cluster.table_away(home)
    cluster.run(20_000)
    assert (cluster.session().id, cluster.home()) == (before[0], home)
    assert cluster.client().longest_gap_ms(at_ms) <= 50
    epoch = cluster.session().epoch
    cluster.agent().switch(cluster.now_ms, None)  # nothing but another node's path: it is moved
    cluster.run(1_000)
    assert cluster.home() != home
    assert cluster.session().epoch > epoch
    cluster.table_away(home, False)
    settled(cluster)
    assert cluster.holders() == [cluster.home()]
    assert cluster.owner_events(home)[-1] == "lost"


def test_an_owner_without_the_table_lets_go_in_time_and_its_clients_go_elsewhere() -> None:
    cluster = Cluster(load=SELDOM)
    before = cluster.attach()
    home, at_ms = cluster.home(), cluster.now_ms
    cluster.table_away(home)
    cluster.world.run_until(lambda: cluster.holders() != [home], at_ms + 60_000)
    ttl_ms = cluster.policy.store_loss_ttl_ms
    assert ttl_ms - 2_000 <= cluster.now_ms - at_ms <= ttl_ms + 500
    settled(cluster)
    assert cluster.session().id == before[0]
    assert cluster.home() != home
    assert cluster.client().longest_gap_ms(at_ms) <= 500
    assert cluster.owner_events(home)[-1] == "let go"


def test_a_frozen_owner_that_wakes_up_has_lost_the_session_and_stops() -> None:
    cluster = Cluster()
    before = cluster.attach()
    home, at_ms = cluster.home(), cluster.now_ms
    cluster.freeze(home)
    cluster.run(15_000)
    assert cluster.client().longest_gap_ms(at_ms) <= 500
    assert cluster.home() != home
    sent = cluster.client().plane.rx
    cluster.thaw(home)
    settled(cluster, 100)
    assert home not in cluster.holders()
    assert cluster.node(home).plane.sending == {}
    assert cluster.client().plane.rx > sent
    settled(cluster)
    assert cluster.session().id == before[0]
    assert cluster.owner_events(home)[-1] in ("lost", "let go")


def test_a_frozen_owner_that_wakes_up_without_the_table_stops_by_itself() -> None:
    cluster = Cluster()
    cluster.attach()
    home = cluster.home()
    cluster.client().busy = False
    cluster.freeze(home)
    cluster.table_away(home)
    cluster.run(40_000)
    cluster.thaw(home)
    cluster.run(300)
    assert cluster.node(home).plane.sending == {}
    assert cluster.owner_events(home)[-1] == "let go"


@pytest.mark.parametrize("seed", range(6))
def test_two_nodes_asked_at_once_take_turns_till_the_client_stays_with_one(seed: int) -> None:
    """Successive attempts, each before the one before could be answered."""
    cluster = Cluster(seed, nodes=3)
    before = cluster.attach()
    home = cluster.home()
    for node in cluster.nodes:
        cluster.table_rough(node, Weather(delay_ms=40, jitter_ms=40))  # longer than the RTO
    at_ms = cluster.now_ms
    cluster.crash(home)
    settled(cluster, 6_000)
    assert cluster.session().id == before[0]
    assert cluster.holders() == [cluster.home()]
    assert cluster.client().longest_gap_ms(at_ms) <= 4_000


def test_replayed_requests_take_no_session_away() -> None:
    cluster = Cluster(nodes=3)
    before = cluster.attach()
    cluster.crash(cluster.home())
    settled(cluster)
    home, epoch = cluster.home(), cluster.session().epoch
    kind, sent = PacketType.REATTACH_REQUEST, cluster.client().sent
    requests = [packet for packet in sent if packet[0] == kind]
    assert requests
    for node in cluster.nodes:
        for packet in requests:
            cluster.world.inject(f"wlan@{node}", "up", packet, ("203.0.113.66", 666))
    settled(cluster)
    assert (cluster.session().id, cluster.session().epoch) == (before[0], epoch)
    assert cluster.holders() == [home]
    assert cluster.owners.takeovers == 1


@pytest.mark.parametrize(("nodes", "delay_ms"), [(2, 1), (3, 1), (2, 8), (2, 35)])
def test_a_drain_moves_every_session_and_loses_no_echo(nodes: int, delay_ms: int) -> None:
    """`delay_ms`: of the table. It is asked twice, and the path's own time-out may be shorter."""
    cluster = Cluster(nodes=nodes, clients=2)
    before = cluster.attach()
    for node in cluster.nodes:
        cluster.table_rough(node, Weather(delay_ms))
    since_ms = cluster.now_ms - 500
    cluster.leave("gw1")
    cluster.run(1_000)
    assert all(cluster.home(name) != "gw1" for name in cluster.clients)
    assert [cluster.session(name).id for name in cluster.clients] == before
    for name in cluster.clients:
        cluster.client(name).busy = False
    settled(cluster)
    assert cluster.node("gw1").gateway.sessions == {}
    for end in map(cluster.client, cluster.clients):
        assert [number for number in end.lost if end.sent_ms[number] >= since_ms] == []


def test_a_former_owner_takes_what_was_on_its_way_and_answers_nothing() -> None:
    cluster = Cluster()
    cluster.attach()
    home = cluster.home()
    cluster.cut(home, Conditions(delay_ms=90))
    cluster.run(1_500)
    cluster.leave(home)
    cluster.world.run_until(lambda: home not in cluster.holders(), cluster.now_ms + 5_000)
    end = cluster.node(home)
    sent, taken, probes = len(end.sent), end.plane.rx, end.gateway.dropped.get("unknown index", 0)
    cluster.run(400)
    assert end.plane.rx > taken
    assert end.gateway.dropped["unknown index"] > probes
    assert PacketType.CONTROL not in {packet[0] for packet in end.sent[sent:]}
    settled(cluster)
    assert end.plane.receiving == {}


def test_a_drained_node_takes_nobody_until_it_stays_after_all() -> None:
    cluster = Cluster(load=SELDOM)
    before = cluster.attach()
    home = cluster.home()
    (other,) = cluster.others(home)
    cluster.leave(other)
    cluster.run(3_000)
    cluster.cut(home)
    cluster.run(10_000)
    assert cluster.holders() in ([home], [])
    assert cluster.node(other).gateway.sessions == {}
    cluster.leave(other, False)
    settled(cluster, 5_000)
    assert (cluster.session().id, cluster.home()) == (before[0], other)


def test_the_last_node_that_takes_sessions_keeps_them_when_it_is_drained() -> None:
    cluster = Cluster()
    before = cluster.attach()
    for node in cluster.nodes:
        cluster.leave(node)
    at_ms = cluster.now_ms
    cluster.run(5_000)
    assert cluster.session().id == before[0]
    assert cluster.client().longest_gap_ms(at_ms) <= 50
    denied = cluster.clients["c1"].history.of("TRANSPORT_SWITCH_DENIED")
    assert [event.reason for event in denied] == [Reason.NODE_DRAINING]


def test_a_table_that_is_away_for_all_ends_sessions_in_bounded_time_and_they_come_back() -> None:
    cluster = Cluster(load=SELDOM)
    before = cluster.attach()
    at_ms = cluster.now_ms
    for node in cluster.nodes:
        cluster.table_away(node)
    cluster.run(25_000)
    assert cluster.client().longest_gap_ms(at_ms) <= 50
    cluster.run(8_000)
    assert cluster.holders() == []
    assert cluster.session().id == before[0]  # it still may come back
    for node in cluster.nodes:
        cluster.table_away(node, False)
    settled(cluster, 5_000)
    assert cluster.is_attached()
    assert cluster.session().id == before[0]


def test_a_node_that_is_started_again_takes_its_sessions_up() -> None:
    cluster = Cluster()
    before = cluster.attach()
    home, (other,) = cluster.home(), cluster.others(cluster.home())
    cluster.cut(other)
    cluster.run(3_000)
    cluster.crash(home)
    cluster.run(3_000)
    cluster.boot(home)
    settled(cluster, 5_000)
    assert (cluster.session().id, cluster.home()) == (before[0], home)
    assert cluster.holders() == [home]


def test_a_node_that_is_started_again_leaves_alone_what_moved_meanwhile() -> None:
    cluster = Cluster()
    before = cluster.attach()
    home = cluster.home()
    cluster.crash(home)
    cluster.run(1_000)
    cluster.boot(home)
    settled(cluster, 5_000)
    assert cluster.session().id == before[0]
    assert cluster.holders() == [cluster.home()] != [home]


def test_a_session_that_moves_while_its_former_owner_starts_is_not_taken_up() -> None:
    """Its rows were read before the takeover; the news of it comes before they are there."""
    cluster = Cluster()
    cluster.attach()
    home = cluster.home()
    at_ms = cluster.now_ms
    cluster.crash(home)
    cluster.world.run_until(
        lambda: cluster.session().state is State.RECOVERING, cluster.now_ms + 1_000
    )
    cluster.table_rough(home, Weather(delay_ms=5))
    cluster.boot(home)
    settled(cluster)
    assert cluster.holders() == [cluster.home()] != [home]
    assert cluster.client().longest_gap_ms(at_ms) <= 500


def test_a_birth_at_another_node_supersedes_the_session_of_before() -> None:
    cluster = Cluster()
    (before,) = cluster.attach()
    home = cluster.home()
    cluster.cut(home)
    cluster.world.crash("c1")
    cluster.clients["c1"].kept.clear()  # a reboot
    cluster.world.restart("c1")
    settled(cluster, 5_000)
    assert cluster.home() != home
    assert cluster.session().id != before
    assert before not in cluster.node(home).gateway.sessions
    assert "SUPERSEDED" in cluster.histories[home].reasons()


def test_a_write_whose_answer_is_lost_neither_doubles_nor_loses_a_session() -> None:
    cluster = Cluster(nodes=3, load=SELDOM)
    before = cluster.attach()
    home = cluster.home()
    for node in cluster.nodes:
        cluster.table_rough(node, Weather(delay_ms=5, loss=0.5))
    cluster.crash(home)
    cluster.run(15_000)
    for node in cluster.nodes:
        cluster.table_rough(node, Weather())
    settled(cluster, 5_000)
    assert cluster.session().id == before[0]
    assert cluster.is_attached()


def test_a_write_that_comes_after_its_node_gave_up_binds_nothing() -> None:
    cluster = Cluster()
    before = cluster.attach()
    home = cluster.home()
    for node in cluster.nodes:
        cluster.table_rough(node, Weather(delay_ms=TIMEOUT_MS + 300))
    cluster.crash(home)
    cluster.run(5_000)
    for node in cluster.nodes:
        cluster.table_rough(node, Weather())
    settled(cluster, 8_000)
    assert cluster.session().id == before[0]
    assert cluster.is_attached()


def test_news_comes_late_and_the_owner_before_learns_it_from_its_own_write() -> None:
    cluster = Cluster(policy=Policy(transport_loss_ttl_ms=20_000))
    cluster.attach()
    home = cluster.home()
    link = cluster.links[home]
    link._deliver = lambda: None  # type: ignore[method-assign]
    cluster.cut(home)
    cluster.run(6_000)
    assert cluster.home() != home
    assert home not in cluster.holders()
    assert cluster.owner_events(home) == ["lost"]


def test_a_lossy_road_to_every_node_is_no_reason_to_lose_the_session() -> None:
    cluster = Cluster(seed=3, nodes=3, load=SELDOM)
    before = cluster.attach()
    for node in cluster.nodes:
        cluster.cut(node, Conditions(delay_ms=10, jitter_ms=10, loss=0.15, duplicate=0.1))
    cluster.run(20_000)
    for node in cluster.nodes:
        cluster.heal(node)
    settled(cluster, 5_000)
    assert cluster.session().id == before[0]
    assert cluster.holders() == [cluster.home()]


def test_a_rekey_is_a_new_version_of_the_row() -> None:
    """Else a node that has loaded the row before could take it over with the root of before."""
    cluster = Cluster(policy=Policy(rekey_after_ms=10_000), load=SELDOM)
    (session_id,) = cluster.attach()
    versions = [cluster.table.rows[session_id]["state_version"]]
    cluster.world.run_until(lambda: cluster.session().rekeys == 1, cluster.now_ms + 20_000)
    settled(cluster)
    versions.append(cluster.table.rows[session_id]["state_version"])
    assert versions == [1, 2]
    cluster.crash(cluster.home())
    settled(cluster)
    assert cluster.session().id == session_id
    assert cluster.is_attached()
