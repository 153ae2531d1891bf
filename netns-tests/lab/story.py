"""The words of the failure matrix: what both ends tell, and what became of the user's packets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab.daemons import Daemon, Event
from lab.stage import Watch

DIED = "ATTACHED -> RECOVERING TRANSPORT_DEAD"
REBOUND = "ATTACHED -> RECOVERING NAT_REBIND"
ORDERED = "ATTACHED -> RECOVERING RECOVERY_START"
BACK = "RECOVERING -> ATTACHED TRANSPORT_SWITCH_OK"
BELOW = "ATTACHED -> VOLATILE QUALITY_FLOOR_VIOLATION"
MOVED = "VOLATILE -> RECOVERING RECOVERY_START"
LATE = "ATTACHED -> VOLATILE VOLATILITY_SIGNAL"
SILENT = "VOLATILE -> RECOVERING TRANSPORT_DEAD"
HEALED = "VOLATILE -> ATTACHED HEALTH_RECOVERED"
WORSE = "VOLATILE -> DEGRADED ENTER_DEGRADED_MODE"
BETTER = "DEGRADED -> ATTACHED EXIT_DEGRADED_MODE"
WINDOW = "RECOVERING -> DEGRADED RECOVERY_BOUNDS_EXCEEDED"
DENIED = "RECOVERING -> DEGRADED TRANSPORT_SWITCH_DENIED"
KEPT = "RECOVERING -> VOLATILE TRANSPORT_SWITCH_DENIED"
RETRIED = "DEGRADED -> RECOVERING RECOVERY_RETRY"

# Tests switch more often than a user would.
FULL = "max_switches_per_minute = 600\nswitch_cooldown_ms = 0\n"


@dataclass(frozen=True)
class Fate:
    """Of the echo's datagrams since the last report."""

    sent: int
    lost: int
    longest_gap_ms: float


def fate(watch: Watch, more: int = 60) -> Fate:
    """What became of the echoes, once `more` of them have come back."""
    assert watch.echo is not None
    reports = watch.echo.wait_until("received", above=more, timeout_s=30)
    sent, received = (sum(r[what] for r in reports) for what in ("sent", "received"))
    return Fate(sent, sent - received, max(r["longest_gap_ms"] for r in reports))


def forget(watch: Watch) -> None:
    """From here on: what was sent before is counted no more, and tells of nothing that follows."""
    assert watch.echo is not None
    watch.echo.report()
    watch.echo.wait_until("sent", above=60)  # those that were under way
    watch.begin()


def moves(watch: Watch, side: str = "client") -> list[dict[str, Any]]:
    """Details of every transition to RECOVERING."""
    return [e["details"] for e in watch.events(side) if e["to"] == "RECOVERING"]


def of_type(watch: Watch, side: str, kind: str) -> list[Event]:
    return [event for event in watch.events(side) if event["event_type"] == kind]


def wait_to(watch: Watch, line: str, side: str = "client", timeout_s: float = 20) -> Event:
    """The first transition told like this since the watch began."""
    source, _, target, reason = line.split()
    daemon: Daemon = getattr(watch.pair, side)
    wanted: Callable[[Event], bool] = lambda e: (  # noqa: E731
        (e["from"], e["to"], e["reason"]) == (source, target, reason)
    )
    return daemon.wait_for(wanted, timeout_s, watch.seq(side))
