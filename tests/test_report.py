"""The report counts what the timeline tells, by reason, and its times are the worst and usual."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.cli import render
from jvpnd.core.reasons import Reason
from jvpnd.core.states import Event as On
from jvpnd.observe.log import Event
from jvpnd.observe.report import Times, report

from .simulation.player import Player
from .simulation.teller import tell
from .test_timeline import LTE, SECOND, Recorder


def moved(recorder: Recorder, event: On, recovery_ms: float, outage_ms: float) -> None:
    """To RECOVERING by this event, and back."""
    recorder.fire(event, 1000)
    recorder.note("REATTACH_ATTEMPT", None, attempt=2, path=LTE)
    times = {"recovery_ms": recovery_ms, "outage_ms": outage_ms}
    recorder.fire(On.REATTACH_ACCEPTED, round(recovery_ms), path=LTE, **times)


@pytest.fixture
def recorder() -> Recorder:
    found = Recorder()
    found.born()
    for ms in (20.0, 30.5, 2000.0):
        moved(found, On.TRANSPORT_DIED, ms, ms + 100)
    moved(found, On.SWITCH_ORDERED, 12.0, 0)
    found.note("TRANSPORT_SWITCH_DENIED", Reason.RATE_LIMITED, to_path=LTE, why="too often")
    found.fire(On.TRANSPORT_DIED, 1000)
    found.fire(On.RECOVERY_WINDOW_OVER, 8000)
    return found


def test_recoveries_are_counted_by_what_began_them(recorder: Recorder) -> None:
    found = report(recorder.log.recent())
    assert (found.sessions, found.all.count, found.all.succeeded) == (1, 5, 4)
    assert list(found.by_reason) == ["TRANSPORT_DEAD", "RECOVERY_START"]
    dead = found.by_reason["TRANSPORT_DEAD"]
    assert (dead.count, dead.succeeded, dead.under_way) == (4, 3, 0)
    assert dead.outcomes == {"TRANSPORT_SWITCH_OK": 3, "RECOVERY_BOUNDS_EXCEEDED": 1}
    assert dead.recovery_ms == Times(3, 30.5, 2000.0, 2000.0)
    assert dead.outage_ms == Times(3, 130.5, 2100.0, 2100.0)
    planned = found.by_reason["RECOVERY_START"]
    assert planned.recovery_ms == Times(1, 12.0, 12.0, 12.0)
    assert planned.outage_ms == Times(1, 0, 0, 0)
    assert found.denied == {"RATE_LIMITED": 1}


def test_a_recovery_under_way_has_no_outcome_yet(recorder: Recorder) -> None:
    recorder.fire(On.CANDIDATE_VIABLE, 1000)
    retry = report(recorder.log.recent()).by_reason["RECOVERY_RETRY"]
    assert (retry.count, retry.succeeded, retry.under_way) == (1, 0, 1)
    assert (retry.outcomes, retry.recovery_ms, retry.outage_ms) == ({}, None, None)


def test_only_of_a_session_a_client_or_of_late(recorder: Recorder) -> None:
    other = Recorder(SECOND, recorder.log)
    other.session.client = "phone"
    other.born()
    moved(other, On.TRANSPORT_DIED, 5.0, 5.0)
    events = recorder.log.recent()
    assert report(events).all.count == 6
    assert report(events, SECOND.hex()[:4]).all.count == 1
    assert report(events, client="phone").all.count == 1
    assert report(events, client="nobody").all.count == 0
    began = [e["ts_ms"] for e in events if e["to"] == "RECOVERING" and e["client"] == "laptop"]
    late = report(events, client="laptop", since_ms=began[-1])
    assert (late.all.count, late.since_ms, late.denied) == (1, began[-1], {})


def test_of_nothing_there_is_nothing_to_report() -> None:
    found = report([])
    assert (found.since_ms, found.sessions, found.all.count) == (None, 0, 0)
    assert (found.all.recovery_ms, found.by_reason) == (None, {})
    assert render.report(found) == "no events"


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200))
def test_95_of_100_took_no_longer_than_p95(values: list[float]) -> None:
    times = Times.of(values)
    assert times is not None
    assert sum(value <= times.p95 for value in values) >= 0.95 * len(values)
    assert sum(value < times.p95 for value in values) < 0.95 * len(values)
    assert times.worst == max(values)
    assert times.p95 in values


@pytest.mark.parametrize("seed", [3, 8])
def test_the_report_of_a_story_agrees_with_what_the_client_did(seed: int) -> None:
    player = Player(tell(seed))
    player.play()
    history = player.net.client_history
    found = report(history.retold.events())
    assert found.all.succeeded == len(history.of("TRANSPORT_SWITCH")) > 0
    took = [e.details["recovery_ms"] for e in history.of("TRANSPORT_SWITCH")]
    assert found.all.recovery_ms is not None
    assert found.all.recovery_ms.worst == max(took)
    into = [e for e in history.of("STATE_CHANGE") if e.to_state == "RECOVERING"]
    assert found.all.count == len(into)
    assert sum(found.denied.values()) == len(history.of("TRANSPORT_SWITCH_DENIED"))
    assert sum(row.count for row in found.by_reason.values()) == found.all.count


def test_it_reads_like_a_table(recorder: Recorder) -> None:
    lines = render.report(report(recorder.log.recent())).splitlines()
    assert lines[0].startswith("1 session, ")
    rows = [line.split() for line in lines[2:6]]
    assert rows[1][:3] == ["all", "5", "4"]
    assert rows[2][:3] == ["TRANSPORT_DEAD", "4", "3"]
    assert lines[4].endswith("2.1 s  1 RECOVERY_BOUNDS_EXCEEDED")
    assert lines[-1] == "denied: RATE_LIMITED, 1 time"


def test_one_reason_needs_no_sum() -> None:
    recorder = Recorder()
    recorder.born()
    moved(recorder, On.NAT_REBOUND, 40.0, 0)
    events: list[Event] = recorder.log.recent()
    told: dict[str, Any] = report(events).as_json()
    assert told["by_reason"]["NAT_REBIND"] == told["all"]
    assert "all" not in render.report(report(events))
