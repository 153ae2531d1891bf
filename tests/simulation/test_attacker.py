"""Somebody on the path plays packets again, spoils, cuts and forges them: nothing comes of it."""

from __future__ import annotations

from random import Random

import pytest

from jvpnd.core.policy import Policy
from jvpnd.core.states import State

from .faults import ATTACKER, inject
from .net import Net
from .test_faults import mend, one_fault

POLICY = Policy(transport_loss_ttl_ms=20_000, rekey_after_ms=3_000, max_switches_per_minute=600)


@pytest.mark.parametrize("seed", range(8))
def test_an_attacker_moves_and_ends_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net, dice = Net(seed, POLICY), Random(f"attacker {seed}")
    net.ledger.watch_control(monkeypatch)
    before = net.attach()
    started = net.now_ms
    for _ in range(600):
        inject(net, dice)
        net.run(dice.choice([0, 1, 5, 30]))
    assert net.session.id == before, f"seed {seed}"
    assert net.client_history.reasons() == ["HANDSHAKE_OK"], f"seed {seed}"
    assert net.gateway_history.reasons() == ["HANDSHAKE_OK"], f"seed {seed}"
    assert net.client.longest_gap_ms(started) <= 25, f"seed {seed}"


@pytest.mark.parametrize("seed", range(8))
def test_an_attacker_during_faults_gains_nothing_that_lasts(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who forwards a request quicker than the path does gets its answer, until the next attempt."""
    net, dice = Net(seed, POLICY), Random(f"attacker {seed}")
    net.ledger.watch_control(monkeypatch)
    net.attach()
    for _ in range(20):
        one_fault(net, dice)
        for _ in range(dice.randrange(30)):
            inject(net, dice)
            net.run(dice.choice([0, 1, 5, 30]))
    mend(net)
    net.world.run_until(net.is_attached, net.now_ms + 40_000)
    net.run(2_000)
    assert net.session.state is State.ATTACHED, f"seed {seed}"
    assert net.session.id is not None
    assert net.gateway.gateway.sessions[net.session.id].origin.remote != ATTACKER, f"seed {seed}"
    assert net.client.longest_gap_ms(net.now_ms - 1_000) <= 40, f"seed {seed}"
