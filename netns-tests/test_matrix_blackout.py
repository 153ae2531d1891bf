"""The failure matrix: nothing gets through any more, for shorter and longer than each bound."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from lab.stage import Stage, Watch, until
from lab.story import (
    BACK,
    DIED,
    FULL,
    HEALED,
    LATE,
    SILENT,
    WINDOW,
    fate,
    wait_to,
)
from lab.wire import Conditions

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

QUICK = (
    "heartbeat_idle_ms = 200\nvolatile_after_ms = 600\nvolatile_to_degraded_ms = 1500\n"
    "stability_window_ms = 500\n"
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture
def alone(stage: Stage) -> Iterator[Watch]:
    """Under traffic, with one uplink and no other."""
    policy = FULL + QUICK
    with stage.watch(stage.pair(client_policy=policy, gateway_policy=policy)) as watch:
        stage.other(watch.bound()).set_down()
        until(lambda: len(watch.pair.client.status()["paths"]) == 1, "one path is left")
        watch.begin()
        yield watch


def end(stage: Stage, watch: Watch) -> None:
    stage.uplink(watch.bound()).wire.set_both(Conditions())


def assert_over(watch: Watch, expected: list[str]) -> None:
    """All is as before, also for the user."""
    watch.assert_flows(timeout_s=60)  # TCP may be in a back-off of its own
    watch.assert_same_session()
    assert watch.story("client") == expected


def test_the_only_link_goes_and_comes_back(stage: Stage, alone: Watch) -> None:
    only = stage.uplink(alone.bound())
    only.set_down()
    wait_to(alone, DIED)
    only.set_up()
    wait_to(alone, BACK)
    assert_over(alone, [DIED, BACK])
    assert alone.story("gateway") == [DIED, BACK]


def test_a_silence_is_borne_where_there_is_no_other_path(stage: Stage, alone: Watch) -> None:
    """Later than volatile_after_ms, not yet volatile_to_degraded_ms."""
    only = stage.uplink(alone.bound())
    only.silence()
    wait_to(alone, LATE)
    only.wire.set_both(Conditions())
    wait_to(alone, HEALED)
    assert_over(alone, [LATE, HEALED])
    assert alone.story("gateway") in ([], [LATE, HEALED])
    assert fate(alone).sent > 0


def test_a_longer_one_is_a_death_and_the_same_path_is_bound_anew(
    stage: Stage, alone: Watch
) -> None:
    only = stage.uplink(alone.bound())
    only.silence()
    death = wait_to(alone, SILENT)
    assert death["details"]["why"] == "silent, and no other path answers"
    assert death["details"]["silent_ms"] >= 1500
    only.wire.set_both(Conditions())
    wait_to(alone, BACK)
    assert_over(alone, [LATE, SILENT, BACK])
    assert alone.bound() == only.device
    assert alone.story("gateway") == [LATE, SILENT, BACK]


def test_a_blackout_longer_than_the_transport_loss_ttl(stage: Stage) -> None:
    """No interface tells of it. Both ends end the session by themselves, past the recovery window;
    its successor has the same addresses, so that the user's connections go on."""
    policy = FULL + QUICK + "max_recovery_window_ms = 500\ntransport_loss_ttl_ms = 1500\n"
    pair = stage.pair(client_policy=policy, gateway_policy=policy)
    with stage.watch(pair) as watch:
        for uplink in (stage.lab.a, stage.lab.b):
            uplink.silence()
        ends = {}
        for side in ("client", "gateway"):
            ends[side] = getattr(pair, side).wait_state("TERMINATED", after=watch.seq(side))
            assert ends[side]["reason"] == "TTL_TRANSPORT_LOSS_EXPIRED"
            assert ends[side]["session_id"] == watch.session
            assert WINDOW in watch.story(side)
        stage.heal()
        created = pair.client.wait_for(
            lambda e: e["event_type"] == "SESSION_CREATED", 40, watch.seq()
        )
        assert created["details"]["supersedes"] == watch.session != created["session_id"]
        inner = watch.addresses
        watch.begin()
        assert (watch.session, watch.addresses) == (created["session_id"], inner)
        watch.assert_flows(timeout_s=60)
        watch.assert_same_session()
