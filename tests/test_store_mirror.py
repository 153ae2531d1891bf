"""What a node knows of rows is the newest that it was told, in whatever order it was told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jvpnd.store.mirror import Known, Mirror


@given(st.permutations(range(1, 8)))
def test_the_highest_revision_counts(order: list[int]) -> None:
    mirror = Mirror()
    for revision in order:
        mirror.put("s", Known(revision * 10, revision, f"gw{revision}"))
    assert mirror.get("s") == Known(70, 7, "gw7")
    assert not mirror.gone("s", 6)
    assert mirror.gone("s", 8)
    assert not mirror.gone("s", 9)
    assert mirror.get("s") is None


def test_a_new_owner_is_told_once() -> None:
    mirror = Mirror()
    told = [mirror.put("s", Known(1, n, who)) for n, who in enumerate("aabba", start=1)]
    assert told == [True, False, True, False, True]
    assert not mirror.put("s", Known(1, 5, "b"))


def test_a_doubtful_row_is_asked_for_and_then_known_again() -> None:
    mirror = Mirror()
    mirror.put("s", Known(1, 5, "a"))
    mirror.doubt("s")
    mirror.doubt("unknown")
    assert mirror.get("s") is None
    assert mirror.missing_from([]) == ["s"]
    assert not mirror.put("s", Known(1, 5, "a"))
    assert mirror.get("s") == Known(1, 5, "a")


def test_rows_are_counted_by_owner() -> None:
    mirror = Mirror()
    for number in range(10):
        mirror.put(str(number), Known(1, 1, "ab"[number % 2]))
    mirror.gone("0", 2)
    assert (mirror.count_of("a"), mirror.count_of("b"), mirror.count_of("c")) == (4, 5, 0)
    assert len(mirror.clear()) == 9
    assert mirror.count_of("b") == 0
