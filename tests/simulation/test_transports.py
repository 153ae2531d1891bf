"""A session that may use several transports: where one of them is blocked the next one carries it,
and afterwards it comes home."""

from __future__ import annotations

import pytest

from jvpnd.core.policy import Policy
from jvpnd.core.states import State

from .net import Net
from .world import Conditions

UDP = ("wlan", "wwan")
TCP = "wlan/tcp"
CONNECT_MS = 60  # what a connection takes, once it is wanted


def block_udp(net: Net) -> None:
    for name in UDP:
        net.blackhole(name)


def heal_udp(net: Net) -> None:
    for name in UDP:
        net.heal(name)


def unconnected() -> Net:
    """A session over UDP; nothing keeps a connection warm."""
    net = Net(paths=(*UDP, TCP))
    net.link_down(TCP)
    net.attach()
    assert net.client.sought == []
    return net


def moves(net: Net) -> list[object]:
    """Why the client moved, each time that it was not forced to."""
    changes = net.client_history.of("STATE_CHANGE")
    return [e.details["why"] for e in changes if e.to_state == State.RECOVERING]


def test_udp_blocked_everywhere_is_left_for_tcp_and_come_home_to() -> None:
    net = Net(paths=(*UDP, TCP))
    before, started = net.attach(), net.now_ms
    assert net.bound in UDP, "UDP is preferred"
    block_udp(net)
    net.run(3_000)
    assert (net.bound, net.session.id) == (TCP, before)
    assert net.client.longest_gap_ms(started) <= 300
    peer = net.gateway.gateway.sessions[before]
    assert (peer.transport, peer.origin.transport) == ("tcp", "tcp")
    healed = net.now_ms
    heal_udp(net)
    net.world.run_until(lambda: net.agent.bound is not None and net.bound in UDP, healed + 60_000)
    assert net.now_ms - healed >= Policy().stability_window_ms
    net.run(2_000)
    assert net.client.longest_gap_ms(healed) <= 25, "the move home costs nothing"
    assert (net.session.id, net.session.state) == (before, State.ATTACHED)
    assert moves(net)[-1] == "failback"
    assert peer.transport == "udp"


def test_a_connection_is_made_when_nothing_else_answers() -> None:
    net = unconnected()
    before, started = net.session.id, net.now_ms
    block_udp(net)
    net.world.run_until(lambda: bool(net.client.sought), started + 1_000)
    assert net.client.sought == [(net.now_ms, True)]
    net.run(CONNECT_MS)
    net.link_up(TCP)
    net.run(2_000)
    assert (net.bound, net.session.id) == (TCP, before)
    assert net.client.longest_gap_ms(started) <= 500
    heal_udp(net)
    net.run(20_000)
    assert net.bound in UDP
    assert [wanted for _, wanted in net.client.sought] == [True, False]


def test_what_is_sought_is_wanted_until_the_session_has_been_calm() -> None:
    net = unconnected()
    started = net.now_ms
    block_udp(net)
    net.run(1_000)
    heal_udp(net)
    net.world.run_until(lambda: len(net.client.sought) == 2, net.now_ms + 60_000)
    (began, _), (ended, wanted) = net.client.sought
    assert not wanted
    assert started < began
    assert ended - began >= Policy().stability_window_ms
    assert net.session.state is State.ATTACHED


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_some_loss_is_no_need(seed: int) -> None:
    """Each connection that is sought costs the gateway a handshake."""
    net = Net(seed, paths=(*UDP, TCP))
    net.link_down(TCP)
    net.attach()
    for name in UDP:
        net.heal(name, Conditions(delay_ms=10, jitter_ms=5, loss=0.03))
    net.run(60_000)
    assert sum(wanted for _, wanted in net.client.sought) <= 1


def test_what_an_operator_ordered_is_not_undone_while_it_is_well() -> None:
    net = Net(paths=(*UDP, TCP))
    net.attach()
    net.world.call("client", lambda end, now_ms: end.core.switch(now_ms, TCP) and None)
    net.run(30_000)
    assert net.bound == TCP
    net.world.call("client", lambda end, now_ms: end.core.switch(now_ms, None) and None)
    net.run(1_000)
    assert net.bound in UDP, "the best other one"
    net.run(30_000)
    assert net.bound in UDP


def test_an_operators_order_is_over_with_the_death_of_its_path() -> None:
    net = Net(paths=(*UDP, TCP))
    net.attach()
    net.world.call("client", lambda end, now_ms: end.core.switch(now_ms, TCP) and None)
    net.run(5_000)
    net.blackhole(TCP)
    net.run(5_000)
    assert net.bound in UDP
    net.heal(TCP)
    block_udp(net)
    net.run(5_000)
    assert net.bound == TCP
    heal_udp(net)
    net.run(30_000)
    assert net.bound in UDP, "nobody has ordered to stay here now"


def test_a_gateway_that_forbids_a_transport_is_believed_by_what_really_came() -> None:
    net = Net(paths=(*UDP, TCP), gateway_policy=Policy(allowed_transports=("udp",)))
    before = net.attach()
    block_udp(net)
    net.run(5_000)
    assert net.session.id == before
    assert net.gateway.gateway.sessions[before].transport == "udp"
    assert "POLICY_DENY" in net.gateway_history.reasons("REATTACH_RESULT")
    heal_udp(net)
    net.run(20_000)
    assert (net.session.id, net.session.state) == (before, State.ATTACHED)
