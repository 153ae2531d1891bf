"""RTT and jitter against the arithmetic of the RFCs, worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.core.rtt import (
    RTO_INITIAL_MS,
    RTO_MAX_MS,
    RTO_MIN_MS,
    Jitter,
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
