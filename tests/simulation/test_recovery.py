"""One fault at a time, in virtual time: what happens, why, and how long the echo is away."""

from __future__ import annotations

import pytest

from jvpnd.core.peer import Stored
from jvpnd.core.policy import Policy
from jvpnd.core.reasons import Reason
from jvpnd.core.states import Event, State
from jvpnd.core.wire import PacketType

from .net import Net
from .world import Conditions


def other(name: str) -> str:
    return "wwan" if name == "wlan" else "wlan"


def test_a_session_comes_up_and_carries_traffic() -> None:
    net = Net()
    net.attach()
    assert net.client_history.reasons() == ["HANDSHAKE_OK"]
    assert net.gateway_history.reasons() == ["HANDSHAKE_OK"]
    net.run(1_000)
    assert net.client.longest_gap_ms(net.now_ms - 900) <= 25


def test_link_down_moves_the_session_within_a_round_trip() -> None:
    net = Net()
    before = net.attach()
    lost = net.bound
    started = net.now_ms
    net.link_down(lost)
    net.run(1_000)
    assert net.session.id == before
    assert net.bound == other(lost)
    assert net.client_history.reasons()[-2:] == ["TRANSPORT_DEAD", "TRANSPORT_SWITCH_OK"]
    assert net.gateway_history.reasons()[-2:] == ["TRANSPORT_DEAD", "TRANSPORT_SWITCH_OK"]
    assert net.client.longest_gap_ms(started) <= 30


def test_blackhole_is_found_by_silence_and_left() -> None:
    net = Net()
    before = net.attach()
    lost, started = net.bound, net.now_ms
    net.blackhole(lost)
    net.run(2_000)
    assert net.session.id == before
    assert net.bound == other(lost)
    assert net.client.longest_gap_ms(started) <= 250


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_blackhole_in_one_direction_only_is_found_too(direction: str) -> None:
    net = Net()
    before = net.attach()
    lost = net.bound
    setattr(net.world.paths[lost], direction, Conditions(blackhole=True))
    net.run(4_000)
    assert net.session.id == before
    assert net.bound == other(lost)


def test_what_is_heard_does_not_hide_that_nothing_gets_out() -> None:
    net = Net()
    net.attach()
    net.client.busy = False
    lost = net.bound
    net.world.paths[lost].up = Conditions(blackhole=True)
    for _ in range(1_000):
        net.world.call("gateway", lambda end, now_ms: end.push(now_ms))
        net.run(5)
    assert net.bound == other(lost)


def test_a_replayed_reattach_request_moves_nothing_and_is_audited() -> None:
    net = Net()
    net.attach()
    lost = net.bound
    net.link_down(lost)
    net.run(1_000)
    (request,) = [p for p in net.client.sent if p[0] == PacketType.REATTACH_REQUEST]
    peer = net.gateway.gateway.sessions[net.session.id or b""]
    origin, version = peer.origin, peer.session.state_version
    net.world.inject(net.bound, "up", request, ("203.0.113.66", 666))
    net.run(1_000)
    assert (peer.origin, peer.session.state_version) == (origin, version)
    assert net.gateway_history.of("REATTACH_RESULT")[-1].reason == "REPLAY_DETECTED"
    assert net.gateway_history.reasons("SECURITY_EVENT") == ["SEC_REPLAY_ATTEMPT"]
    assert net.client.longest_gap_ms(net.now_ms - 900) <= 25


def test_nat_rebinding_of_a_busy_session_is_explicit_and_quick() -> None:
    net = Net()
    before = net.attach()
    path, started = net.bound, net.now_ms
    net.world.rebind(path)
    net.run(2_000)
    assert net.session.id == before
    assert net.bound == path
    assert net.client_history.reasons()[-2:] == ["NAT_REBIND", "TRANSPORT_SWITCH_OK"]
    assert net.client.longest_gap_ms(started) <= 60


def test_nat_rebinding_of_an_idle_session_is_noticed_by_its_probe() -> None:
    net = Net()
    net.attach()
    net.client.busy = False
    net.run(5_000)
    net.world.rebind(net.bound)
    net.run(1_500)
    assert net.client_history.reasons()[-2:] == ["NAT_REBIND", "TRANSPORT_SWITCH_OK"]


def test_address_change_of_the_only_uplink() -> None:
    net = Net()
    before = net.attach()
    net.link_down(other(net.bound))
    path, started = net.bound, net.now_ms
    net.link_down(path)
    net.world.rebind(path)
    net.run(3)
    net.link_up(path)
    net.run(1_000)
    assert net.session.id == before
    assert net.client.longest_gap_ms(started) <= 30


def test_a_planned_switch_loses_nothing() -> None:
    net = Net()
    net.attach()
    target = other(net.bound)
    lost_before = set(net.client.lost)
    net.world.call("client", lambda end, now_ms: end.core.switch(now_ms, target))
    net.run(1_000)
    assert net.bound == target
    in_flight = {n for n in net.client.lost if net.now_ms - net.client.sent_ms[n] < 25}
    assert net.client.lost - in_flight <= lost_before
    assert net.client_history.reasons()[-2:] == ["RECOVERY_START", "TRANSPORT_SWITCH_OK"]


def test_a_planned_switch_to_a_dead_path_keeps_the_old_binding() -> None:
    net = Net()
    net.attach()
    path, target = net.bound, other(net.bound)
    net.blackhole(target)
    started = net.now_ms
    net.world.call("client", lambda end, now_ms: end.core.switch(now_ms, target))
    net.run(1_500)
    assert net.bound == path
    assert net.client.longest_gap_ms(started) <= 25
    assert "TRANSPORT_SWITCH_DENIED" in net.client_history.reasons()


def test_all_paths_dead_for_less_than_the_ttl_is_survived() -> None:
    net = Net()
    before = net.attach()
    for name in ("wlan", "wwan"):
        net.blackhole(name)
    net.run(30_000)
    for name in ("wlan", "wwan"):
        net.heal(name)
    net.run(5_000)
    assert net.session.id == before
    assert net.session.state is State.ATTACHED
    assert "RECOVERY_BOUNDS_EXCEEDED" in net.client_history.reasons()
    assert net.client.longest_gap_ms(net.now_ms - 500) <= 25


def test_both_paths_silent_at_once_is_no_evidence_against_one() -> None:
    policy = Policy(heartbeat_idle_ms=300, volatile_after_ms=600, volatile_to_degraded_ms=1_000)
    net = Net(policy=policy)
    net.attach()
    for name in ("wlan", "wwan"):
        net.blackhole(name)
    net.run(3_000)
    assert net.client_history.reasons()[1:3] == ["VOLATILITY_SIGNAL", "TRANSPORT_DEAD"]


def test_all_links_down_and_up_again_resumes_at_once() -> None:
    net = Net()
    before = net.attach()
    for name in ("wlan", "wwan"):
        net.link_down(name)
    net.run(3_000)
    net.link_up("wwan")
    net.run(200)
    assert net.session.id == before
    assert net.session.state is State.ATTACHED


def test_all_paths_dead_for_longer_than_the_ttl_ends_the_session_and_a_new_one_names_it() -> None:
    net = Net(policy=Policy(transport_loss_ttl_ms=10_000))
    before = net.attach()
    for name in ("wlan", "wwan"):
        net.blackhole(name)
    net.run(20_000)
    assert "TTL_TRANSPORT_LOSS_EXPIRED" in net.client_history.reasons()
    assert "TTL_TRANSPORT_LOSS_EXPIRED" in net.gateway_history.reasons()
    for name in ("wlan", "wwan"):
        net.heal(name)
    net.run(35_000)
    assert net.is_attached()
    assert net.session.id != before
    created = net.client_history.of("SESSION_CREATED")[-1]
    assert created.details["supersedes"] == before.hex()


def test_the_session_ttl_ends_a_healthy_session_and_a_new_one_follows() -> None:
    net = Net(policy=Policy(session_ttl_ms=60_000))
    before = net.attach()
    net.run(60_000)
    assert net.is_attached()
    assert net.session.id != before
    assert "TTL_SESSION_EXPIRED" in net.client_history.reasons()


def test_a_gateway_that_lost_its_table_proves_it_and_a_new_session_begins() -> None:
    net = Net()
    before = net.attach()
    net.world.restart("gateway")
    net.run(6_000)
    assert net.is_attached()
    assert net.session.id != before
    assert "SESSION_NOT_FOUND" in net.client_history.reasons()


def test_a_restarted_client_supersedes_its_old_session() -> None:
    net = Net()
    before = net.attach()
    net.world.restart("client")
    net.run(1_000)
    assert net.is_attached()
    assert net.session.id != before
    assert "SUPERSEDED" in net.gateway_history.reasons()


def test_a_superseded_client_rests_even_if_it_missed_the_farewell() -> None:
    net = Net()
    before = net.attach()
    peer = net.gateway.gateway.sessions[before]
    for name in ("wlan", "wwan"):
        net.world.paths[name].down = Conditions(blackhole=True)
    superseded = (Event.SUPERSEDED, Reason.SUPERSEDED)  # as a second client's birth would do
    net.world.call(
        "gateway", lambda end, now_ms: end.gateway._state.end(now_ms, peer, *superseded)
    )
    net.run(5_000)
    for name in ("wlan", "wwan"):
        net.heal(name)
    net.run(20_000)
    assert net.agent.is_resting
    assert net.client_history.reasons()[-1] == "SUPERSEDED"


def test_rekey_under_traffic_changes_the_epoch_and_loses_nothing() -> None:
    net = Net(policy=Policy(rekey_after_ms=5_000))
    before = net.attach()
    net.run(30_000)
    assert net.session.id == before
    assert net.session.rekeys >= 5
    in_flight = {n for n in net.client.lost if net.now_ms - net.client.sent_ms[n] < 25}
    early = {n for n in net.client.lost if net.client.sent_ms[n] < 100}
    assert net.client.lost == in_flight | early
    assert net.client_history.reasons() == ["HANDSHAKE_OK"]


def rekey_asked(net: Net) -> None:
    """Run until the INIT of a rekey is on its way."""
    asked = len(net.client.sent)
    net.world.run_until(
        lambda: any(p[0] == PacketType.HANDSHAKE_INIT for p in net.client.sent[asked:]),
        net.now_ms + 10_000,
    )


def test_all_paths_lost_right_after_a_rekey_was_answered_is_survived() -> None:
    net = Net(policy=Policy(rekey_after_ms=5_000))
    before = net.attach()
    rekey_asked(net)
    for name in ("wlan", "wwan"):
        net.world.paths[name].up = Conditions(blackhole=True)
    net.run(15_000)
    assert (net.session.rekeys, net.gateway.gateway.sessions[before].session.rekeys) == (1, 0)
    for name in ("wlan", "wwan"):
        net.heal(name)
    net.run(5_000)
    assert net.is_attached()
    assert net.session.id == before
    assert net.gateway_history.of("SECURITY_EVENT") == []


def test_a_rekey_waits_for_the_table() -> None:
    net = Net(policy=Policy(rekey_after_ms=5_000))
    before = net.attach()
    root = net.session.root
    net.table.answer = Stored.UNAVAILABLE
    net.run(12_000)
    peer = net.gateway.gateway.sessions[before]
    assert net.gateway_history.of("OWNERSHIP")
    assert (peer.session.rekeys, peer.session.root) == (0, root)
    assert net.is_attached()
    net.table.answer = None
    net.run(12_000)
    assert peer.session.rekeys > 0
    assert peer.session.root == net.session.root != root
    assert (net.session.id, net.is_attached()) == (before, True)


def test_a_gateway_without_its_table_is_asked_now_and_then_only() -> None:
    net = Net()
    before = net.attach()
    net.table.answer = Stored.UNAVAILABLE
    assert net.agent.bound is not None
    net.link_down(net.agent.bound.id)
    net.run(20_000)
    assert net.session.state is State.DEGRADED
    assert len(net.client_history.of("REATTACH_ATTEMPT")) <= 12
    net.table.answer = None
    net.run(2_500)
    assert (net.session.id, net.is_attached()) == (before, True)


def test_a_session_that_was_ended_is_not_brought_back_by_a_late_rekey() -> None:
    net = Net(policy=Policy(rekey_after_ms=5_000))
    before = net.attach()
    rekey_asked(net)
    net.world.run_until(lambda: net.session.rekeys == 1, net.now_ms + 100)
    net.table.versions.clear()  # the table has no memory of it that could help
    net.world.call("gateway", lambda end, now_ms: end.gateway.terminate(now_ms, before) and None)
    net.run(5_000)
    assert net.is_attached()
    assert net.session.id != before


def test_more_switches_than_the_bound_lead_to_degraded_and_out_of_it_again() -> None:
    net = Net(policy=Policy(max_switches_per_minute=3))
    before = net.attach()
    for _ in range(5):
        path = net.agent.bound
        if path is None:
            break
        net.link_down(path.id)
        net.run(100)
        net.link_up(path.id)
        net.run(400)
    assert net.session.state is State.DEGRADED
    net.run(59_000)
    assert net.session.state is State.ATTACHED
    assert net.session.id == before


@pytest.mark.parametrize("seed", range(5))
def test_thirty_percent_loss_for_three_seconds_is_not_a_death(seed: int) -> None:
    net = Net(seed)
    before = net.attach()
    for name in ("wlan", "wwan"):
        net.heal(name, Conditions(delay_ms=10, loss=0.3))
    net.run(3_000)
    for name in ("wlan", "wwan"):
        net.heal(name)
    net.run(2_000)
    assert net.session.id == before
    assert "TRANSPORT_DEAD" not in net.client_history.reasons()


def test_behind_a_new_nat_with_no_switch_left_the_session_says_that_it_is_degraded() -> None:
    """Once, however often the gateway hints; and it is bound anew as soon as it may be."""
    net = Net(policy=Policy(max_switches_per_minute=1))
    before = net.attach()
    for _ in range(2):
        net.world.rebind(net.bound)
        net.run(1_000)
    assert net.session.state is State.DEGRADED
    assert net.client_history.reasons("TRANSPORT_SWITCH_DENIED") == ["RATE_LIMITED"]
    net.run(60_000)
    assert net.session.state is State.ATTACHED
    assert net.session.id == before
    assert net.client.longest_gap_ms(net.now_ms - 500) <= 25


def test_an_idle_client_is_heard_as_often_as_its_gateway_needs_it() -> None:
    slow = Policy(
        heartbeat_active_ms=2_000,
        heartbeat_idle_ms=5_000,
        volatile_after_ms=6_000,
        volatile_to_degraded_ms=8_000,
    )
    net = Net(policy=slow, gateway_policy=Policy())
    net.attach()
    net.client.busy = False
    net.run(60_000)
    assert net.client_history.reasons() == net.gateway_history.reasons() == ["HANDSHAKE_OK"]
    assert (net.agent.policy.heartbeat_active_ms, net.agent.policy.heartbeat_idle_ms) == (100, 1000)
