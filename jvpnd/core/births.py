"""How a client comes by a session, and by a new root for it: INITs out, RESPONSEs in."""

from __future__ import annotations

from jvpnd.core import constants as c
from jvpnd.core.binding import Binding
from jvpnd.core.clientstate import ClientState
from jvpnd.core.effects import Endpoint, Expect, Learned, SaveTimestamp, Send, SessionUp, Unexpect
from jvpnd.core.handshake import NO_COOKIE, Established, Handshake, PendingInit
from jvpnd.core.messages import CAPABILITY_AES, NO_SESSION, InitPayload
from jvpnd.core.packets import decode_response, decode_retry
from jvpnd.core.path import Path
from jvpnd.core.reasons import Reason
from jvpnd.core.reattach import Credentials
from jvpnd.core.session import Session
from jvpnd.core.states import Event, State


class Births:
    """Begins sessions, one INIT after the other round all paths, and rekeys the one there is."""

    def __init__(
        self,
        state: ClientState,
        handshake: Handshake,
        wall_at_zero_ms: float,
        timestamp_floor: int,
    ) -> None:
        self._state = state
        self._handshake = handshake
        self._wall_at_zero_ms = wall_at_zero_ms
        self._timestamp = timestamp_floor
        self._pending: list[PendingInit] = []
        self._cookie = NO_COOKIE
        self._supersedes = NO_SESSION
        self._begin_ms: float | None = 0  # when to begin a session; None: not by itself
        self._failures = 0
        self._init_at_ms = 0.0
        self._inits_made = 0
        self.is_unanswered = False  # an INIT of this birth was not answered in time
        self._rekey_at_ms = 0.0
        self.endpoints: tuple[Endpoint, ...] = ()  # as the gateway told them at the birth

    @property
    def rests(self) -> bool:
        """Whether no session will be begun."""
        return self._begin_ms is None

    def path_added(self, now_ms: float) -> None:
        """A new path: no need to wait any longer."""
        if self._state.live_session() is not None:
            self._init_at_ms = now_ms
            self._send_next_init(now_ms)
        elif self._begin_ms is not None:
            self._begin_ms = now_ms
            self.begin_if_due(now_ms)

    def begin_if_due(self, now_ms: float) -> None:
        state = self._state
        if self._begin_ms is None or now_ms < self._begin_ms or not state.paths:
            return
        state.session = Session(None, state.name, now_ms, attempt=1, entered_ms=now_ms)
        self._init_at_ms, self._inits_made = now_ms, 0
        self.is_unanswered = False
        self._send_next_init(now_ms)

    def has_failed(self, now_ms: float, session: Session) -> bool:
        """Carry the birth on; True when its time is over."""
        if now_ms - session.created_ms >= c.HANDSHAKE_TIMEOUT_MS:
            self._failures += 1
            return True
        if self._inits_made and now_ms >= self._init_at_ms:
            self.is_unanswered = True
        self._send_next_init(now_ms)
        return False

    def ended(self, now_ms: float, event: Event, rest: bool) -> None:
        """A session (or its birth) is over: when may the next one begin?"""
        session = self._state.session
        if session is not None and session.id is not None:
            self._supersedes = session.id
        self._cookie = NO_COOKIE
        wait_ms = c.BIRTH_BACKOFF_MS if event is Event.OPERATOR_TERMINATED else 0
        if event is Event.HANDSHAKE_FAILED:
            wait_ms = c.BIRTH_BACKOFF_MS * 2 ** min(self._failures - 1, 10)
        self._begin_ms = None if rest else now_ms + min(wait_ms, c.BIRTH_BACKOFF_MAX_MS)

    def follow(self, now_ms: float, session: Session) -> None:
        """This session is from before a restart: go on with it, or let the next one name it."""
        if session.state is State.TERMINATED:
            assert session.id is not None
            self._supersedes = session.id
        else:
            self._begin_ms = None
            due_ms = self._state.anchor_ms + self._state.policy.rekey_after_ms
            # Not before the requests of the restart have come, or are lost.
            self._rekey_at_ms = max(due_ms, now_ms + c.HANDSHAKE_TIMEOUT_MS)

    def rekey_if_due(self, now_ms: float, session: Session, bound: Path) -> None:
        if now_ms >= self._rekey_at_ms and session.id is not None:
            session.attempt += 1
            self._rekey_at_ms = now_ms + c.REKEY_RETRY_MS
            self._send_init(now_ms, bound, session.id)

    def cancel_rekey(self, now_ms: float) -> None:
        """The path of a rekey under way is gone, or its epoch would not be the newest any more."""
        for pending in self._pending:
            self._state.effects.append(Unexpect(pending.index))
        self._pending.clear()
        self._rekey_at_ms = max(self._rekey_at_ms, now_ms + c.REKEY_RETRY_MS)

    # --- INITs ---

    def _send_next_init(self, now_ms: float) -> None:
        # Nothing is known of them yet: whole kinds may be blocked, so each kind gets its turn.
        order = sorted(self._state.candidates(), key=lambda path: path.died_ms is not None)
        if now_ms < self._init_at_ms or not order:
            return
        path = order[self._inits_made % len(order)]
        self._send_init(now_ms, path, NO_SESSION)
        wait_ms = path.rtt.rto_ms * 2 ** min(self._inits_made, 5)
        self._inits_made += 1
        self._init_at_ms = now_ms + min(wait_ms, c.HANDSHAKE_RTO_MAX_MS)

    def _send_init(self, now_ms: float, path: Path, session_id: bytes) -> None:
        state = self._state
        assert state.session is not None
        wall_us = int((self._wall_at_zero_ms + now_ms) * 1000)
        self._timestamp = max(self._timestamp + 1, wall_us)
        payload = InitPayload(
            CAPABILITY_AES if state.has_aes else 0,
            path.info.transport,
            path.number,
            self._timestamp,
            session_id,
            self._supersedes,
            state.session.attempt,
            b"",
        )
        pending = self._handshake.start(now_ms, path.id, payload, self._cookie)
        if len(self._pending) == c.MAX_PENDING_INITS:
            state.effects.append(Unexpect(self._pending.pop(0).index))
        self._pending.append(pending)
        state.effects += [
            SaveTimestamp(self._timestamp),
            Expect(pending.index),
            Send(path.id, pending.packet),
        ]

    # --- answers ---

    def on_retry(self, now_ms: float, path: Path, packet: bytes) -> bool:
        """The gateway is busy and wants its cookie back. False if nobody asked."""
        fields = decode_retry(packet)
        if fields is None or all(fields[0] != pending.index for pending in self._pending):
            return False
        if fields[1] == self._cookie:  # the same answer again: wait for the next time-out
            return True
        self._cookie = fields[1]
        session = self._state.session
        if session is not None and session.state is State.BIRTH:
            self._send_init(now_ms, path, NO_SESSION)
        return True

    def on_response(self, now_ms: float, path: Path, packet: bytes) -> bool:
        """A birth or a rekey is answered. False if it is forged or belongs to nothing."""
        response, session = decode_response(packet), self._state.session
        pending = next((p for p in self._pending if response and p.index == response.index), None)
        if response is None or pending is None or session is None:
            return False
        done = self._handshake.finish(pending, response)
        if done is None:
            return False
        for other in self._pending:
            if other is not pending:
                self._state.effects.append(Unexpect(other.index))
        self._pending.clear()
        path.rtt.sample(now_ms - pending.sent_ms)
        path.heard(now_ms)
        if session.state is State.BIRTH:
            self._born(now_ms, session, path, done)
        else:
            self._rekeyed(now_ms, session, path, done)
        return True

    def _born(self, now_ms: float, session: Session, path: Path, done: Established) -> None:
        state, welcome = self._state, done.welcome
        session.id, session.suite = welcome.session_id, welcome.suite
        session.addresses = welcome.addresses
        self.endpoints = welcome.endpoints
        state.learn_nodes(welcome.endpoints)
        state.set_home(state.node_of(path))
        state.effects.append(Learned(welcome.endpoints))
        state.binding = Binding(session.id, session.suite, state.effects)
        self._failures, self._begin_ms = 0, None
        self._install_root(now_ms, session, path, done)
        for known in state.paths.values():
            known.renewed()  # the gateway knows of no probe from before
            known.is_wrong = False
        state.bind(now_ms, path)
        supersedes = self._supersedes.hex() if self._supersedes != NO_SESSION else None
        self._supersedes = NO_SESSION
        state.machine.note(
            session,
            "SESSION_CREATED",
            Reason.HANDSHAKE_OK,
            {"supersedes": supersedes, "path": path.id, "suite": session.suite.name},
        )
        state.machine.fire(session, Event.HANDSHAKE_ACCEPTED, now_ms, {"path": path.id})
        state.effects.append(SessionUp(session.id, session.addresses))
        state.pause(False)

    def _rekeyed(self, now_ms: float, session: Session, path: Path, done: Established) -> None:
        keys = done.epoch_keys
        fits = done.welcome.session_id == session.id and keys.epoch > session.epoch
        if not fits or path is not self._state.bound:
            self._state.effects.append(Unexpect(keys.index))
            return
        session.rekeys += 1
        self._state.rekeying()
        self._install_root(now_ms, session, path, done)
        details: dict[str, object] = {"epoch": session.epoch}
        self._state.machine.note(session, "REKEY", Reason.HANDSHAKE_OK, details)

    def _install_root(
        self, now_ms: float, session: Session, path: Path, done: Established
    ) -> None:
        """The new root, its first epoch, and a probe so that the gateway can confirm it."""
        state, welcome = self._state, done.welcome
        assert state.binding is not None
        session.root, session.epoch = done.root, done.epoch_keys.epoch
        state.bounds = welcome.bounds
        state.renew_policy()
        state.credentials = Credentials(welcome.ticket, welcome.next_index, welcome.reset_key)
        state.anchor_ms = done.asked_ms
        self._rekey_at_ms = now_ms + state.policy.rekey_after_ms
        state.binding.adopt(done.epoch_keys, path.id, None)
        state.probe(now_ms, path)

