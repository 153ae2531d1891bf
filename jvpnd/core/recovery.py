"""How a client moves its session to another path: planned, after a death, or behind a new NAT.

One attempt at a time, each with a higher number. While a planned move is under way the old binding
serves; after a death data follows the request at once over a path that seems alive, and where there
is none the TUN is left unread.
"""

from __future__ import annotations

from jvpnd.core import constants as c
from jvpnd.core.choice import ranked
from jvpnd.core.clientstate import TURNED_AWAY, ClientState
from jvpnd.core.effects import Expect, Send, Unexpect
from jvpnd.core.messages import Cause
from jvpnd.core.nodes import NO_NODE
from jvpnd.core.path import Path
from jvpnd.core.reasons import Reason
from jvpnd.core.reattach import (
    Attempt,
    Credentials,
    Proof,
    make_attempt,
    read_ack,
    read_reject,
)
from jvpnd.core.session import Session
from jvpnd.core.states import Event, State

_FATAL_REJECTS = {
    Reason.SESSION_NOT_FOUND: Event.SESSION_UNKNOWN,
    Reason.SESSION_EXPIRED: Event.SESSION_EXPIRED,
    Reason.OWNERSHIP_CONFLICT: Event.OWNER_AMBIGUOUS,
    Reason.SUPERSEDED: Event.SUPERSEDED,
}


class Recovery:
    """Acts while the session is RECOVERING or DEGRADED, and leads it there."""

    def __init__(self, state: ClientState) -> None:
        self._state = state
        self._attempt: Attempt | None = None
        self._attempts_made = 0
        self._planned: Path | None = None  # target of a move while the old binding delivers
        self._cause = Cause.TRANSPORT_DEAD
        self._retry_at_ms = 0.0
        self._patient_until_ms = 0.0  # the gateway lives, but its table does not

    @property
    def deadline_ms(self) -> float | None:
        """When the outstanding attempt counts as unanswered."""
        return self._attempt.deadline_ms if self._attempt is not None else None

    # --- ways in ---

    def move(self, now_ms: float, target: Path, event: Event, details: dict[str, object]) -> None:
        """Make before break: ask for `target` while the old binding, if any, serves."""
        session = self._session()
        delivers = session.state is not State.DEGRADED
        self._state.machine.fire(session, event, now_ms, details)
        self._cause = Cause.NAT_REBIND if event is Event.NAT_REBOUND else Cause.SWITCH
        self._planned = target if delivers else None
        self._attempts_made = 0
        self._try(now_ms, target)

    def transport_died(
        self, now_ms: float, path: Path, why: str, way: str | None, target: Path | None = None
    ) -> None:
        """The bound path is dead. `target`: what to ask first, if it is a candidate."""
        state, session = self._state, self._session()
        state.bound = None
        silent_ms = round(now_ms - state.watch.heard_ms, 1)
        details: dict[str, object] = {"path": path.id, "why": why, "silent_ms": silent_ms}
        if way is not None:
            details["way"] = way
        if session.state is State.RECOVERING:
            # The old binding went while a move was under way: now it is a recovery.
            state.machine.note(session, "TRANSPORT_LOST", Reason.TRANSPORT_DEAD, details)
            if session.lost_since_ms is None:
                session.lost_since_ms = now_ms
            asked = self._asked_path()
            doomed = asked is None or self._planned is path
            self._planned = None
            if doomed:
                self._try_next(now_ms)
            elif asked is not None and self._attempt is not None:
                self._send_early(now_ms, asked, self._attempt)
        elif session.state is State.DEGRADED:
            session.lost_since_ms = now_ms
            state.machine.note(session, "TRANSPORT_LOST", Reason.TRANSPORT_DEAD, details)
            self._wait_for_candidate()
            self._retry_at_ms = now_ms
            self.leave_degraded(now_ms, session)
        elif session.state in (State.ATTACHED, State.VOLATILE):
            state.machine.fire(session, Event.TRANSPORT_DIED, now_ms, details)
            self._cause, self._attempts_made = Cause.TRANSPORT_DEAD, 0
            self._try_next(now_ms, target)

    def candidate_lost(self, now_ms: float, path: Path) -> None:
        if self._attempt is not None and self._attempt.path_id == path.id:
            self._attempt_failed(now_ms)

    def candidate_added(self, now_ms: float) -> None:
        """A new path, in RECOVERING: use it, unless an attempt on a living one is under way."""
        if self._planned is None and not self._is_under_way():
            self._try_next(now_ms)

    def ask_again(self, now_ms: float) -> None:
        """With other keys: those of the attempt under way may be lost."""
        path = self._asked_path()
        if path is not None:
            self._try(now_ms, path)

    def _is_under_way(self) -> bool:
        path = self._asked_path()
        return path is not None and path.died_ms is None

    def _asked_path(self) -> Path | None:
        """Where the outstanding attempt went, if that path is still there."""
        return self._state.paths.get(self._attempt.path_id) if self._attempt else None

    # --- time ---

    def timer(self, now_ms: float, session: Session) -> None:
        """While RECOVERING."""
        state = self._state
        if now_ms - session.entered_ms >= state.policy.max_recovery_window_ms:
            state.bound = self._planned = None
            if session.lost_since_ms is None:
                session.lost_since_ms = session.entered_ms
            state.machine.fire(session, Event.RECOVERY_WINDOW_OVER, now_ms)
            self._wait_for_candidate()
            self._retry_at_ms = now_ms + c.DEGRADED_RETRY_MS
        elif self._attempt is None:
            if state.candidates():
                self._try_next(now_ms)
        elif now_ms >= self._attempt.deadline_ms:
            self._attempt_failed(now_ms)

    def leave_degraded(self, now_ms: float, session: Session) -> None:
        """Try again when a candidate shows life, or now and then: silence proves nothing."""
        state = self._state
        paths = state.candidates()
        if not paths or not session.may_switch(now_ms, state.policy):
            return
        is_patient = now_ms < self._patient_until_ms
        viable = any(
            path.added_ms > session.entered_ms
            or ((path.heard_ms or 0) > session.entered_ms and not is_patient)
            for path in paths
        )
        if viable or now_ms >= self._retry_at_ms:
            state.machine.fire(session, Event.CANDIDATE_VIABLE, now_ms)
            self._cause, self._attempts_made = Cause.TRANSPORT_DEAD, 0
            self._try_next(now_ms)

    # --- attempts ---

    def _try_next(self, now_ms: float, target: Path | None = None) -> None:
        """Ask over the best candidate, a different one each time, or first over `target`."""
        state, session = self._state, self._session()
        if not session.may_switch(now_ms, state.policy):
            bound: dict[str, object] = {
                "max_switches_per_minute": state.policy.max_switches_per_minute
            }
            state.machine.note(session, "TRANSPORT_SWITCH_DENIED", Reason.RATE_LIMITED, bound)
            self._refused(now_ms)
            return
        order = ranked(state.paths.values(), state.policy, now_ms)
        if target in order:
            self._try(now_ms, target)
        elif order:
            self._try(now_ms, order[self._attempts_made % len(order)])
        else:
            self._wait_for_candidate()

    def _wait_for_candidate(self) -> None:
        """Nothing leaves past the tunnel: the TUN is left unread, the kernel queues."""
        self.drop_attempt()
        if self._state.binding is not None:
            self._state.binding.stop_sending()
        self._state.pause(True)

    def _try(self, now_ms: float, path: Path) -> None:
        state, session = self._state, self._session()
        self.drop_attempt()
        cause = self._cause if self._attempts_made == 0 else Cause.RETRY
        rounds = self._attempts_made // max(len(state.candidates()), 1)
        wait_ms = min(path.rtt.rto_ms * 2 ** min(rounds, 5), c.REATTACH_RTO_MAX_MS)
        if path.is_elsewhere:
            wait_ms = max(wait_ms, c.TAKEOVER_MS)
        attempt = make_attempt(
            session,
            self._proof(),
            path,
            cause,
            now_ms,
            wait_ms,
            state.entropy,
        )
        self._attempt = attempt
        self._attempts_made += 1
        state.effects += [Expect(attempt.index), Send(path.id, attempt.packet)]
        details: dict[str, object] = {
            "attempt": attempt.number,
            "path": path.id,
            "cause": cause.name,
        }
        state.machine.note(session, "REATTACH_ATTEMPT", None, details)
        if self._planned is None:
            self._send_early(now_ms, path, attempt)
        elif state.bound is not None and state.bound is not path:
            state.probe(now_ms, state.bound)

    def _proof(self) -> Proof:
        """That of the newest root; but one that the gateway never confirmed it may not know, if it
        was started again: then that of the root before, by turns."""
        before = self._state.unconfirmed()
        if before is not None and self._attempts_made % 2:
            return before.proof
        return self._state.proof()

    def _send_early(self, now_ms: float, path: Path, attempt: Attempt) -> None:
        """The old transport is dead: data follows the request at once, if the path seems alive."""
        state = self._state
        assert state.binding is not None
        if path.is_fresh(now_ms, state.policy):
            index = attempt.proof.credentials.next_index
            state.binding.send_under(attempt.number, index, attempt.send.data, path.id)
            state.pause(False)
        else:
            state.binding.stop_sending()
            state.pause(True)

    def _attempt_failed(self, now_ms: float) -> None:
        """No answer in time, or its path is gone."""
        state, target = self._state, self._planned
        if target is None:
            self._try_next(now_ms)
        elif self._attempts_made < c.PLANNED_ATTEMPTS and target.id in state.paths:
            self._try(now_ms, target)
        elif self._cause is Cause.NAT_REBIND or not self._bound_serves():
            # The old binding does not deliver, or the gateway has left it and its ACKs were lost:
            # go on as a recovery.
            self._give_up_bound(now_ms)
            self._try_next(now_ms)
        else:
            self._refused(now_ms)

    def _give_up_bound(self, now_ms: float) -> None:
        state, session = self._state, self._session()
        if state.bound is not None:
            details: dict[str, object] = {
                "path": state.bound.id,
                "why": "no answer to a move, and the old binding does not serve",
                "silent_ms": round(now_ms - state.watch.heard_ms, 1),
            }
            state.machine.note(session, "TRANSPORT_LOST", Reason.TRANSPORT_DEAD, details)
        session.lost_since_ms = now_ms
        state.bound = self._planned = None

    def _bound_serves(self) -> bool:
        """Whether the old binding was heard since the last attempt, so that it is still bound."""
        bound, attempt = self._state.bound, self._attempt
        if bound is None or attempt is None or bound.heard_ms is None:
            return False
        return bound.heard_ms > attempt.sent_ms

    def drop_attempt(self) -> None:
        if self._attempt is not None:
            self._state.effects.append(Unexpect(self._attempt.index))
            self._attempt = None

    # --- answers ---

    def on_ack(self, now_ms: float, path: Path, packet: bytes) -> bool:
        """The gateway has bound the attempt. False if the ACK is not of this attempt."""
        state, session, attempt = self._state, self._session(), self._attempt
        answer = read_ack(attempt, packet) if attempt is not None else None
        if attempt is None or answer is None or state.binding is None:
            return False
        keys, ack = answer
        self._attempt = self._planned = None
        session.epoch = keys.epoch
        state.fall_back(attempt.proof)
        reset_key = attempt.proof.credentials.reset_key
        state.credentials = Credentials(ack.ticket, ack.next_index, reset_key)
        path.rtt.sample(now_ms - attempt.sent_ms)
        path.heard(now_ms)
        state.binding.adopt(keys, path.id, now_ms + state.policy.drain_ms)
        self._switched(now_ms, session, path)
        return True

    def _switched(self, now_ms: float, session: Session, path: Path) -> None:
        state, since = self._state, session.lost_since_ms
        session.count_switch(now_ms)
        details: dict[str, object] = {
            "path": path.id,
            "attempt": session.epoch,
            "recovery_ms": round(now_ms - session.entered_ms, 1),
            "outage_ms": round(now_ms - since, 1) if since is not None else 0,
        }
        accepted: dict[str, object] = {"attempt": session.epoch, "path": path.id}
        state.machine.note(session, "REATTACH_RESULT", Reason.REATTACH_ACCEPT, accepted)
        state.machine.note(session, "TRANSPORT_SWITCH", Reason.TRANSPORT_SWITCH_OK, details)
        state.machine.fire(session, Event.REATTACH_ACCEPTED, now_ms, details)
        state.bind(now_ms, path)
        state.pause(False)

    def on_reject(self, now_ms: float, path: Path, packet: bytes) -> tuple[bool, Event | None]:
        """(whether it is proven, the event that ends the session if it is refused for good)."""
        session, attempt = self._session(), self._attempt
        refusal = read_reject(attempt, packet) if attempt is not None else None
        if attempt is None or refusal is None:
            return False, None
        reason, owner = refusal
        path.heard(now_ms)
        details: dict[str, object] = {"attempt": attempt.number, "path": path.id}
        self._state.machine.note(session, "REATTACH_RESULT", reason, details)
        in_cluster = self._state.home != NO_NODE
        raced = in_cluster and reason is Reason.OWNERSHIP_CONFLICT
        # Its owner serves it: the node that was asked looks into another table.
        absent = reason is Reason.SESSION_NOT_FOUND
        stray = absent and path.is_elsewhere and self._planned is not None
        if reason in _FATAL_REJECTS and not (raced or stray):
            return True, _FATAL_REJECTS[reason]
        self._state.fall_back(attempt.proof)  # the root that the gateway answers to
        if reason is Reason.STORE_UNAVAILABLE:
            self._patient_until_ms = now_ms + c.DEGRADED_RETRY_MS
        self._state.turned_away(path, reason, owner)
        if self._planned is not None:
            self._state.note_left(now_ms, self._planned)  # ever more seldom by our own choice
        elif raced or (in_cluster and reason in TURNED_AWAY and not self._all_turn_away()):
            self._try_next(now_ms)  # another node, or the same again with a higher attempt
            return True, None
        self._refused(now_ms)
        return True, None

    def _all_turn_away(self) -> bool:
        return all(path.turns_away for path in self._state.candidates())

    def _refused(self, now_ms: float) -> None:
        """No switch now. The old binding goes on if it delivers, else wait in DEGRADED."""
        state = self._state
        self.drop_attempt()
        self._planned = None
        kept = state.bound is not None
        event = Event.REATTACH_REFUSED_BOUND if kept else Event.REATTACH_REFUSED_UNBOUND
        state.machine.fire(self._session(), event, now_ms)
        if not kept:
            self._wait_for_candidate()
            self._retry_at_ms = now_ms + c.DEGRADED_RETRY_MS

    def ended(self) -> None:
        """The session is over."""
        self.drop_attempt()
        self._planned = None

    def _session(self) -> Session:
        session = self._state.session
        assert session is not None
        return session
