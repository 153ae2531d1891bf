"""What the configuration says of limits: how much a daemon holds at most. docs/limits.md."""

from __future__ import annotations

from typing import Final

from jvpnd.configfile import Table
from jvpnd.core.dataclass import dataclass, field
from jvpnd.core.limits import Limits
from jvpnd.transport.limits import MAX_CONNECTIONS, ConnectionLimits

MAX_SESSIONS: Final = 16_000  # the data plane has a few slots more
MAX_HALF_OPEN: Final = 16_384
MAX_STRANGERS: Final = 4_096
EVENTS, MIN_EVENTS, MAX_EVENTS = 4096, 64, 65_536

_GATEWAY_KEYS = ("sessions", "half_open", "connections", "strangers", "strangers_of_source")


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """`events`: those kept for who asks later. All else is a gateway's."""

    core: Limits = field(default_factory=Limits)
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    events: int = EVENTS


def limits_of(top: Table, role: str) -> LimitSettings:
    """The table [limits]. Raises ConfigError."""
    table = top.table("limits", ("events", *_GATEWAY_KEYS))
    if role != "gateway":
        for key in _GATEWAY_KEYS:
            if key in table:
                raise table.error(key, "is for role = 'gateway', and this is a client", "events")
    core, default = Limits(), ConnectionLimits()
    strangers = table.number("strangers", 1, MAX_STRANGERS, default.strangers)
    settings = LimitSettings(
        Limits(
            table.number("sessions", 1, MAX_SESSIONS, core.sessions),
            table.number("half_open", 1, MAX_HALF_OPEN, core.half_open),
        ),
        ConnectionLimits(
            table.number("connections", 2, MAX_CONNECTIONS, default.connections),
            strangers,
            table.number("strangers_of_source", 1, MAX_STRANGERS, default.strangers_of_source),
        ),
        table.number("events", MIN_EVENTS, MAX_EVENTS, EVENTS),
    )
    _check_together(table, settings.connections)
    return settings


def _check_together(table: Table, limits: ConnectionLimits) -> None:
    """Strangers must leave sessions a place, and all of them be more than those of one source."""
    rules = (("connections", "strangers", 1), ("strangers", "strangers_of_source", 0))
    for key, below, more in rules:
        value, limit = getattr(limits, key), getattr(limits, below)
        if value < limit + more:
            relation = "not above" if more else "below"
            problem = f"{value} is {relation} {below} = {limit}"
            raise table.error(key, problem, f"{limit + more} or more")
