"""What happened to a session, made of its events alone: switches, reasons, latencies, limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from jvpnd.core.dataclass import dataclass, field
from jvpnd.core.reasons import Reason
from jvpnd.core.states import State

Event = Mapping[str, Any]

# The bound of the policy that speaks through each reason.
LIMITS: Final[dict[str, str]] = {
    Reason.QUALITY_FLOOR_VIOLATION: "loss_floor, latency_floor_ms, jitter_floor_ms",
    Reason.VOLATILITY_SIGNAL: "volatile_after_ms",
    Reason.ENTER_DEGRADED_MODE: "volatile_to_degraded_ms",
    Reason.RECOVERY_BOUNDS_EXCEEDED: "max_recovery_window_ms",
    Reason.RATE_LIMITED: "max_switches_per_minute",
    Reason.POLICY_DENY: "switch_cooldown_ms, allowed_transports",
    Reason.TTL_SESSION_EXPIRED: "session_ttl_ms",
    Reason.SESSION_EXPIRED: "session_ttl_ms",
    Reason.TTL_TRANSPORT_LOSS_EXPIRED: "transport_loss_ttl_ms",
}
# Said a second time by the STATE_CHANGE that comes with it.
_ECHOES: Final = {"SESSION_TERMINATED", "TRANSPORT_SWITCH", "REATTACH_ATTEMPT"}


@dataclass(slots=True)
class Recovery:
    """One stay in RECOVERING. `outcome` None: it is not over, or its end is not in the events."""

    began_ms: int  # wall clock
    cause: str
    from_path: str | None
    to_path: str | None = None
    attempts: int = 0
    outcome: str | None = None  # the reason code that ended it
    recovery_ms: float | None = None  # in RECOVERING
    outage_ms: float | None = None  # with no transport at all; 0 for a planned switch

    @property
    def succeeded(self) -> bool:
        return self.outcome == Reason.TRANSPORT_SWITCH_OK


@dataclass(slots=True)
class SessionTimeline:
    """One session. `session_id` None gathers the events that have none: failed handshakes, abuse.

    `is_complete` tells whether the events begin with the session's birth: the log is a ring.
    """

    session_id: str | None
    client: str | None = None
    supersedes: str | None = None
    is_complete: bool = False
    state: str | None = None  # the last one seen
    entries: list[Event] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    limits: Counter[str] = field(default_factory=Counter)  # by reason; LIMITS names the bound
    _path: str | None = None
    _open: Recovery | None = None

    @property
    def switches(self) -> int:
        return sum(recovery.succeeded for recovery in self.recoveries)

    def latencies_ms(self) -> list[float]:
        """How long each switch that succeeded took, in order."""
        done = (recovery for recovery in self.recoveries if recovery.succeeded)
        return [r.recovery_ms for r in done if r.recovery_ms is not None]

    def add(self, event: Event) -> None:
        """Take the next event of this session, in the order of seq."""
        kind, details = event["event_type"], event["details"]
        self.client = event["client"] or self.client
        if kind == "SESSION_CREATED":
            self.is_complete, self.supersedes = True, details.get("supersedes")
        elif kind == "REATTACH_ATTEMPT" and self._open is not None:
            self._open.attempts += 1
        elif kind == "STATE_CHANGE":
            self._change(event)
        if kind in _ECHOES or event["reason"] == Reason.REATTACH_ACCEPT:
            return
        self.entries.append(event)
        if event["reason"] is not None:
            self.reasons[event["reason"]] += 1
            if event["reason"] in LIMITS:
                self.limits[event["reason"]] += 1

    def _change(self, event: Event) -> None:
        details = event["details"]
        self.state = event["to"]
        where = details.get("path") or details.get("remote")
        if event["to"] == State.RECOVERING:
            self._open = Recovery(event["ts_ms"], event["reason"], self._path)
            self.recoveries.append(self._open)
        elif event["from"] == State.RECOVERING:
            self._close(event, where)
        if event["to"] == State.ATTACHED and where is not None:
            self._path = where

    def _close(self, event: Event, where: str | None) -> None:
        details, recovery = event["details"], self._open
        if recovery is None:  # its beginning has left the ring
            recovery = Recovery(event["ts_ms"], "?", None)
            self.recoveries.append(recovery)
        else:
            recovery.recovery_ms = event["ts_ms"] - recovery.began_ms
        recovery.outcome = event["reason"]
        recovery.recovery_ms = details.get("recovery_ms", recovery.recovery_ms)
        recovery.outage_ms = details.get("outage_ms")
        if recovery.succeeded:
            recovery.to_path = where
        self._open = None


@dataclass(frozen=True, slots=True)
class Timeline:
    """Sessions in the order of their first event."""

    sessions: tuple[SessionTimeline, ...]

    def as_json(self) -> dict[str, Any]:
        """What `jvpnctl --json timeline` prints."""
        return {"sessions": [_session_json(session) for session in self.sessions]}


def timeline(events: Iterable[Event], session_id: str | None = None) -> Timeline:
    """The timeline of one session (its id, or how the id begins) or of all."""
    found: dict[str | None, SessionTimeline] = {}
    for event in sorted(events, key=lambda event: event["seq"]):
        key = event["session_id"]
        if session_id is None or (key or "").startswith(session_id):
            found.setdefault(key, SessionTimeline(key)).add(event)
    return Timeline(tuple(found.values()))


def _session_json(session: SessionTimeline) -> dict[str, Any]:
    return {
        "session_id": session.session_id,
        "client": session.client,
        "supersedes": session.supersedes,
        "complete": session.is_complete,
        "state": session.state,
        "switches": session.switches,
        "recoveries": [
            {
                "began_ms": recovery.began_ms,
                "cause": recovery.cause,
                "from_path": recovery.from_path,
                "to_path": recovery.to_path,
                "attempts": recovery.attempts,
                "outcome": recovery.outcome,
                "recovery_ms": recovery.recovery_ms,
                "outage_ms": recovery.outage_ms,
            }
            for recovery in session.recoveries
        ],
        "reasons": dict(session.reasons),
        "limits": [
            {"reason": reason, "bound": LIMITS[reason], "times": times}
            for reason, times in session.limits.items()
        ],
        "entries": [dict(event) for event in session.entries],
    }
