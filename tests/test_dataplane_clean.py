"""When records may span datagrams: after a run without a gap, and not again soon after one."""

from __future__ import annotations

import random

import pytest

from jvpnd.dataplane.clean import MIN_RUN, CleanRun


def test_a_new_binding_sends_no_spans_until_a_run_came_through() -> None:
    run = CleanRun()
    assert not run.spans
    run.told(MIN_RUN - 1, 0)
    assert not run.spans
    run.told(MIN_RUN, 0)
    assert run.spans


def test_one_gap_ends_spans_and_the_next_run_must_be_twice_as_long() -> None:
    run = CleanRun()
    run.told(MIN_RUN, 0)
    run.told(MIN_RUN + 100, 1)
    assert not run.spans
    run.told(3 * MIN_RUN + 99, 1)
    assert not run.spans
    run.told(3 * MIN_RUN + 100, 1)
    assert run.spans


def test_silence_ends_spans_without_a_penalty() -> None:
    run = CleanRun()
    run.told(MIN_RUN, 0)
    run.silent()
    assert not run.spans
    run.told(2 * MIN_RUN, 0)
    assert run.spans


def test_what_came_late_is_no_gap() -> None:
    run = CleanRun()
    run.told(100, 3)
    run.told(200, 0)
    run.told(200 + MIN_RUN, 0)
    assert run.spans


def test_a_report_about_the_binding_before_counts_for_nothing() -> None:
    run = CleanRun()
    run.told(MIN_RUN - 1, 0)
    run.told(5, 0)
    run.told(10, 0)
    assert not run.spans


@pytest.mark.parametrize(("loss", "share"), [(0.0, 0.95), (0.001, 0.02), (0.01, 0.0)])
def test_share_of_time_with_spans_follows_the_loss(loss: float, share: float) -> None:
    """A million datagrams; a span has 45, and is lost with any of them."""
    chance, run = random.Random(1), CleanRun()
    records = missing = datagrams = spanned = 0
    while datagrams < 1_000_000:
        for _ in range(20 if run.spans else 900):  # what goes out between two reports
            parts = 45 if run.spans else 1
            datagrams += parts
            spanned += parts if run.spans else 0
            if any(chance.random() < loss for _ in range(parts)):
                missing += 1
            else:
                records += 1
        run.told(records, missing)
    found = spanned / datagrams
    assert found >= share if not loss else found <= share
