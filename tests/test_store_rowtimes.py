"""A session is as old on the node that takes it over as on the one that had it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.store.rowtimes import from_wall, to_wall

MS = st.floats(0, 1e12)


@given(MS, MS, MS, st.floats(0, 1e9), st.lists(st.floats(0, 1e6), max_size=5))
def test_ages_are_the_same_by_every_nodes_clock(
    here_ms: float, there_ms: float, wall_ms: float, age_ms: float, switches: list[float]
) -> None:
    row = {
        **{"created_ms": here_ms - age_ms, "anchor_ms": here_ms - age_ms / 2, "epoch": 7},
        **{"lost_since_ms": None, "switched_at_ms": [here_ms - each for each in switches]},
    }
    later_ms = 1234.0  # by any clock
    moved = from_wall(
        to_wall(row, here_ms, wall_ms), there_ms + later_ms, wall_ms + later_ms
    )
    assert there_ms - moved["created_ms"] == pytest.approx(age_ms, abs=1)
    assert there_ms - moved["anchor_ms"] == pytest.approx(age_ms / 2, abs=1)
    assert [there_ms - at_ms for at_ms in moved["switched_at_ms"]] == pytest.approx(
        switches, abs=1
    )
    assert moved["lost_since_ms"] is None
    assert moved["epoch"] == 7


def test_a_loss_is_as_long_ago() -> None:
    there = from_wall(to_wall({"lost_since_ms": 900.0}, 1000, 5e12), 77_000, 5e12 + 50)
    assert there == {"lost_since_ms": 76_850.0}


@pytest.mark.parametrize("row", [{"created_ms": "x"}, {"switched_at_ms": 5}, {"anchor_ms": []}])
def test_times_that_are_none_are_found_out(row: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        from_wall(row, 1.0, 2.0)
