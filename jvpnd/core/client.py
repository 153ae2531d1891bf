"""The client agent: keeps one session over whichever path lives. Sans-IO.

The shell calls the input methods with the time, then performs what `drain` returns, in order, and
calls `timer` when `next_timer_ms` has come. Births (births.py) and moves (recovery.py) are parts of
it; what they share is in clientstate.py.
"""

from __future__ import annotations

from collections.abc import Callable

from jvpnd.core import constants as c
from jvpnd.core.births import Births
from jvpnd.core.clientstate import ClientState
from jvpnd.core.effects import Effect, Seek, Send, SessionDown
from jvpnd.core.entropy import Entropy
from jvpnd.core.handshake import Handshake
from jvpnd.core.health import Health
from jvpnd.core.keeping import Keeping
from jvpnd.core.keys import notice_key
from jvpnd.core.messages import Control, decode_probe_reply, reason_from_wire, reason_to_wire
from jvpnd.core.packets import notice_index, open_notice
from jvpnd.core.path import Path, PathInfo
from jvpnd.core.policy import Policy
from jvpnd.core.reasons import Reason
from jvpnd.core.recovery import Recovery
from jvpnd.core.session import Session
from jvpnd.core.sessionrow import Row
from jvpnd.core.states import Event, State
from jvpnd.core.steering import SWITCHABLE, Refusal, Steering
from jvpnd.core.watch import Traffic
from jvpnd.core.wire import PacketType, decode_sealed_header

__all__ = ["ClientAgent", "Refusal"]

_CLOSE_EVENTS = {
    Reason.OPERATOR_TERMINATION: Event.OPERATOR_TERMINATED,
    Reason.POLICY_TERMINATION: Event.POLICY_TERMINATED,
    Reason.SUPERSEDED: Event.SUPERSEDED,
    Reason.TTL_SESSION_EXPIRED: Event.SESSION_TTL_OVER,
    Reason.TTL_TRANSPORT_LOSS_EXPIRED: Event.TRANSPORT_LOSS_TTL_OVER,
    Reason.OWNERSHIP_CONFLICT: Event.OWNER_MOVED,
}


class ClientAgent:
    """One client. `wall_at_zero_ms` is the wall clock at now_ms = 0 (handshake timestamps).

    Who it is and whom it trusts is the handshake's affair: no static key is in its state.
    """

    def __init__(
        self,
        name: str,
        handshake: Handshake,
        policy: Policy,
        entropy: Entropy,
        wall_at_zero_ms: float,
        timestamp_floor: int = 0,
        has_aes: bool = False,
    ) -> None:
        self._state = ClientState(name, has_aes, policy, entropy)
        self._births = Births(self._state, handshake, wall_at_zero_ms, timestamp_floor)
        self._recovery = Recovery(self._state)
        self._steering = Steering(self._state, self._births, self._recovery)
        self._health = Health(self._state, self._births, self._recovery, self._steering)
        self._keeping = Keeping(self._state, self._births)
        self._path_number = 0
        self._due_ms: float | None = None
        self._checked_ms = 0.0
        self._seeking = False

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
    def own_policy(self) -> Policy:
        """As configured or applied here, whatever the gateway bounds."""
        return self._state.own_policy

    def is_candidate(self, path: Path) -> bool:
        """Whether the policy allows it, within max_candidates."""
        return path in self._state.candidates()

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
        return [*self._keeping.changed(self._path_number), *effects]

    def next_timer_ms(self, now_ms: float) -> float:
        """When `timer` wants to be called next, if nothing else happens before."""
        state, session = self._state, self._state.live_session()
        watchful = state.bound is not None and (
            state.watch.is_busy(now_ms) or state.watch.is_tense
        )
        # Counted from the last check: packets that come in between must not put it off.
        check_ms = self._checked_ms + (c.ACTIVE_CHECK_MS if watchful else c.IDLE_CHECK_MS)
        wishes = [check_ms if watchful else max(check_ms, self._health.next_ms())]
        if state.watch.suspect_ms is not None and state.bound is not None:
            patience_ms = state.watch.patience_ms(state.bound)
            if patience_ms is not None and patience_ms > self._checked_ms:
                wishes.append(patience_ms)
        if session is not None:
            wishes.append(session.created_ms + state.policy.session_ttl_ms)
        if self._recovery.deadline_ms is not None:
            wishes.append(self._recovery.deadline_ms)
        if state.binding is not None and (drain_ms := state.binding.next_ms()) is not None:
            wishes.append(drain_ms)
        self._due_ms = min(wishes)
        return max(now_ms, self._due_ms)

    # --- inputs: a restart ---

    def restore(self, now_ms: float, row: Row) -> bool:
        """Take up the session that was kept when this client ended; call it first. False if the row
        makes no sense."""
        paths_made = self._keeping.take_up(now_ms, row)
        if paths_made is None:
            return False
        self._path_number = paths_made % 256
        return True

    # --- inputs: paths ---

    def path_added(self, now_ms: float, info: PathInfo) -> None:
        """A new candidate (or the same one with a new local address)."""
        state = self._state
        if info.id in state.paths:
            self.path_removed(now_ms, info.id, "replaced")
        if len(state.paths) >= c.MAX_PATHS:
            state.count("too many paths")
            return
        self._path_number = self._path_number % 255 + 1
        path = state.paths[info.id] = Path(info, self._path_number, now_ms, state.policy)
        state.place(path)
        if path in state.candidates():
            self._candidate_added(now_ms, path)

    def _candidate_added(self, now_ms: float, path: Path) -> None:
        state = self._state
        session = state.live_session()
        if session is None or session.state is State.BIRTH:
            self._births.path_added(now_ms)
        elif session.state is State.RECOVERING:
            self._recovery.candidate_added(now_ms)
        elif session.state is State.DEGRADED and state.bound is None:
            self._recovery.leave_degraded(now_ms, session)
        else:
            state.probe(now_ms, path)

    def path_removed(self, now_ms: float, path_id: str, why: str) -> None:
        """The uplink, its address or its route is gone: no evidence needed."""
        path = self._state.paths.pop(path_id, None)
        if path is not None:
            self._health.lose(now_ms, path, why)

    def path_failed(self, now_ms: float, path_id: str, why: str, certain: bool) -> None:
        """A socket error. `certain`: the host itself cannot send; else it is only a suspicion."""
        path, watch = self._state.paths.get(path_id), self._state.watch
        if path is None:
            return
        if certain:
            if path.died_ms is None:
                self._health.lose(now_ms, path, why)
        elif path is self._state.bound:
            watch.sent(now_ms)
            self._health.suspect(now_ms, path)

    def keys_lost(self, now_ms: float, why: str) -> None:
        """The data plane has begun again without any key: bind a new epoch, the present one or that
        of an attempt under way may be lost."""
        session = self._state.live_session()
        if self._state.bound is not None:
            self._health.lose(now_ms, self._state.bound, why)
        elif session is not None and session.state is State.RECOVERING:
            self._recovery.ask_again(now_ms)

    # --- inputs: packets, counters, time ---

    def packet_received(self, now_ms: float, path_id: str, packet: bytes) -> None:
        """Anything but DATA that came over a path."""
        self._note_stall(now_ms)
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
            PacketType.NOTICE: self._on_notice,
            PacketType.NODE_REPLY: self._state.on_node_reply,
        }
        handler = handlers.get(packet[0])
        if handler is None or not handler(now_ms, path, packet):
            self._state.count("unexpected packet")

    def traffic(self, now_ms: float, traffic: Traffic) -> None:
        """The data plane's counters; call it before `timer`."""
        self._health.look(now_ms, traffic)

    def timer(self, now_ms: float) -> None:
        """Time has passed."""
        state = self._state
        self._note_stall(now_ms)
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
            self._health.probe_all(now_ms)
            if session.state is State.RECOVERING:
                self._recovery.timer(now_ms, session)
            elif state.bound is not None:
                self._health.judge(now_ms, session)
            elif session.state is State.DEGRADED:
                self._recovery.leave_degraded(now_ms, session)
        self._seek(now_ms)

    def _seek(self, now_ms: float) -> None:
        """Where no path seems good enough, paths are wanted that need a connection first."""
        wanted = not self.is_resting and self._is_in_need(now_ms)
        if wanted != self._seeking:
            self._seeking = wanted
            self._state.effects.append(Seek(wanted))

    def _is_in_need(self, now_ms: float) -> bool:
        state, session = self._state, self._state.live_session()
        if session is None or session.state is State.BIRTH:
            return not state.candidates() or self._births.is_unanswered
        if session.state is State.RECOVERING and session.lost_since_ms is None:
            return self._seeking  # a planned move: the old binding serves meanwhile
        if session.state is not State.ATTACHED:
            return True
        if state.watch.suspect_ms is not None:
            return self._seeking or len(state.watch.burst) >= c.BURST_DEAD
        calm_ms = now_ms - max(session.entered_ms, state.watch.began_ms)
        return self._seeking and calm_ms < state.policy.stability_window_ms

    def _note_stall(self, now_ms: float) -> None:
        """Nobody ran us for a while (a busy host, a suspended one): silence in that time is not
        the paths' fault. After a long one the gateway may have given us up: ask it at once."""
        state = self._state
        late_ms = now_ms - self._due_ms if self._due_ms is not None else 0
        if late_ms <= c.LATE_SHELL_MS:
            return
        self._due_ms = now_ms
        state.watch.shift(late_ms)
        if late_ms < state.policy.volatile_after_ms:
            return
        for path in state.paths.values():
            path.probes.forget()
            path.troubled(now_ms)
        session = state.live_session()
        if session is not None:
            self._health.resumed(now_ms, session, late_ms)

    # --- inputs: the operator ---

    def switch(self, now_ms: float, path_id: str | None) -> Refusal | None:
        """Move to a path (None: the best other one), make before break."""
        return self._steering.switch(now_ms, path_id)

    def apply_policy(self, now_ms: float, policy: Policy) -> None:
        """Replace our policy, for the present session too. What it now forbids is left at the next
        timer; paths that it now allows become candidates."""
        state, before = self._state, self._state.own_policy
        spare = [path for path in state.paths.values() if path not in state.candidates()]
        state.own_policy = policy
        state.renew_policy()
        state.machine.policy_applied(state.live_session(), before, policy)
        for path in spare:
            if path in state.candidates():
                self._candidate_added(now_ms, path)

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
        awaited = session is not None and session.state in (State.BIRTH, *SWITCHABLE)
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
            reply = decode_probe_reply(body)
            if reply is not None:
                self._health.on_reply(now_ms, path, reply)
            return reply is not None
        if body[0] == Control.REBIND_HINT:
            self._on_hint(now_ms, path, state.session)
            return True
        if body[0] == Control.MOVE:
            self._steering.leave_node(now_ms, state.session)
            return True
        if body[0] == Control.CLOSE and len(body) == 2:
            self._on_close(now_ms, reason_from_wire(body[1]))
            return True
        return False

    def _on_notice(self, now_ms: float, path: Path, packet: bytes) -> bool:
        """The gateway was started again. It has the session, but not the counters of our epoch."""
        state, session, index = self._state, self._state.live_session(), notice_index(packet)
        if session is None or state.binding is None or index is None:
            return False
        root, epoch, before = session.root, session.epoch, state.unconfirmed()
        if before is not None and index == before.index:
            root, epoch = before.proof.root, before.epoch
        elif index != state.binding.index:
            return False
        body = open_notice(packet, notice_key(root, epoch))
        if body and before is not None and index == before.index:
            state.fall_back(before.proof)
        if not body:
            return False
        if body[0] == Control.REBIND_HINT:
            self._health.gateway_restarted(now_ms, session, path)
            return True
        if body[0] == Control.CLOSE and len(body) == 2:
            self._on_close(now_ms, reason_from_wire(body[1]))
            return True
        return False

    def _on_hint(self, now_ms: float, path: Path, session: Session) -> None:
        """The gateway hears us from an address that it has not bound: bind it explicitly."""
        state = self._state
        if path is not state.bound or session.state not in SWITCHABLE:
            return
        if session.may_switch(now_ms, state.policy):
            self._births.cancel_rekey(now_ms)
            self._recovery.move(now_ms, path, Event.NAT_REBOUND, {"path": path.id})
        else:
            self._health.cut_off(now_ms, session, path)

    def _on_close(self, now_ms: float, reason: str | None) -> None:
        event = _CLOSE_EVENTS.get(Reason(reason)) if reason else None
        self._end(now_ms, event or Event.PROTOCOL_BROKEN, rest=reason == Reason.SUPERSEDED)

    # --- the end ---

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
        state.bound = state.credentials = state.bounds = None
        state.renew_policy()
        state.pause(True)
        self._births.ended(now_ms, event, rest)
        self._births.begin_if_due(now_ms)
