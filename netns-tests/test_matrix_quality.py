"""The failure matrix: paths that live and are bad, or that fail in one direction only."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import pytest
from lab.capture import Datagram, Sender
from lab.daemons import INNER
from lab.stage import Stage, Watch, until
from lab.story import (
    BACK,
    BELOW,
    BETTER,
    DIED,
    FULL,
    HEALED,
    MOVED,
    WORSE,
    fate,
    forget,
    moves,
    wait_to,
)
from lab.wire import Conditions

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

QUICK = (
    "heartbeat_idle_ms = 500\nvolatile_after_ms = 1000\nvolatile_to_degraded_ms = 2500\n"
    "stability_window_ms = 1000\n"
)
POLICY = FULL + QUICK
LOSSY = Conditions(loss=0.3)
WELL = Conditions()
SILENT = Conditions(silent=True)
WAYS = pytest.mark.parametrize("way", ["up", "down"])


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture
def watch(stage: Stage) -> Iterator[Watch]:
    with stage.watch(stage.pair(client_policy=POLICY, gateway_policy=FULL)) as watch:
        yield watch


@contextlib.contextmanager
def floor(watch: Watch, line: str) -> Iterator[None]:
    """The client's policy has one more line meanwhile."""
    file = watch.pair.client.folder / "floor.toml"
    for text in (POLICY + line, POLICY):
        file.write_text(f"[policy]\n{text}")
        done = watch.pair.client.ctl("policy", "apply", str(file))
        assert done.returncode == 0, done.stderr
        if text != POLICY:
            yield


def spoil(stage: Stage, device: str, way: str, conditions: Conditions) -> None:
    """One direction of an uplink's wire, or `both`."""
    wire = stage.uplink(device).wire
    wire.set(
        conditions if way in ("up", "both") else None,
        conditions if way in ("down", "both") else None,
    )


def assert_told(watch: Watch, expected: list[str]) -> None:
    watch.assert_same_session()
    assert watch.story("client") == expected, watch.events("client")


# --- loss ---


@pytest.mark.parametrize("way", ["both", "up", "down"])
def test_a_path_that_loses_is_left_for_a_clean_one(stage: Stage, watch: Watch, way: str) -> None:
    """30 % for three seconds; whoever stays loses half of the echoes of that time, or a third."""
    bad = watch.bound()
    good = stage.other(bad).device
    spoil(stage, bad, way, LOSSY)
    time.sleep(3)  # the fault's length is the test
    spoil(stage, bad, way, WELL)
    assert watch.bound() == good
    assert_told(watch, [BELOW, MOVED, BACK])
    (why,) = moves(watch)
    assert why["why"] == "quality"
    ways = {f"loss_{way}"} if way != "both" else {"loss_up", "loss_down"}
    assert ways | {"loss_either"} >= {key for key in why if key.startswith("loss_")} != set()
    assert watch.story("gateway") == ["ATTACHED -> RECOVERING RECOVERY_START", BACK]
    lost = fate(watch)
    assert lost.lost < 50
    watch.assert_flows()
    assert_told(watch, [BELOW, MOVED, BACK])  # the way back is no better than to stay


def test_a_little_loss_and_jitter_moves_nothing(stage: Stage, watch: Watch) -> None:
    for uplink in (stage.lab.a, stage.lab.b):
        uplink.wire.set_both(Conditions(loss=0.03, jitter_ms=20))
    time.sleep(4)  # the fault's length is the test
    assert_told(watch, [])
    assert watch.story("gateway") == []


def test_a_short_loss_spike_on_every_path_ends_in_attached(stage: Stage, watch: Watch) -> None:
    bound = watch.bound()
    for uplink in (stage.lab.a, stage.lab.b):
        uplink.wire.set_both(LOSSY)
    wait_to(watch, BELOW)
    for uplink in (stage.lab.a, stage.lab.b):
        uplink.wire.set_both(WELL)
    wait_to(watch, HEALED)
    assert watch.bound() == bound
    assert_told(watch, [BELOW, HEALED])
    watch.assert_flows()


def test_lasting_loss_on_every_path_is_degraded_until_it_ends(stage: Stage, watch: Watch) -> None:
    bound = watch.bound()
    for uplink in (stage.lab.a, stage.lab.b):
        uplink.wire.set_both(LOSSY)
    wait_to(watch, WORSE)
    forget(watch)
    assert fate(watch, more=30).lost > 0  # it carries what it can
    for uplink in (stage.lab.a, stage.lab.b):
        uplink.wire.set_both(WELL)
    wait_to(watch, BETTER)
    assert watch.bound() == bound
    assert_told(watch, [BETTER])
    watch.assert_flows(timeout_s=60)  # TCP may be in a long back-off of its own


# --- latency, jitter ---


def test_a_slow_path_is_left_where_the_policy_has_a_floor(stage: Stage, watch: Watch) -> None:
    bad = watch.bound()
    with floor(watch, "latency_floor_ms = 100\n"):
        stage.uplink(bad).wire.set_both(Conditions(delay_ms=80))
        wait_to(watch, BACK)
        assert watch.bound() == stage.other(bad).device
        assert_told(watch, [BELOW, MOVED, BACK])
        (why,) = moves(watch)
        assert why["rtt_ms"] > 100
        assert fate(watch).lost == 0
        watch.assert_flows()


def test_a_path_that_jitters_is_left_where_the_policy_has_a_floor(
    stage: Stage, watch: Watch
) -> None:
    bad = watch.bound()
    with floor(watch, "jitter_floor_ms = 25\n"):
        stage.uplink(bad).wire.set_both(Conditions(jitter_ms=100))
        wait_to(watch, BACK)
        assert watch.bound() == stage.other(bad).device
        assert_told(watch, [BELOW, MOVED, BACK])
        (why,) = moves(watch)
        assert why["jitter_ms"] > 25
        assert fate(watch).lost == 0
        watch.assert_flows()


def test_a_slow_path_without_a_floor_is_only_slow(stage: Stage, watch: Watch) -> None:
    """200 ms at once is no death, and no reason to move."""
    stage.uplink(watch.bound()).wire.set_both(Conditions(delay_ms=90, jitter_ms=10))
    time.sleep(3)  # the fault's length is the test
    assert fate(watch).lost == 0
    assert_told(watch, [])
    assert watch.story("gateway") == []


# --- one direction ---


@WAYS
def test_a_one_way_blackhole_is_a_death_whose_way_is_known(
    stage: Stage, watch: Watch, way: str
) -> None:
    bad = watch.bound()
    spoil(stage, bad, way, SILENT)
    wait_to(watch, BACK)
    assert watch.bound() == stage.other(bad).device
    (death,) = moves(watch)
    assert death["way"] == way
    assert_told(watch, [DIED, BACK])
    assert watch.story("gateway") == [DIED, BACK]
    seen = fate(watch)
    assert seen.longest_gap_ms < 1500
    watch.assert_flows()


def test_what_still_comes_down_does_not_hide_that_nothing_gets_up(stage: Stage) -> None:
    pair = stage.pair(client_policy=POLICY, gateway_policy=FULL)
    watch = Watch(pair)
    bad = watch.bound()
    source, target = (INNER[side][0] for side in ("gateway", "client"))
    stream = [Datagram((source, 9), (target, 9), bytes(100))]
    with Sender(stage.lab.gateway) as sender:
        sender.start_forged(stream, per_s=200, total=200_000)
        until(lambda: pair.client.status()["traffic"]["rx_packets"] > 200, "it comes down")
        forgotten = pair.client.status()["traffic"]["rx_packets"]
        spoil(stage, bad, "up", SILENT)
        wait_to(watch, BACK)
        assert pair.client.status()["traffic"]["rx_packets"] > forgotten
    (death,) = moves(watch)
    assert (death["why"], death["way"]) == ("probes unanswered on this path only", "up")
    assert_told(watch, [DIED, BACK])
    assert watch.bound() == stage.other(bad).device
