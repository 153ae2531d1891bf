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
    FULL,
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
UDP_LOSES = "meta l4proto udp numgen random mod 10 < 4 drop"
TOO_FEW_FOR_A_TRIAL = 8  # datagrams a second


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


def test_udp_that_loses_on_every_uplink_is_left_for_tcp(stage: Stage, watch: Watch) -> None:
    with blocked(stage.lab, UDP_LOSES):
        wait_to(watch, BELOW)
        until(lambda: watch.transport() == "tcp", "it goes over TCP")
        why = moves(watch)[-1]
        assert why["why"] == "quality"
        assert any(key.startswith("loss_") for key in why)
        watch.assert_flows()
        watch.assert_same_session()


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
