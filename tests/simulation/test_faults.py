"""Random faults from a seed: the invariants hold after every step, and the session comes back."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from jvpnd.core.policy import Policy
from jvpnd.core.states import State

from .net import PATHS, Net
from .world import BLACKHOLE, Conditions

SEEDS = range(24)
FAULTS_A_RUN = 25
POLICY = Policy(transport_loss_ttl_ms=20_000, rekey_after_ms=7_000, max_switches_per_minute=30)


def lossy(dice: Random) -> Conditions:
    return Conditions(
        delay_ms=dice.choice([1, 10, 80]),
        jitter_ms=dice.choice([0, 5, 40]),
        loss=dice.choice([0.0, 0.02, 0.3, 0.8]),
        duplicate=dice.choice([0.0, 0.1]),
    )


def one_fault(net: Net, dice: Random) -> str:
    """Do something bad, or mend something; returns its name for the report."""
    name = dice.choice(PATHS)
    path = net.world.paths[name]
    kind = dice.choice(
        ["lossy", "blackhole", "up only", "down only", "heal", "rebind", "link", "switch"] * 3
        + ["gateway", "client", "both"]
    )
    if kind == "lossy":
        path.up, path.down = lossy(dice), lossy(dice)
    elif kind == "blackhole":
        path.cut()
    elif kind == "up only":
        path.down = BLACKHOLE
    elif kind == "down only":
        path.up = BLACKHOLE
    elif kind == "heal":
        net.heal(name)
    elif kind == "rebind":
        net.world.rebind(name)
    elif kind == "link":
        (net.link_down if name in net.up else net.link_up)(name)
    elif kind == "switch":
        net.world.call("client", lambda end, now_ms: end.core.switch(now_ms, None) and None)
    if kind in ("gateway", "both"):
        net.world.restart("gateway")
    if kind in ("client", "both"):
        net.world.restart("client")
    return f"{kind} {name}"


def mend(net: Net) -> None:
    for name in PATHS:
        net.heal(name)
        if name not in net.up:
            net.link_up(name)


def run(seed: int) -> Net:
    """A whole run; every step of it checks the invariants (invariants.py, plane.py)."""
    net, dice = Net(seed, POLICY), Random(f"faults {seed}")
    net.attach()
    for _ in range(FAULTS_A_RUN):
        one_fault(net, dice)
        net.run(dice.choice([1, 20, 150, 900, 3_000]))
    mend(net)
    return net


@pytest.mark.parametrize("seed", SEEDS)
def test_after_faults_stop_the_session_is_attached_within_the_policys_bounds(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        net = Net(seed, POLICY)
        net.ledger.watch_control(patched)
        dice = Random(f"faults {seed}")
        net.attach()
        for _ in range(FAULTS_A_RUN):
            one_fault(net, dice)
            net.run(dice.choice([1, 20, 150, 900, 3_000]))
        mend(net)
        # The rate bound may hold it for a minute, a failed birth backs off for half a one.
        net.world.run_until(net.is_attached, net.now_ms + 95_000)
        net.run(6_000)  # offers that nobody took up have been forgotten then
        assert net.session.state is State.ATTACHED, f"seed {seed}"
        assert len(net.client.plane.receiving) <= 2, "old epochs are still received"
        assert len(net.gateway.plane.receiving) <= 2, "old epochs are still received"
        assert len(net.gateway.plane.expected) <= 2, "indexes are still expected"
        assert len(net.client.plane.expected) <= 1, "indexes are still expected"
        for history in (net.client_history, net.gateway_history):
            assert history.of("SECURITY_EVENT") == [], f"seed {seed}: a fault taken for an attack"
        assert net.client.longest_gap_ms(net.now_ms - 1_000) <= 100, f"seed {seed}"


@pytest.mark.parametrize("seed", range(12))
def test_a_table_that_takes_its_time_is_never_in_conflict_with_itself(seed: int) -> None:
    policy = replace(POLICY, volatile_to_degraded_ms=2_100)  # transitions in close succession
    net, dice, table = Net(seed, policy), Random(f"faults {seed}"), Random(f"table {seed}")
    net.attach()
    for _ in range(FAULTS_A_RUN):
        net.table.late_ms = lambda: table.choice([0, 5, 300, 900])
        one_fault(net, dice)
        net.run(dice.choice([1, 20, 150, 900, 3_000]))
    mend(net)
    net.world.run_until(net.is_attached, net.now_ms + 95_000)
    net.run(1_000)
    assert net.gateway_history.of("OWNERSHIP") == [], f"seed {seed}"
    assert net.session.id is not None
    peer = net.gateway.gateway.sessions[net.session.id]
    versions = net.table.versions  # a write may still be under way
    net.world.run_until(
        lambda: not peer.writes and peer.stored_version == versions[peer.session.id or b""],
        net.now_ms + 10_000,
    )


def trace(seed: int) -> list[object]:
    net = run(seed)
    events = [
        (now_ms, e.event_type, e.reason, e.state_version) for now_ms, e in net.client_history.events
    ]
    return [*net.world.trace, *events]


def test_the_same_seed_gives_the_same_run() -> None:
    assert trace(3) == trace(3)
    assert trace(3) != trace(4)


def test_a_stalled_shell_is_not_a_dead_path() -> None:
    """The client's process does not run for five seconds; its path is as good as ever."""
    net = Net(conditions=Conditions(delay_ms=11))  # so that something is always under way
    net.attach()
    path, stalled, resume_ms = net.bound, net.client, net.now_ms + 5_000
    wanted = stalled.next_timer_ms
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stalled, "receive", lambda now_ms, source, data: None)
        patched.setattr(stalled, "next_timer_ms", lambda: max(wanted(), resume_ms))
        net.run(4_990)
    net.run(2_000)
    assert net.bound == path
    assert "TRANSPORT_DEAD" not in net.client_history.reasons()
