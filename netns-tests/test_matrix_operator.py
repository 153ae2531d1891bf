"""The failure matrix: what an operator orders, and policies that change under a running session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from subprocess import CompletedProcess

import pytest
from lab.daemons import Daemon
from lab.stage import Stage, Watch, until
from lab.story import BACK, FULL, HEALED, KEPT, ORDERED, fate, moves, of_type, wait_to

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MOST = 2
CALM = "stability_window_ms = 500\n"
TIGHT = f"{CALM}max_switches_per_minute = {MOST}\nswitch_cooldown_ms = 60000\n"


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture
def watch(stage: Stage) -> Iterator[Watch]:
    stage.strike()  # each test has a minute of its own
    with stage.watch(stage.pair(client_policy=FULL + CALM, gateway_policy=FULL)) as watch:
        yield watch


def policy(daemon: Daemon, verb: str, table: str) -> CompletedProcess[str]:
    """`jvpnctl policy check|apply` of this table."""
    file = daemon.folder / "policy.toml"
    file.write_text(f"[policy]\n{table}")
    return daemon.ctl("policy", verb, str(file))


def apply(daemon: Daemon, table: str) -> None:
    done = policy(daemon, "apply", table)
    assert done.returncode == 0, done.stderr


def refused(done: CompletedProcess[str], reason: str) -> bool:
    return done.returncode == 1 and done.stderr.startswith(f"jvpnctl: {reason}: ")


def assert_unmoved(watch: Watch, version: int) -> None:
    assert watch.story("client") == watch.story("gateway") == []
    assert watch.pair.client.status()["policy_version"] == version


def test_orders_are_bound_by_the_policy_too(stage: Stage, watch: Watch) -> None:
    client = watch.pair.client
    bound = watch.bound()
    other = stage.other(bound).device
    assert client.ctl("switch").returncode == 2
    assert refused(client.ctl("switch", "wlan9"), "POLICY_DENY")
    assert refused(client.ctl("switch", bound), "POLICY_DENY")
    assert watch.story("client") == []
    apply(client, TIGHT)
    assert client.ctl("switch", other).returncode == 0
    wait_to(watch, BACK)
    cooling = client.ctl("switch", bound)
    assert refused(cooling, "POLICY_DENY")
    assert "switch_cooldown_ms 60000" in cooling.stderr
    apply(client, TIGHT.replace("60000", "0"))
    assert client.ctl("switch", "--best").returncode == 0
    until(lambda: watch.bound() == bound, "it is back")
    often = client.ctl("switch", other)
    assert refused(often, "RATE_LIMITED")
    assert f"max_switches_per_minute {MOST} reached" in often.stderr
    assert [e["reason"] for e in of_type(watch, "client", "TRANSPORT_SWITCH_DENIED")] == [
        "POLICY_DENY",
        "RATE_LIMITED",
    ]
    assert watch.story("client") == watch.story("gateway") == [ORDERED, BACK] * MOST
    assert fate(watch).lost == 0
    watch.assert_flows()
    watch.assert_same_session()


def test_a_gateway_that_refuses_an_order_leaves_all_as_it_was(stage: Stage, watch: Watch) -> None:
    """Its policy has become stricter meanwhile, which the client does not know yet."""
    bound = watch.bound()
    client, gateway = watch.pair.client, watch.pair.gateway
    assert client.ctl("switch", "--best").returncode == 0
    wait_to(watch, BACK)
    apply(gateway, "max_switches_per_minute = 1\n")
    watch.begin()
    assert client.ctl("switch", bound).returncode == 0  # ordered; how it went is told by events
    wait_to(watch, HEALED)
    assert watch.story("client") == [ORDERED, KEPT, HEALED]
    assert watch.story("gateway") == []
    for side in ("client", "gateway"):
        (result,) = of_type(watch, side, "REATTACH_RESULT")
        assert result["reason"] == "RATE_LIMITED"
    assert watch.bound() == stage.other(bound).device
    assert fate(watch).lost == 0
    watch.assert_flows()
    watch.assert_same_session()


def test_a_policy_is_taken_whole_or_not_at_all(watch: Watch) -> None:
    client = watch.pair.client
    version = client.status()["policy_version"]
    for table, what in (
        ('metered_uplinks = ["up-a"]\nloss_floor = 2\n', "a number from 0 to 1"),
        ('metered_uplinks = ["up-a"]\nloss_flor = 0.3\n', "unknown key"),
        ("version = 1\n", f"{version + 1} or more"),
    ):
        for verb in ("check", "apply"):
            if (verb, table) == ("check", "version = 1\n"):
                continue  # only the daemon knows which one is in force
            done = policy(client, verb, table)
            assert done.returncode != 0
            key = table.splitlines()[-1].split()[0]
            assert f"policy.{key}" in done.stderr
            assert what in done.stderr
    assert_unmoved(watch, version)
    assert not of_type(watch, "client", "AUDIT_EVENT")
    assert policy(client, "check", TIGHT).returncode == 0
    assert_unmoved(watch, version)


def test_a_path_that_a_new_policy_forbids_is_left(stage: Stage, watch: Watch) -> None:
    """Without a loss. Where it forbids all paths nothing leaves, until one is allowed again."""
    client = watch.pair.client
    bound = watch.bound()
    version = client.status()["policy_version"]
    apply(client, f'{FULL}{CALM}forbidden_uplinks = ["{bound}"]\n')
    wait_to(watch, BACK)
    assert watch.bound() == stage.other(bound).device
    (why,) = moves(watch)
    assert why["why"] == "policy"
    (audit,) = of_type(watch, "client", "AUDIT_EVENT")
    assert audit["details"] == {
        "what": "policy applied",
        "from_version": version,
        "to_version": version + 1,
        "changed": ["forbidden_uplinks"],
    }
    assert fate(watch).lost == 0
    assert watch.story("client") == watch.story("gateway") == [ORDERED, BACK]
    assert refused(client.ctl("switch", bound), "POLICY_DENY")
    watch.begin()
    apply(client, f'{FULL}{CALM}forbidden_uplinks = ["up-*"]\n')
    watch.pair.client.wait_state("RECOVERING", after=watch.seq())
    assert moves(watch)[0]["why"] == "forbidden by the policy"
    sent = stage.uplink(bound).wire.counters()["carried_a"]
    apply(client, f'{FULL}{CALM}forbidden_uplinks = ["{stage.other(bound).device}"]\n')
    wait_to(watch, BACK)
    assert watch.bound() == bound
    assert stage.uplink(bound).wire.counters()["carried_a"] > sent
    watch.assert_flows(timeout_s=60)
    watch.assert_same_session()
