"""Which events somebody wants to see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from jvpnd.core.dataclass import dataclass
from jvpnd.core.reasons import Reason
from jvpnd.observe.log import DROPPED, Event

# Every event_type there is (docs/events.md).
TYPES: Final = (
    "SESSION_CREATED",
    "STATE_CHANGE",
    "REATTACH_ATTEMPT",
    "REATTACH_RESULT",
    "TRANSPORT_SWITCH",
    "TRANSPORT_SWITCH_DENIED",
    "TRANSPORT_LOST",
    "REKEY",
    "SESSION_TERMINATED",
    "AUDIT_EVENT",
    "WORKER_RESTARTED",
    "OWNERSHIP",
    "SECURITY_EVENT",
    "TELEMETRY_DEGRADED",
    "TELEMETRY_RECOVERED",
    DROPPED,
)
REASONS: Final = tuple(str(reason) for reason in Reason)


@dataclass(frozen=True, slots=True)
class Filter:
    """What an event has to be; empty or None: anything. `session` is an id or how it begins,
    `since_ms` wall clock. Lost events are told of in any case: they may have been wanted."""

    types: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    session: str | None = None
    client: str | None = None
    since_ms: int = 0

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> Filter:
        """From a request's arguments; ValueError says which is wrong and what is allowed."""
        return cls(
            _words(args, "types", TYPES),
            _words(args, "reasons", REASONS),
            _text(args, "session"),
            _text(args, "client"),
            _moment(args, "since_ms"),
        )

    def passes(self, event: Event) -> bool:
        if event["event_type"] == DROPPED:
            return True
        return (
            (not self.types or event["event_type"] in self.types)
            and (not self.reasons or event["reason"] in self.reasons)
            and (self.session is None or (event["session_id"] or "").startswith(self.session))
            and (self.client is None or event["client"] == self.client)
            and event["ts_ms"] >= self.since_ms
        )


def _words(args: Mapping[str, Any], key: str, known: tuple[str, ...]) -> frozenset[str]:
    value = args.get(key) or []
    if not isinstance(value, list) or any(word not in known for word in value):
        raise ValueError(f"{key} must be a list of: {', '.join(known)}")
    return frozenset(value)


def _text(args: Mapping[str, Any], key: str) -> str | None:
    value = args.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key} must be a string or null")
    return value


def _moment(args: Mapping[str, Any], key: str) -> int:
    value = args.get(key) or 0
    if type(value) is not int:
        raise ValueError(f"{key} must be a whole number of ms since 1970, or null")
    return value
