"""How much may wait unsent: as much as the line sends in a moment, within bounds."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.transport.backlog import MAX_BYTES, MIN_BYTES, SAMPLE_MS, WORTH_MS, Backlog


def test_it_is_what_goes_out_in_a_moment() -> None:
    backlog, rate = Backlog(), 10_000  # bytes a ms: 80 Mbit/s
    assert not backlog.sample(0, 0)
    assert backlog.sample(100, 100 * rate)
    assert backlog.limit == rate * WORTH_MS


@pytest.mark.parametrize(("rate", "limit"), [(0, MIN_BYTES), (1_250_000, MAX_BYTES)])
def test_it_has_bounds(rate: int, limit: int) -> None:
    backlog = Backlog()
    for number in range(10):
        backlog.sample(number * 100, number * 100 * rate)
    assert backlog.limit == limit


def test_looks_in_close_succession_count_as_one() -> None:
    backlog = Backlog()
    backlog.sample(0, 0)
    assert not backlog.sample(SAMPLE_MS - 1, 10**9)
    assert backlog.sample(SAMPLE_MS, 10**9)


def test_a_total_that_falls_begins_anew() -> None:
    backlog = Backlog()
    backlog.sample(0, 10**9)
    assert not backlog.sample(1000, 0)
    assert backlog.sample(1100, 10**9)


@given(
    line=st.integers(1, 200_000),  # bytes a ms
    held_ms=st.integers(1, WORTH_MS // 2),  # how long the device keeps what it has
)
def test_it_finds_the_rate_of_any_line_and_leaves_no_long_queue(line: int, held_ms: int) -> None:
    backlog, total, limits = Backlog(), 0, []
    for number in range(40):
        backlog.sample(number * 100, total)
        limits.append(backlog.limit)
        total += 100 * min(line, backlog.limit // held_ms)
    sent = min(line, backlog.limit // held_ms)
    assert sent == line or backlog.limit == MAX_BYTES
    assert backlog.limit <= max(MIN_BYTES, line * WORTH_MS)
    assert all(later >= earlier for earlier, later in pairwise(limits))
