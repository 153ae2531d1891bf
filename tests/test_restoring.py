"""A gateway that takes up its sessions from the rows of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.core import constants as c
from jvpnd.core import keys
from jvpnd.core.effects import BindSend, Effect, Emit, Expect, Send, SessionUp, Swap
from jvpnd.core.gateway import Gateway, Stored
from jvpnd.core.noise import public_key
from jvpnd.core.packets import notice_index, open_notice
from jvpnd.core.peer import ClientEntry, Peer
from jvpnd.core.policy import Policy
from jvpnd.core.reasons import Reason
from jvpnd.core.record import peer_of, row_of
from jvpnd.core.sessionrow import Row
from jvpnd.core.states import State
from jvpnd.core.wire import PacketType

from .simulation.ends import SeededEntropy
from .test_gateway import CLIENT_SECRET, HOME, SECRET, Bench

ENTRY = ClientEntry("laptop", public_key(CLIENT_SECRET), ("10.77.0.2/24",))


def kept(peer: Peer) -> dict[str, object]:
    return dict(row_of(peer, "gw"))


def started(
    rows: list[Row], *entries: ClientEntry, now_ms: float = 2_000
) -> tuple[Gateway, list[str], list[Effect]]:
    """A gateway with these rows, what it wants forgotten, and what it wants done at once."""
    entropy = SeededEntropy(Random(3))
    gateway = Gateway("gw", SECRET, entries or [ENTRY], Policy(), entropy)
    useless = gateway.restore(now_ms, rows)
    gateway.timer(now_ms)
    return gateway, useless, settled(gateway, now_ms)


def settled(gateway: Gateway, now_ms: float) -> list[Effect]:
    done: list[Effect] = []
    while effects := gateway.drain():
        for effect in effects:
            if isinstance(effect, Swap):
                gateway.store_result(now_ms, effect.token, Stored.OK)
        done += effects
    return done


def notices(effects: list[Effect]) -> list[Send]:
    return [e for e in effects if isinstance(e, Send) and e.data[0] == PacketType.NOTICE]


def reasons(effects: list[Effect]) -> list[str]:
    return [str(e.reason) for e in effects if isinstance(e, Emit)]


def test_a_session_is_taken_up_unbound_and_its_client_is_told() -> None:
    peer = Bench().attach()
    gateway, useless, effects = started([kept(peer)])
    (restored,) = gateway.sessions.values()
    session = restored.session
    assert useless == []
    assert (session.id, session.addresses) == (peer.session.id, peer.session.addresses)
    assert (session.state, session.state_version) == (State.RECOVERING, 2)
    assert not any(isinstance(effect, BindSend | SessionUp) for effect in effects)
    assert Expect(peer.next_index) in effects
    (notice,) = notices(effects)
    assert notice.to == HOME
    assert notice_index(notice.data) == peer.keys.peer_index
    assert open_notice(notice.data, keys.notice_key(session.root, session.epoch))


def test_a_request_binds_it_again_and_only_then_it_has_a_route() -> None:
    bench = Bench()
    peer = bench.attach()
    gateway, _, _ = started([kept(peer)])
    gateway.packet_received(2_010, HOME, bench.request(peer, 5, sent_ms=1_010))
    effects = settled(gateway, 2_010)
    assert [type(e) for e in effects if isinstance(e, SessionUp | BindSend)] == [
        SessionUp,
        BindSend,
    ]
    assert gateway.sessions[peer.session.id or b""].session.epoch == 5


def test_what_a_restored_session_says_never_uses_a_counter() -> None:
    """Two restarts from one row: the same keys, so the nonces have to differ."""
    peer = Bench().attach()
    first, second = (
        notices(started([kept(peer)], now_ms=at_ms)[2])[0].data for at_ms in (2_000, 3_000)
    )
    restored = peer_of(kept(peer), ENTRY, SeededEntropy(Random(4)).draw)
    assert restored is not None
    assert restored.keys.send.control == restored.keys.send.data == b""
    assert {packet[0] for packet in (first, second)} == {PacketType.NOTICE}


def test_a_probe_of_before_is_answered_by_a_notice_and_counts_for_nothing() -> None:
    bench = Bench()
    peer = bench.attach()
    gateway, _, _ = started([kept(peer)])
    bench.agent.timer(bench.now_ms + 1_000)
    sent = [effect.data for effect in bench.agent.drain() if isinstance(effect, Send)]
    probe = next(packet for packet in sent if packet[0] == PacketType.CONTROL)
    for _ in range(2):  # it may come twice: nobody remembers its counter
        gateway.packet_received(2_500, HOME, probe)
    effects = settled(gateway, 2_500)
    assert len(notices(effects)) == 1  # bounded in rate
    assert len(notices(effects)[0].data) <= 2 * len(probe)
    assert gateway.sessions[peer.session.id or b""].session.state is State.RECOVERING


@pytest.mark.parametrize(
    "entries",
    [
        [ClientEntry("other", b"o" * 32, ("10.77.0.3/24",))],
        [ClientEntry("laptop", public_key(CLIENT_SECRET), ("10.77.0.9/24",))],
    ],
    ids=["listed no more", "other addresses"],
)
def test_a_session_that_the_configuration_allows_no_more_ends(entries: list[ClientEntry]) -> None:
    peer = Bench().attach()
    gateway, _, effects = started([kept(peer)], *entries)
    assert gateway.sessions == {}
    assert "POLICY_TERMINATION" in reasons(effects)
    assert len(notices(effects)) == 1  # so that the client begins a new one at once


def test_the_newest_session_of_a_client_stays() -> None:
    old, new = (kept(Bench().attach()) for _ in range(2))
    new |= {"session_id": "aa" * 16, "created_ms": 1_500.0, "index": 5, "next_index": 6}
    gateway, _, effects = started([new, old])
    assert [peer.session.id for peer in gateway.sessions.values()] == [b"\xaa" * 16]
    assert "SUPERSEDED" in reasons(effects)


def test_the_init_of_a_session_taken_up_is_a_replay() -> None:
    bench = Bench()
    init = next(bench.inits(bench.agent))
    bench.give(HOME, init)
    other = Bench()
    gateway, _, _ = started([kept(other.attach())])
    gateway.packet_received(2_100, HOME, init)
    assert not any(isinstance(effect, Send) for effect in settled(gateway, 2_100))


def test_its_ttls_go_on() -> None:
    row = kept(Bench().attach())
    gateway, _, _ = started([row])
    gateway.timer(2_000 + Policy().transport_loss_ttl_ms + c.SCAN_MS)
    assert "TTL_TRANSPORT_LOSS_EXPIRED" in reasons(settled(gateway, 70_000))
    assert gateway.sessions == {}


def many(count: int) -> tuple[list[ClientEntry], list[Row]]:
    """Clients, and a row for each, the oldest first."""
    row, entries, rows = kept(Bench().attach()), [], []
    for number in range(count):
        key = number.to_bytes(32, "big")
        entries.append(ClientEntry(str(number), key, ("10.77.0.2/24",)))
        mine = {
            "session_id": f"{number:032x}",
            "client": str(number),
            "client_key": key.hex(),
            "created_ms": 1_000.0 + number / 100,
            "index": 2 * number + 1_000,
            "next_index": 2 * number + 1_001,
        }
        rows.append(row | mine)
    return entries, rows


def test_thousands_are_told_by_and_by() -> None:
    entries, rows = many(100)
    gateway, _, effects = started(rows, *entries)
    told = [len(notices(effects))]
    now_ms = 2_000.0
    while sum(told) < 100:
        now_ms = gateway.next_timer_ms(now_ms)
        gateway.timer(now_ms)
        told.append(len(notices(settled(gateway, now_ms))))
    assert max(told) == c.TELL_SLICE
    assert now_ms - 2_000 <= 100 / c.TELL_SLICE * c.TELL_GAP_MS


def test_thousands_that_expire_at_once_end_the_oldest_first_and_some_at_a_time() -> None:
    entries, rows = many(600)
    gateway, _, _ = started(rows, *entries)
    for at_ms in (2_300, 2_600):  # a whole round of looks
        gateway.timer(at_ms)
        settled(gateway, at_ms)
    now_ms = 1_000.0 + Policy().session_ttl_ms + 100
    ended: list[list[Emit]] = []
    while gateway.sessions:
        gateway.timer(now_ms)
        effects = settled(gateway, now_ms)
        found = [e for e in effects if isinstance(e, Emit)]
        ended.append([e for e in found if e.event_type == "SESSION_TERMINATED"])
        now_ms = gateway.next_timer_ms(now_ms)
    assert max(map(len, ended)) <= c.SCAN_ENDS + c.TELL_SLICE
    order = [e.client for turn in ended for e in turn]
    assert order == [entry.name for entry in entries]
    assert {e.reason for turn in ended for e in turn} == {Reason.TTL_SESSION_EXPIRED}


def changed(row: Mapping[str, object], key: str, value: object) -> Row:
    return {**row, key: value}


@given(st.data())
def test_a_row_that_makes_no_sense_is_left_out_and_told_of(data: st.DataObject) -> None:
    row = kept(PEER)
    key = data.draw(st.sampled_from(sorted(row)))
    junk: Callable[[], object] = lambda: data.draw(  # noqa: E731
        st.none() | st.integers(max_value=-1) | st.text(max_size=5) | st.lists(st.text(max_size=2))
    )
    gateway, useless, effects = started([changed(row, key, junk())])
    assert len(gateway.sessions) + len(useless) <= 1 or "POLICY_TERMINATION" in reasons(effects)
    if useless:
        assert gateway.sessions == {}


PEER = Bench().attach()


@pytest.mark.parametrize("key", ["root", "epoch", "client_key", "heard_key", "remote", "state"])
def test_a_row_without_one_of_its_fields_is_forgotten(key: str) -> None:
    row = kept(PEER)
    del row[key]
    gateway, useless, effects = started([row])
    assert (gateway.sessions, useless) == ({}, [row["session_id"]])
    assert reasons(effects) == ["SEC_OWNERSHIP_ANOMALY"]
