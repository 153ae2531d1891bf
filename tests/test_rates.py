"""Rates are over the last seconds, whatever came before."""

from __future__ import annotations

import pytest

from jvpnd.cli.text import rate
from jvpnd.rates import SAMPLES, RateMeter


def test_a_steady_stream_has_its_rate() -> None:
    meter = RateMeter()
    for tick in range(100):
        meter.sample(tick * 100.0, tick * 1_000, tick * 50)
    assert meter.bytes_per_s() == (10_000, 500)


def test_what_stopped_is_forgotten_after_the_window() -> None:
    meter = RateMeter()
    meter.sample(0, 0, 0)
    for second in range(1, SAMPLES + 2):
        meter.sample(second * 1000.0, 10**9, 0)
    assert meter.bytes_per_s() == (0, 0)


def test_totals_that_fall_start_anew() -> None:
    meter = RateMeter()
    meter.sample(0, 5_000, 5_000)
    meter.sample(1_000, 100, 100)
    assert meter.bytes_per_s() == (0, 0)
    meter.sample(2_000, 200, 100)
    assert meter.bytes_per_s() == (100, 0)


@pytest.mark.parametrize(
    ("bytes_per_s", "words"),
    [
        (0, "idle"),
        (100, "800 bit/s"),
        (12_500, "100 kbit/s"),
        (1_562_500, "12.5 Mbit/s"),
        (150e6, "1.2 Gbit/s"),
    ],
)
def test_rates_are_said_in_bits(bytes_per_s: float, words: str) -> None:
    assert rate(bytes_per_s) == words
