"""A gateway whose list of clients changes while it runs."""

from __future__ import annotations

import pytest

from jvpnd.core.client import ClientAgent
from jvpnd.core.effects import NetworksChanged, ReleaseReceive, Send, SessionDown, SessionUp, Swap
from jvpnd.core.gateway import Stored
from jvpnd.core.listing import MAX_NAMES, ListChange
from jvpnd.core.noise import public_key
from jvpnd.core.peer import ClientEntry
from jvpnd.core.reasons import Reason
from jvpnd.core.states import State
from jvpnd.core.wire import PacketType

from .test_gateway import AWAY, CLIENT_SECRET, HOME, Bench

LAPTOP = ClientEntry("laptop", public_key(CLIENT_SECRET), ("10.77.0.2/24",))
PHONE_SECRET = b"p" * 32
PHONE = ClientEntry("phone", public_key(PHONE_SECRET), ("10.77.0.3/24",))
OTHERS = {
    "gone": (),
    "another address": (ClientEntry("laptop", LAPTOP.public_key, ("10.77.0.9/24",)),),
    "another pre-shared key": (
        ClientEntry("laptop", LAPTOP.public_key, LAPTOP.addresses, psk=b"s" * 32),
    ),
    "another key": (ClientEntry("laptop", PHONE.public_key, LAPTOP.addresses),),
}


def apply(bench: Bench, *entries: ClientEntry) -> tuple[ListChange, list[object]]:
    """What changed, and what the gateway wants done."""
    change = bench.gateway.apply_clients(bench.now_ms, entries)
    effects = bench.gateway.drain()
    bench.gateway._state.effects += effects
    bench.settle()
    return change, list(effects)


def first_init(bench: Bench, agent: ClientAgent) -> bytes:
    return next(bench.inits(agent))


def test_the_same_list_changes_nothing_and_tells_nothing() -> None:
    bench = Bench()
    bench.attach()
    change, effects = apply(bench, ClientEntry("laptop", LAPTOP.public_key, LAPTOP.addresses))
    assert not change
    assert effects == []


def test_a_client_that_is_added_may_come_at_once_and_nobody_notices() -> None:
    bench = Bench()
    laptop = bench.attach()
    phone = bench.client(PHONE_SECRET)
    assert bench.give(AWAY, first_init(bench, phone)) == []
    change, _ = apply(bench, LAPTOP, PHONE)
    assert change == ListChange(added=("phone",))
    inits = bench.inits(phone)
    (response,) = bench.give(AWAY, next(inits))
    assert response[0] == PacketType.HANDSHAKE_RESPONSE
    phone.packet_received(bench.now_ms, "p", response)
    for effect in phone.drain():
        if isinstance(effect, Send):
            bench.give(AWAY, effect.data)
    assert {p.entry.name for p in bench.gateway.sessions.values()} == {"laptop", "phone"}
    assert laptop.session.state is State.ATTACHED


@pytest.mark.parametrize("after", OTHERS.values(), ids=OTHERS)
def test_the_session_of_who_is_not_listed_so_any_more_ends_and_the_client_is_told(
    after: tuple[ClientEntry, ...],
) -> None:
    bench = Bench()
    peer = bench.attach()
    assert bench.agent.session is not None
    before = bench.agent.session.id
    _, effects = apply(bench, *after)
    assert peer.session.state is State.TERMINATED
    assert not bench.gateway.sessions
    (close,) = [e for e in effects if isinstance(e, Send)]
    assert close.to == HOME
    bench.agent.packet_received(bench.now_ms, "p", close.data)
    assert bench.agent.session is None or bench.agent.session.id != before
    assert any(isinstance(e, SessionDown) for e in effects)
    assert any(isinstance(e, ReleaseReceive) and e.index == peer.keys.index for e in effects)
    ended = [e for e in bench.events if e.event_type == "SESSION_TERMINATED"]
    assert [(e.client, e.reason) for e in ended] == [("laptop", Reason.POLICY_TERMINATION)]


def test_who_is_removed_gets_no_answer_any_more_and_comes_back_when_listed_again() -> None:
    bench = Bench()
    bench.attach()
    apply(bench)
    again = bench.client(CLIENT_SECRET)
    bench.now_ms += 10_000
    assert bench.give(HOME, first_init(bench, again)) == []
    assert "AUTH_FAIL" in bench.security()
    apply(bench, LAPTOP)
    bench.now_ms += 10_000
    (response,) = bench.give(HOME, first_init(bench, bench.client(CLIENT_SECRET)))
    assert response[0] == PacketType.HANDSHAKE_RESPONSE


def test_a_half_open_handshake_of_who_is_removed_becomes_no_session() -> None:
    bench = Bench()
    (response,) = bench.give(HOME, first_init(bench, bench.agent))
    apply(bench, PHONE)
    confirm(bench, response)
    assert not bench.gateway.sessions


def test_a_half_open_handshake_goes_on_where_only_name_and_networks_changed() -> None:
    bench = Bench()
    (response,) = bench.give(HOME, first_init(bench, bench.agent))
    site = ClientEntry("branch", LAPTOP.public_key, LAPTOP.addresses, ("192.168.5.0/24",))
    apply(bench, site)
    effects = confirm(bench, response)
    (peer,) = bench.gateway.sessions.values()
    assert (peer.entry, peer.session.client) == (site, "branch")
    (up,) = [e for e in effects if isinstance(e, SessionUp)]
    assert up.networks == site.networks


def confirm(bench: Bench, response: bytes) -> list[object]:
    """What the gateway wants done once the client has confirmed."""
    bench.agent.packet_received(bench.now_ms, "p", response)
    effects: list[object] = []
    for sent in bench.agent.drain():
        if isinstance(sent, Send):
            bench.gateway.packet_received(bench.now_ms, HOME, sent.data)
            while some := bench.gateway.drain():
                effects += some
                for effect in some:
                    if isinstance(effect, Swap):
                        bench.gateway.store_result(bench.now_ms, effect.token, Stored.OK)
    return effects


def test_a_list_that_changes_while_the_table_is_written_counts() -> None:
    bench = Bench()
    (response,) = bench.give(HOME, first_init(bench, bench.agent))
    bench.agent.packet_received(bench.now_ms, "p", response)
    tokens: list[int] = []
    for sent in bench.agent.drain():
        if isinstance(sent, Send):
            bench.gateway.packet_received(bench.now_ms, HOME, sent.data)
    tokens += [e.token for e in bench.gateway.drain() if isinstance(e, Swap)]
    assert len(tokens) == 1  # the table has not answered yet
    bench.gateway.apply_clients(bench.now_ms, [])
    bench.gateway.store_result(bench.now_ms, tokens[0], Stored.OK)
    bench.settle()
    assert not bench.gateway.sessions
    ended = [e for e in bench.events if e.event_type == "SESSION_TERMINATED"]
    assert [e.reason for e in ended] == [Reason.POLICY_TERMINATION]


def test_networks_and_name_follow_while_the_session_goes_on() -> None:
    bench = Bench()
    peer = bench.attach()
    site = ClientEntry("branch", LAPTOP.public_key, LAPTOP.addresses, ("192.168.5.0/24",))
    change, effects = apply(bench, site)
    assert change == ListChange(changed=("branch",))
    assert effects[1:] == [NetworksChanged(peer.session.id or b"", ("192.168.5.0/24",))]
    assert (peer.session.state, peer.session.client) == (State.ATTACHED, "branch")
    # A rekey and a reattach are as good as before.
    bench.now_ms += 1_000
    answers = bench.give(AWAY, bench.request(peer, 5))
    assert answers[0][0] == PacketType.REATTACH_ACK


def test_one_event_tells_of_a_change_and_names_some_of_many() -> None:
    bench = Bench()
    many = [
        ClientEntry(f"c{n}", n.to_bytes(32, "big"), (f"10.77.1.{n}/16",)) for n in range(1, 100)
    ]
    change, _ = apply(bench, *many)
    assert (len(change.added), change.removed) == (99, ("laptop",))
    (event,) = [e for e in bench.events if e.event_type == "AUDIT_EVENT"]
    assert (event.details["added"], event.details["removed"]) == (99, 1)
    names = event.details["names"]
    assert isinstance(names, list)
    assert len(names) == MAX_NAMES
