"""What is lost, which way, and when it is more than the floor allows."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.core.loss import (
    EXCESS_LIMIT,
    MAX_PROBES,
    REPORT_BITS,
    ArrivalWindow,
    DirectionLoss,
    ProbeLog,
    RecordLog,
    Report,
)

FLOOR = 0.2
RTO_MS = 50.0


def window(sent_ms: list[float], answered_ms: dict[int, float]) -> ProbeLog:
    """Probes numbered from 0, with the events in order of time."""
    events = [(at, 0, number) for number, at in enumerate(sent_ms)]
    events += [(at, 1, number) for number, at in answered_ms.items()]
    loss = ProbeLog(2000)
    for at, kind, number in sorted(events):
        if kind:
            loss.answered(number, at)
        else:
            loss.sent(number, at)
    return loss


def test_nothing_is_said_before_a_probe_is_answered_or_late() -> None:
    loss = window([0], {})
    assert ProbeLog(2000).loss(0, 100) is None
    assert loss.loss(100, 100) is None
    assert loss.loss(101, 100) == 1.0


def test_ratio_of_lost_to_judged_probes() -> None:
    loss = window([0, 100, 200, 300, 400], {0: 20, 2: 220, 3: 320})
    assert loss.loss(450, 100) == 0.25  # number 1 is lost, number 4 still has time
    assert loss.loss(501, 100) == 0.4


def test_a_late_answer_counts_as_heard() -> None:
    loss = window([0, 100], {0: 10})
    assert loss.loss(300, 100) == 0.5
    assert loss.answered(1, 310) == 210
    assert loss.loss(310, 100) == 0.0


def test_duplicate_and_unknown_answers_are_ignored() -> None:
    loss = window([0], {})
    assert loss.answered(7, 10) is None
    assert loss.answered(0, 12) == 12
    assert loss.answered(0, 15) is None
    assert loss.loss(15, 100) == 0.0


def test_old_probes_leave_the_window() -> None:
    loss = window([0, 100, 200], {0: 20, 1: 120})
    assert loss.loss(2100, 100) == 1 / 3
    assert loss.loss(2101, 100) == 1 / 2  # number 0 has left
    assert loss.loss(2201, 100) == 1.0
    assert loss.loss(2301, 100) is None


def test_a_path_slower_than_the_window_is_still_judged() -> None:
    sent_ms = [float(number * 100) for number in range(100)]
    slow = window(sent_ms, {number: at + 2500 for number, at in enumerate(sent_ms)})
    assert slow.loss(9900, 3000) == 0.0
    dead = window(sent_ms, {})
    assert dead.loss(9900, 3000) == 1.0


def test_the_same_number_twice_is_a_bug() -> None:
    loss = window([0], {})
    with pytest.raises(ValueError, match="already"):
        loss.sent(0, 5)


def test_the_table_is_bounded() -> None:
    loss = ProbeLog(2000)
    for number in range(3 * MAX_PROBES):
        loss.sent(number, 0)
    assert len(loss._probes) == MAX_PROBES
    assert loss.answered(0, 1) is None
    assert loss.answered(3 * MAX_PROBES - 1, 1) == 1


@given(
    st.lists(st.tuples(st.integers(0, 300), st.none() | st.integers(1, 4000)), max_size=60),
    st.integers(30, 3000),
)
def test_agrees_with_the_definition(probes: list[tuple[int, int | None]], rto_ms: int) -> None:
    sent_ms, at = [], 0
    for gap_ms, _ in probes:
        at += gap_ms
        sent_ms.append(float(at))
    now_ms = float(at)
    answered_ms = {
        number: sent_ms[number] + rtt_ms
        for number, (_, rtt_ms) in enumerate(probes)
        if rtt_ms is not None and sent_ms[number] + rtt_ms <= now_ms
    }
    inside = [n for n, sent in enumerate(sent_ms) if sent >= now_ms - 2000 - rto_ms]
    heard = [n for n in inside if n in answered_ms]
    lost = [n for n in inside if n not in answered_ms and now_ms - sent_ms[n] > rto_ms]
    expected = len(lost) / (len(lost) + len(heard)) if lost or heard else None
    assert window(sent_ms, answered_ms).loss(now_ms, rto_ms) == expected


# --- which way a probe was lost ---


def fates(log: ProbeLog, now_ms: float) -> list[tuple[str, bool]]:
    return [("up" if up else "down", lost) for up, lost in log.fates(now_ms, RTO_MS)]


def test_an_answer_shows_that_both_ways_are_well_and_says_so_once() -> None:
    log = window([0], {0: 20})
    assert fates(log, 20) == [("up", False), ("down", False)]
    assert fates(log, 500) == []


def test_a_probe_that_came_to_the_gateway_but_was_not_answered_was_lost_on_the_way_back() -> None:
    log = window([0, 10], {1: 30})
    log.told(Report(1, 0b1), 30, RTO_MS)
    assert fates(log, 30) == [("up", False), ("up", False), ("down", False)]
    assert fates(log, 51) == [("down", True)], "only once it is late"


def test_a_probe_that_the_gateway_has_not_was_lost_on_the_way_there() -> None:
    log = window([0, 100], {1: 120})
    log.told(Report(1, 0b0), 120, RTO_MS)
    assert fates(log, 120) == [("up", True), ("up", False), ("down", False)]


def test_without_word_from_the_gateway_nobody_knows_which_way() -> None:
    log = window([0], {})
    assert fates(log, 10_000) == []
    assert log.silent_way(0) == "unknown"


def test_another_path_may_bring_the_word() -> None:
    log = window([0, 15, 30], {})
    log.told(Report(0, 0), 200, RTO_MS)
    assert log.silent_way(10) == "up", "the newest two have not come"
    log.told(Report(2, 0b11), 210, RTO_MS)
    assert log.silent_way(0) == "down", "late is not lost: they have come after all"


def test_what_is_younger_than_the_rto_may_still_be_on_its_way() -> None:
    log = window([0, 100], {})
    log.told(Report(0, 0), 120, RTO_MS)
    assert log.silent_way(100) == "unknown"


@given(st.lists(st.integers(0, 200), max_size=80))
def test_the_gateways_window_tells_of_each_probe_before_the_newest(numbers: list[int]) -> None:
    came = ArrivalWindow(numbers[0] if numbers else 0)
    heard: set[int] = set()
    for number in numbers:
        if number < came.newest - REPORT_BITS or number > came.newest + REPORT_BITS:
            heard.clear()  # it begins anew
        came.note(number)
        heard.add(number)
        for bit in range(REPORT_BITS):
            assert bool(came.mask >> bit & 1) == (came.newest - 1 - bit in heard)
            if number + REPORT_BITS >= came.newest and bit < REPORT_BITS - (came.newest - number):
                assert bool(came.before(number) >> bit & 1) == (number - 1 - bit in heard)


def test_a_huge_jump_of_the_number_costs_nothing() -> None:
    came = ArrivalWindow(0)
    came.note(2**32 - 1)
    assert (came.newest, came.mask) == (2**32 - 1, 0)


# --- the floor ---


def packets(way: DirectionLoss, loss: float, count: int, dice: Random) -> int | None:
    """How many packets it took to violate the floor, None if `count` did not do it."""
    for number in range(count):
        lost = dice.random() < loss
        way.count(number, not lost, lost, FLOOR)
        if way.violation(FLOOR) is not None:
            return number
    return None


@pytest.mark.parametrize("seed", range(5))
def test_an_hour_of_three_percent_is_chance(seed: int) -> None:
    assert packets(DirectionLoss(2_000), 0.03, 100_000, Random(seed)) is None


def test_thirty_percent_are_noticed_within_some_forty_packets() -> None:
    took = [packets(DirectionLoss(2_000), 0.3, 1_000, Random(seed)) for seed in range(99)]
    assert None not in took
    assert sorted(n for n in took if n is not None)[49] < 45


def test_a_violation_tells_how_much_was_lost_and_ends_when_packets_come_again() -> None:
    way = DirectionLoss(2_000)
    for number in range(100):
        way.count(number, number % 2, 1 - number % 2, FLOOR)
    assert way.violation(FLOOR) == pytest.approx(0.5, abs=0.05)
    for number in range(100, 200):
        way.count(number, 1, 0, FLOOR)
    assert way.violation(FLOOR) is None


def test_late_packets_give_back_what_was_taken_for_lost() -> None:
    way = DirectionLoss(2_000)
    way.count(0, 0, EXCESS_LIMIT + 2, FLOOR)
    assert way.violation(FLOOR) == 1.0
    way.count(1, EXCESS_LIMIT + 2, -EXCESS_LIMIT - 2, FLOOR)
    assert way.violation(FLOOR) is None
    assert way.rate(1) == 0.0


def test_a_floor_of_zero_is_off() -> None:
    way = DirectionLoss(2_000)
    way.count(0, 0, 1_000, 0.0)
    assert way.violation(0.0) is None
    assert way.rate(0) == 1.0


def test_old_trouble_is_forgiven_where_little_is_sent() -> None:
    way = DirectionLoss(2_000)
    way.count(0, 0, EXCESS_LIMIT + 2, FLOOR)
    way.forgive_after(2_999, 3_000)
    assert way.violation(FLOOR) == 1.0
    way.forgive_after(3_000, 3_000)
    assert way.violation(FLOOR) is None


def test_the_rate_is_that_of_the_window() -> None:
    way = DirectionLoss(2_000)
    way.count(0, 0, 10, FLOOR)
    way.count(1_000, 30, 0, FLOOR)
    assert way.rate(1_000) == 0.25
    assert way.rate(2_500) == 0.0
    assert way.rate(9_000) is None


# --- records of the data plane ---


def looked(*looks: tuple[float, int, int]) -> list[tuple[int, int]]:
    """(came, lost) of every look that was counted; looks are (when, records, missing)."""
    log = RecordLog()
    return [row[:2] for look in looks for row in log.look(*look, 10)]


def test_what_is_late_is_not_lost() -> None:
    """A path became slower at once, and the first to come by it overtook thirty others."""
    assert looked((0, 100, 0), (90, 101, 30), (100, 121, 10), (110, 131, 0), (150, 140, 0)) == [
        (1, 0),
        (20, 0),
        (10, 0),
    ]


def test_what_is_missing_for_long_is_lost_once() -> None:
    looks = [(at, 100 + at, 7 if at > 20 else 0) for at in range(0, 200, 10)]
    assert sum(lost for _, lost in looked(*looks)) == 7


def test_what_turns_up_after_all_was_not_lost() -> None:
    assert looked((0, 10, 0), (10, 20, 5), (60, 30, 5), (100, 40, 0), (140, 41, 0)) == [
        (10, 5),
        (10, -5),
        (10, 0),
    ]


def test_the_totals_of_a_new_epoch_begin_anew() -> None:
    assert looked((0, 500, 90), (10, 3, 0), (50, 10, 2), (90, 20, 2)) == [(7, 2)]
