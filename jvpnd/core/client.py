"""The client agent: keeps one session over whichever path lives. Sans-IO.

The shell calls the input methods with the time, then performs what `drain` returns, in order, and
calls `timer` when `next_timer_ms` has come. Births (births.py) and moves (recovery.py) are parts of
it; what they share is in clientstate.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jvpnd.core import constants as c
from jvpnd.core.births import Births
from jvpnd.core.clientstate import ClientState, Identity
from jvpnd.core.effects import Effect, Send, SessionDown
from jvpnd.core.entropy import Entropy
from jvpnd.core.messages import Control, decode_probe, reason_from_wire, reason_to_wire
from jvpnd.core.path import Path, PathInfo, ranked
from jvpnd.core.policy import Policy
from jvpnd.core.reasons import Reason
from jvpnd.core.recovery import Recovery
from jvpnd.core.rtt import LossWindow
from jvpnd.core.session import Session
from jvpnd.core.states import Event, State
from jvpnd.core.watch import Traffic, Verdict
from jvpnd.core.wire import PacketType, decode_sealed_header

__all__ = ["ClientAgent", "Identity", "Refusal"]

LIVE = (State.ATTACHED, State.VOLATILE)
_CLOSE_EVENTS = {
    Reason.OPERATOR_TERMINATION: Event.OPERATOR_TERMINATED,
    Reason.SUPERSEDED: Event.SUPERSEDED,
    Reason.TTL_SESSION_EXPIRED: Event.SESSION_TTL_OVER,
    Reason.TTL_TRANSPORT_LOSS_EXPIRED: Event.TRANSPORT_LOSS_TTL_OVER,
    Reason.OWNERSHIP_CONFLICT: Event.OWNER_MOVED,
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an operator's order was not carried out."""

    reason: Reason
    message: str


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
        self._state = ClientState(identity, policy, entropy)
        self._births = Births(self._state, wall_at_zero_ms, timestamp_floor)
        self._recovery = Recovery(self._state)
        self._path_number = 0
        self._unstable_ms = 0.0
        self._due_ms: float | None = None
        self._checked_ms = 0.0

    # --- outputs ---

    @property
    def session(self) -> Session | None:
        return self._state.session

    @property
    def paths(self) -> dict[str, Path]:
        return self._state.paths

    @property
    def bound(self) -> Path | None:
        return self._state.bound

    @property
    def policy(self) -> Policy:
        """What holds for the present session: ours within the gateway's bounds."""
        return self._state.policy

    @property
    def dropped(self) -> dict[str, int]:
        """Packets that came for control and were dropped, by cause."""
        return self._state.dropped

    @property
    def is_resting(self) -> bool:
        """Whether it will not begin a session by itself (ended by an operator or superseded)."""
        return self._births.rests and self._state.live_session() is None

    def drain(self) -> list[Effect]:
        """Everything the shell has to do, in order; empties the list."""
        effects = self._state.effects[:]
        self._state.effects.clear()
        return effects

    def next_timer_ms(self, now_ms: float) -> float:
        """When `timer` wants to be called next, if nothing else happens before."""
        state = self._state
        watchful = state.watch.is_busy(now_ms) or state.watch.waiting_ms is not None
        # Counted from the last check: packets that come in between must not put it off.
        wishes = [self._checked_ms + (c.ACTIVE_CHECK_MS if watchful else c.IDLE_CHECK_MS)]
        if self._recovery.deadline_ms is not None:
            wishes.append(self._recovery.deadline_ms)
        if state.binding is not None and (drain_ms := state.binding.next_ms()) is not None:
            wishes.append(drain_ms)
        self._due_ms = min(wishes)
        return max(now_ms, self._due_ms)

    # --- inputs: paths ---

    def path_added(self, now_ms: float, info: PathInfo) -> None:
        """A new candidate (or the same one with a new local address)."""
        state = self._state
        if info.id in state.paths:
            self.path_removed(now_ms, info.id, "replaced")
        if len(state.paths) >= state.policy.max_candidates:
            state.count("too many candidates")
            return
        self._path_number = self._path_number % 255 + 1
        path = Path(info, self._path_number, now_ms, LossWindow(state.policy.loss_window_ms))
        state.paths[info.id] = path
        session = state.live_session()
        if session is None or session.state is State.BIRTH:
            self._births.path_added(now_ms)
        elif session.state is State.RECOVERING:
            self._recovery.candidate_added(now_ms)
        elif session.state is State.DEGRADED:
            self._recovery.leave_degraded(now_ms, session)
        else:
            state.probe(now_ms, path)

    def path_removed(self, now_ms: float, path_id: str, why: str) -> None:
        """The uplink, its address or its route is gone: no evidence needed."""
        path = self._state.paths.pop(path_id, None)
        if path is not None:
            self._lose(now_ms, path, why)

    def path_failed(self, now_ms: float, path_id: str, why: str, certain: bool) -> None:
        """A socket error. `certain`: the host itself cannot send; else it is only a suspicion."""
        path, watch = self._state.paths.get(path_id), self._state.watch
        if path is None:
            return
        if certain:
            if path.died_ms is None:
                self._lose(now_ms, path, why)
        elif path is self._state.bound and watch.suspect_ms is None:
            watch.sent(now_ms)
            watch.suspect_ms = now_ms
            self._burst(now_ms, path)

    def _lose(self, now_ms: float, path: Path, why: str) -> None:
        path.died_ms = now_ms
        if path is self._state.bound:
            self._births.cancel_rekey(now_ms)
            self._recovery.transport_died(now_ms, path, why)
        elif self._state.live_session() is not None:
            self._recovery.candidate_lost(now_ms, path)

    # --- inputs: packets, counters, time ---

    def packet_received(self, now_ms: float, path_id: str, packet: bytes) -> None:
        """Anything but DATA that came over a path."""
        path = self._state.paths.get(path_id)
        if path is None or not packet:
            self._state.count("unknown path")
            return
        handlers: dict[int, Callable[[float, Path, bytes], bool]] = {
            PacketType.HANDSHAKE_RESPONSE: self._on_response,
            PacketType.RETRY: self._births.on_retry,
            PacketType.REATTACH_ACK: self._on_ack,
            PacketType.REATTACH_REJECT: self._on_reject,
            PacketType.CONTROL: self._on_control,
        }
        handler = handlers.get(packet[0])
        if handler is None or not handler(now_ms, path, packet):
            self._state.count("unexpected packet")

    def traffic(self, now_ms: float, traffic: Traffic) -> None:
        """The data plane's counters; call it before `timer`."""
        state = self._state
        if state.binding is None or state.bound is None:
            return
        if state.watch.observe(traffic, state.binding.index):
            state.bound.heard(traffic.last_rx_ms)
            state.binding.peer_has_moved(now_ms + state.policy.drain_ms)

    def timer(self, now_ms: float) -> None:
        """Time has passed."""
        state = self._state
        if self._due_ms is not None and now_ms - self._due_ms > c.LATE_SHELL_MS:
            state.watch.shift(now_ms - self._due_ms)
        self._due_ms, self._checked_ms = None, now_ms
        if state.binding is not None:
            state.binding.expire(now_ms)
        session = state.live_session()
        if session is None:
            self._births.begin_if_due(now_ms)
        elif session.state is State.BIRTH:
            if self._births.has_failed(now_ms, session):
                self._end(now_ms, Event.HANDSHAKE_FAILED)
        elif not self._ttl_over(now_ms, session):
            self._probe_all(now_ms)
            if session.state in LIVE:
                self._judge(now_ms, session)
            elif session.state is State.RECOVERING:
                self._recovery.timer(now_ms, session)
            elif session.state is State.DEGRADED:
                self._recovery.leave_degraded(now_ms, session)

    # --- inputs: the operator ---

    def switch(self, now_ms: float, path_id: str | None) -> Refusal | None:
        """Move to a path (None: the best other one), make before break."""
        state, session = self._state, self._state.session
        if session is None or session.state not in (*LIVE, State.DEGRADED):
            now = "none" if session is None else session.state
            return Refusal(Reason.TRANSPORT_SWITCH_DENIED, f"the session is not attached: {now}")
        if path_id is not None and path_id not in state.paths:
            known = ", ".join(sorted(state.paths)) or "none"
            return Refusal(Reason.POLICY_DENY, f"no path {path_id}; known: {known}")
        others = [path for path in state.paths.values() if path is not state.bound]
        wanted = [state.paths[path_id]] if path_id else others
        target = next(iter(ranked(wanted, state.policy, now_ms)), None)
        if target is None:
            return Refusal(Reason.POLICY_DENY, "no other path that the policy allows")
        if target is state.bound:
            return Refusal(Reason.POLICY_DENY, f"{target.id} carries the session already")
        refusal = self._bound_reached(now_ms, session)
        if refusal is not None:
            details: dict[str, object] = {"to_path": target.id, "why": refusal.message}
            state.machine.note(session, "TRANSPORT_SWITCH_DENIED", refusal.reason, details)
            return refusal
        ordered: dict[str, object] = {"to_path": target.id, "why": "operator"}
        self._births.cancel_rekey(now_ms)
        self._recovery.move(now_ms, target, Event.SWITCH_ORDERED, ordered)
        return None

    def _bound_reached(self, now_ms: float, session: Session) -> Refusal | None:
        """The policy's bounds on switches that nobody is forced to make."""
        policy = self._state.policy
        last = session.switched_at_ms[-1] if session.switched_at_ms else None
        if last is not None and now_ms - last < policy.switch_cooldown_ms:
            text = f"within switch_cooldown_ms {policy.switch_cooldown_ms} of the last switch"
            return Refusal(Reason.POLICY_DENY, text)
        if not session.may_switch(now_ms, policy):
            text = f"max_switches_per_minute {policy.max_switches_per_minute} reached"
            return Refusal(Reason.RATE_LIMITED, text)
        return None

    def terminate(self, now_ms: float) -> Refusal | None:
        """End the session for good: no new one until the daemon is started again."""
        if self._state.live_session() is None:
            return Refusal(Reason.SESSION_NOT_FOUND, "there is no session")
        self._say_close(Reason.OPERATOR_TERMINATION)
        self._end(now_ms, Event.OPERATOR_TERMINATED, rest=True)
        return None

    # --- packets ---

    def _on_response(self, now_ms: float, path: Path, packet: bytes) -> bool:
        session = self._state.session
        awaited = session is not None and session.state in (State.BIRTH, *LIVE)
        return awaited and self._births.on_response(now_ms, path, packet)

    def _on_ack(self, now_ms: float, path: Path, packet: bytes) -> bool:
        return self._is_recovering() and self._recovery.on_ack(now_ms, path, packet)

    def _on_reject(self, now_ms: float, path: Path, packet: bytes) -> bool:
        if not self._is_recovering():
            return False
        proven, fatal = self._recovery.on_reject(now_ms, path, packet)
        if fatal is not None:
            self._end(now_ms, fatal, rest=fatal is Event.SUPERSEDED)
        return proven

    def _is_recovering(self) -> bool:
        session = self._state.session
        return session is not None and session.state is State.RECOVERING

    def _on_control(self, now_ms: float, path: Path, packet: bytes) -> bool:
        state, header = self._state, decode_sealed_header(packet)
        if header is None or state.binding is None or state.session is None:
            return False
        body = state.binding.open(packet, header, now_ms + state.policy.drain_ms)
        if not body:
            return False
        path.heard(now_ms)
        if path is state.bound:
            state.watch.heard(now_ms)
        if body[0] == Control.PROBE_REPLY:
            reply = decode_probe(body)
            return reply is not None and path.probe_answered(reply.sequence, now_ms)
        if body[0] == Control.REBIND_HINT:
            self._on_hint(now_ms, path, state.session)
            return True
        if body[0] == Control.CLOSE and len(body) == 2:
            self._on_close(now_ms, reason_from_wire(body[1]))
            return True
        return False

    def _on_hint(self, now_ms: float, path: Path, session: Session) -> None:
        """The gateway hears us from an address that it has not bound: bind it explicitly."""
        state = self._state
        if path is not state.bound or session.state not in LIVE:
            return
        if session.may_switch(now_ms, state.policy):
            self._births.cancel_rekey(now_ms)
            self._recovery.move(now_ms, path, Event.NAT_REBOUND, {"path": path.id})
        else:
            details: dict[str, object] = {"to_path": path.id}
            state.machine.note(session, "TRANSPORT_SWITCH_DENIED", Reason.RATE_LIMITED, details)

    def _on_close(self, now_ms: float, reason: str | None) -> None:
        event = _CLOSE_EVENTS.get(Reason(reason)) if reason else None
        self._end(now_ms, event or Event.PROTOCOL_BROKEN, rest=reason == Reason.SUPERSEDED)

    # --- health ---

    def _probe_all(self, now_ms: float) -> None:
        state = self._state
        busy = state.watch.is_busy(now_ms)
        for path in list(state.paths.values()):
            every_ms = state.policy.heartbeat_idle_ms
            if path is state.bound and busy:
                every_ms = state.policy.heartbeat_active_ms
            if path.probed_ms is None or now_ms - path.probed_ms >= every_ms:
                state.probe(now_ms, path)

    def _burst(self, now_ms: float, bound: Path) -> None:
        """Ask the suspect path, and in the first rounds all candidates."""
        state = self._state
        first = len(state.watch.burst) < c.BURST_DEAD
        for path in list(state.paths.values()) if first else [bound]:
            state.probe(now_ms, path)
        state.watch.burst.append(now_ms)

    def _judge(self, now_ms: float, session: Session) -> None:
        """Look at the bound path and act on what the watch says."""
        state, bound = self._state, self._state.bound
        assert bound is not None
        others = [path for path in state.paths.values() if path is not bound]
        verdict = state.watch.assess(now_ms, bound, others, state.policy)
        if verdict is Verdict.DEAD:
            self._lose(now_ms, bound, state.watch.why)
            return
        due_ms = state.watch.burst_due_ms(state.policy)
        if due_ms is not None and now_ms >= due_ms:
            self._burst(now_ms, bound)
        if verdict is not Verdict.ALIVE:
            self._unstable_ms = now_ms
        if verdict is Verdict.LATE and session.state is State.ATTACHED:
            state.machine.fire(session, Event.HEARTBEAT_LATE, now_ms, {"path": bound.id})
        elif session.state is State.VOLATILE:
            stable_since_ms = max(self._unstable_ms, session.entered_ms)
            if now_ms - stable_since_ms >= state.policy.stability_window_ms:
                state.machine.fire(session, Event.STABILITY_RESTORED, now_ms)
        self._births.rekey_if_due(now_ms, session, bound)

    def _ttl_over(self, now_ms: float, session: Session) -> bool:
        """End the session where one of its two TTLs is over."""
        policy, lost_ms = self._state.policy, session.lost_since_ms
        if now_ms - session.created_ms >= policy.session_ttl_ms:
            self._say_close(Reason.TTL_SESSION_EXPIRED)
            self._end(now_ms, Event.SESSION_TTL_OVER)
            return True
        if lost_ms is not None and now_ms - lost_ms >= policy.transport_loss_ttl_ms:
            self._end(now_ms, Event.TRANSPORT_LOSS_TTL_OVER)
            return True
        return False

    # --- the end ---

    def _say_close(self, reason: Reason) -> None:
        state = self._state
        channel = state.binding.channel if state.binding else None
        if channel is not None and state.bound is not None:
            body = bytes([Control.CLOSE, reason_to_wire(reason)])
            state.effects.append(Send(state.bound.id, channel.seal(body)))

    def _end(self, now_ms: float, event: Event, rest: bool = False) -> None:
        state, session = self._state, self._state.session
        assert session is not None
        self._recovery.ended()
        self._births.cancel_rekey(now_ms)
        if state.binding is not None:
            state.binding.release()
            state.binding = None
        state.machine.fire(session, event, now_ms)
        if session.id is not None:
            state.effects.append(SessionDown(session.id))
        state.bound = state.credentials = None
        state.policy = state.own_policy
        state.pause(True)
        self._births.ended(now_ms, event, rest)
        self._births.begin_if_due(now_ms)
