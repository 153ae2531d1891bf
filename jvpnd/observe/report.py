"""How well sessions recovered: counts and times, by the reason that made each leave its path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from math import ceil
from statistics import median
from typing import Any

from jvpnd.core.dataclass import dataclass, field
from jvpnd.observe.timeline import Event, Recovery, timeline


@dataclass(frozen=True, slots=True)
class Times:
    """Of some durations, in ms; p95 is the nearest rank: 95 of 100 took no longer."""

    count: int
    median: float
    p95: float
    worst: float

    @classmethod
    def of(cls, values_ms: Iterable[float | None]) -> Times | None:
        """None if there is no value."""
        found = sorted(value for value in values_ms if value is not None)
        if not found:
            return None
        p95 = found[ceil(0.95 * len(found)) - 1]
        return cls(len(found), round(median(found), 1), p95, found[-1])


@dataclass(frozen=True, slots=True)
class Recoveries:
    """Stays in RECOVERING that have one thing in common. Times are of those that succeeded.

    `outcomes` by the reason that ended each. `outage_ms`: with no transport at all, 0 for a planned
    switch; only a client knows it.
    """

    count: int
    succeeded: int
    under_way: int
    outcomes: dict[str, int]
    recovery_ms: Times | None
    outage_ms: Times | None

    @classmethod
    def of(cls, found: Sequence[Recovery]) -> Recoveries:
        done = [recovery for recovery in found if recovery.succeeded]
        return cls(
            len(found),
            len(done),
            sum(recovery.outcome is None for recovery in found),
            dict(Counter(r.outcome for r in found if r.outcome is not None).most_common()),
            Times.of(recovery.recovery_ms for recovery in done),
            Times.of(recovery.outage_ms for recovery in done),
        )


@dataclass(frozen=True, slots=True)
class Report:
    """All recoveries, and by reason, the commonest first. `since_ms`, `until_ms`: wall clock, of
    the first and the last event looked at, None of none. `denied`: switches not tried, by reason.
    """

    since_ms: int | None
    until_ms: int | None
    sessions: int
    all: Recoveries
    by_reason: dict[str, Recoveries] = field(default_factory=dict)
    denied: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """What `jvpnctl --json report` prints."""
        return asdict(self)


def report(
    events: Sequence[Event],
    session_id: str | None = None,
    client: str | None = None,
    since_ms: int = 0,
) -> Report:
    """Of one session (its id, or how it begins) or all, of one client or all, and of what began at
    `since_ms` (wall clock) or later. Give all events there are: a recovery may have begun before.
    """
    told = [
        session
        for session in timeline(events, session_id).sessions
        if session.session_id is not None and client in (None, session.client)
    ]
    recoveries = [r for session in told for r in session.recoveries if r.began_ms >= since_ms]
    seen = [e for session in told for e in session.entries if e["ts_ms"] >= since_ms]
    by_reason: dict[str, list[Recovery]] = {}
    for recovery in recoveries:
        by_reason.setdefault(recovery.cause, []).append(recovery)
    commonest = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
    moments = [event["ts_ms"] for event in seen]
    denied = (e["reason"] for e in seen if e["event_type"] == "TRANSPORT_SWITCH_DENIED")
    return Report(
        min(moments, default=None),
        max(moments, default=None),
        len({event["session_id"] for event in seen}),
        Recoveries.of(recoveries),
        {reason: Recoveries.of(found) for reason, found in commonest},
        dict(Counter(denied).most_common()),
    )
