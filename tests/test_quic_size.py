"""The search for the largest UDP payload: rounds of probes, without a network."""

from __future__ import annotations

from collections.abc import Callable

from jvpnd.transport.quicsize import BASE, REST_S, SIZES_4, SIZES_6, TRIES, TRY_S, SizeSearch

LARGEST = SIZES_4[-1]


def round_of(search: SizeSearch, arrives: Callable[[int], bool]) -> int:
    """Let the search run until it rests; how many probes it sent."""
    sent = 0
    while True:
        sizes, wait_s = search.tick()
        if not sizes:
            assert wait_s == REST_S
            return sent
        assert wait_s == TRY_S
        sent += len(sizes)
        for size in filter(arrives, sizes):
            search.heard()
            search.answered(size)


def test_the_largest_that_is_answered_is_the_size() -> None:
    for limit in (*SIZES_4, BASE):
        search = SizeSearch(SIZES_4)
        round_of(search, lambda size, limit=limit: size <= limit)
        assert search.size == limit


def test_a_wide_path_costs_one_try_and_then_one_probe_a_round() -> None:
    search = SizeSearch(SIZES_4)
    assert round_of(search, lambda size: True) == len(SIZES_4)
    assert round_of(search, lambda size: True) == 1


def test_a_lost_probe_is_sent_again() -> None:
    search = SizeSearch(SIZES_6)
    search.tick()
    sizes, _wait = search.tick()
    assert sizes == SIZES_6[::-1]
    search.answered(SIZES_6[-1])
    assert search.size == SIZES_6[-1]


def test_probes_of_a_round_are_bounded() -> None:
    search = SizeSearch(SIZES_4)
    assert round_of(search, lambda size: False) == TRIES * len(SIZES_4)
    assert search.size == BASE


def test_a_path_that_became_narrower_is_noticed() -> None:
    search = SizeSearch(SIZES_4)
    round_of(search, lambda size: True)
    for _ in range(TRIES):
        assert search.tick()[0] == (LARGEST,)
        search.heard()
    sizes, _wait = search.tick()
    assert search.size == BASE
    assert sizes == SIZES_4[::-1], "and what is left of it is looked for at once"


def test_a_path_that_is_dead_has_not_become_narrower() -> None:
    search = SizeSearch(SIZES_4)
    round_of(search, lambda size: True)
    assert round_of(search, lambda size: False) == TRIES
    assert search.size == LARGEST


def test_answers_to_what_nobody_asked_change_nothing() -> None:
    search = SizeSearch(SIZES_4)
    for size in (0, BASE - 1, SIZES_4[0] + 1, LARGEST + 1, 65535):
        search.answered(size)
    assert search.size == BASE
