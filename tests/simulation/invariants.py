"""What must hold after every single step, whatever the network does (docs/architecture.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jvpnd.core.client import ClientAgent
from jvpnd.core.effects import Emit
from jvpnd.core.session import MINUTE_MS, Session
from jvpnd.core.states import TABLE, State

_ALLOWED = {(source, target, reason) for (source, _), (target, reason) in TABLE.items()}


@dataclass
class History:
    """One end's events, from which the true state of every session must follow."""

    max_switches_per_minute: int
    events: list[tuple[int, Emit]] = field(default_factory=list)
    _now: dict[bytes, tuple[str, int]] = field(default_factory=dict)  # state, version by session
    _ids: dict[int, bytes] = field(default_factory=dict)  # by the identity of the Session object
    _kept: list[Session] = field(default_factory=list)
    _switched_ms: list[int] = field(default_factory=list)

    def note(self, now_ms: int, event: Emit) -> None:
        self.events.append((now_ms, event))
        if event.event_type == "STATE_CHANGE" and event.session_id is not None:
            self._follow(event)
        if event.event_type == "TRANSPORT_SWITCH":
            recent = [t for t in self._switched_ms if now_ms - t < MINUTE_MS]
            self._switched_ms = [*recent, now_ms]

    def _follow(self, event: Emit) -> None:
        assert event.session_id is not None
        state, version = self._now.get(event.session_id, (State.BIRTH, 0))
        assert state != State.TERMINATED, f"{event} after the end"
        assert event.from_state == state, f"{event} does not follow {state}"
        assert event.state_version == version + 1, f"{event} does not follow version {version}"
        assert (event.from_state, event.to_state, event.reason) in _ALLOWED, event
        assert event.to_state is not None
        self._now[event.session_id] = (event.to_state, version + 1)

    def check(self, core: Any) -> None:
        """The true state of every session is what its events say."""
        if isinstance(core, ClientAgent):
            sessions = [core.session] if core.session is not None else []
            assert len(self._switched_ms) <= self.max_switches_per_minute, "too many switches"
        else:
            sessions = [peer.session for peer in core.sessions.values()]
        for session in sessions:
            self._check(session)

    def _check(self, session: Session) -> None:
        if session.id is None:
            return
        if id(session) not in self._ids:
            self._ids[id(session)] = session.id
            self._kept.append(session)
        assert self._ids[id(session)] == session.id, "a session changed its id"
        told = self._now.get(session.id)
        assert told == (session.state, session.state_version), f"{session} but told {told}"

    def reasons(self, event_type: str = "STATE_CHANGE") -> list[str]:
        return [str(e.reason) for _, e in self.events if e.event_type == event_type]

    def of(self, event_type: str) -> list[Emit]:
        return [e for _, e in self.events if e.event_type == event_type]

    def rebooted(self) -> None:
        """The switch bound is a session's, and a crashed client's sessions are over."""
        self._switched_ms.clear()
