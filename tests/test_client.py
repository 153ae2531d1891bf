"""The client agent: its births, what an operator may order, and whom it believes."""

from __future__ import annotations

from random import Random

import pytest

from jvpnd.core import constants as c
from jvpnd.core.effects import Effect, Emit, PauseTun, SaveTimestamp, Seek, Send, SessionDown
from jvpnd.core.messages import reason_to_wire
from jvpnd.core.noise import public_key
from jvpnd.core.packets import encode_reject, encode_retry, request_tag
from jvpnd.core.path import PathInfo
from jvpnd.core.policy import Policy
from jvpnd.core.reasons import Reason
from jvpnd.core.states import State
from jvpnd.core.wire import PacketType

from .simulation.ends import Identity, SeededEntropy
from .simulation.net import Net
from .simulation.world import Conditions


class Alone:
    """A client whose gateway never answers."""

    def __init__(self, policy: Policy | None = None, floor: int = 0) -> None:
        identity = Identity("laptop", b"c" * 32, public_key(b"g" * 32))
        entropy = SeededEntropy(Random(1))
        self.agent = identity.agent(policy or Policy(), entropy, floor)
        self.effects: list[Effect] = []
        self.now_ms = 0.0

    def add(self, name: str) -> None:
        self.agent.path_added(self.now_ms, PathInfo(name, "udp", name, "-", "-"))
        self.effects += self.agent.drain()

    def run(self, for_ms: float) -> None:
        end_ms = self.now_ms + for_ms
        while (due_ms := max(self.agent.next_timer_ms(self.now_ms), self.now_ms + 1)) <= end_ms:
            self.now_ms = due_ms
            self.agent.timer(self.now_ms)
            self.effects += self.agent.drain()
        self.now_ms = end_ms

    def inits(self) -> list[Send]:
        sent = [effect for effect in self.effects if isinstance(effect, Send)]
        assert all(send.data[0] == PacketType.HANDSHAKE_INIT for send in sent)
        return sent

    def asked(self) -> set[object]:
        """The paths that INITs went to."""
        return {send.to for send in self.inits()}

    def births(self) -> int:
        failed = [e for e in self.effects if isinstance(e, Emit) and e.to_state == "TERMINATED"]
        assert {e.reason for e in failed} <= {Reason.HANDSHAKE_FAIL}
        return len(failed)


def test_nothing_happens_without_a_path() -> None:
    alone = Alone()
    alone.run(60_000)
    assert alone.effects == [Seek(True)]
    assert alone.agent.session is None


def test_a_host_that_was_up_for_long_before_was_not_stalled() -> None:
    alone = Alone()
    alone.now_ms = 3_600_000
    alone.add("a")
    alone.run(100)
    assert alone.inits()
    emitted = [effect for effect in alone.effects if isinstance(effect, Emit)]
    assert not [effect for effect in emitted if effect.details.get("what") == "resumed"]


def test_a_birth_asks_over_every_path_in_turn() -> None:
    alone = Alone()
    alone.add("a")
    alone.add("b")
    alone.run(2_000)
    assert alone.asked() == {"a", "b"}
    assert len({send.data for send in alone.inits()}) == len(alone.inits()), "each is a fresh one"


def test_births_that_fail_come_ever_more_slowly() -> None:
    alone = Alone()
    alone.add("a")
    counts = []
    for _ in range(4):
        before = alone.births()
        alone.run(60_000)
        counts.append(alone.births() - before)
    assert counts[0] > counts[-1]
    slowest_ms = c.HANDSHAKE_TIMEOUT_MS + c.BIRTH_BACKOFF_MAX_MS
    assert counts[-1] >= 60_000 // slowest_ms


def test_a_new_path_ends_the_wait_for_the_next_birth() -> None:
    alone = Alone()
    alone.add("a")
    alone.run(120_000)
    session = alone.agent.session
    while session is not None and session.state is State.BIRTH:
        alone.run(1_000)
    alone.effects.clear()
    alone.add("b")
    assert len(alone.inits()) == 1


def test_handshake_timestamps_rise_from_what_was_saved_even_if_the_clock_was_set_back() -> None:
    floor = 2 * 10**15  # far above the wall clock of this client
    alone = Alone(floor=floor)
    alone.add("a")
    alone.run(3_000)
    saved = [effect.value for effect in alone.effects if isinstance(effect, SaveTimestamp)]
    assert saved == list(range(floor + 1, floor + 1 + len(saved)))
    assert len(saved) == len(alone.inits())


# --- connections that are made when they are needed ---


def sought(alone: Alone) -> list[bool]:
    return [effect.wanted for effect in alone.effects if isinstance(effect, Seek)]


def test_connections_are_sought_when_an_init_is_not_answered_in_time() -> None:
    """Not because there are many paths, over each of which one is sent at once."""
    alone = Alone()
    for name in "abc":
        alone.add(name)
    assert len(alone.inits()) == 3
    alone.run(20)
    assert sought(alone) == []
    alone.run(2_000)
    assert sought(alone) == [True]
    alone.run(120_000)
    assert sought(alone)[-1], "births fail, but one day one may not"


def test_a_client_that_rests_seeks_nothing() -> None:
    alone = Alone()
    alone.run(1_000)
    assert sought(alone) == [True]
    alone.add("a")
    alone.run(150)
    assert sought(alone) == [True, False], "perhaps this one answers"
    alone.run(3_000)
    assert sought(alone)[-1], "it does not"
    assert alone.agent.terminate(alone.now_ms) is None
    alone.run(60_000)
    assert alone.agent.is_resting
    assert not sought(alone)[-1]


def test_paths_beyond_max_candidates_are_spare_until_the_policy_allows_more() -> None:
    alone = Alone(Policy(max_candidates=2))
    for name in "abc":
        alone.add(name)
    alone.run(3_000)
    assert alone.asked() == {"a", "b"}
    alone.agent.apply_policy(alone.now_ms, Policy(version=2))
    alone.run(3_000)
    assert alone.asked() == {"a", "b", "c"}


def test_paths_without_end_are_counted_and_left_out() -> None:
    alone = Alone()
    for number in range(c.MAX_PATHS + 3):
        alone.add(f"path{number}")
    assert len(alone.agent.paths) == c.MAX_PATHS
    assert alone.agent.dropped == {"too many paths": 3}


def test_junk_is_counted_and_changes_nothing() -> None:
    net, dice = Net(), Random(3)
    net.attach()
    events = len(net.client_history.events)
    net.agent.dropped.clear()
    for kind in range(256):
        junk = bytes([kind]) + dice.randbytes(dice.randrange(200))
        net.agent.packet_received(net.now_ms, net.bound, junk)
    net.agent.packet_received(net.now_ms, net.bound, b"")
    net.agent.packet_received(net.now_ms, "no such path", b"\x07")
    assert net.agent.dropped == {"unexpected packet": 256, "unknown path": 2}
    assert net.agent.drain() == []
    assert len(net.client_history.events) == events


def test_a_cookie_demand_for_an_init_that_was_never_made_is_ignored() -> None:
    alone = Alone()
    alone.add("a")
    alone.agent.packet_received(0, "a", encode_retry(12345, b"c" * 16))
    assert alone.agent.drain() == []
    assert alone.agent.dropped == {"unexpected packet": 1}


def test_a_cookie_is_brought_back_once_however_often_it_is_demanded() -> None:
    alone = Alone()
    alone.add("a")
    index = int.from_bytes(alone.inits()[0].data[4:8], "little")
    for _ in range(3):
        alone.agent.packet_received(1, "a", encode_retry(index, b"c" * 16))
    again = [effect for effect in alone.agent.drain() if isinstance(effect, Send)]
    assert [send.data[-16:] for send in again] == [b"c" * 16]


@pytest.mark.parametrize("reason", ["SESSION_NOT_FOUND", "OWNERSHIP_CONFLICT", "SUPERSEDED"])
def test_a_reject_without_proof_ends_nothing(reason: str) -> None:
    net = Net()
    before = net.attach()
    net.link_down(net.bound)
    request = next(p for p in net.client.sent if p[0] == PacketType.REATTACH_REQUEST)
    forged = encode_reject(request_tag(request), reason_to_wire(reason), b"not the key" + bytes(21))
    for name in net.agent.paths:
        net.world.inject(name, "down", forged)
    net.run(500)
    assert net.session.id == before
    assert net.session.state is State.ATTACHED


def test_the_operator_ends_the_session_and_the_client_rests() -> None:
    net = Net()
    before = net.attach()
    net.world.call("client", lambda end, now_ms: end.core.terminate(now_ms) and None)
    net.run(20_000)
    assert net.agent.is_resting
    assert net.session.state is State.TERMINATED
    assert net.gateway_history.reasons()[-1] == "OPERATOR_TERMINATION"
    assert before not in net.gateway.gateway.sessions
    refusal = net.agent.terminate(net.now_ms)
    assert refusal is not None
    assert refusal.reason is Reason.SESSION_NOT_FOUND


def test_the_end_of_a_session_stops_its_traffic_at_once() -> None:
    net = Net()
    session_id = net.attach()
    net.agent.terminate(net.now_ms)
    effects = net.agent.drain()
    assert SessionDown(session_id) in effects
    assert PauseTun(True) in effects


def test_switches_that_cannot_be_are_refused_with_a_reason() -> None:
    net = Net()
    net.attach()
    before = net.session.state_version
    path, (other,) = net.bound, set(net.agent.paths) - {net.bound}
    for wanted, reason in (
        ("no such path", Reason.POLICY_DENY),
        (path, Reason.POLICY_DENY),
    ):
        refusal = net.agent.switch(net.now_ms, wanted)
        assert refusal is not None
        assert refusal.reason is reason
    assert net.session.state_version == before
    net.world.call("client", lambda end, now_ms: end.core.switch(now_ms, other) and None)
    net.run(100)
    assert net.bound == other
    refusal = net.agent.switch(net.now_ms, path)
    assert refusal is not None
    assert "switch_cooldown_ms" in refusal.message
    net.run(1_000)
    assert net.agent.switch(net.now_ms, None) is None


def test_voluntary_switches_keep_to_the_rate_bound() -> None:
    net = Net(policy=Policy(max_switches_per_minute=2, switch_cooldown_ms=0))
    net.attach()
    for _ in range(2):
        net.world.call("client", lambda end, now_ms: end.core.switch(now_ms, None) and None)
        net.run(1_000)
    assert net.session.switches == 2
    refusal = net.agent.switch(net.now_ms, None)
    assert refusal is not None
    assert refusal.reason is Reason.RATE_LIMITED
    net.run(60_000)
    assert net.agent.switch(net.now_ms, None) is None


def test_the_stricter_of_both_policies_holds() -> None:
    net = Net()
    net.identity = Identity("laptop", net.secret, public_key(net.gateway_secret))
    net.policy = Policy(max_switches_per_minute=600, drain_ms=100)
    net.world.restart("client")  # this one with its own policy, the gateway has the defaults
    net.attach()
    assert net.agent.policy.max_switches_per_minute == Policy().max_switches_per_minute
    assert net.agent.policy.drain_ms == 100


@pytest.mark.parametrize("own_ms", [0, 30_000])
def test_of_two_cooldowns_the_longer_one_is_the_stricter(own_ms: int) -> None:
    net = Net()
    net.policy = Policy(switch_cooldown_ms=own_ms)
    net.world.restart("client")
    net.attach()
    assert net.agent.policy.switch_cooldown_ms == max(own_ms, Policy().switch_cooldown_ms)


def test_a_socket_error_is_a_suspicion_that_probes_settle() -> None:
    net = Net()
    net.attach()
    path = net.bound
    net.world.call(
        "client", lambda end, now_ms: end.core.path_failed(now_ms, path, "ECONNREFUSED", False)
    )
    net.run(2_000)
    assert net.bound == path
    assert net.client_history.reasons() == ["HANDSHAKE_OK"]


def test_a_socket_that_cannot_send_is_a_death() -> None:
    net = Net()
    net.attach()
    path = net.bound
    net.world.call(
        "client", lambda end, now_ms: end.core.path_failed(now_ms, path, "ENETUNREACH", True)
    )
    net.run(500)
    assert net.bound != path
    assert net.client_history.of("STATE_CHANGE")[-2].details["why"] == "ENETUNREACH"


@pytest.mark.parametrize("is_moving", [False, True])
def test_keys_that_are_lost_are_made_anew_also_in_the_middle_of_a_move(is_moving: bool) -> None:
    """The data plane may have got those of the attempt under way, and lost them."""
    net = Net()
    net.attach()
    path, epoch = net.bound, net.session.epoch
    if is_moving:
        net.world.call(
            "client", lambda end, now_ms: end.core.path_failed(now_ms, path, "ENODEV", True)
        )
        assert net.session.state is State.RECOVERING
    net.world.call("client", lambda end, now_ms: end.core.keys_lost(now_ms, "worker died"))
    net.run(500)
    assert net.session.state is State.ATTACHED
    assert net.session.epoch == epoch + 1 + is_moving


def test_an_answer_to_a_rekey_that_a_move_overtook_is_of_the_past() -> None:
    net = Net(policy=Policy(rekey_after_ms=5_000))
    net.attach()
    path, (other,) = net.bound, set(net.agent.paths) - {net.bound}
    asked, answered = len(net.client.sent), len(net.gateway.sent)
    net.world.run_until(
        lambda: any(p[0] == PacketType.HANDSHAKE_INIT for p in net.client.sent[asked:]),
        net.now_ms + 10_000,
    )
    # The gateway binds the move, but its answers do not arrive: the client knows nothing of it.
    for name in (path, other):
        net.world.paths[name].down = Conditions(blackhole=True)
    net.world.call("client", lambda end, now_ms: end.core.switch(now_ms, other) and None)
    net.world.run_until(lambda: net.agent.bound is None, net.now_ms + 2_000)
    (held,) = [p for p in net.gateway.sent[answered:] if p[0] == PacketType.HANDSHAKE_RESPONSE]
    net.world.inject(path, "down", held)
    net.run(10)
    assert net.session.rekeys == 0
    for name in (path, other):
        net.heal(name)
    net.run(5_000)
    assert net.is_attached()
    assert net.gateway_history.of("SECURITY_EVENT") == []
