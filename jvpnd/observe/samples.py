"""How good each path was, over the last day: bounded, one row a second, later one a minute."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from jvpnd.core.dataclass import dataclass, field

FINE_MS: Final = 1_000
FINE_ROWS: Final = 900
COARSE_MS: Final = 60_000
COARSE_ROWS: Final = 1_440
MAX_PATHS: Final = 16  # those that were seen longest ago go first


class Sample(NamedTuple):
    """One row. Loss 0 to 1; None where nothing is known."""

    ts_ms: int  # wall clock
    rtt_ms: float | None
    jitter_ms: float
    loss_up: float | None
    loss_down: float | None
    loss: float  # of probes, both ways together


@dataclass(slots=True)
class _Rows:
    fine: deque[Sample] = field(default_factory=lambda: deque(maxlen=FINE_ROWS))
    coarse: deque[Sample] = field(default_factory=lambda: deque(maxlen=COARSE_ROWS))
    minute: list[Sample] = field(default_factory=list)


class PathSamples:
    """Feed it as often as you like."""

    def __init__(self) -> None:
        self._paths: OrderedDict[str, _Rows] = OrderedDict()
        self._next_ms = 0.0

    def sample(self, now_ms: float, look: Callable[[], dict[str, Sample]]) -> None:
        """Take a row of each path, if a second has passed; only then `look` is called."""
        if now_ms < self._next_ms:
            return
        self._next_ms = now_ms + FINE_MS
        for path_id, row in look().items():
            rows = self._paths.setdefault(path_id, _Rows())
            self._paths.move_to_end(path_id)
            rows.fine.append(row)
            rows.minute.append(row)
            if row.ts_ms - rows.minute[0].ts_ms >= COARSE_MS:
                rows.coarse.append(_worst(rows.minute))
                rows.minute.clear()
        while len(self._paths) > MAX_PATHS:
            self._paths.popitem(last=False)

    def as_json(self) -> dict[str, Any]:
        """By path: rows in order of time, as lists in the order of Sample's fields."""
        return {path_id: [list(row) for row in _merged(r)] for path_id, r in self._paths.items()}


def _merged(rows: _Rows) -> list[Sample]:
    """The fine rows, and before them the coarse ones."""
    begin_ms = rows.fine[0].ts_ms
    return [*(row for row in rows.coarse if row.ts_ms < begin_ms), *rows.fine]


def _worst(rows: list[Sample]) -> Sample:
    """One row for many: what went wrong in that time must still show."""
    worst: list[Any] = [rows[0].ts_ms]
    for column in range(1, len(Sample._fields)):
        known: list[Any] = [row[column] for row in rows if row[column] is not None]
        worst.append(max(known) if known else None)
    return Sample(*worst)
