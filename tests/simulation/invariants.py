"""What must hold after every single step, whatever the network does (docs/invariants.md)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from jvpnd.core.client import ClientAgent
from jvpnd.core.constants import REBINDS_PER_MINUTE, SCAN_MS
from jvpnd.core.effects import Emit
from jvpnd.core.gateway import Gateway
from jvpnd.core.reasons import Reason
from jvpnd.core.session import MINUTE_MS, Session
from jvpnd.core.sessionrow import Row
from jvpnd.core.states import TABLE, State

from .retold import Retold

_ALLOWED = {(source, target, reason) for (source, _), (target, reason) in TABLE.items()}
LATE_MS = SCAN_MS  # a bound is acted on at the next look


@dataclass
class History:
    """One end's events, from which the true state of every session must follow."""

    events: list[tuple[int, Emit]] = field(default_factory=list)
    never: Collection[Reason] = ()  # reasons of security events that nothing in the story explains
    _now: dict[bytes, tuple[str, int]] = field(default_factory=dict)  # state, version by session
    _epochs: dict[int, tuple[bytes, int]] = field(default_factory=dict)  # by id() of the Session
    _kept: list[Session] = field(default_factory=list)
    _switched_ms: list[int] = field(default_factory=list)
    _bounds: list[tuple[int, int]] = field(default_factory=list)  # since, switches a minute
    _session_id: bytes | None = None  # of the client's present session, or its last one
    retold: Retold = field(default_factory=Retold)

    def note(self, now_ms: int, event: Emit) -> None:
        self.events.append((now_ms, event))
        self.retold.note(now_ms, event)
        if event.event_type == "SECURITY_EVENT" and event.reason in self.never:
            raise AssertionError(f"a fault taken for an attack: {event.reason} {event.details}")
        if event.event_type == "STATE_CHANGE" and event.session_id is not None:
            self._follow(event)
        if event.event_type == "TRANSPORT_SWITCH":
            recent = [t for t in self._switched_ms if now_ms - t < MINUTE_MS]
            self._switched_ms = [*recent, now_ms]
        if event.event_type == "SESSION_CREATED":
            self._switched_ms = []  # the bound is a session's

    def _follow(self, event: Emit) -> None:
        assert event.session_id is not None
        state, version = self._now.get(event.session_id, (State.BIRTH, 0))
        assert state != State.TERMINATED, f"{event} after the end"
        assert event.from_state == state, f"{event} does not follow {state}"
        assert event.state_version == version + 1, f"{event} does not follow version {version}"
        assert (event.from_state, event.to_state, event.reason) in _ALLOWED, event
        assert event.to_state is not None
        self._now[event.session_id] = (event.to_state, version + 1)

    # --- after each step ---

    def check(self, core: ClientAgent | Gateway, now_ms: int) -> None:
        """The true state of every session is what its events say."""
        if isinstance(core, Gateway):
            self.retold.check_gateway(now_ms, core)
            for peer in core.sessions.values():
                self._check(peer.session)
                assert len(peer.rebound_ms) <= REBINDS_PER_MINUTE
            if len(core.sessions) > 1:
                clients = [peer.entry.name for peer in core.sessions.values()]
                assert len(clients) == len(set(clients)), "a client has two sessions"
        elif core.session is not None:
            self._check(core.session)
            self.retold.check_client(now_ms, core)
            self._check_switches(now_ms, core.policy.max_switches_per_minute)
            self._check_successor(core.session)

    def _check(self, session: Session) -> None:
        if session.id is None:
            return
        before = self._epochs.get(id(session))
        if before is None:
            self._kept.append(session)  # so that no other ever has the same id()
        else:
            assert before[0] == session.id, "a session changed its id"
            assert before[1] <= session.epoch, "an epoch went back"
        assert session.epoch <= session.attempt, "an epoch that nobody asked for"
        if before is None or before[1] != session.epoch:
            self._epochs[id(session)] = session.id, session.epoch
        told = self._now.get(session.id)
        assert told == (session.state, session.state_version), f"{session} but told {told}"

    def _check_switches(self, now_ms: int, bound: int) -> None:
        """What was asked for before the bound became tighter may still be answered."""
        if not self._bounds or self._bounds[-1][1] != bound:
            self._bounds = [(now_ms, bound), *self._bounds]
            self._bounds.sort()
        while len(self._bounds) > 1 and now_ms - self._bounds[1][0] >= MINUTE_MS:
            del self._bounds[0]
        if self._switched_ms and self._switched_ms[-1] == now_ms:
            most = max(bound for _, bound in self._bounds)
            assert len(self._switched_ms) <= most, "too many switches"

    def _check_successor(self, session: Session) -> None:
        """No silent identity reset: a new session names the one before."""
        if session.id is None or session.id == self._session_id:
            return
        before, self._session_id = self._session_id, session.id
        created = self.of("SESSION_CREATED")[-1]
        assert created.session_id == session.id, "a session that nobody announced"
        if before is not None:
            assert self._now[before][0] == State.TERMINATED, "a session was left, not ended"
            assert created.details["supersedes"] == before.hex(), "it does not name the one before"

    # --- after each timer ---

    def check_bounds(
        self, core: ClientAgent | Gateway, now_ms: int, quick_table: bool = True
    ) -> None:
        """No session outlives what the policy in force allows it. A gateway whose table is slow may
        go on with a recovery for longer: there the TTL is the bound."""
        if isinstance(core, Gateway):
            sessions = [p.session for p in core.sessions.values() if not p.swapping]
        else:
            sessions = [core.session] if core.session is not None else []
        policy = core.policy
        for session in sessions:
            if session.state is State.TERMINATED:
                continue
            age_ms = now_ms - session.created_ms
            assert age_ms <= policy.session_ttl_ms + LATE_MS, "over its TTL"
            if session.lost_since_ms is not None:
                lost_ms = now_ms - session.lost_since_ms
                assert lost_ms <= policy.transport_loss_ttl_ms + LATE_MS, "lost for too long"
            if session.state is State.RECOVERING and quick_table:
                recovering_ms = now_ms - session.entered_ms
                assert recovering_ms <= policy.max_recovery_window_ms + LATE_MS, "recovers too long"

    # --- after a restart ---

    def restored(self, rows: Iterable[Row]) -> None:
        """What the table held is the truth: what was told of, but not written yet, never was."""
        for row in rows:
            version = row["state_version"]
            assert isinstance(version, int)
            self._now[bytes.fromhex(str(row["session_id"]))] = str(row["state"]), version
            self.retold.restored(row)

    # --- for tests ---

    def reasons(self, event_type: str = "STATE_CHANGE") -> list[str]:
        return [str(e.reason) for _, e in self.events if e.event_type == event_type]

    def of(self, event_type: str) -> list[Emit]:
        return [e for _, e in self.events if e.event_type == event_type]

    def rebooted(self) -> None:
        """A crashed client remembers nothing: its session is over, and it cannot name it."""
        self._switched_ms.clear()
        self._session_id = None
        self.retold.rebooted()
