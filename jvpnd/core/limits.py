"""How much a gateway's core holds at most, as its operator wants it (docs/limits.md)."""

from __future__ import annotations

from jvpnd.core.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """`sessions`: alive at a time. `half_open`: answered handshakes that nobody has confirmed."""

    sessions: int = 10_000
    half_open: int = 1_024


DEFAULT_LIMITS = Limits()
