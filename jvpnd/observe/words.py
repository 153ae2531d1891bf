"""An event in words, and how much it matters, for the logs of this host and of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

WARNING: Final = 4  # syslog severities, RFC 5424 section 6.2.1
NOTICE: Final = 5
INFO: Final = 6

_WARNINGS: Final = {"SECURITY_EVENT", "OWNERSHIP", "TRANSPORT_LOST", "TELEMETRY_DEGRADED"}
_NOTICES: Final = {"STATE_CHANGE", "SESSION_CREATED", "SESSION_TERMINATED", "EVENTS_DROPPED"}


def describe(event: Mapping[str, object]) -> str:
    """One event as one line of the log."""
    moved = f" {event['from']} -> {event['to']}" if event.get("to") else ""
    session = str(event.get("session_id") or "-")[:8]
    details = event.get("details")
    rest = " ".join(f"{k}={v}" for k, v in details.items()) if isinstance(details, dict) else ""
    words = f"{event['event_type']}{moved} {event.get('reason') or ''}"
    return f"{words.strip()} session={session} {rest}".rstrip()


def severity(event: Mapping[str, object]) -> int:
    """WARNING, NOTICE or INFO."""
    kind = event["event_type"]
    return WARNING if kind in _WARNINGS else NOTICE if kind in _NOTICES else INFO
