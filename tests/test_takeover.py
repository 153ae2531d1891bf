"""A session between two gateways: who takes it, who loses it, and what nobody may do."""

from __future__ import annotations

import pytest

from jvpnd.core import constants as c
from jvpnd.core import keys
from jvpnd.core.effects import (
    BindSend,
    Endpoint,
    Expect,
    ReleaseReceive,
    ReleaseSend,
    SessionUp,
    Unexpect,
)
from jvpnd.core.gateway import Stored
from jvpnd.core.nodes import (
    NodeState,
    Sharing,
    decode_node_probe,
    node_probe,
    node_tag,
    read_node_reply,
)
from jvpnd.core.packets import decode_reject
from jvpnd.core.path import PathInfo
from jvpnd.core.sessionrow import version_of
from jvpnd.core.states import State
from jvpnd.core.ticket import Ticket

from .nodes import Nodes, accepted, refused
from .test_gateway import SECRET


def test_another_node_takes_the_session_over_with_its_id_and_addresses() -> None:
    net = Nodes()
    assert accepted(net.b.give(net.request(2)))
    peer = net.b.peer()
    assert (peer.session.id, peer.session.epoch, peer.session.state) == (net.id, 2, State.ATTACHED)
    assert peer.session.addresses == net.first.session.addresses
    assert net.owner() == "b"
    assert len(net.b.did(SessionUp)) == len(net.b.did(BindSend)) == 1
    (event,) = net.b.events("OWNERSHIP")
    assert event.details == {"what": "taken over", "from": "a", "loads": 1}
    assert peer.session.state_version == version_of(net.table.rows[net.id])


def test_data_that_follows_the_request_is_held_until_the_table_has_answered() -> None:
    net = Nodes()
    net.b.holds = True
    net.b.give(net.request(2))
    (expected,) = net.b.did(Expect)
    assert expected == Expect(net.next_index)
    assert net.b.did(BindSend) == []
    net.b.answered()
    assert net.b.did(BindSend) == []  # the row is here, but not ours
    assert accepted(net.b.answered())
    assert len(net.b.did(BindSend)) == 1
    assert Unexpect(net.next_index) not in net.b.effects


def test_the_owner_before_is_silent_as_soon_as_it_hears_of_it() -> None:
    net = Nodes()
    net.b.give(net.request(2))
    net.a.hear(net.id)
    assert net.a.did(ReleaseSend) == [ReleaseSend(net.id)]
    assert net.a.core.sessions == {}
    assert net.a.ownership() == [("OWNER_MOVED", "lost")]
    assert net.a.events("STATE_CHANGE")[-1].to_state == State.TERMINATED
    assert net.owner() == "b", "the loser writes nothing"


def test_the_owner_before_still_receives_what_was_under_way_to_it_but_answers_nothing() -> None:
    net = Nodes()
    net.agent.timer(3_000)
    late = net.client_sent()
    assert late
    index = net.first.keys.index
    net.b.give(net.request(2))
    net.a.hear(net.id)
    assert net.a.did(ReleaseReceive) == []
    assert [answer for packet in late for answer in net.a.give(packet)] == []
    net.a.now_ms += net.a.core.policy.drain_ms
    net.a.core.timer(net.a.now_ms)
    net.a.settle()
    assert net.a.did(ReleaseReceive) == [ReleaseReceive(index)]


def test_the_owner_before_learns_it_from_its_own_write() -> None:
    net = Nodes()
    net.b.give(net.request(2))
    net.a.now_ms += 2_500  # it has heard nothing of the client: a late heartbeat, to be written
    net.a.core.timer(net.a.now_ms)
    net.a.settle()
    assert net.a.ownership() == [("OWNER_MOVED", "lost")]
    assert net.owner() == "b"


def test_old_news_of_another_owner_stops_nobody() -> None:
    net = Nodes()
    net.b.give(net.request(2))
    old = dict(net.table.rows)
    back = net.request(3, net.b.peer().next_index, "b")
    assert accepted(net.a.give(back))
    net.table.rows, now = old, net.table.rows
    net.a.hear(net.id)
    net.table.rows = now
    assert net.owner() == "a"
    assert [peer.session.epoch for peer in net.a.core.sessions.values()] == [3]


def test_an_owner_that_is_asked_while_another_has_the_session_takes_it_back() -> None:
    net = Nodes()
    net.b.give(net.request(2))
    assert accepted(net.a.give(net.request(3, net.b.peer().next_index, "b")))
    assert net.owner() == "a"
    assert net.a.ownership() == [("OWNER_MOVED", "lost"), ("OWNER_MOVED", "taken over")]
    net.b.hear(net.id)
    assert net.b.core.sessions == {}


def test_of_two_nodes_with_the_same_request_one_wins_and_the_other_changes_nothing() -> None:
    net = Nodes()
    request = net.request(2)
    net.b.holds = True
    net.b.give(request)
    net.b.answered()  # its row is loaded, its write under way: it has been decided
    won_by_b = net.owner() == "b"
    assert won_by_b
    before = dict(net.table.rows)
    assert refused(net.a.give(request)) == "FRESHNESS_INVALID"
    assert net.table.rows == before
    assert accepted(net.b.answered())


def test_who_loads_before_and_writes_after_another_gets_ownership_conflict() -> None:
    net = Nodes()
    request = net.request(2)
    net.b.holds = True
    net.b.give(request)
    assert accepted(net.a.give(request))
    net.b.answered()  # the row of before
    net.b.answered()  # CONFLICT
    assert refused(net.b.answered()) == "OWNERSHIP_CONFLICT"
    assert net.owner() == "a"
    assert net.b.core.sessions == {}
    assert net.b.did(BindSend) == []
    assert Unexpect(net.next_index) in net.b.effects
    assert net.b.events("STATE_CHANGE") == []


def test_a_win_that_was_undone_before_it_was_known_binds_nothing() -> None:
    net = Nodes()
    net.b.holds = True
    net.b.give(net.request(2))
    net.b.answered()  # loaded; the write that follows succeeds, its answer waits
    assert net.owner() == "b"
    index = net.table.rows[net.id]["next_index"]
    assert isinstance(index, int)
    assert accepted(net.a.give(net.request(3, index, "b")))
    net.b.hear(net.id)
    net.b.holds = False
    assert refused(net.b.answered()) == "OWNERSHIP_CONFLICT"
    assert net.b.did(BindSend) == []


@pytest.mark.parametrize("applies", [True, False])
def test_after_a_write_of_unknown_outcome_the_next_request_decides(applies: bool) -> None:
    net = Nodes()
    net.b.holds = True
    net.b.give(net.request(2))
    net.table.answer, net.table.applies = Stored.UNAVAILABLE, applies
    net.b.answered()
    net.table.answer = None
    net.b.holds = False
    assert refused(net.b.answered()) == "STORE_UNAVAILABLE"
    assert net.b.did(BindSend) == []
    index = net.table.rows[net.id]["next_index"] if applies else net.next_index
    assert isinstance(index, int)
    assert accepted(net.b.give(net.request(3, index)))
    assert net.b.peer().session.epoch == 3


def test_an_owner_recognises_its_own_write_whose_answer_was_lost() -> None:
    net = Nodes()
    net.table.answer, net.table.applies = Stored.UNAVAILABLE, True
    assert refused(net.a.give(net.request(2))) == "STORE_UNAVAILABLE"
    net.table.answer = None
    assert accepted(net.a.give(net.request(3)))
    assert net.owner() == "a"
    assert net.a.ownership() == [("SEC_OWNERSHIP_ANOMALY", None)]


def test_without_the_table_nothing_is_taken_over() -> None:
    net = Nodes()
    net.table.answer = Stored.UNAVAILABLE
    assert refused(net.b.give(net.request(2))) == "STORE_UNAVAILABLE"
    assert net.b.core.sessions == {}


def test_a_session_that_is_nowhere_is_told_to_be_so() -> None:
    net = Nodes()
    net.table.rows.clear()
    assert refused(net.b.give(net.request(2))) == "SESSION_NOT_FOUND"


def test_a_session_that_has_ended_elsewhere_is_not_revived() -> None:
    net = Nodes()
    net.a.core.terminate(net.a.now_ms, net.id)
    net.a.settle()
    assert refused(net.b.give(net.request(2))) == "SESSION_EXPIRED"


def test_a_forged_proof_takes_nothing_over() -> None:
    net = Nodes()
    request = bytearray(net.request(2))
    request[-1] ^= 1
    assert net.b.give(bytes(request)) == []
    assert net.owner() == "a"
    assert Unexpect(net.next_index) in net.b.effects
    assert accepted(net.b.give(net.request(2))), "and it keeps nobody else from it"


def test_an_old_attempt_takes_nothing_over() -> None:
    net = Nodes()
    assert refused(net.b.give(net.request(1))) == "FRESHNESS_INVALID"
    assert net.owner() == "a"


def test_one_session_is_looked_up_once_at_a_time() -> None:
    net = Nodes()
    net.b.holds = True
    net.b.give(net.request(2))
    net.b.give(net.request(3))
    assert len(net.b.held) == 1
    assert net.b.core.dropped == {"reattach while its session is looked up": 1}


def test_sessions_that_are_looked_up_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "MAX_VISITS", 1)
    net = Nodes()
    net.b.holds = True
    net.b.give(net.request(2))
    net.id, net.next_index = bytes(16), 77
    assert net.b.give(net.request(2)) == []
    assert len(net.b.held) == 1
    assert net.b.core.dropped == {"too many sessions to look up": 1}


def test_a_row_that_is_gone_ends_the_service() -> None:
    net = Nodes()
    net.a.core.row_gone(net.a.now_ms, net.id)
    net.a.settle()
    assert net.a.core.sessions == {}
    assert net.a.did(ReleaseSend) == [ReleaseSend(net.id)]


def test_a_client_that_began_again_elsewhere_has_one_session_only() -> None:
    net, other = Nodes(), Nodes()
    (row,) = other.table.rows.values()
    new = bytes(range(16))
    net.table.rows[new] = {**row, "session_id": new.hex(), "owner": "b", "created_ms": 2_000.0}
    net.a.hear(new)
    assert net.a.core.sessions == {}
    assert net.table.rows[net.id]["state"] == State.TERMINATED
    assert net.table.rows[net.id]["ended"] == "SUPERSEDED"


# --- fail closed ---


def test_sessions_go_on_without_the_table_for_a_bounded_time() -> None:
    net = Nodes()
    net.table.answer = Stored.UNAVAILABLE
    ttl_ms = net.a.core.policy.store_loss_ttl_ms
    net.a.now_ms = ttl_ms - 1
    net.a.core.data_heard(net.a.now_ms, net.id, net.a.now_ms, net.first.keys.index)
    net.a.core.timer(net.a.now_ms)
    net.a.settle()
    assert net.a.did(ReleaseSend) == []
    net.a.now_ms = ttl_ms + 300
    net.a.core.timer(net.a.now_ms)
    net.a.settle()
    assert net.a.did(ReleaseSend) == [ReleaseSend(net.id)]
    assert net.a.ownership()[-1] == ("STORE_UNAVAILABLE", "let go")
    net.table.answer = None
    assert net.owner() == "a"
    again = net.request(2, age_ms=int(net.a.now_ms) - 1_000)
    assert accepted(net.a.give(again)), "it may be taken up again once the table is back"


# --- probes of nodes ---


def test_any_node_answers_a_probe_of_nodes_and_says_how_it_is() -> None:
    net = Nodes()
    reset_key = keys.reset_key(SECRET, net.id)
    ticket = Ticket(net.id, 0, 1, 0).seal(keys.ticket_key(SECRET), b"t" * 24)
    probe = node_probe(ticket, 7, reset_key)
    (answer,) = net.b.give(probe)
    assert len(answer) < len(probe)
    assert read_node_reply(answer, probe, reset_key) is NodeState.READY
    assert read_node_reply(answer, node_probe(ticket, 8, reset_key), reset_key) is None
    net.b.core.leave(net.b.now_ms, True)
    (answer,) = net.b.give(probe)
    assert read_node_reply(answer, probe, reset_key) is NodeState.DRAINING


def test_a_probe_of_nodes_without_the_sessions_key_is_not_answered() -> None:
    net = Nodes()
    ticket = Ticket(net.id, 0, 1, 0).seal(keys.ticket_key(SECRET), b"t" * 24)
    forged = node_probe(ticket, 7, b"not the key")
    assert decode_node_probe(forged) is not None
    assert net.b.give(forged) == []
    assert net.b.core.dropped == {"bad NODE_PROBE": 1}


# --- leaving ---


def test_a_node_that_is_left_takes_nobody_and_asks_its_clients_to_go() -> None:
    net = Nodes()
    net.b.core.leave(net.b.now_ms, True)
    assert refused(net.b.give(net.request(2))) == "NODE_DRAINING"
    net.a.core.leave(net.a.now_ms, True)
    net.a.core.timer(net.a.now_ms)
    (move,) = net.a.settle()
    net.agent.path_added(1_100, PathInfo("q", "udp", "q", "-", "-", node_tag("b")))
    net.client_sent()
    net.agent.packet_received(1_700, "p", move)
    (request, *_) = net.client_sent()
    net.b.core.leave(net.b.now_ms, False)
    net.b.now_ms = 1_700
    (ack,) = net.b.give(request)
    net.agent.packet_received(1_710, "q", ack)
    assert net.agent.session is not None
    assert (net.agent.session.id, net.agent.session.state) == (net.id, State.ATTACHED)
    assert net.owner() == "b"


# --- without a shared table ---


def test_a_node_without_the_table_names_the_owner_and_adopts_nobody() -> None:
    net = Nodes(Sharing.STICKY)
    (answer,) = net.b.give(net.request(2))
    reject = decode_reject(answer)
    assert reject is not None
    assert (refused([answer]), reject.node) == ("WRONG_NODE", node_tag("a"))
    assert net.b.core.sessions == {}
    assert refused(net.b.give(net.request(2, node="b"))) == "SESSION_NOT_FOUND"


def test_new_clients_are_told_of_the_other_nodes() -> None:
    net = Nodes()
    there = Endpoint("udp", "203.0.113.9", 7700, node_tag("b"))
    net.a.core.nodes_seen([there])
    assert there in net.a.core._offers._allowed_endpoints()
