"""Every transport under one session: UDP that is throttled to uselessness while TCP is well."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from lab.firewall import blocked, throttle
from lab.stage import Stage, Watch, until
from lab.story import (
    BACK,
    BELOW,
    DIED,
    FULL,
    MOVED,
    ORDERED,
    SILENT,
    fate,
    forget,
    moves,
    wait_to,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

WINDOW_MS = 1000
QUICK = (
    "heartbeat_idle_ms = 500\nvolatile_after_ms = 1000\nvolatile_to_degraded_ms = 2500\n"
    f"stability_window_ms = {WINDOW_MS}\n"
)
ENOUGH_FOR_PROBES = 100  # datagrams a second
TOO_FEW_FOR_A_TRIAL = 8


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture
def watch(stage: Stage) -> Iterator[Watch]:
    stage.strike()
    pair = stage.pair(
        paths=4, transports=("udp", "tcp"), client_policy=FULL + QUICK, gateway_policy=FULL
    )
    with stage.watch(pair) as watch:
        assert watch.transport() == "udp"
        yield watch


def homecomings(watch: Watch) -> dict[str, list[int]]:
    """How long each path had been steady when the session went back to it."""
    found: dict[str, list[int]] = {}
    for why in moves(watch):
        if why["why"] == "failback":
            found.setdefault(why["to_path"], []).append(why["steady_ms"])
    return found


def test_throttled_udp_is_left_for_tcp_and_tried_ever_more_seldom(
    stage: Stage, watch: Watch
) -> None:
    """Probes get through while nothing else does, so only traffic shows what the path is worth."""
    with blocked(stage.lab, throttle(ENOUGH_FOR_PROBES)):
        wait_to(watch, BELOW)
        until(lambda: watch.transport() == "tcp", "it goes over TCP")
        why = until(  # the first time it may have been silence
            lambda: next((why for why in moves(watch) if why["why"] == "quality"), None),
            "it is left for its quality",
            timeout_s=60,
        )
        assert any(key.startswith("loss_") for key in why)
        steady = until(
            lambda: next((s for s in homecomings(watch).values() if len(s) == 3), None),
            "it has come home to one path three times",
            timeout_s=60,
        )
        for ms, doublings in zip(steady, (0, 0, 1), strict=True):
            assert ms >= WINDOW_MS << doublings
        until(lambda: watch.transport() == "tcp", "it goes over TCP")
        watch.assert_flows()
        watch.assert_same_session()
    # A bucket that is empty for a while is silence.
    assert set(watch.story("client")) - {DIED, SILENT} == {BELOW, MOVED, BACK, ORDERED}


def test_udp_that_hardly_passes_anything_is_not_gone_back_to(stage: Stage, watch: Watch) -> None:
    with blocked(stage.lab, throttle(TOO_FEW_FOR_A_TRIAL)):
        wait_to(watch, BACK)
        until(lambda: watch.transport() == "tcp", "it goes over TCP")
        forget(watch)
        lost: Any = fate(watch, more=100 * 6 * WINDOW_MS // 1000)
        assert lost.lost == 0
        assert watch.transport() == "tcp"
        assert watch.story("client") == watch.story("gateway") == []
        watch.assert_flows()
        watch.begin()
    wait_to(watch, BACK, timeout_s=30)
    assert watch.transport() == "udp"
    (why,) = moves(watch)
    assert why["why"] == "failback"
    assert fate(watch).lost == 0
    watch.assert_flows()
    watch.assert_same_session()
