"""The times of a row: each node has a clock of its own, and what they share is the wall's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from jvpnd.core.sessionrow import Row

_TIMES: Final = ("created_ms", "lost_since_ms", "anchor_ms")
_LISTS: Final = ("switched_at_ms",)


def to_wall(row: Row, now_ms: float, wall_ms: float) -> dict[str, Any]:
    """The row of this node's clock, which shows `now_ms`, by the wall clock."""
    return _shifted(row, wall_ms - now_ms)


def from_wall(row: Row, now_ms: float, wall_ms: float) -> dict[str, Any]:
    """The row by this node's clock. Raises TypeError for times that are no numbers."""
    return _shifted(row, now_ms - wall_ms)


def _shifted(row: Mapping[str, Any], by_ms: float) -> dict[str, Any]:
    times = {key: row[key] + by_ms for key in _TIMES if row.get(key) is not None}
    lists = {key: [each + by_ms for each in row[key]] for key in _LISTS if key in row}
    return {**row, **times, **lists}
