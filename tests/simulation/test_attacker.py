"""Somebody on the path plays packets again, spoils, cuts and forges them: nothing comes of it."""

from __future__ import annotations

from random import Random

import pytest

from jvpnd.core.policy import Policy
from jvpnd.core.states import State

from .net import PATHS, Net
from .test_faults import mend, one_fault
from .world import Direction

ATTACKER = ("203.0.113.66", 666)
POLICY = Policy(transport_loss_ttl_ms=20_000, rekey_after_ms=3_000, max_switches_per_minute=600)


def attack(net: Net, dice: Random) -> None:
    """One packet that an end sent before, as it was or not, either way, from anywhere."""
    direction: Direction = dice.choice(["up", "down"])
    sent = net.client.sent if direction == "up" else net.gateway.sent
    if not sent:
        return
    packet = bytearray(dice.choice(sent if dice.random() < 0.5 else sent[-20:]))
    kind = dice.choice(["as it was", "spoilt", "cut", "another type", "noise"])
    if kind == "spoilt":
        packet[dice.randrange(len(packet))] ^= 1 << dice.randrange(8)
    elif kind == "cut":
        del packet[dice.randrange(len(packet)) :]
    elif kind == "another type":
        packet[0] = dice.randrange(10)
    elif kind == "noise":
        packet[1:] = dice.randbytes(dice.randrange(1_400))
    remote = ATTACKER if dice.random() < 0.7 else None
    net.world.inject(dice.choice(PATHS), direction, bytes(packet), remote)


@pytest.mark.parametrize("seed", range(8))
def test_an_attacker_moves_and_ends_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net, dice = Net(seed, POLICY), Random(f"attacker {seed}")
    net.ledger.watch_control(monkeypatch)
    before = net.attach()
    started = net.now_ms
    for _ in range(600):
        attack(net, dice)
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
            attack(net, dice)
            net.run(dice.choice([0, 1, 5, 30]))
    mend(net)
    net.world.run_until(net.is_attached, net.now_ms + 40_000)
    net.run(2_000)
    assert net.session.state is State.ATTACHED, f"seed {seed}"
    assert net.session.id is not None
    assert net.gateway.gateway.sessions[net.session.id].origin.remote != ATTACKER, f"seed {seed}"
    assert net.client.longest_gap_ms(net.now_ms - 1_000) <= 40, f"seed {seed}"
