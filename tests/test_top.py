"""Rates are differences of totals over the time between; the busiest come first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.control.protocol import Refused
from jvpnd.observe.top import IDLE, Rates, RateTable, Totals
from jvpnd.top import MAX_ROWS, _wanted

COUNT = st.integers(0, 1 << 62)
TOTALS = st.builds(Totals, COUNT, COUNT, COUNT, COUNT)


def test_rates_are_by_the_second_whatever_the_interval() -> None:
    table: RateTable[str] = RateTable()
    assert table.look(1000, {"a": Totals(10, 20, 1, 2)}, 1) == {"a": IDLE}
    assert table.look(3000, {"a": Totals(4010, 20, 5, 2)}, 1) == {"a": Rates(2000, 0, 2, 0)}
    assert table.look(3500, {"a": Totals(4010, 520, 5, 3)}, 1) == {"a": Rates(0, 1000, 0, 2)}


@pytest.mark.parametrize("most", [1, 2, 4, 9])
def test_the_busiest_come_first_both_ways_together(most: int) -> None:
    table: RateTable[str] = RateTable()
    table.look(0, dict.fromkeys("abcd", Totals(0, 0, 0, 0)), most)
    rates = table.look(
        1000,
        {
            "a": Totals(5, 5, 9, 9),
            "b": Totals(0, 900, 1, 1),
            "c": Totals(0, 0, 0, 0),
            "d": Totals(5, 5, 1, 1),
        },
        most,
    )
    assert list(rates) == ["b", "a", "d", "c"][:most]


def test_one_that_was_not_shown_is_known_when_it_becomes_busy() -> None:
    table: RateTable[str] = RateTable()
    table.look(0, {"a": Totals(0, 0, 0, 0), "b": Totals(100, 0, 0, 0)}, 1)
    rates = table.look(1000, {"a": Totals(1, 0, 0, 0), "b": Totals(150, 0, 0, 0)}, 1)
    assert rates == {"b": Rates(50, 0, 0, 0)}


@given(st.dictionaries(st.integers(0, 9), TOTALS), st.dictionaries(st.integers(0, 9), TOTALS))
def test_who_came_or_began_anew_is_idle_and_who_went_is_gone(
    before: dict[int, Totals], after: dict[int, Totals]
) -> None:
    table: RateTable[int] = RateTable()
    table.look(0, before, 20)
    rates = table.look(1000, after, 20)
    assert rates.keys() == after.keys()
    for key in after.keys() - before.keys():
        assert rates[key] == IDLE
    sums = [rate.tx_bytes_per_s + rate.rx_bytes_per_s for rate in rates.values()]
    assert sums == sorted(sums, reverse=True)
    assert min(sums, default=0) >= 0


def test_two_looks_at_the_same_time_divide_by_nothing() -> None:
    table: RateTable[str] = RateTable()
    table.look(1000, {"a": Totals(0, 0, 0, 0)}, 1)
    assert table.look(1000, {"a": Totals(9, 9, 9, 9)}, 1) == {"a": IDLE}


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"interval_ms": 1000},
        {"interval_ms": 199, "rows": 1},
        {"interval_ms": 60_001, "rows": 1},
        {"interval_ms": 1000.0, "rows": 1},
        {"interval_ms": True, "rows": 1},
        {"interval_ms": 1000, "rows": 0},
        {"interval_ms": 1000, "rows": MAX_ROWS + 1},
        {"interval_ms": 1000, "rows": "all"},
    ],
)
def test_what_is_out_of_bounds_is_refused(args: dict[str, object]) -> None:
    with pytest.raises(Refused, match=r"must be a whole number from \d+ to \d+"):
        _wanted(args)
