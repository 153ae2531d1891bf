"""The gateway before strangers and before its own clients: checks, limits, and small answers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from random import Random

import pytest

from jvpnd.core import constants as c
from jvpnd.core import keys
from jvpnd.core.client import ClientAgent
from jvpnd.core.effects import Emit, Endpoint, Learned, Origin, Send, Swap, Vouch
from jvpnd.core.gateway import Gateway, Stored
from jvpnd.core.messages import MAX_ENDPOINTS, Cause, ReattachRequest, reason_from_wire
from jvpnd.core.noise import public_key
from jvpnd.core.packets import decode_reject, encode_request, request_tag
from jvpnd.core.path import PathInfo
from jvpnd.core.peer import ClientEntry, Peer
from jvpnd.core.policy import Policy
from jvpnd.core.states import State
from jvpnd.core.ticket import Ticket
from jvpnd.core.wire import PacketType

from .simulation.ends import Identity

HOME, AWAY = Origin(1, ("198.51.100.1", 4000)), Origin(1, ("203.0.113.66", 666))
STREAM = Origin(70_000, ("198.51.100.1", 5000), "tcp")
SECRET, CLIENT_SECRET = b"g" * 32, b"c" * 32


class Dice:
    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def draw(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def encapsulate(self, public: bytes) -> tuple[bytes, bytes]:
        from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey

        return MLKEM768PublicKey.from_public_bytes(public).encapsulate()


class Bench:
    """A gateway with one attached client, and a table that says what a test wants."""

    def __init__(
        self, policy: Policy | None = None, endpoints: Iterable[Endpoint] = ()
    ) -> None:
        entry = ClientEntry("laptop", public_key(CLIENT_SECRET), ("10.77.0.2/24",))
        self.policy = policy or Policy()
        self.gateway = Gateway("gw", SECRET, [entry], self.policy, Dice(1), endpoints=endpoints)
        self.agent = self.client(CLIENT_SECRET)
        self.outcome = Stored.OK
        self.events: list[Emit] = []
        self.vouched: list[Origin] = []
        self.learned: tuple[Endpoint, ...] = ()  # by the client
        self.now_ms = 1_000.0

    def client(self, secret: bytes) -> ClientAgent:
        identity = Identity("laptop", secret, public_key(SECRET))
        return identity.agent(self.policy, Dice(2))

    def give(self, origin: Origin, packet: bytes) -> list[bytes]:
        """What the gateway answers."""
        self.gateway.packet_received(self.now_ms, origin, packet)
        return self.settle()

    def settle(self) -> list[bytes]:
        answers = []
        while effects := self.gateway.drain():
            for effect in effects:
                if isinstance(effect, Send):
                    answers.append(effect.data)
                elif isinstance(effect, Swap):
                    self.gateway.store_result(self.now_ms, effect.token, self.outcome)
                elif isinstance(effect, Emit):
                    self.events.append(effect)
                elif isinstance(effect, Vouch):
                    self.vouched.append(effect.origin)
        return answers

    def inits(self, agent: ClientAgent) -> Iterator[bytes]:
        """INITs of a client, one after the other."""
        agent.path_added(self.now_ms, PathInfo("p", "udp", "p", "-", "-"))
        while True:
            for effect in agent.drain():
                if isinstance(effect, Send) and effect.data[0] == PacketType.HANDSHAKE_INIT:
                    yield effect.data
            self.now_ms += 1_000
            agent.timer(self.now_ms)

    def attach(self, origin: Origin = HOME) -> Peer:
        (response,) = self.give(origin, next(self.inits(self.agent)))
        self.agent.packet_received(self.now_ms, "p", response)
        for effect in self.agent.drain():
            if isinstance(effect, Send):
                self.give(origin, effect.data)
            elif isinstance(effect, Learned):
                self.learned = effect.endpoints
        (peer,) = self.gateway.sessions.values()
        return peer

    def request(self, peer: Peer, attempt: int, **changes: object) -> bytes:
        """A REATTACH_REQUEST as the client would make it, but for the changes."""
        session = peer.session
        assert session.id is not None
        fields: dict[str, object] = {
            "attempt": attempt,
            "client_nonce": b"n" * 32,
            "last_epoch": session.epoch,
            "state_version": session.state_version,
            "sent_ms": int(self.now_ms - peer.anchor_ms),
            "receive_index": 77,
            "transport": "udp",
            "path_number": 1,
            "cause": Cause.TRANSPORT_DEAD,
        }
        root = changes.pop("root", session.root)
        index = changes.pop("next_index", peer.next_index)
        assert isinstance(root, bytes)
        assert isinstance(index, int)
        ticket = Ticket(session.id, 0, index, 0).seal(keys.ticket_key(SECRET), b"t" * 24)
        body = ReattachRequest(**(fields | changes))  # type: ignore[arg-type]
        return encode_request(ticket, keys.proof_key(root), b"x" * 24, body.encode())

    def security(self) -> list[str]:
        return [str(e.reason) for e in self.events if e.event_type == "SECURITY_EVENT"]


def refusal(answers: list[bytes], request: bytes, session_id: bytes) -> str | None:
    """The proven reason in the one answer."""
    (answer,) = answers
    reject = decode_reject(answer)
    assert reject is not None
    assert reject.tag == request_tag(request)
    assert reject.is_proven(keys.reset_key(SECRET, session_id))
    assert len(answer) < len(request)
    return reason_from_wire(reject.code)


def test_an_offer_becomes_a_session_only_when_the_client_confirms_it() -> None:
    bench = Bench()
    (response,) = bench.give(HOME, next(bench.inits(bench.agent)))
    assert not bench.gateway.sessions
    bench.agent.packet_received(bench.now_ms, "p", response)
    assert not bench.gateway.sessions
    for effect in bench.agent.drain():
        if isinstance(effect, Send):
            bench.give(HOME, effect.data)
    assert [p.session.state for p in bench.gateway.sessions.values()] == [State.ATTACHED]


def test_a_replayed_init_dies() -> None:
    bench = Bench()
    init = next(bench.inits(bench.agent))
    assert len(bench.give(HOME, init)) == 1
    assert bench.give(AWAY, init) == []
    assert bench.security() == ["SEC_REPLAY_ATTEMPT"]


def test_the_network_doubling_an_init_is_no_attack() -> None:
    bench = Bench()
    init = next(bench.inits(bench.agent))
    assert len(bench.give(HOME, init)) == 1
    assert bench.give(HOME, init) == []
    assert bench.security() == []
    assert bench.gateway.dropped == {"duplicate INIT": 1}


def test_inits_of_one_birth_that_overtake_each_other_are_no_attack() -> None:
    bench = Bench()
    first, second = itertools.islice(bench.inits(bench.agent), 2)
    assert len(bench.give(HOME, second)) == 1
    assert bench.give(AWAY, first) == []
    assert bench.security() == []
    assert bench.gateway.dropped == {"late INIT": 1}


def test_an_unlisted_key_gets_no_answer() -> None:
    bench = Bench()
    stranger = bench.client(b"x" * 32)
    assert bench.give(AWAY, next(bench.inits(stranger))) == []
    assert bench.security() == ["AUTH_FAIL"]


def test_garbage_of_every_type_and_length_is_counted_and_never_answered() -> None:
    bench = Bench()
    bench.attach()
    dice = Random(5)
    for kind, size in itertools.product(range(256), (1, 2, 15, 16, 31, 32, 100, 1400)):
        bench.now_ms += 100
        assert bench.give(AWAY, bytes([kind]) + dice.randbytes(size - 1)) == []
    assert sum(bench.gateway.dropped.values()) == 256 * 8
    assert len(bench.gateway.sessions) == 1


def test_an_empty_packet_is_counted() -> None:
    bench = Bench()
    assert bench.give(AWAY, b"") == []
    assert sum(bench.gateway.dropped.values()) == 1


def test_one_source_is_bounded_and_says_so_at_a_bounded_rate() -> None:
    bench = Bench()
    stranger = bench.client(b"x" * 32)
    flood = list(itertools.islice(bench.inits(stranger), 3))
    bench.now_ms += 60_000
    for _ in range(200):
        bench.give(AWAY, flood[0])
    assert bench.gateway.dropped["handshake rate"] == 200 - c.SOURCE_BURST
    assert len(bench.security()) <= c.AUDIT_PER_S


def test_under_load_a_cookie_is_demanded_and_no_more_is_sent_than_came() -> None:
    bench = Bench()
    stranger = bench.client(b"x" * 32)
    init = next(bench.inits(stranger))
    for n in range(c.COOKIE_LOAD_PER_S + 1):
        bench.give(Origin(1, (f"203.0.113.{n}", 1)), init)
    agent = bench.client(CLIENT_SECRET)
    first = next(bench.inits(agent))
    (retry,) = bench.give(HOME, first)
    assert retry[0] == PacketType.RETRY
    assert len(retry) <= 3 * len(first)
    agent.packet_received(bench.now_ms, "p", retry)
    (again,) = [e.data for e in agent.drain() if isinstance(e, Send)]
    (response,) = bench.give(HOME, again)
    assert response[0] == PacketType.HANDSHAKE_RESPONSE
    (elsewhere,) = bench.give(AWAY, again)
    assert elsewhere[0] == PacketType.RETRY, "a cookie is good for one address only"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attempt": 1}, "FRESHNESS_INVALID"),
        ({"sent_ms": 60_000}, "FRESHNESS_INVALID"),
        ({"next_index": 12345}, "FRESHNESS_INVALID"),
        ({"transport": "tcp"}, "POLICY_DENY"),
    ],
)
def test_a_bad_request_is_refused_with_its_reason_and_binds_nothing(
    changes: dict[str, object], reason: str
) -> None:
    bench = Bench(Policy(allowed_transports=("udp",)))
    peer = bench.attach()
    request = bench.request(peer, **({"attempt": 5} | changes))  # type: ignore[arg-type]
    assert refusal(bench.give(AWAY, request), request, peer.session.id or b"") == reason
    assert (peer.origin, peer.session.state) == (HOME, State.ATTACHED)
    assert bench.events[-1].reason == reason


def test_a_request_under_another_root_gets_no_answer_and_is_audited() -> None:
    bench = Bench()
    peer = bench.attach()
    assert bench.give(AWAY, bench.request(peer, 5, root=b"z" * 32)) == []
    assert bench.security() == ["AUTH_FAIL"]
    assert peer.origin == HOME


def test_an_accepted_request_binds_once_and_its_replay_from_elsewhere_is_refused() -> None:
    bench = Bench()
    peer = bench.attach()
    request = bench.request(peer, 5)
    (ack,) = bench.give(AWAY, request)
    assert ack[0] == PacketType.REATTACH_ACK
    assert (peer.origin, peer.session.epoch, peer.session.state) == (AWAY, 5, State.ATTACHED)
    version = peer.session.state_version
    elsewhere = Origin(1, ("192.0.2.9", 9))
    answers = bench.give(elsewhere, request)
    assert refusal(answers, request, peer.session.id or b"") == "REPLAY_DETECTED"
    assert (peer.origin, peer.session.state_version) == (AWAY, version)
    assert bench.security() == ["SEC_REPLAY_ATTEMPT"]


def test_a_request_replayed_from_everywhere_does_not_wash_the_events_away() -> None:
    bench = Bench()
    peer = bench.attach()
    request = bench.request(peer, 5)
    bench.give(AWAY, request)
    before = len(bench.events)
    for number in range(1_000):
        origin = Origin(1, (f"192.0.{number // 250}.{number % 250}", 9))
        assert refusal(bench.give(origin, request), request, peer.session.id or b"")
    assert len(bench.events) - before == 2 * c.AUDIT_PER_S  # results, and security events
    assert bench.gateway.dropped["reattach refused"] == 1_000 - c.AUDIT_PER_S


def test_the_network_doubling_a_request_is_no_attack() -> None:
    bench = Bench()
    peer = bench.attach()
    request = bench.request(peer, 5)
    bench.give(AWAY, request)
    assert bench.give(AWAY, request) == []
    assert bench.security() == []
    assert bench.gateway.dropped == {"duplicate request": 1}


def test_a_session_that_is_unknown_is_proven_to_be() -> None:
    bench = Bench()
    peer = bench.attach()
    request = bench.request(peer, 5)
    rebooted = Bench()
    answers = rebooted.give(AWAY, request)
    assert refusal(answers, request, peer.session.id or b"") == "SESSION_NOT_FOUND"


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [(Stored.CONFLICT, "OWNERSHIP_CONFLICT"), (Stored.UNAVAILABLE, "STORE_UNAVAILABLE")],
)
def test_what_the_table_does_not_take_is_not_bound(outcome: Stored, reason: str) -> None:
    bench = Bench()
    peer = bench.attach()
    bench.outcome = outcome
    request = bench.request(peer, 5)
    assert refusal(bench.give(AWAY, request), request, peer.session.id or b"") == reason
    assert (peer.origin, peer.session.epoch) == (HOME, 1)


def test_a_table_out_of_reach_leaves_what_is_bound_alone() -> None:
    bench = Bench()
    peer = bench.attach()
    bench.outcome = Stored.UNAVAILABLE
    bench.give(AWAY, bench.request(peer, 5, cause=Cause.SWITCH))
    assert (peer.origin, peer.session.state) == (HOME, State.VOLATILE)
    bench.outcome = Stored.OK
    bench.give(AWAY, bench.request(peer, 6, cause=Cause.SWITCH))
    assert (peer.origin, peer.session.state) == (AWAY, State.ATTACHED)


def test_the_switch_rate_holds_at_the_gateway_too() -> None:
    bench = Bench(Policy(max_switches_per_minute=2))
    peer = bench.attach()
    reasons = []
    for attempt in range(5, 9):
        request = bench.request(peer, attempt)
        answers = bench.give(AWAY if attempt % 2 else HOME, request)
        kind = answers[0][0]
        peer.confirmed = True  # as if the client had been heard under the new epoch
        reasons.append("ok" if kind == PacketType.REATTACH_ACK else "no")
    assert reasons == ["ok", "ok", "no", "no"]


def test_an_operator_ends_a_session_and_its_late_requests_are_told_so() -> None:
    bench = Bench()
    peer = bench.attach()
    request = bench.request(peer, 5)
    assert peer.session.id is not None
    assert bench.gateway.terminate(bench.now_ms, peer.session.id)
    bench.settle()
    assert not bench.gateway.sessions
    assert refusal(bench.give(HOME, request), request, peer.session.id) == "SESSION_EXPIRED"
    assert not bench.gateway.terminate(bench.now_ms, peer.session.id)


def told(bench: Bench) -> list[str]:
    return [str(e.reason) for e in bench.events if e.event_type == "STATE_CHANGE"]


def wait(bench: Bench, for_ms: float) -> None:
    """Time passes, and nothing comes."""
    for _ in range(int(for_ms // c.SCAN_MS) + 1):
        bench.now_ms += c.SCAN_MS
        bench.gateway.timer(bench.now_ms)
        bench.settle()


def test_a_gateway_ends_a_session_at_its_ttl_by_itself() -> None:
    bench = Bench(Policy(session_ttl_ms=5_000, transport_loss_ttl_ms=5_000))
    peer = bench.attach()
    while bench.now_ms - peer.session.created_ms < 5_000 - c.SCAN_MS:
        peer.heard_ms = bench.now_ms  # a client that is as well as can be
        wait(bench, 0)
        assert len(bench.gateway.sessions) == 1
    wait(bench, c.SCAN_MS)
    assert bench.gateway.sessions == {}
    assert told(bench)[-1] == "TTL_SESSION_EXPIRED"


def test_a_gateway_ends_what_it_has_not_heard_of_for_too_long() -> None:
    policy = Policy(transport_loss_ttl_ms=7_000)
    bench = Bench(policy)
    bench.attach()
    wait(bench, policy.volatile_to_degraded_ms + 6_000)
    assert len(bench.gateway.sessions) == 1
    wait(bench, policy.max_recovery_window_ms + 2_000)
    assert bench.gateway.sessions == {}
    assert told(bench)[1:3] == ["VOLATILITY_SIGNAL", "TRANSPORT_DEAD"]
    assert told(bench)[-1] == "TTL_TRANSPORT_LOSS_EXPIRED"


def test_a_move_that_the_table_refused_is_over_with_the_recovery_window() -> None:
    policy = Policy(transport_loss_ttl_ms=20_000)
    bench = Bench(policy)
    peer = bench.attach()
    bench.outcome = Stored.CONFLICT
    bench.give(AWAY, bench.request(peer, 5, cause=Cause.SWITCH))
    assert peer.session.state is State.RECOVERING
    wait(bench, policy.max_recovery_window_ms)
    assert told(bench)[-1] == "RECOVERY_BOUNDS_EXCEEDED"
    wait(bench, policy.transport_loss_ttl_ms)
    assert told(bench)[-1] == "TTL_TRANSPORT_LOSS_EXPIRED", "nobody has come back"


def test_a_move_by_choice_within_the_cooldown_is_refused_by_the_gateway_too() -> None:
    bench = Bench()
    peer = bench.attach()
    bench.give(AWAY, bench.request(peer, 5, cause=Cause.SWITCH))
    soon = bench.request(peer, 6, cause=Cause.SWITCH)
    assert refusal(bench.give(HOME, soon), soon, peer.session.id or b"") == "POLICY_DENY"
    assert peer.origin == AWAY
    bench.give(HOME, bench.request(peer, 7, cause=Cause.TRANSPORT_DEAD))
    assert peer.origin == HOME, "a death does not wait"


def test_offers_to_one_client_are_bounded() -> None:
    bench = Bench()
    for init in itertools.islice(bench.inits(bench.agent), 4 * c.MAX_PENDING_INITS):
        bench.give(HOME, init)
    assert len(bench.gateway._state.by_index) == c.MAX_PENDING_INITS
    assert len(bench.gateway._state.reserved) == 2 * c.MAX_PENDING_INITS


def test_sessions_that_ended_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "MAX_TOMBSTONES", 3)
    bench = Bench()
    for _ in range(5):
        bench.now_ms += 10_000
        bench.agent = bench.client(CLIENT_SECRET)
        peer = bench.attach()
        assert peer.session.id is not None
        bench.gateway.terminate(bench.now_ms, peer.session.id)
        bench.settle()
    assert len(bench.gateway._state.tombstones) == 3
    assert peer.session.id in bench.gateway._state.tombstones


def test_a_refused_attempt_cannot_be_used_again() -> None:
    bench = Bench(Policy(max_switches_per_minute=1))
    peer = bench.attach()
    bench.give(AWAY, bench.request(peer, 5))
    peer.confirmed = True
    request = bench.request(peer, 6)
    assert refusal(bench.give(HOME, request), request, peer.session.id or b"") == "RATE_LIMITED"
    bench.now_ms += 60_000
    assert bench.give(HOME, request) == []
    assert (peer.origin, peer.session.attempt) == (AWAY, 6)


# --- transports ---

UDP_ONLY = Policy(allowed_transports=("udp",))


def test_a_client_is_told_where_the_gateway_can_be_reached_by_what_the_policy_allows() -> None:
    tls, udp = Endpoint("tls", "203.0.113.7", 443), Endpoint("udp", "", 7700)
    tcp, quic = Endpoint("tcp", "2001:db8::7", 7700), Endpoint("quic", "", 443)
    for allowed, told in (
        (("udp", "quic", "tcp", "tls"), (udp, quic, tcp, tls)),
        (("tcp", "udp"), (tcp, udp)),
        (("udp",), (udp,)),
    ):
        bench = Bench(Policy(allowed_transports=allowed), [tls, udp, tcp, quic])
        bench.attach()
        assert bench.learned == told


def test_of_many_endpoints_as_many_are_told_as_a_client_reads() -> None:
    many = [Endpoint("tls", f"203.0.113.{n}", 443) for n in range(300)]
    bench = Bench(endpoints=[*many, Endpoint("udp", "", 7700)])
    bench.attach()
    assert bench.learned == (Endpoint("udp", "", 7700), *many[: MAX_ENDPOINTS - 1])


def test_an_init_that_came_by_a_forbidden_transport_is_not_answered_whatever_it_says() -> None:
    bench = Bench(UDP_ONLY)
    assert bench.give(STREAM, next(bench.inits(bench.agent))) == []
    assert bench.security() == ["POLICY_DENY"]
    assert bench.events[-1].details["what"] == "transport tcp"


def test_a_request_that_came_by_a_forbidden_transport_binds_nothing_whatever_it_says() -> None:
    bench = Bench(UDP_ONLY)
    peer = bench.attach()
    request = bench.request(peer, 5)
    assert refusal(bench.give(STREAM, request), request, peer.session.id or b"") == "POLICY_DENY"
    assert (peer.origin, peer.transport) == (HOME, "udp")


def test_the_transport_of_a_session_is_the_one_that_its_request_came_by() -> None:
    bench = Bench()
    peer = bench.attach()
    bench.give(STREAM, bench.request(peer, 5, transport="tls"))
    assert (peer.origin, peer.transport) == (STREAM, "tcp")
    bench.give(HOME, bench.request(peer, 6, transport="tcp"))
    assert (peer.origin, peer.transport) == (HOME, "udp")


def test_a_connection_is_vouched_for_by_authentic_packets_alone() -> None:
    bench = Bench()
    init = next(bench.inits(bench.agent))
    (response,) = bench.give(STREAM, init)
    assert bench.vouched == [], "who knows the gateway's key may be anybody"
    bench.agent.packet_received(bench.now_ms, "p", response)
    (probe,) = [e.data for e in bench.agent.drain() if isinstance(e, Send)]
    for spoilt in (probe[:-1], probe[:-1] + bytes([probe[-1] ^ 1]), probe[:1] + bytes(60)):
        bench.give(STREAM, spoilt)
    bench.give(STREAM, b"")
    assert bench.vouched == []
    bench.give(STREAM, probe)
    assert bench.vouched == [STREAM]
    other = Origin(70_001, AWAY.remote, "tcp")
    bench.give(other, probe)
    bench.give(other, init)
    assert bench.vouched == [STREAM], "what is replayed is worth nothing"


def test_nobody_vouches_for_a_socket_that_everybody_shares() -> None:
    bench = Bench()
    bench.attach()
    assert bench.vouched == []
