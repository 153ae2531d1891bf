"""How many connections a gateway has at most, as its operator wants it (docs/limits.md)."""

from __future__ import annotations

from typing import Final

from jvpnd.core.dataclass import dataclass

MAX_CONNECTIONS: Final = 16_384  # that any gateway may be told to take, and a relay takes


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """`connections`: open at a time. `strangers`: those of them that no session has used yet, and
    `strangers_of_source`: of these from one IPv4 address or IPv6 /64."""

    connections: int = 4_096
    strangers: int = 256
    strangers_of_source: int = 32


DEFAULT_LIMITS = ConnectionLimits()
