"""RTT, loss and jitter against the arithmetic of the RFCs, worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.core.rtt import (
    MAX_PROBES,
    RTO_INITIAL_MS,
    RTO_MAX_MS,
    RTO_MIN_MS,
    Jitter,
    LossWindow,
    RttEstimator,
)

RTTS = st.floats(min_value=0, max_value=10_000)


def estimate(*rtts_ms: float) -> RttEstimator:
    estimator = RttEstimator()
    for rtt_ms in rtts_ms:
        estimator.sample(rtt_ms)
    return estimator


def test_initial_timeout_before_any_sample() -> None:
    assert RttEstimator().rto_ms == RTO_INITIAL_MS == 250


def test_first_and_second_sample_as_in_rfc_6298() -> None:
    first = estimate(100)
    assert (first.srtt_ms, first.rttvar_ms, first.rto_ms) == (100, 50, 300)
    second = estimate(100, 180)
    # rttvar = 3/4 * 50 + 1/4 * |100 - 180| = 57.5; srtt = 7/8 * 100 + 1/8 * 180 = 110
    assert (second.srtt_ms, second.rttvar_ms, second.rto_ms) == (110, 57.5, 340)


def test_variation_is_updated_before_the_mean() -> None:
    """RFC 6298 2.3: the old SRTT enters RTTVAR. The other order would give 47.5 here."""
    assert estimate(80, 160).rttvar_ms == 0.75 * 40 + 0.25 * 80


def test_a_steady_path_keeps_the_clock_granularity_on_top() -> None:
    steady = estimate(*[100.0] * 200)
    assert steady.rttvar_ms < 0.01
    assert steady.rto_ms == 110


def test_timeout_bounds() -> None:
    assert estimate(0.2).rto_ms == RTO_MIN_MS == 30
    assert estimate(9000).rto_ms == RTO_MAX_MS == 3000


@given(st.lists(RTTS, min_size=1, max_size=50))
def test_timeout_is_bounded_and_covers_the_mean(rtts_ms: list[float]) -> None:
    estimator = estimate(*rtts_ms)
    assert estimator.srtt_ms is not None
    slack_ms = 1e-6
    assert min(rtts_ms) - slack_ms <= estimator.srtt_ms <= max(rtts_ms) + slack_ms
    assert RTO_MIN_MS <= estimator.rto_ms <= RTO_MAX_MS
    assert estimator.rto_ms >= min(estimator.srtt_ms + 10, RTO_MAX_MS)


def test_jitter_as_in_rfc_3550() -> None:
    jitter = Jitter()
    jitter.sample(50)
    assert jitter.jitter_ms == 0  # one sample has nothing to differ from
    jitter.sample(66)
    assert jitter.jitter_ms == 1  # |16| / 16
    jitter.sample(34)
    assert jitter.jitter_ms == 1 + (32 - 1) / 16


def test_jitter_of_a_steady_path_decays_and_of_a_swinging_one_converges() -> None:
    jitter = Jitter()
    for number in range(400):
        jitter.sample(100 if number % 2 else 140)
    assert jitter.jitter_ms == pytest.approx(40, abs=0.01)
    for _ in range(400):
        jitter.sample(100)
    assert jitter.jitter_ms < 0.01


@pytest.mark.parametrize("rtt_ms", [-1, math.inf, math.nan])
def test_impossible_measurements_are_bugs(rtt_ms: float) -> None:
    with pytest.raises(ValueError, match="rtt_ms"):
        RttEstimator().sample(rtt_ms)
    with pytest.raises(ValueError, match="rtt_ms"):
        Jitter().sample(rtt_ms)


def window(sent_ms: list[float], answered_ms: dict[int, float]) -> LossWindow:
    """Probes numbered from 0, with the events in order of time."""
    events = [(at, 0, number) for number, at in enumerate(sent_ms)]
    events += [(at, 1, number) for number, at in answered_ms.items()]
    loss = LossWindow(2000)
    for at, kind, number in sorted(events):
        if kind:
            loss.answered(number, at)
        else:
            loss.sent(number, at)
    return loss


def test_nothing_is_said_before_a_probe_is_answered_or_late() -> None:
    loss = window([0], {})
    assert LossWindow(2000).loss(0, 100) is None
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
    loss = LossWindow(2000)
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
