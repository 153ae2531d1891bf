"""The failure matrix: uplinks that come and go, and those that the policy likes more or less."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from lab.stage import Stage, Watch, until
from lab.story import (
    BACK,
    BELOW,
    BETTER,
    DENIED,
    DIED,
    FULL,
    MOVED,
    ORDERED,
    RETRIED,
    WORSE,
    fate,
    forget,
    moves,
    of_type,
    wait_to,
)
from lab.wire import Conditions

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

WINDOW_MS = 500
QUICK = f"heartbeat_idle_ms = 200\nstability_window_ms = {WINDOW_MS}\n"


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


def start(stage: Stage, policy: str) -> Watch:
    """New daemons: nothing has flapped yet."""
    stage.strike()
    return Watch(stage.pair(client_policy=policy, gateway_policy=FULL))


def is_on(watch: Watch, device: str) -> bool:
    """Whether the session is attached over this uplink."""
    status = watch.pair.client.status()
    binding = status["session"]["binding"]
    return status["state"] == "ATTACHED" and binding is not None and binding["uplink"] == device


def start_on(stage: Stage, device: str, policy: str) -> Watch:
    """And the session has gone to the uplink that the policy likes best."""
    watch = start(stage, policy)
    until(lambda: is_on(watch, device), f"it is on {device}")
    return watch


def gone_home(watch: Watch, to: str) -> None:
    """A planned move to `to`, of which the user noticed nothing."""
    wait_to(watch, ORDERED)
    watch.wait_attached()
    until(lambda: is_on(watch, to), f"it is on {to}")
    why = moves(watch)[-1]
    assert (why["why"], why["to_path"].split("/")[0]) == ("failback", to)
    assert fate(watch).lost == 0
    assert watch.story("client")[-2:] == watch.story("gateway")[-2:] == [ORDERED, BACK]


@pytest.mark.parametrize(
    ("liking", "to"),
    [('preferred_uplinks = ["up-a"]\n', "up-a"), ('metered_uplinks = ["up-a"]\n', "up-b")],
    ids=["preferred", "metered"],
)
def test_the_session_leaves_and_comes_home(stage: Stage, liking: str, to: str) -> None:
    pair = start_on(stage, to, FULL + QUICK + liking).pair
    with stage.watch(pair) as watch:
        stage.uplink(to).set_down()
        wait_to(watch, BACK)
        assert watch.bound() == stage.other(to).device
        forget(watch)
        stage.uplink(to).set_up()
        gone_home(watch, to)
        assert moves(watch)[-1]["steady_ms"] >= WINDOW_MS
        watch.assert_flows()
        watch.assert_same_session()


def test_a_preferred_uplink_that_flaps_does_not_drag_the_session_along(stage: Stage) -> None:
    pair = start_on(stage, "up-a", FULL + QUICK + 'preferred_uplinks = ["up-a"]\n').pair
    with stage.watch(pair) as watch:
        for _ in range(4):
            stage.lab.a.set_down()
            until(lambda: is_on(watch, "up-b"), "it is on the other one")
            stage.lab.a.set_up()
            time.sleep(0.25)  # so long it is up: less than the window
        assert watch.story("client") == watch.story("gateway") == [DIED, BACK]
        forget(watch)
        gone_home(watch, "up-a")
        assert moves(watch)[-1]["steady_ms"] >= 8 * WINDOW_MS  # four deaths
        watch.assert_same_session()


def switches(watch: Watch, side: str) -> int:
    return len(of_type(watch, side, "TRANSPORT_SWITCH"))


MOST = 4


def test_two_uplinks_that_flap_by_turns_reach_the_bound(stage: Stage) -> None:
    """Nothing gets the session over it, neither at the client nor at the gateway; a policy that
    allows more sets it free."""
    policy = f"max_switches_per_minute = {MOST}\nswitch_cooldown_ms = 0\n" + QUICK
    pair = start(stage, policy).pair
    with stage.watch(pair) as watch:
        for _ in range(MOST):
            lost, version = watch.bound(), len(watch.story("client"))
            stage.uplink(lost).set_down()
            until(lambda n=version: len(watch.story("client")) >= n + 2, "it has moved")
            assert watch.bound() == stage.other(lost).device
            stage.uplink(lost).set_up()
            stage.wait_paths(2)
        assert watch.story("client") == watch.story("gateway") == [DIED, BACK] * MOST
        stage.uplink(watch.bound()).set_down()
        wait_to(watch, DENIED)
        (denied,) = of_type(watch, "client", "TRANSPORT_SWITCH_DENIED")
        assert denied["reason"] == "RATE_LIMITED"
        assert denied["details"]["max_switches_per_minute"] == MOST
        stage.heal()
        stage.wait_paths(2)
        refused = pair.client.ctl("switch", "--best")
        assert (refused.returncode, refused.stderr.split(":")[1].strip()) == (1, "RATE_LIMITED")
        time.sleep(1)  # a candidate that lives is no way round the bound
        assert pair.client.status()["state"] == "DEGRADED"
        assert switches(watch, "client") == switches(watch, "gateway") == MOST
        file = pair.client.folder / "more.toml"
        file.write_text(f"[policy]\n{FULL}{QUICK}")
        assert pair.client.ctl("policy", "apply", str(file)).returncode == 0
        wait_to(watch, RETRIED)
        until(lambda: pair.client.status()["state"] == "ATTACHED", "it is attached")
        assert watch.story("client") == [*[DIED, BACK] * MOST, DIED, DENIED, RETRIED, BACK]
        watch.assert_flows(timeout_s=60)
        watch.assert_same_session()


def test_two_uplinks_that_turn_bad_by_turns(stage: Stage) -> None:
    """Moves by choice stop at half of the bound: then the session bears it, DEGRADED, and is
    ATTACHED again when the path is steady. A death still finds a switch."""
    policy = "max_switches_per_minute = 2\nvolatile_to_degraded_ms = 10000\n" + QUICK
    pair = start(stage, policy).pair
    bad = Conditions(loss=0.4)
    with stage.watch(pair) as watch:
        first = stage.uplink(watch.bound())
        second = stage.other(first.device)
        first.wire.set_both(bad)
        wait_to(watch, BACK)
        assert watch.story("client") == [BELOW, MOVED, BACK]
        first.wire.set_both(Conditions())
        second.wire.set_both(bad)
        degraded = wait_to(watch, WORSE)
        assert "1 of max_switches_per_minute 2 used" in degraded["details"]["why"]
        (denied,) = of_type(watch, "client", "TRANSPORT_SWITCH_DENIED")
        assert denied["reason"] == "RATE_LIMITED"
        second.wire.set_both(Conditions())
        wait_to(watch, BETTER)
        assert watch.story("client") == [BELOW, MOVED, BACK, BELOW, WORSE, BETTER]
        assert watch.bound() == second.device
        forget(watch)
        second.set_down()
        wait_to(watch, BACK)
        assert watch.story("client") == [DIED, BACK]
        watch.assert_flows(timeout_s=60)
        watch.assert_same_session()
