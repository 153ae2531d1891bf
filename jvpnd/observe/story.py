"""What a timeline's events say about stretches of time: which state, which path carried it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jvpnd.core.dataclass import dataclass
from jvpnd.core.reasons import Reason
from jvpnd.core.states import State
from jvpnd.observe.timeline import Event, SessionTimeline

# While a move is ordered, the old binding serves.
_SERVES = {Reason.RECOVERY_START, Reason.NAT_REBIND}
# DEGRADED by these nothing carries the session; otherwise a bad path does.
_UNBOUND = {Reason.RECOVERY_BOUNDS_EXCEEDED, Reason.TRANSPORT_SWITCH_DENIED}


@dataclass(frozen=True, slots=True)
class Stretch:
    """From `begin_ms` to `end_ms` (wall clock) it was `what`, because of `reason`."""

    begin_ms: int
    end_ms: int
    what: str
    reason: str


def states(session: SessionTimeline, end_ms: int) -> list[Stretch]:
    """The state at each moment that the events tell of."""
    changes = [e for e in session.entries if e["event_type"] == "STATE_CHANGE"]
    ends = [*(e["ts_ms"] for e in changes[1:]), end_ms]
    return [
        Stretch(e["ts_ms"], max(end, e["ts_ms"]), e["to"], e["reason"] or "")
        for e, end in zip(changes, ends, strict=False)
        if e["to"] != State.TERMINATED
    ]


def bindings(session: SessionTimeline, end_ms: int) -> list[Stretch]:
    """Which path carried the session, and when none did there is no stretch."""
    found: list[Stretch] = []
    path: str | None = None
    since_ms, why = 0, ""
    for event in session.entries:
        where = carrier(event, path)
        if where == path:
            continue
        if path is not None:
            found.append(Stretch(since_ms, event["ts_ms"], path, why))
        path, since_ms, why = where, event["ts_ms"], event["reason"] or ""
    if path is not None:
        found.append(Stretch(since_ms, max(end_ms, since_ms), path, why))
    return found


def carrier(event: Event, before: str | None) -> str | None:
    """The path that carries the session after this event, None if none does; `before` it: this."""
    details: dict[str, Any] = event["details"]
    if event["event_type"] == "TRANSPORT_LOST":
        return None
    if event["event_type"] != "STATE_CHANGE":
        return before
    if event["to"] == State.ATTACHED:
        return details.get("path") or details.get("remote") or before
    if event["to"] == State.RECOVERING:
        return before if event["reason"] in _SERVES else None
    if event["to"] == State.DEGRADED:
        return None if event["reason"] in _UNBOUND else before
    return None if event["to"] == State.TERMINATED else before


def span(sessions: Iterable[SessionTimeline], samples: Iterable[int]) -> tuple[int, int]:
    """First and last moment (wall clock, ms) of all that is known; (0, 1) of nothing."""
    moments = [entry["ts_ms"] for session in sessions for entry in session.entries]
    moments += samples
    if not moments:
        return 0, 1
    return min(moments), max(max(moments), min(moments) + 1)
