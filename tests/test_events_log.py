"""The event log keeps order, forgets the oldest, and is never held up by who listens."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.core.states import State
from jvpnd.observe.log import DROPPED, Event, EventLog, Subscription, concerns

FIELDS = [
    "schema",
    "ts_ms",
    "seq",
    "node_id",
    "event_type",
    "session_id",
    "client",
    "from",
    "to",
    "reason",
    "state_version",
    "policy_version",
    "details",
]


def make_log(capacity: int = 100) -> EventLog:
    clock = itertools.count(1_000)
    return EventLog("gw1", lambda: next(clock), capacity)


def read(subscription: Subscription, count: int) -> list[Event]:
    async def take() -> list[Event]:
        async with asyncio.timeout(5):
            return [await anext(subscription) for _ in range(count)]

    return asyncio.run(take())


def test_an_event_has_every_field_and_is_stamped_and_numbered() -> None:
    log = make_log()
    first = log.append("SESSION_CREATED", "ab" * 16, "laptop", details={"path": "a/udp/b"})
    second = log.append(
        event_type="STATE_CHANGE",
        from_state=State.BIRTH,
        to_state=State.ATTACHED,
        state_version=1,
        policy_version=7,
    )
    assert list(first) == list(second) == FIELDS
    assert (first["ts_ms"], first["seq"], first["node_id"]) == (1_000, 1, "gw1")
    assert first["details"] == {"path": "a/udp/b"}
    assert (second["seq"], second["from"], second["to"]) == (2, "BIRTH", "ATTACHED")
    assert type(second["from"]) is str
    assert (second["state_version"], second["policy_version"]) == (1, 7)


def test_details_are_copied_so_that_history_cannot_be_changed() -> None:
    log, details = make_log(), {"attempt": 1}
    log.append("REATTACH_ATTEMPT", details=details)
    details["attempt"] = 2
    assert log.recent()[0]["details"] == {"attempt": 1}


@given(st.integers(1, 20), st.integers(0, 60), st.none() | st.integers(1, 70))
def test_the_ring_holds_the_newest_events_in_order(capacity: int, count: int, limit: int) -> None:
    log = make_log(capacity)
    for _ in range(count):
        log.append("REKEY")
    kept = min(capacity, count, limit or count)
    assert [event["seq"] for event in log.recent(limit=limit)] == [
        *range(count - kept + 1, count + 1)
    ]
    held = min(capacity, count)
    assert log.status() == {"kept": held, "limit": capacity, "forgotten": count - held}


def test_recent_knows_a_session_by_how_its_id_begins_and_limits_after_that() -> None:
    log = make_log()
    for session_id in ("aa11", "bb22", "aa11", None, "aa33"):
        log.append("REKEY", session_id)
    assert [event["seq"] for event in log.recent("aa11")] == [1, 3]
    assert [event["seq"] for event in log.recent("aa")] == [1, 3, 5]
    assert [event["seq"] for event in log.recent("aa", limit=2)] == [3, 5]
    assert log.recent("cc") == []


def test_an_event_without_a_session_concerns_no_session_in_particular() -> None:
    event = make_log().append("SECURITY_EVENT")
    assert concerns(event, None)
    assert not concerns(event, "aa")


def test_a_subscriber_gets_what_comes_after_it_subscribed() -> None:
    log = make_log()
    log.append("REKEY")
    with log.subscribe() as subscription:
        log.append("NODE")
        log.append("REKEY")
        assert [event["seq"] for event in read(subscription, 2)] == [2, 3]


def test_a_waiting_subscriber_is_woken() -> None:
    async def scenario() -> Event:
        log = make_log()
        with log.subscribe() as subscription:
            waiting = asyncio.ensure_future(anext(subscription))
            await asyncio.sleep(0)
            log.append("REKEY")
            async with asyncio.timeout(5):
                return await waiting

    assert asyncio.run(scenario())["event_type"] == "REKEY"


def test_who_falls_behind_loses_the_oldest_is_told_how_many_and_seq_still_rises() -> None:
    log = make_log()
    with log.subscribe(capacity=3) as slow, log.subscribe(capacity=50) as quick:
        for _ in range(10):
            log.append("REKEY", "aa")
        told = read(slow, 4)
        assert told[0]["event_type"] == DROPPED
        assert told[0]["details"] == {"dropped": 7}
        assert list(told[0]) == FIELDS
        assert told[0]["session_id"] is None
        assert [event["seq"] for event in told] == [7, 8, 9, 10]
        assert slow.dropped == 7
        assert [event["seq"] for event in read(quick, 10)] == [*range(1, 11)]
        log.append("REKEY")
        assert read(slow, 1)[0]["event_type"] == "REKEY", "drops are told of once"


def test_dropping_for_one_leaves_the_log_itself_whole() -> None:
    log = make_log()
    with log.subscribe(capacity=1):
        for _ in range(10):
            log.append("REKEY")
    assert [event["seq"] for event in log.recent()] == [*range(1, 11)]


def test_a_closed_subscription_ends_with_what_was_queued_and_costs_nothing_more() -> None:
    async def scenario() -> list[int]:
        log = make_log()
        subscription = log.subscribe()
        log.append("REKEY")
        subscription.close()
        log.append("REKEY")
        async with asyncio.timeout(5):
            return [event["seq"] async for event in subscription]

    assert asyncio.run(scenario()) == [1]


def test_a_subscription_closes_while_someone_waits_for_it() -> None:
    async def scenario() -> None:
        subscription = make_log().subscribe()
        waiting = asyncio.ensure_future(anext(subscription))
        await asyncio.sleep(0)
        subscription.close()
        async with asyncio.timeout(5):
            await waiting

    with pytest.raises(StopAsyncIteration):
        asyncio.run(scenario())
