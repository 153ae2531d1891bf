"""The client agent: keeps one session over whichever path lives. Sans-IO.

The shell calls the input methods with the time, then performs what `drain` returns, in order, and
calls `timer` when `next_timer_ms` has come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from jvpnd.core import constants as c
from jvpnd.core.binding import Binding
from jvpnd.core.effects import (
    Effect,
    Expect,
    PauseTun,
    SaveTimestamp,
    Send,
    SessionDown,
    SessionUp,
    Unexpect,
)
from jvpnd.core.entropy import Entropy
from jvpnd.core.handshake import NO_COOKIE, ClientHandshake, Established, PendingInit
from jvpnd.core.messages import (
    CAPABILITY_AES,
    NO_SESSION,
    Cause,
    Control,
    InitPayload,
    PolicyBounds,
    Probe,
    decode_probe,
    reason_from_wire,
    reason_to_wire,
)
from jvpnd.core.packets import decode_response, decode_retry
from jvpnd.core.path import Path, PathInfo, ranked
from jvpnd.core.policy import Policy
from jvpnd.core.reasons import Reason
from jvpnd.core.reattach import Attempt, Credentials, make_attempt, read_ack, read_reject
from jvpnd.core.rtt import LossWindow
from jvpnd.core.session import Machine, Session
from jvpnd.core.states import Event, State
from jvpnd.core.watch import BindingWatch, Traffic, Verdict
from jvpnd.core.wire import PacketType, decode_sealed_header

LIVE = (State.ATTACHED, State.VOLATILE)
_CLOSE_EVENTS = {
    Reason.OPERATOR_TERMINATION: Event.OPERATOR_TERMINATED,
    Reason.SUPERSEDED: Event.SUPERSEDED,
    Reason.TTL_SESSION_EXPIRED: Event.SESSION_TTL_OVER,
    Reason.TTL_TRANSPORT_LOSS_EXPIRED: Event.TRANSPORT_LOSS_TTL_OVER,
    Reason.OWNERSHIP_CONFLICT: Event.OWNER_MOVED,
}
_FATAL_REJECTS = {
    Reason.SESSION_NOT_FOUND: Event.SESSION_UNKNOWN,
    Reason.SESSION_EXPIRED: Event.SESSION_EXPIRED,
    Reason.OWNERSHIP_CONFLICT: Event.OWNER_AMBIGUOUS,
    Reason.SUPERSEDED: Event.SUPERSEDED,
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an operator's order was not carried out."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the client is and whom it trusts. Keys are 32 bytes."""

    name: str
    secret: bytes
    gateway_public: bytes
    psk: bytes | None = None
    has_aes: bool = False


class ClientAgent:
    """One client. `wall_at_zero_ms` is the wall clock at now_ms = 0 (handshake timestamps)."""

    def __init__(
        self,
        identity: Identity,
        policy: Policy,
        entropy: Entropy,
        wall_at_zero_ms: float,
        timestamp_floor: int = 0,
    ) -> None:
        self._identity = identity
        self._own_policy = policy
        self.policy = policy  # the stricter of ours and the gateway's bounds
        self._entropy = entropy
        self._handshake = ClientHandshake(
            identity.secret, identity.gateway_public, identity.psk, entropy
        )
        self._wall_at_zero_ms = wall_at_zero_ms
        self._timestamp = timestamp_floor
        self._effects: list[Effect] = []
        self._machine = Machine(self._effects.append)
        self.session: Session | None = None
        self.paths: dict[str, Path] = {}
        self.bound: Path | None = None
        self.dropped: dict[str, int] = {}
        self._path_number = 0
        self._probe_number = 0
        self._pending: list[PendingInit] = []
        self._cookie = NO_COOKIE
        self._supersedes = NO_SESSION
        self._birth_ms: float | None = 0  # when to begin a session; None: rest
        self._birth_failures = 0
        self._init_at_ms = 0.0
        self._inits_made = 0
        self._binding: Binding | None = None
        self._credentials: Credentials | None = None
        self._anchor_ms = 0.0
        self._rekey_at_ms: float | None = None
        self._watch = BindingWatch(0)
        self._attempt: Attempt | None = None
        self._attempts_made = 0
        self._planned: Path | None = None  # target of a switch while the old binding delivers
        self._cause = Cause.TRANSPORT_DEAD
        self._retry_at_ms = 0.0
        self._unstable_ms = 0.0
        self._paused = True  # nothing may leave before there is a session
        self._due_ms: float | None = None
        self._checked_ms = 0.0

    # --- outputs ---

    def drain(self) -> list[Effect]:
        """Everything the shell has to do, in order; empties the list."""
        effects = self._effects[:]
        self._effects.clear()
        return effects

    def next_timer_ms(self, now_ms: float) -> float:
        """When `timer` wants to be called next, if nothing else happens before."""
        # Counted from the last check: packets that come in between must not put it off.
        every_ms = c.ACTIVE_CHECK_MS if self._is_watchful(now_ms) else c.IDLE_CHECK_MS
        wishes = [self._checked_ms + every_ms]
        if self._attempt is not None:
            wishes.append(self._attempt.deadline_ms)
        if self._binding is not None and (drain_ms := self._binding.next_ms()) is not None:
            wishes.append(drain_ms)
        self._due_ms = min(wishes)
        return max(now_ms, self._due_ms)

    def _is_watchful(self, now_ms: float) -> bool:
        return self._watch.is_busy(now_ms) or self._watch.waiting_ms is not None

    @property
    def is_resting(self) -> bool:
        """Whether it will not begin a session by itself (ended by an operator or superseded)."""
        return self._birth_ms is None and (
            self.session is None or self.session.state is State.TERMINATED
        )

    # --- inputs: paths ---

    def path_added(self, now_ms: float, info: PathInfo) -> None:
        """A new candidate (or the same one with a new local address)."""
        if info.id in self.paths:
            self.path_removed(now_ms, info.id, "replaced")
        if len(self.paths) >= self.policy.max_candidates:
            self._count("too many candidates")
            return
        self._path_number = self._path_number % 255 + 1
        path = Path(info, self._path_number, now_ms, LossWindow(self.policy.loss_window_ms))
        self.paths[info.id] = path
        session = self.session
        if session is None or session.state is State.TERMINATED:
            if self._birth_ms is not None:
                self._birth_ms = now_ms
                self._begin_if_due(now_ms)
        elif session.state is State.BIRTH:
            self._init_at_ms = now_ms
            self._send_init_if_due(now_ms)
        elif session.state is State.RECOVERING and self._planned is None:
            if self._attempt is None or not self._is_usable(self._attempt.path_id, now_ms):
                self._try_next(now_ms)
        elif session.state is State.DEGRADED:
            self._leave_degraded(now_ms)
        elif self._binding is not None:
            self._probe(path, now_ms)

    def path_removed(self, now_ms: float, path_id: str, why: str) -> None:
        """The uplink, its address or its route is gone: no evidence needed."""
        path = self.paths.pop(path_id, None)
        if path is None:
            return
        path.died_ms = now_ms
        self._lose(now_ms, path, why)

    def path_failed(self, now_ms: float, path_id: str, why: str, certain: bool) -> None:
        """A socket error. `certain`: the host itself cannot send; else it is only a suspicion."""
        path = self.paths.get(path_id)
        if path is None:
            return
        if certain:
            if path.died_ms is None:
                path.died_ms = now_ms
                self._lose(now_ms, path, why)
        elif path is self.bound and self._watch.suspect_ms is None:
            self._watch.sent(now_ms)
            self._watch.suspect_ms = now_ms
            self._burst(now_ms)

    def _lose(self, now_ms: float, path: Path, why: str) -> None:
        if path is self.bound:
            self._transport_died(now_ms, why)
        elif self._attempt is not None and self._attempt.path_id == path.id:
            self._attempt_failed(now_ms)

    # --- inputs: packets, counters, time ---

    def packet_received(self, now_ms: float, path_id: str, packet: bytes) -> None:
        """Anything but DATA that came over a path."""
        path = self.paths.get(path_id)
        if path is None or not packet:
            self._count("unknown path")
            return
        handlers: dict[int, Callable[[float, Path, bytes], bool]] = {
            PacketType.HANDSHAKE_RESPONSE: self._on_response,
            PacketType.RETRY: self._on_retry,
            PacketType.REATTACH_ACK: self._on_ack,
            PacketType.REATTACH_REJECT: self._on_reject,
            PacketType.CONTROL: self._on_control,
        }
        handler = handlers.get(packet[0])
        if handler is None or not handler(now_ms, path, packet):
            self._count("unexpected packet")

    def traffic(self, now_ms: float, traffic: Traffic) -> None:
        """The data plane's counters; call it before `timer`."""
        if self.session is None or self._binding is None or self.bound is None:
            return
        if self.session.state in LIVE or self.session.state is State.RECOVERING:
            if self._watch.observe(traffic, self._binding.index):
                self.bound.heard(traffic.last_rx_ms)
                self._binding.peer_has_moved(now_ms + self.policy.drain_ms)

    def timer(self, now_ms: float) -> None:
        """Time has passed."""
        if self._due_ms is not None and now_ms - self._due_ms > c.LATE_SHELL_MS:
            self._watch.shift(now_ms - self._due_ms)
        self._due_ms, self._checked_ms = None, now_ms
        if self._binding is not None:
            self._binding.expire(now_ms)
        session = self.session
        if session is None or session.state is State.TERMINATED:
            self._begin_if_due(now_ms)
        elif session.state is State.BIRTH:
            self._birth_timer(now_ms)
        elif not self._ttl_over(now_ms, session):
            self._probe_all(now_ms)
            if session.state in LIVE:
                self._judge(now_ms, session)
                self._rekey_if_due(now_ms, session)
            elif session.state is State.RECOVERING:
                self._recovery_timer(now_ms, session)
            elif session.state is State.DEGRADED:
                self._leave_degraded(now_ms)

    # --- inputs: the operator ---

    def switch(self, now_ms: float, path_id: str | None) -> Refusal | None:
        """Move to a path (None: the best other one), make before break."""
        session = self.session
        if session is None or session.state not in (*LIVE, State.DEGRADED):
            state = "none" if session is None else session.state
            return Refusal(Reason.TRANSPORT_SWITCH_DENIED, f"the session is not attached: {state}")
        if path_id is not None and path_id not in self.paths:
            known = ", ".join(sorted(self.paths)) or "none"
            return Refusal(Reason.POLICY_DENY, f"no path {path_id}; known: {known}")
        others = [p for p in self.paths.values() if p is not self.bound]
        wanted = [self.paths[path_id]] if path_id else others
        target = next(iter(ranked(wanted, self.policy, now_ms)), None)
        if target is None:
            return Refusal(Reason.POLICY_DENY, "no other path that the policy allows")
        if target is self.bound:
            return Refusal(Reason.POLICY_DENY, f"{target.id} carries the session already")
        last = session.switched_at_ms[-1] if session.switched_at_ms else None
        if last is not None and now_ms - last < self.policy.switch_cooldown_ms:
            text = f"within switch_cooldown_ms {self.policy.switch_cooldown_ms} of the last switch"
            return self._deny(Refusal(Reason.POLICY_DENY, text), target)
        if not session.may_switch(now_ms, self.policy):
            text = f"max_switches_per_minute {self.policy.max_switches_per_minute} reached"
            return self._deny(Refusal(Reason.RATE_LIMITED, text), target)
        details: dict[str, object] = {"to_path": target.id, "why": "operator"}
        delivers = session.state is not State.DEGRADED
        self._machine.fire(session, Event.SWITCH_ORDERED, now_ms, details)
        self._cause, self._planned = Cause.SWITCH, target if delivers else None
        self._attempts_made = 0
        self._try(now_ms, target)
        return None

    def _deny(self, refusal: Refusal, target: Path) -> Refusal:
        assert self.session is not None
        self._machine.note(
            self.session,
            "TRANSPORT_SWITCH_DENIED",
            refusal.reason,
            {"to_path": target.id, "why": refusal.message},
        )
        return refusal

    def terminate(self, now_ms: float) -> Refusal | None:
        """End the session for good: no new one until the daemon is started again."""
        session = self.session
        if session is None or session.state is State.TERMINATED:
            return Refusal(Reason.SESSION_NOT_FOUND, "there is no session")
        self._say_close(Reason.OPERATOR_TERMINATION)
        self._end(now_ms, Event.OPERATOR_TERMINATED, rest=True)
        return None

    # --- birth and rekey ---

    def _begin_if_due(self, now_ms: float) -> None:
        if self._birth_ms is None or now_ms < self._birth_ms or not self.paths:
            return
        self.session = Session(None, self._identity.name, now_ms, attempt=1, entered_ms=now_ms)
        self._pending.clear()
        self._init_at_ms, self._inits_made = now_ms, 0
        self._send_init_if_due(now_ms)

    def _birth_timer(self, now_ms: float) -> None:
        assert self.session is not None
        if now_ms - self.session.created_ms < c.HANDSHAKE_TIMEOUT_MS:
            self._send_init_if_due(now_ms)
            return
        self._birth_failures += 1
        backoff = c.BIRTH_BACKOFF_MS * 2 ** min(self._birth_failures - 1, 10)
        self._end(now_ms, Event.HANDSHAKE_FAILED)
        self._birth_ms = now_ms + min(backoff, c.BIRTH_BACKOFF_MAX_MS)

    def _send_init_if_due(self, now_ms: float) -> None:
        order = ranked(self.paths.values(), self.policy, now_ms)
        if now_ms < self._init_at_ms or not order:
            return
        path = order[self._inits_made % len(order)]
        self._send_init(now_ms, path, NO_SESSION)
        wait_ms = path.rtt.rto_ms * 2 ** min(self._inits_made, 5)
        self._inits_made += 1
        self._init_at_ms = now_ms + min(wait_ms, c.HANDSHAKE_RTO_MAX_MS)

    def _send_init(self, now_ms: float, path: Path, session_id: bytes) -> None:
        assert self.session is not None
        self._timestamp = max(
            self._timestamp + 1, int((self._wall_at_zero_ms + now_ms) * 1000)
        )
        self._effects.append(SaveTimestamp(self._timestamp))
        payload = InitPayload(
            CAPABILITY_AES if self._identity.has_aes else 0,
            path.info.transport,
            path.number,
            self._timestamp,
            session_id,
            self._supersedes,
            self.session.attempt,
            b"",
        )
        pending = self._handshake.start(now_ms, path.id, payload, self._cookie)
        self._pending = [*self._pending, pending][-c.MAX_PENDING_INITS :]
        self._effects += [Expect(pending.index), Send(path.id, pending.packet)]

    def _on_retry(self, now_ms: float, path: Path, packet: bytes) -> bool:
        fields = decode_retry(packet)
        if fields is None or all(fields[0] != pending.index for pending in self._pending):
            return False
        if fields[1] == self._cookie:  # the same answer again: wait for the next time-out
            return True
        self._cookie = fields[1]
        session = self.session
        if session is not None and session.state is State.BIRTH:
            self._send_init(now_ms, path, NO_SESSION)
        return True

    def _on_response(self, now_ms: float, path: Path, packet: bytes) -> bool:
        response, session = decode_response(packet), self.session
        pending = next(
            (p for p in self._pending if response and p.index == response.index), None
        )
        if response is None or pending is None or session is None:
            return False
        done = self._handshake.finish(pending, response)
        if done is None:
            return False
        for other in self._pending:
            if other is not pending:
                self._effects.append(Unexpect(other.index))
        self._pending.clear()
        path.rtt.sample(now_ms - pending.sent_ms)
        path.heard(now_ms)
        if session.state is State.BIRTH:
            self._born(now_ms, session, path, done)
        elif session.state in LIVE and done.welcome.session_id == session.id:
            self._rekeyed(now_ms, session, path, done)
        return True

    def _born(self, now_ms: float, session: Session, path: Path, done: Established) -> None:
        welcome = done.welcome
        session.id, session.suite = welcome.session_id, welcome.suite
        session.addresses = welcome.addresses
        self.policy = _stricter(self._own_policy, welcome.bounds)
        self._birth_failures, self._birth_ms = 0, None
        self._binding = Binding(session.id, session.suite, self._effects.append)
        self._install_root(now_ms, session, path, done)
        self._bind(now_ms, path)
        supersedes = self._supersedes.hex() if self._supersedes != NO_SESSION else None
        self._supersedes = NO_SESSION
        self._machine.note(
            session,
            "SESSION_CREATED",
            Reason.HANDSHAKE_OK,
            {"supersedes": supersedes, "path": path.id, "suite": session.suite.name},
        )
        self._machine.fire(session, Event.HANDSHAKE_ACCEPTED, now_ms, {"path": path.id})
        self._effects.append(SessionUp(session.id, session.addresses))
        self._pause(False)

    def _install_root(
        self, now_ms: float, session: Session, path: Path, done: Established
    ) -> None:
        """The new root, its first epoch, and a probe so that the gateway can confirm it."""
        assert self._binding is not None
        welcome = done.welcome
        session.root, session.epoch = done.root, done.epoch_keys.epoch
        self._credentials = Credentials(welcome.ticket, welcome.next_index, welcome.reset_key)
        self._anchor_ms = now_ms
        self._rekey_at_ms = now_ms + self.policy.rekey_after_ms
        self._binding.adopt(done.epoch_keys, path.id, None)
        self._probe(path, now_ms)

    def _rekey_if_due(self, now_ms: float, session: Session) -> None:
        due = self._rekey_at_ms is not None and now_ms >= self._rekey_at_ms
        if due and self.bound is not None and session.id is not None:
            session.attempt += 1
            self._rekey_at_ms = now_ms + c.REKEY_RETRY_MS
            self._send_init(now_ms, self.bound, session.id)

    def _rekeyed(self, now_ms: float, session: Session, path: Path, done: Established) -> None:
        if done.epoch_keys.epoch <= session.epoch or path is not self.bound:
            self._effects.append(Unexpect(done.epoch_keys.index))
            return
        session.rekeys += 1
        self._install_root(now_ms, session, path, done)
        self._machine.note(session, "REKEY", Reason.HANDSHAKE_OK, {"epoch": session.epoch})

    # --- probes and control ---

    def _probe(self, path: Path, now_ms: float) -> None:
        channel = self._binding.channel if self._binding else None
        if channel is None:
            return
        self._probe_number = (self._probe_number + 1) & 0xFFFFFFFF
        body = Probe(path.number, self._probe_number).encode(Control.PROBE)
        path.probe_sent(self._probe_number, now_ms)
        if path is self.bound:
            self._watch.sent(now_ms)
        self._effects.append(Send(path.id, channel.seal(body)))

    def _probe_all(self, now_ms: float) -> None:
        busy = self._watch.is_busy(now_ms)
        for path in list(self.paths.values()):
            every = self.policy.heartbeat_idle_ms
            if path is self.bound and busy:
                every = self.policy.heartbeat_active_ms
            if path.probed_ms is None or now_ms - path.probed_ms >= every:
                self._probe(path, now_ms)

    def _burst(self, now_ms: float) -> None:
        """Ask the suspect path and all candidates at once."""
        assert self.bound is not None
        if len(self._watch.burst) < c.BURST_DEAD:
            for path in list(self.paths.values()):
                self._probe(path, now_ms)
        else:
            self._probe(self.bound, now_ms)
        self._watch.burst.append(now_ms)

    def _on_control(self, now_ms: float, path: Path, packet: bytes) -> bool:
        header, session = decode_sealed_header(packet), self.session
        if header is None or self._binding is None or session is None:
            return False
        body = self._binding.open(packet, header, now_ms + self.policy.drain_ms)
        if not body:
            return False
        self._heard(path, now_ms)
        if body[0] == Control.PROBE_REPLY:
            reply = decode_probe(body)
            return reply is not None and path.probe_answered(reply.sequence, now_ms)
        if body[0] == Control.REBIND_HINT:
            self._on_hint(now_ms, path, session)
            return True
        if body[0] == Control.CLOSE and len(body) == 2:
            self._on_close(now_ms, reason_from_wire(body[1]))
            return True
        return False

    def _heard(self, path: Path, now_ms: float) -> None:
        path.heard(now_ms)
        if path is self.bound:
            self._watch.heard(now_ms)

    def _on_hint(self, now_ms: float, path: Path, session: Session) -> None:
        """The gateway hears us from an address that it has not bound: bind it explicitly."""
        if path is not self.bound or session.state not in LIVE:
            return
        if not session.may_switch(now_ms, self.policy):
            self._machine.note(
                session, "TRANSPORT_SWITCH_DENIED", Reason.RATE_LIMITED, {"to_path": path.id}
            )
            return
        self._machine.fire(session, Event.NAT_REBOUND, now_ms, {"path": path.id})
        self._cause, self._planned = Cause.NAT_REBIND, path
        self._attempts_made = 0
        self._try(now_ms, path)

    def _on_close(self, now_ms: float, reason: str | None) -> None:
        event = _CLOSE_EVENTS.get(Reason(reason)) if reason else None
        self._end(now_ms, event or Event.PROTOCOL_BROKEN, rest=reason == Reason.SUPERSEDED)

    # --- health ---

    def _judge(self, now_ms: float, session: Session) -> None:
        """Look at the bound path and act on what the watch says."""
        bound = self.bound
        assert bound is not None
        others = [p for p in self.paths.values() if p is not bound]
        verdict = self._watch.assess(now_ms, bound, others, self.policy)
        if verdict is Verdict.DEAD:
            bound.died_ms = now_ms
            self._transport_died(now_ms, self._watch.why)
            return
        due_ms = self._watch.burst_due_ms(self.policy)
        if due_ms is not None and now_ms >= due_ms:
            self._burst(now_ms)
        if verdict is Verdict.LATE:
            self._unstable_ms = now_ms
            if session.state is State.ATTACHED:
                self._machine.fire(session, Event.HEARTBEAT_LATE, now_ms, {"path": bound.id})
        elif verdict is Verdict.SUSPECT:
            self._unstable_ms = now_ms
        elif session.state is State.VOLATILE:
            if now_ms - self._unstable_ms >= self.policy.stability_window_ms:
                self._machine.fire(session, Event.STABILITY_RESTORED, now_ms)

    def _ttl_over(self, now_ms: float, session: Session) -> bool:
        """End the session where one of its two TTLs is over."""
        if now_ms - session.created_ms >= self.policy.session_ttl_ms:
            self._say_close(Reason.TTL_SESSION_EXPIRED)
            self._end(now_ms, Event.SESSION_TTL_OVER)
            return True
        lost = session.lost_since_ms
        if lost is not None and now_ms - lost >= self.policy.transport_loss_ttl_ms:
            self._end(now_ms, Event.TRANSPORT_LOSS_TTL_OVER)
            return True
        return False

    # --- recovery ---

    def _transport_died(self, now_ms: float, why: str) -> None:
        session, path = self.session, self.bound
        if session is None or path is None:
            return
        self._cancel_rekey(now_ms)
        self.bound = None
        if session.state in LIVE:
            details: dict[str, object] = {
                "path": path.id,
                "why": why,
                "silent_ms": round(now_ms - self._watch.heard_ms, 1),
            }
            self._machine.fire(session, Event.TRANSPORT_DIED, now_ms, details)
            self._cause, self._attempts_made = Cause.TRANSPORT_DEAD, 0
            self._try_next(now_ms)
        elif session.state is State.RECOVERING:
            # The old binding went while a planned switch was under way: now it is a recovery.
            if session.lost_since_ms is None:
                session.lost_since_ms = now_ms
            if self._planned is path or self._attempt is None:
                self._planned = None
                self._try_next(now_ms)
            self._planned = None

    def _is_usable(self, path_id: str, now_ms: float) -> bool:
        path = self.paths.get(path_id)
        return path is not None and path.died_ms is None

    def _try_next(self, now_ms: float) -> None:
        """Ask over the best candidate, a different one each time."""
        assert self.session is not None
        order = ranked(self.paths.values(), self.policy, now_ms)
        if not self.session.may_switch(now_ms, self.policy):
            self._machine.note(
                self.session,
                "TRANSPORT_SWITCH_DENIED",
                Reason.RATE_LIMITED,
                {"max_switches_per_minute": self.policy.max_switches_per_minute},
            )
            self._refused(now_ms)
            return
        if not order:
            self._wait_for_candidate()
            return
        self._try(now_ms, order[self._attempts_made % len(order)])

    def _wait_for_candidate(self) -> None:
        """Nothing leaves past the tunnel: the TUN is left unread, the kernel queues."""
        self._drop_attempt()
        if self._binding is not None:
            self._binding.stop_sending()
        self._pause(True)

    def _try(self, now_ms: float, path: Path) -> None:
        session, credentials = self.session, self._credentials
        assert session is not None
        assert credentials is not None
        assert self._binding is not None
        self._drop_attempt()
        wait_ms = path.rtt.rto_ms * 2 ** min(self._attempts_made // max(len(self.paths), 1), 5)
        cause = self._cause if self._attempts_made == 0 else Cause.RETRY
        attempt = make_attempt(
            session,
            credentials,
            path,
            cause,
            now_ms,
            min(wait_ms, c.REATTACH_RTO_MAX_MS),
            self._anchor_ms,
            self._entropy,
        )
        self._attempt = attempt
        self._attempts_made += 1
        self._effects += [Expect(attempt.index), Send(path.id, attempt.packet)]
        self._machine.note(
            session,
            "REATTACH_ATTEMPT",
            None,
            {"attempt": attempt.number, "path": path.id, "cause": cause.name},
        )
        if self._planned is None:
            self._send_early(now_ms, path, attempt)

    def _send_early(self, now_ms: float, path: Path, attempt: Attempt) -> None:
        """The old transport is dead: data follows the request at once, if the path seems alive."""
        assert self._binding is not None
        if path.is_fresh(now_ms):
            index = attempt.credentials.next_index
            self._binding.send_under(attempt.number, index, attempt.send.data, path.id)
            self._pause(False)
        else:
            self._binding.stop_sending()
            self._pause(True)

    def _drop_attempt(self) -> None:
        if self._attempt is not None:
            self._effects.append(Unexpect(self._attempt.index))
            self._attempt = None

    def _on_ack(self, now_ms: float, path: Path, packet: bytes) -> bool:
        session, attempt = self.session, self._attempt
        if session is None or attempt is None or session.state is not State.RECOVERING:
            return False
        answer = read_ack(attempt, packet, session.root)
        if answer is None:
            return False
        keys, ack = answer
        assert self._binding is not None
        self._attempt = None
        session.epoch = keys.epoch
        self._credentials = Credentials(
            ack.ticket, ack.next_index, attempt.credentials.reset_key
        )
        path.rtt.sample(now_ms - attempt.sent_ms)
        path.heard(now_ms)
        self._binding.adopt(keys, path.id, now_ms + self.policy.drain_ms)
        self._switched(now_ms, session, path)
        return True

    def _switched(self, now_ms: float, session: Session, path: Path) -> None:
        took_ms = round(now_ms - session.entered_ms, 1)
        since = session.lost_since_ms
        outage_ms = round(now_ms - since, 1) if since is not None else 0
        session.count_switch(now_ms)
        details: dict[str, object] = {
            "path": path.id,
            "attempt": session.epoch,
            "recovery_ms": took_ms,
            "outage_ms": outage_ms,
        }
        self._machine.note(session, "TRANSPORT_SWITCH", Reason.TRANSPORT_SWITCH_OK, details)
        self._machine.fire(session, Event.REATTACH_ACCEPTED, now_ms, details)
        self._bind(now_ms, path)
        self._pause(False)

    def _bind(self, now_ms: float, path: Path) -> None:
        traffic = self._watch.traffic
        self.bound, self._planned = path, None
        self._watch = BindingWatch(now_ms, traffic=traffic)
        path.unanswered = 0

    def _on_reject(self, now_ms: float, path: Path, packet: bytes) -> bool:
        session, attempt = self.session, self._attempt
        if session is None or attempt is None or session.state is not State.RECOVERING:
            return False
        word = read_reject(attempt, packet)
        if word is None:
            return False
        reason = Reason(word)
        path.heard(now_ms)
        self._machine.note(session, "REATTACH_RESULT", reason, {"attempt": attempt.number})
        if reason in _FATAL_REJECTS:
            self._end(now_ms, _FATAL_REJECTS[reason], rest=reason is Reason.SUPERSEDED)
        else:
            self._refused(now_ms)
        return True

    def _refused(self, now_ms: float) -> None:
        """No switch now. The old binding goes on if it delivers, else wait in DEGRADED."""
        assert self.session is not None
        self._drop_attempt()
        kept = self.bound is not None
        event = Event.REATTACH_REFUSED_BOUND if kept else Event.REATTACH_REFUSED_UNBOUND
        self._planned = None
        self._unstable_ms = now_ms
        self._machine.fire(self.session, event, now_ms)
        if not kept:
            self._wait_for_candidate()
            self._retry_at_ms = now_ms + c.DEGRADED_RETRY_MS

    def _recovery_timer(self, now_ms: float, session: Session) -> None:
        if now_ms - session.entered_ms >= self.policy.max_recovery_window_ms:
            self._drop_attempt()
            self.bound = self._planned = None
            if session.lost_since_ms is None:
                session.lost_since_ms = session.entered_ms
            self._machine.fire(session, Event.RECOVERY_WINDOW_OVER, now_ms)
            self._wait_for_candidate()
            self._retry_at_ms = now_ms + c.DEGRADED_RETRY_MS
        elif self._attempt is None:
            if self.paths:
                self._try_next(now_ms)
        elif now_ms >= self._attempt.deadline_ms:
            self._attempt_failed(now_ms)

    def _attempt_failed(self, now_ms: float) -> None:
        """No answer in time, or its path is gone."""
        target = self._planned
        if target is None:
            self._try_next(now_ms)
        elif self._attempts_made < c.PLANNED_ATTEMPTS and target.id in self.paths:
            self._try(now_ms, target)
        elif self._cause is Cause.NAT_REBIND or self.bound is None:
            # The old binding does not deliver the gateway's packets: go on as a recovery.
            assert self.session is not None
            self.session.lost_since_ms = now_ms
            self.bound = self._planned = None
            self._try_next(now_ms)
        else:
            self._refused(now_ms)

    def _leave_degraded(self, now_ms: float) -> None:
        """Try again when a candidate shows life, or now and then: silence proves nothing."""
        session = self.session
        assert session is not None
        if not self.paths or not session.may_switch(now_ms, self.policy):
            return
        viable = any(
            (p.heard_ms or 0) > session.entered_ms or p.added_ms > session.entered_ms
            for p in self.paths.values()
        )
        if viable or now_ms >= self._retry_at_ms:
            self._machine.fire(session, Event.CANDIDATE_VIABLE, now_ms)
            self._attempts_made = 0
            self._try_next(now_ms)

    # --- the end ---

    def _say_close(self, reason: Reason) -> None:
        channel = self._binding.channel if self._binding else None
        if channel is not None and self.bound is not None:
            body = bytes([Control.CLOSE, reason_to_wire(reason)])
            self._effects.append(Send(self.bound.id, channel.seal(body)))

    def _cancel_rekey(self, now_ms: float) -> None:
        for pending in self._pending:
            self._effects.append(Unexpect(pending.index))
        self._pending.clear()
        if self._rekey_at_ms is not None:
            self._rekey_at_ms = max(self._rekey_at_ms, now_ms + c.REKEY_RETRY_MS)

    def _end(self, now_ms: float, event: Event, rest: bool = False) -> None:
        session = self.session
        assert session is not None
        self._drop_attempt()
        self._cancel_rekey(now_ms)
        if self._binding is not None:
            self._binding.release()
            self._binding = None
        self._machine.fire(session, event, now_ms)
        if session.id is not None:
            self._supersedes = session.id
            self._effects.append(SessionDown(session.id))
        self.bound = self._planned = self._credentials = None
        self._rekey_at_ms = None
        self._cookie = NO_COOKIE
        self.policy = self._own_policy
        self._pause(True)
        backoff_ms = c.BIRTH_BACKOFF_MS if event is Event.OPERATOR_TERMINATED else 0
        self._birth_ms = None if rest else now_ms + backoff_ms
        self._begin_if_due(now_ms)

    def _pause(self, paused: bool) -> None:
        if paused != self._paused:
            self._paused = paused
            self._effects.append(PauseTun(paused))

    def _count(self, cause: str) -> None:
        self.dropped[cause] = self.dropped.get(cause, 0) + 1


def _stricter(own: Policy, bounds: PolicyBounds) -> Policy:
    """Our policy within the gateway's bounds."""
    names = [name for name in bounds.__slots__ if name not in ("version", "rekey_after_ms")]
    tighter = {name: min(getattr(own, name), getattr(bounds, name)) for name in names}
    return replace(own, **tighter)
