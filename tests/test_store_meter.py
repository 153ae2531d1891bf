"""The session table's meter counts each write once, in its bucket and by its outcome."""

from __future__ import annotations

import pytest

from jvpnd.core.peer import Stored
from jvpnd.store.meter import BOUNDS_S, StoreMeter


@pytest.mark.parametrize(
    ("took_s", "bucket"), [(0.0, 0), (0.00009, 0), (0.00011, 1), (1.0, 9), (7.0, 10)]
)
def test_a_write_is_counted_by_how_long_it_took(took_s: float, bucket: int) -> None:
    times = iter([0.0, took_s])
    meter = StoreMeter(lambda: next(times))
    told: list[Stored] = []
    done = meter.timed(told.append)
    assert sum(meter.counts) == 0
    done(Stored.OK)
    assert told == [Stored.OK]
    assert meter.counts[bucket] == 1
    assert sum(meter.counts) == 1
    assert len(meter.counts) == len(BOUNDS_S) + 1
    assert meter.sum_s == pytest.approx(took_s)


def test_conflicts_are_told_from_what_went_well() -> None:
    meter = StoreMeter()
    assert dict(meter.outcomes) == dict.fromkeys((each.value for each in Stored), 0)
    for outcome in (Stored.OK, Stored.CONFLICT, Stored.OK):
        meter.timed(lambda _: None)(outcome)
    assert meter.outcomes == {"ok": 2, "conflict": 1, "unavailable": 0}


def test_writes_that_are_under_way_together_are_measured_each_by_itself() -> None:
    times = iter([0.0, 0.0002, 0.002, 7.0])
    meter = StoreMeter(lambda: next(times))
    first, second = meter.timed(lambda _: None), meter.timed(lambda _: None)
    second(Stored.OK)  # after 1.8 ms
    first(Stored.UNAVAILABLE)  # after 7 s
    assert [bucket for bucket, count in enumerate(meter.counts) if count] == [4, 10]
    assert meter.sum_s == pytest.approx(7.0018)
