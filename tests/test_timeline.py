"""The timeline says what the events say: made here by the real state machine, not by hand."""

from __future__ import annotations

from typing import Any

import click

from jvpnd.cli import render
from jvpnd.core.effects import Effect, Emit
from jvpnd.core.reasons import Reason
from jvpnd.core.session import Machine, Session
from jvpnd.core.states import Event as On
from jvpnd.core.states import State
from jvpnd.observe.log import Event, EventLog
from jvpnd.observe.timeline import LIMITS, timeline

WIFI, LTE = "wlan0/udp/gw:7700", "wwan0/udp/gw:7700"
FIRST, SECOND = bytes(range(16)), bytes(range(16, 32))


class Recorder:
    """A session's machine that writes into an event log, under a clock set by hand."""

    def __init__(self, session_id: bytes = FIRST, log: EventLog | None = None) -> None:
        self.now_ms = 1_700_000_000_000
        self.log = log or EventLog("laptop", lambda: self.now_ms)
        self._effects: list[Effect] = []
        self.machine = Machine(self._effects)
        self.session = Session(session_id, "laptop", 0)

    def _log(self) -> None:
        for effect in self._effects:
            self._append(effect)
        self._effects.clear()

    def _append(self, effect: Effect) -> None:
        assert isinstance(effect, Emit)
        self.log.append(
            effect.event_type,
            effect.session_id.hex() if effect.session_id else None,
            effect.client,
            effect.from_state,
            effect.to_state,
            effect.reason,
            effect.state_version,
            1,
            effect.details,
        )

    def fire(self, event: On, after_ms: int = 0, **details: Any) -> None:
        self.now_ms += after_ms
        assert self.machine.fire(self.session, event, self.now_ms, details)
        self._log()

    def note(self, kind: str, reason: Reason | None, **details: Any) -> None:
        self.machine.note(self.session, kind, reason, details)
        self._log()

    def born(self, supersedes: str | None = None) -> None:
        self.note("SESSION_CREATED", Reason.HANDSHAKE_OK, supersedes=supersedes, path=WIFI)
        self.fire(On.HANDSHAKE_ACCEPTED, path=WIFI)

    def attempt(self, path: str, number: int) -> None:
        self.note("REATTACH_ATTEMPT", None, attempt=number, path=path, cause="TRANSPORT_DEAD")

    def switched(self, path: str, recovery_ms: float, outage_ms: float, after_ms: int) -> None:
        self.now_ms += after_ms
        details = {"path": path, "recovery_ms": recovery_ms, "outage_ms": outage_ms}
        self.note("TRANSPORT_SWITCH", Reason.TRANSPORT_SWITCH_OK, **details)
        self.fire(On.REATTACH_ACCEPTED, **details)

    def events(self) -> list[Event]:
        return self.log.recent()


def death_and_switch() -> Recorder:
    recorder = Recorder()
    recorder.born()
    recorder.fire(On.TRANSPORT_DIED, 5_000, path=WIFI, why="silent", silent_ms=310.0)
    recorder.attempt(LTE, 2)
    recorder.attempt(LTE, 3)
    recorder.switched(LTE, 61.5, 61.5, after_ms=62)
    return recorder


def test_a_switch_after_a_death_has_its_cause_ends_attempts_and_latency() -> None:
    (session,) = timeline(death_and_switch().events()).sessions
    (recovery,) = session.recoveries
    assert recovery.cause == Reason.TRANSPORT_DEAD
    assert (recovery.from_path, recovery.to_path) == (WIFI, LTE)
    assert (recovery.attempts, recovery.outcome) == (2, Reason.TRANSPORT_SWITCH_OK)
    assert (recovery.recovery_ms, recovery.outage_ms) == (61.5, 61.5)
    assert recovery.began_ms == 1_700_000_005_000
    assert (session.switches, session.latencies_ms()) == (1, [61.5])
    assert (session.state, session.client, session.is_complete) == ("ATTACHED", "laptop", True)


def test_each_thing_that_happened_is_told_and_counted_once() -> None:
    (session,) = timeline(death_and_switch().events()).sessions
    assert [event["event_type"] for event in session.entries] == [
        "SESSION_CREATED",
        "STATE_CHANGE",
        "STATE_CHANGE",
        "STATE_CHANGE",
    ]
    assert session.reasons == {"HANDSHAKE_OK": 2, "TRANSPORT_DEAD": 1, "TRANSPORT_SWITCH_OK": 1}
    assert session.limits == {}


def test_the_next_switch_starts_where_the_last_one_ended() -> None:
    recorder = death_and_switch()
    recorder.fire(On.SWITCH_ORDERED, 9_000, to_path=WIFI, why="operator")
    recorder.switched(WIFI, 20.0, 0, after_ms=20)
    first, second = timeline(recorder.events()).sessions[0].recoveries
    assert (first.to_path, second.from_path, second.to_path) == (LTE, LTE, WIFI)
    assert (second.cause, second.outage_ms) == (Reason.RECOVERY_START, 0)


def test_a_recovery_that_failed_has_its_reason_and_names_the_limit() -> None:
    recorder = Recorder()
    recorder.born()
    recorder.fire(On.TRANSPORT_DIED, path=WIFI)
    recorder.fire(On.RECOVERY_WINDOW_OVER, 8_000)
    recorder.fire(On.TRANSPORT_LOSS_TTL_OVER, 52_000)
    (session,) = timeline(recorder.events()).sessions
    (recovery,) = session.recoveries
    assert not recovery.succeeded
    assert recovery.outcome == Reason.RECOVERY_BOUNDS_EXCEEDED
    assert (recovery.to_path, recovery.recovery_ms) == (None, 8_000)
    assert (session.switches, session.latencies_ms(), session.state) == (0, [], State.TERMINATED)
    assert session.limits == {"RECOVERY_BOUNDS_EXCEEDED": 1, "TTL_TRANSPORT_LOSS_EXPIRED": 1}
    assert LIMITS[Reason.RECOVERY_BOUNDS_EXCEEDED] == "max_recovery_window_ms"


def test_a_denied_switch_counts_as_a_limit() -> None:
    recorder = Recorder()
    recorder.born()
    recorder.note("TRANSPORT_SWITCH_DENIED", Reason.RATE_LIMITED, to_path=LTE)
    recorder.note("TRANSPORT_SWITCH_DENIED", Reason.RATE_LIMITED, to_path=LTE)
    (session,) = timeline(recorder.events()).sessions
    assert (session.limits, session.recoveries) == ({"RATE_LIMITED": 2}, [])


def test_a_recovery_under_way_has_no_outcome() -> None:
    recorder = Recorder()
    recorder.born()
    recorder.fire(On.TRANSPORT_DIED, path=WIFI)
    (recovery,) = timeline(recorder.events()).sessions[0].recoveries
    assert recovery.outcome is None
    assert recovery.recovery_ms is None


def test_a_timeline_whose_beginning_is_lost_says_so_and_keeps_what_is_known() -> None:
    events = death_and_switch().events()
    (session,) = timeline(events[-1:]).sessions
    assert not session.is_complete
    (recovery,) = session.recoveries
    assert (recovery.to_path, recovery.recovery_ms) == (LTE, 61.5)
    assert recovery.from_path is None
    assert "no longer in the log" in render.timeline(timeline(events[-1:]))


def test_sessions_are_apart_in_order_and_found_by_how_their_id_begins() -> None:
    one = death_and_switch()
    two = Recorder(SECOND, one.log)
    two.born(supersedes=FIRST.hex())
    one.log.append("SECURITY_EVENT", reason="AUTH_FAIL", details={"remote": "192.0.2.1:9"})
    every = timeline(one.events())
    assert [s.session_id for s in every.sessions] == [FIRST.hex(), SECOND.hex(), None]
    assert every.sessions[1].supersedes == FIRST.hex()
    (found,) = timeline(one.events(), SECOND.hex()[:6]).sessions
    assert found.session_id == SECOND.hex()
    assert timeline(one.events(), "ffff").sessions == ()


def test_the_order_in_which_events_are_given_does_not_matter() -> None:
    events = death_and_switch().events()
    assert timeline(reversed(events)).as_json() == timeline(events).as_json()


def test_the_text_names_switches_reasons_latencies_and_limits() -> None:
    recorder = death_and_switch()
    recorder.note("TRANSPORT_SWITCH_DENIED", Reason.RATE_LIMITED, to_path=WIFI)
    text = render.timeline(timeline(recorder.events()))
    for words in (FIRST.hex(), "TRANSPORT_DEAD", LTE, "61.5 ms", "1 switch: median 61.5 ms"):
        assert words in text
    assert "limit: max_switches_per_minute (RATE_LIMITED, 1 time)" in text


def test_the_events_of_a_session_stand_in_columns() -> None:
    recorder = death_and_switch()
    recorder.note("TRANSPORT_SWITCH_DENIED", Reason.RATE_LIMITED, to_path=WIFI)
    found = timeline(recorder.events())
    (session,) = found.sessions
    lines = click.unstyle(render.timeline(found)).splitlines()[1 : 1 + len(session.entries)]
    told = zip(session.entries, lines, strict=True)
    whys = [line.index(f"  {event['reason']}  ") for event, line in told]
    assert len(set(whys)) == 1
    assert sum(" BIRTH -> ATTACHED " in line for line in lines) == 1
    assert "STATE_CHANGE" not in "".join(lines)


def test_a_session_of_which_only_echoes_are_left_is_told_without_events() -> None:
    """The ring has forgotten the rest."""
    recorder = Recorder()
    recorder.note("REATTACH_ATTEMPT", None, attempt=2, path=LTE)
    assert "no longer in the log" in render.timeline(timeline(recorder.events()))
