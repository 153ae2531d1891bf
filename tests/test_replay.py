"""The replay window against a reference that remembers every counter."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jvpnd.core.replay import WINDOW, ReplayWindow

COUNTERS = st.one_of(
    st.integers(0, 200),
    st.integers(0, 3 * WINDOW),
    st.integers(2**63 - 2 * WINDOW, 2**63 - 1),
)


@given(st.lists(COUNTERS, max_size=300))
def test_accepts_each_counter_once_and_only_inside_the_window(counters: list[int]) -> None:
    window = ReplayWindow()
    seen: set[int] = set()
    highest = 0
    for counter in counters:
        accepted = window.check_and_set(counter)
        if counter in seen:
            assert not accepted
        elif counter > highest - WINDOW:
            assert accepted
        if accepted:
            seen.add(counter)
            highest = max(highest, counter)


def test_accepts_a_shuffled_window_exactly_once() -> None:
    window = ReplayWindow()
    order = [(i * 4097) % WINDOW for i in range(WINDOW)]  # 4097 and 8128 share no factor but 1
    assert len(set(order)) == WINDOW
    assert all(window.check_and_set(counter) for counter in order)
    assert not any(window.check_and_set(counter) for counter in order)


def test_refuses_what_fell_out_of_the_window() -> None:
    window = ReplayWindow()
    assert window.check_and_set(5 * WINDOW)
    assert not window.check_and_set(3 * WINDOW)
    assert window.check_and_set(5 * WINDOW - WINDOW + 64)


def test_a_jump_ahead_forgets_nothing_inside_the_window() -> None:
    window = ReplayWindow()
    assert window.check_and_set(100)
    assert window.check_and_set(100 + WINDOW - 64)
    assert not window.check_and_set(100)
    assert window.check_and_set(101)


def test_is_at_least_2048_wide() -> None:
    assert WINDOW >= 2048
