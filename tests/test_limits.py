"""The gateway's core at its limits: what is too much is refused and counted, the rest stays."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from jvpnd.core import constants as c
from jvpnd.core.client import ClientAgent
from jvpnd.core.effects import Emit, Origin, Send, Swap, Unexpect
from jvpnd.core.gateway import Gateway, Stored
from jvpnd.core.limits import Limits
from jvpnd.core.noise import public_key
from jvpnd.core.path import PathInfo
from jvpnd.core.peer import REMEMBERED_REQUESTS, ClientEntry
from jvpnd.core.policy import Policy
from jvpnd.core.record import row_of
from jvpnd.core.states import State
from jvpnd.core.wire import PacketType

from .simulation.ends import Identity
from .test_gateway import AWAY, HOME, SECRET, Dice, refusal
from .test_gateway import Bench as OneClient

CLIENTS = 6
SESSIONS, HALF_OPEN = "too many sessions", "too many half-open handshakes"


@dataclass
class Caller:
    """A client, and what it last sent."""

    number: int
    agent: ClientAgent
    sent: list[bytes] = field(default_factory=list)

    @property
    def origin(self) -> Origin:
        return Origin(1, (f"198.51.100.{self.number}", 4000))


class Bench:
    """A gateway with limits, and a table that answers when it is told to."""

    def __init__(self, limits: Limits) -> None:
        entries = [
            ClientEntry(f"c{number}", public_key(_secret(number)), (f"10.77.0.{number}/24",))
            for number in range(1, CLIENTS + 1)
        ]
        self.gateway = Gateway("gw", SECRET, entries, Policy(), Dice(1), limits=limits)
        self.waiting: list[Swap] = []
        self.is_slow = False  # the table
        self.audited: list[Emit] = []
        self.unexpected: list[int] = []
        self.now_ms = 1_000.0

    def caller(self, number: int, seed: int = 0) -> Caller:
        """Client `number`, perhaps started anew: that is another `seed`."""
        identity = Identity(f"c{number}", _secret(number), public_key(SECRET))
        agent = identity.agent(Policy(), Dice(10 * number + seed))
        agent.path_added(self.now_ms, PathInfo("p", "udp", "p", "-", "-"))
        return Caller(number, agent, _sends(agent))

    def give(self, caller: Caller) -> list[bytes]:
        """Let the gateway hear what it sent; what it answers."""
        sent, caller.sent = caller.sent, []
        for packet in sent:
            self.gateway.packet_received(self.now_ms, caller.origin, packet)
        return self.settle()

    def offer(self, caller: Caller) -> bool:
        """An INIT and, if there is one, its answer, which is not confirmed yet."""
        answers = [a for a in self.give(caller) if a[0] == PacketType.HANDSHAKE_RESPONSE]
        for answer in answers:
            caller.agent.packet_received(self.now_ms, "p", answer)
            caller.sent += _sends(caller.agent)
        return bool(answers)

    def attach(self, caller: Caller) -> bool:
        """A whole birth."""
        offered = self.offer(caller)
        self.give(caller)
        return offered and self.has(caller)

    def has(self, caller: Caller) -> bool:
        """Whether this very start of the client has a session here."""
        session = caller.agent.session
        return session is not None and session.id in self.gateway.sessions

    def settle(self) -> list[bytes]:
        answers = []
        while effects := self.gateway.drain():
            for effect in effects:
                if isinstance(effect, Send):
                    answers.append(effect.data)
                elif isinstance(effect, Swap):
                    self.waiting.append(effect)
                elif isinstance(effect, Emit) and effect.event_type == "SECURITY_EVENT":
                    self.audited.append(effect)
                elif isinstance(effect, Unexpect):
                    self.unexpected.append(effect.index)
            if not self.is_slow:
                self.write()
        return answers

    def write(self, outcome: Stored = Stored.OK) -> None:
        """The table answers all that it was asked."""
        waiting, self.waiting = self.waiting, []
        for swap in waiting:
            self.gateway.store_result(self.now_ms, swap.token, outcome)

    @property
    def half_open(self) -> int:
        return len(self.gateway._state.offers)


def _secret(number: int) -> bytes:
    return bytes([number]) * 32


def _sends(agent: ClientAgent) -> list[bytes]:
    return [effect.data for effect in agent.drain() if isinstance(effect, Send)]


# --- sessions ---


def test_births_beyond_the_sessions_are_refused_counted_and_audited() -> None:
    bench = Bench(Limits(sessions=2))
    first, second, third = (bench.caller(number) for number in (1, 2, 3))
    assert bench.attach(first)
    assert bench.attach(second)
    assert not bench.attach(third)
    assert bench.half_open == 0
    assert bench.gateway.dropped == {SESSIONS: 1}
    (told,) = bench.audited
    assert (told.reason, told.details["what"]) == ("SEC_ABUSE_CONTROL_PLANE", SESSIONS)
    assert told.details["remote"] == str(third.origin)


def test_a_place_that_is_free_again_is_given_to_the_next() -> None:
    bench = Bench(Limits(sessions=1))
    first, second = bench.caller(1), bench.caller(2)
    assert bench.attach(first)
    (session_id,) = bench.gateway.sessions
    bench.gateway.terminate(bench.now_ms, session_id)
    bench.settle()
    assert bench.attach(second)


def test_at_the_limit_a_client_that_starts_anew_takes_its_own_place() -> None:
    bench = Bench(Limits(sessions=1))
    before = bench.caller(1)
    assert bench.attach(before)
    bench.now_ms += 10_000
    after = bench.caller(1, seed=1)
    assert bench.attach(after)
    assert not bench.has(before)
    assert len(bench.gateway.sessions) == 1
    assert bench.gateway.dropped == {}


def test_at_the_limit_a_session_gets_new_keys() -> None:
    bench = Bench(Limits(sessions=1, half_open=1))
    caller = bench.caller(1)
    assert bench.attach(caller)
    (peer,) = bench.gateway.sessions.values()
    bench.now_ms += Policy().rekey_after_ms
    caller.agent.timer(bench.now_ms)
    caller.sent = _sends(caller.agent)
    assert bench.attach(caller)
    assert peer.session.rekeys == 1
    assert SESSIONS not in bench.gateway.dropped


def test_a_restart_takes_up_more_sessions_than_a_lower_limit_allows_and_no_new_one() -> None:
    before = Bench(Limits())
    for number in (1, 2):
        assert before.attach(before.caller(number))
    rows = [row_of(peer, "gw") for peer in before.gateway.sessions.values()]
    after = Bench(Limits(sessions=1))
    assert after.gateway.restore(after.now_ms, rows) == []
    after.settle()
    assert len(after.gateway.sessions) == 2
    assert not after.attach(after.caller(3))
    assert after.gateway.dropped[SESSIONS] == 1


def test_handshakes_begun_below_the_limit_do_not_lead_beyond_it() -> None:
    bench = Bench(Limits(sessions=2))
    callers = [bench.caller(number) for number in range(1, 5)]
    assert [bench.offer(caller) for caller in callers] == [True] * 4
    for caller in callers:
        bench.give(caller)
    assert [bench.has(caller) for caller in callers] == [True, True, False, False]
    assert bench.half_open == 0
    assert bench.gateway.dropped[SESSIONS] == 2


@pytest.mark.parametrize("outcome", list(Stored))
def test_births_that_the_table_is_being_told_of_count_until_it_has_answered(
    outcome: Stored,
) -> None:
    bench = Bench(Limits(sessions=1))
    bench.is_slow = True
    first, second = bench.caller(1), bench.caller(2)
    bench.offer(first)
    bench.offer(second)
    bench.give(first)
    bench.give(second)
    assert bench.gateway.dropped[SESSIONS] == 1
    bench.write(outcome)
    bench.is_slow = False
    bench.settle()
    assert bench.has(first) == (outcome is Stored.OK)
    third = bench.caller(3)
    assert bench.attach(third) == (outcome is not Stored.OK)
    assert len(bench.gateway.sessions) == 1


# --- half-open handshakes ---


def test_the_oldest_half_open_birth_makes_room() -> None:
    bench = Bench(Limits(half_open=2))
    callers = [bench.caller(number) for number in (1, 2, 3)]
    for caller in callers:
        assert bench.offer(caller)
    assert bench.half_open == 2
    assert len(bench.unexpected) == 1
    assert bench.gateway.dropped == {HALF_OPEN: 1}
    assert [told.details["what"] for told in bench.audited] == [HALF_OPEN]
    assert len(bench.gateway._state.reserved) == 2 * 2, "its indexes are free again"
    for caller in callers:
        bench.give(caller)
    assert [bench.has(caller) for caller in callers] == [False, True, True]


def test_a_birth_that_is_being_confirmed_does_not_make_room() -> None:
    bench = Bench(Limits(half_open=2))
    bench.is_slow = True
    first, second, third = (bench.caller(number) for number in (1, 2, 3))
    bench.offer(first)
    bench.offer(second)
    bench.give(first)
    assert bench.offer(third)
    bench.give(second)
    bench.write()
    bench.settle()
    assert bench.has(first)
    assert not bench.has(second)


def test_where_no_birth_can_make_room_the_newcomer_is_refused() -> None:
    bench = Bench(Limits(half_open=1))
    bench.is_slow = True
    first, second = bench.caller(1), bench.caller(2)
    bench.offer(first)
    bench.give(first)
    assert not bench.offer(second)
    assert bench.gateway.dropped == {HALF_OPEN: 1}
    bench.write()
    bench.settle()
    assert bench.has(first)


def test_the_answer_to_a_rekey_does_not_make_room_for_its_client_may_use_it_already() -> None:
    bench = Bench(Limits(half_open=1))
    caller = bench.caller(1)
    assert bench.attach(caller)
    (peer,) = bench.gateway.sessions.values()
    bench.now_ms += Policy().rekey_after_ms
    caller.agent.timer(bench.now_ms)
    caller.sent = _sends(caller.agent)
    assert bench.offer(caller)
    assert not bench.offer(bench.caller(2))
    assert bench.gateway.dropped[HALF_OPEN] == 1
    bench.give(caller)
    assert (peer.session.rekeys, peer.session.state) == (1, State.ATTACHED)
    bench.now_ms += 1_000
    assert bench.attach(bench.caller(2, seed=1))


def test_half_open_births_are_forgotten_in_time() -> None:
    bench = Bench(Limits())
    caller = bench.caller(1)
    assert bench.offer(caller)
    bench.now_ms += c.HANDSHAKE_TIMEOUT_MS + 1
    bench.gateway.timer(bench.now_ms)
    assert bench.half_open == 0
    bench.give(caller)
    assert not bench.has(caller)


# --- one session ---


def test_bindings_that_nobody_confirms_are_few_a_minute() -> None:
    bench = OneClient()
    peer = bench.attach()
    session_id = peer.session.id or b""
    bench.now_ms += 1_000
    for attempt in range(5, 5 + c.REBINDS_PER_MINUTE):
        (answer,) = bench.give(HOME, bench.request(peer, attempt))
        assert answer[0] == PacketType.REATTACH_ACK
        bench.now_ms += 100
    request = bench.request(peer, 500)
    assert refusal(bench.give(HOME, request), request, session_id) == "RATE_LIMITED"
    bench.now_ms += 60_000 - 100 * c.REBINDS_PER_MINUTE
    (answer,) = bench.give(HOME, bench.request(peer, 501))
    assert answer[0] == PacketType.REATTACH_ACK


def test_of_requests_the_newest_are_known_as_replays_and_older_ones_are_refused_all_the_same() -> (
    None
):
    bench = OneClient()
    peer = bench.attach()
    session_id = peer.session.id or b""
    requests = []
    for attempt in range(5, 5 + REMEMBERED_REQUESTS + 1):
        requests.append(bench.request(peer, attempt))
        bench.give(HOME, requests[-1])
        bench.now_ms += 100
    assert len(peer.requests) == REMEMBERED_REQUESTS
    bound = peer.keys.index
    reasons = [refusal(bench.give(AWAY, each), each, session_id) for each in requests]
    assert reasons == ["FRESHNESS_INVALID"] + ["REPLAY_DETECTED"] * REMEMBERED_REQUESTS
    assert (peer.origin, peer.keys.index) == (HOME, bound)
