"""Daemons that are killed and started again, with what they keep in /run: the session goes on."""

from __future__ import annotations

import pytest

from jvpnd.core.policy import Policy
from jvpnd.core.states import State
from jvpnd.core.wire import PacketType

from .net import Net
from .world import Conditions


def killed(net: Net, node: str, down_ms: int = 1_000) -> int:
    """Kill and start it; returns when it was killed."""
    at_ms = net.now_ms
    net.world.crash(node)
    net.run(down_ms)
    net.world.restart(node)
    return at_ms


def test_a_restarted_gateway_tells_its_clients_and_they_go_on_at_once() -> None:
    net = Net(keeps=True)
    before = net.attach()
    path, epoch = net.bound, net.session.epoch
    at_ms = killed(net, "gateway")
    net.run(1_000)
    assert (net.session.id, net.bound) == (before, path)
    assert net.session.epoch == epoch + 1
    assert net.client_history.reasons()[-2:] == ["TRANSPORT_DEAD", "TRANSPORT_SWITCH_OK"]
    assert net.gateway_history.reasons()[-2:] == ["TRANSPORT_DEAD", "TRANSPORT_SWITCH_OK"]
    assert net.client.longest_gap_ms(at_ms) <= 1_000 + 50


def test_an_idle_client_is_told_too() -> None:
    net = Net(keeps=True)
    before = net.attach()
    net.client.busy = False
    killed(net, "gateway")
    net.run(100)
    assert net.session.id == before
    assert net.session.state is State.ATTACHED
    assert net.gateway.gateway.sessions[before].session.state is State.ATTACHED


def test_a_client_that_the_notice_did_not_reach_is_told_when_it_probes() -> None:
    net = Net(keeps=True)
    before = net.attach()
    path = net.bound
    net.world.crash("gateway")
    net.run(1_000)
    net.world.paths[path].down = Conditions(blackhole=True)
    net.world.restart("gateway")
    net.run(50)
    net.heal(path)
    net.run(500)
    assert net.session.id == before
    assert net.session.state is State.ATTACHED


def test_a_notice_that_is_played_again_does_nothing() -> None:
    net = Net(keeps=True)
    net.attach()
    killed(net, "gateway")
    net.run(1_000)
    (notice,) = [p for p in net.gateway.sent if p[0] == PacketType.NOTICE]
    version, dropped = net.session.state_version, net.agent.dropped["unexpected packet"]
    net.world.inject(net.bound, "down", notice, None)
    net.run(1_000)
    assert net.session.state_version == version
    assert net.agent.dropped["unexpected packet"] == dropped + 1


def test_a_restarted_client_goes_on_with_its_session() -> None:
    net = Net(keeps=True)
    before = net.attach()
    killed(net, "client")
    net.run(200)
    assert net.session.id == before
    assert net.session.state is State.ATTACHED
    assert net.client_history.reasons()[-2:] == ["TRANSPORT_DEAD", "TRANSPORT_SWITCH_OK"]


def test_both_ends_killed_at_once_find_each_other_again() -> None:
    net = Net(keeps=True)
    before = net.attach()
    net.world.crash("client")
    killed(net, "gateway", down_ms=3_000)
    net.world.restart("client")
    net.run(500)
    assert net.session.id == before
    assert net.session.state is State.ATTACHED


@pytest.mark.parametrize("node", ["client", "gateway"])
def test_an_end_that_is_killed_again_and_again_keeps_the_session(node: str) -> None:
    net = Net(keeps=True)
    before = net.attach()
    for _ in range(6):
        killed(net, node, down_ms=300)
        net.run(100)
    net.run(30_000)
    assert net.session.id == before
    assert net.session.state is State.ATTACHED


def test_a_client_that_was_away_for_too_long_names_its_old_session() -> None:
    net = Net(keeps=True)
    before = net.attach()
    killed(net, "client", down_ms=70_000)
    net.run(2_000)
    assert net.session.id not in (before, None)
    created = net.client_history.of("SESSION_CREATED")[-1]
    assert created.details["supersedes"] == before.hex()


def test_a_gateway_that_lost_its_table_proves_that_the_session_is_unknown() -> None:
    net = Net(keeps=True)
    before = net.attach()
    net.world.crash("gateway")
    net.table.clear()
    net.world.restart("gateway")
    net.run(6_000)
    assert net.session.id not in (before, None)
    assert "SESSION_NOT_FOUND" in net.client_history.reasons()
    created = net.client_history.of("SESSION_CREATED")[-1]
    assert created.details["supersedes"] == before.hex()


def test_a_session_that_a_crash_left_in_the_middle_of_a_move_goes_on() -> None:
    net = Net(keeps=True)
    before = net.attach()
    net.link_down(net.bound)
    net.run(12)  # the request is on its way, or has just come
    net.world.crash("gateway")
    net.run(500)
    net.world.restart("gateway")
    net.run(5_000)
    assert net.session.id == before
    assert net.session.state is State.ATTACHED


def test_a_root_that_a_gateway_forgot_before_it_confirmed_it_is_not_insisted_on() -> None:
    net = Net(keeps=True, policy=Policy(rekey_after_ms=10_000))
    before = net.attach()
    net.world.run_until(lambda: net.session.rekeys == 1, net.now_ms + 20_000)
    net.world.crash("gateway")  # its answer had come; the client's confirmation had not
    net.run(500)
    net.world.restart("gateway")
    net.run(3_000)
    assert net.session.id == before
    assert net.session.state is State.ATTACHED


def test_a_session_that_ended_is_not_taken_up_again() -> None:
    net = Net(keeps=True, policy=Policy(transport_loss_ttl_ms=3_000))
    before = net.attach()
    for path in sorted(net.up):
        net.world.paths[path].up = net.world.paths[path].down = Conditions(blackhole=True)
    net.world.run_until(lambda: net.session.id is None, net.now_ms + 60_000)  # the next is begun
    killed(net, "client", down_ms=10)
    for path in sorted(net.up):
        net.heal(path)
    net.run(5_000)
    assert net.session.id not in (None, before)
    assert net.client_history.of("SESSION_CREATED")[-1].details["supersedes"] == before.hex()
