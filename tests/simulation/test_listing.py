"""A gateway whose list of clients changes under running, moving and rekeying sessions."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from jvpnd.core.peer import ClientEntry
from jvpnd.core.policy import Policy
from jvpnd.core.states import State

from .net import Net
from .world import Conditions

OTHERS = [
    ClientEntry(f"c{n}", bytes([n]) * 32, (f"10.77.0.{n}/24",)) for n in range(10, 20)
]


def relist(net: Net, *entries: ClientEntry) -> None:
    net.world.call("gateway", lambda end, now_ms: end.gateway.apply_clients(now_ms, entries))


def test_nobody_notices_that_others_come_and_go() -> None:
    net = Net()
    before = net.attach()
    version, epoch, at_ms = net.session.state_version, net.session.epoch, net.now_ms
    for number in range(len(OTHERS)):
        relist(net, net.entry, *OTHERS[:number])
        net.run(100)
    relist(net, replace(net.entry, networks=("192.168.5.0/24",)))
    net.run(1_000)
    assert (net.session.id, net.session.state_version, net.session.epoch) == (
        before,
        version,
        epoch,
    )
    assert net.client.longest_gap_ms(at_ms) <= 50


def test_who_is_removed_is_told_at_once_and_comes_back_when_listed_again() -> None:
    net = Net()
    before = net.attach()
    relist(net)
    net.run(20)
    assert net.client_history.reasons()[-1] == "POLICY_TERMINATION"
    assert net.gateway_history.reasons()[-1] == "POLICY_TERMINATION"
    net.run(30_000)
    assert net.gateway.gateway.sessions == {}
    relist(net, net.entry)
    net.attach()
    assert net.session.id != before


def test_who_was_removed_while_nothing_reached_it_learns_it_later() -> None:
    net = Net()
    before = net.attach()
    for path in net.world.paths.values():
        path.down = Conditions(blackhole=True)
    relist(net)
    net.run(50)
    for name in net.world.paths:
        net.heal(name)
    net.run(5_000)
    session = net.agent.session
    assert session is None or session.id != before
    assert net.gateway.gateway.sessions == {}
    assert net.client_history.reasons()[-1] != "TTL_TRANSPORT_LOSS_EXPIRED"


@pytest.mark.parametrize("seed", range(6))
def test_the_list_counts_whenever_it_changes(seed: int) -> None:
    """While births, rekeys and moves are under way, the table slow and packets are lost.
    What the histories check at every step holds: identity, versions, one binding, fresh nonces."""
    dice = Random(seed)
    policy = Policy(rekey_after_ms=1_000, switch_cooldown_ms=0)
    lossy = Conditions(delay_ms=20, jitter_ms=10, loss=0.05)
    net = Net(seed, policy=policy, conditions=lossy)
    net.table.late_ms = lambda: dice.choice((0, 0, 5, 60))
    variants = (
        (net.entry,),
        (replace(net.entry, networks=("192.168.5.0/24",)), *OTHERS),
        (replace(net.entry, addresses=("10.77.0.9/24",)),),
        (replace(net.entry, name="other"),),
        (),
        tuple(OTHERS),
    )
    for _ in range(25):
        net.run(dice.randrange(0, 700))
        relist(net, *dice.choice(variants))
    relist(net)
    net.run(2_000)
    assert net.gateway.gateway.sessions == {}
    wanted = replace(net.entry, addresses=("10.77.0.44/24",))
    relist(net, wanted)
    net.run(40_000)
    (peer,) = net.gateway.gateway.sessions.values()
    assert peer.entry == wanted
    assert net.session.state is not State.TERMINATED
    assert net.session.addresses == wanted.addresses
