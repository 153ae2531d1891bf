"""The session table's meter counts each write once, in its bucket and by its outcome."""

from __future__ import annotations

from functools import partial

import pytest

from jvpnd.core.peer import Stored
from jvpnd.store.meter import BOUNDS_S, StoreMeter


@pytest.mark.parametrize(
    ("took_s", "bucket"), [(0.0, 0), (0.00009, 0), (0.00011, 1), (1.0, 9), (7.0, 10)]
)
def test_a_write_is_counted_by_how_long_it_took(took_s: float, bucket: int) -> None:
    times = iter([0.0, took_s])
    meter = StoreMeter(lambda: next(times))
    assert meter.timed(lambda: Stored.OK) is Stored.OK
    assert meter.counts[bucket] == 1
    assert sum(meter.counts) == 1
    assert len(meter.counts) == len(BOUNDS_S) + 1
    assert meter.sum_s == pytest.approx(took_s)


def test_conflicts_are_told_from_what_went_well() -> None:
    meter = StoreMeter()
    assert dict(meter.outcomes) == dict.fromkeys((each.value for each in Stored), 0)
    for outcome in (Stored.OK, Stored.CONFLICT, Stored.OK):
        meter.timed(partial(Stored, outcome))
    assert meter.outcomes == {"ok": 2, "conflict": 1, "unavailable": 0}


def test_what_a_write_raises_is_the_callers() -> None:
    def broken() -> Stored:
        raise OSError("no")

    meter = StoreMeter()
    with pytest.raises(OSError, match="no"):
        meter.timed(broken)
    assert sum(meter.counts) == 0
