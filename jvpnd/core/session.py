"""The session: one record, one state machine. Both ends run it over their own record."""

from __future__ import annotations

from jvpnd.core.dataclass import dataclass, field
from jvpnd.core.effects import Effect, Emit
from jvpnd.core.policy import Policy
from jvpnd.core.reasons import Reason
from jvpnd.core.states import TABLE, Event, State
from jvpnd.core.wire import Suite

MINUTE_MS = 60_000


@dataclass(slots=True)
class Session:
    """The identity anchor. `id` is None only in the client's BIRTH, before the gateway named it."""

    id: bytes | None
    client: str
    created_ms: float
    root: bytes = field(default=b"", repr=False)
    suite: Suite = Suite.CHACHA20_POLY1305
    addresses: tuple[str, ...] = ()
    state: State = State.BIRTH
    state_version: int = 0
    epoch: int = 0  # attempt that made the present binding
    attempt: int = 0  # last attempt seen (gateway) or made (client)
    entered_ms: float = 0  # when the present state was entered
    attached_since_ms: float = 0
    lost_since_ms: float | None = None  # since when no transport carries the session
    switches: int = 0
    rekeys: int = 0
    switched_at_ms: tuple[float, ...] = ()  # the last minute's switches

    def switches_in_last_minute(self, now_ms: float) -> int:
        recent = (t for t in self.switched_at_ms if now_ms - t < MINUTE_MS)
        self.switched_at_ms = tuple(recent)
        return len(self.switched_at_ms)

    def count_switch(self, now_ms: float) -> None:
        self.switches += 1
        self.switched_at_ms += (now_ms,)

    def may_switch(self, now_ms: float, policy: Policy) -> bool:
        """The rate bound, which nothing overrides."""
        return self.switches_in_last_minute(now_ms) < policy.max_switches_per_minute


class Machine:
    """Applies events to a session: table look-up, version, timestamps and the audit event."""

    def __init__(self, effects: list[Effect]) -> None:
        """Events go to the end of `effects`."""
        self._effects = effects

    def fire(
        self,
        session: Session,
        event: Event,
        now_ms: float,
        details: dict[str, object] | None = None,
    ) -> bool:
        """Make the transition, or refuse and audit it. Returns whether it was made."""
        row = TABLE.get((session.state, event))
        if row is None:
            self._refuse(session, event)
            return False
        source, (target, reason) = session.state, row
        session.state = target
        session.state_version += 1
        session.entered_ms = now_ms
        self._keep_times(session, source, event, now_ms)
        self._effects.append(
            Emit(
                "STATE_CHANGE",
                reason,
                session.id,
                session.client,
                source,
                target,
                session.state_version,
                {"epoch": session.epoch, **(details or {})},
            )
        )
        if target is State.TERMINATED:
            self.note(session, "SESSION_TERMINATED", reason, details)
        return True

    def note(
        self,
        session: Session,
        event_type: str,
        reason: Reason | None,
        details: dict[str, object] | None = None,
    ) -> None:
        """An event about the session that is not a transition."""
        self._effects.append(
            Emit(
                event_type,
                reason,
                session.id,
                session.client,
                state_version=session.state_version,
                details=details or {},
            )
        )

    def policy_applied(self, session: Session | None, before: Policy, after: Policy) -> None:
        """The operator has replaced the policy that held for this session, or for all (None)."""
        changed = [
            name
            for name in before.__slots__
            if name != "version" and getattr(before, name) != getattr(after, name)
        ]
        details: dict[str, object] = {
            "what": "policy applied",
            "from_version": before.version,
            "to_version": after.version,
            "changed": changed,
        }
        version = session.state_version if session else None
        client, session_id = (session.client, session.id) if session else (None, None)
        self._effects.append(
            Emit("AUDIT_EVENT", None, session_id, client, state_version=version, details=details)
        )

    def _refuse(self, session: Session, event: Event) -> None:
        self.note(
            session,
            "SECURITY_EVENT",
            Reason.SEC_INVALID_TRANSITION,
            {"state": str(session.state), "event": str(event)},
        )

    @staticmethod
    def _keep_times(session: Session, source: State, event: Event, now_ms: float) -> None:
        if session.state is State.ATTACHED:
            session.lost_since_ms = None
            if source in (State.BIRTH, State.RECOVERING):
                session.attached_since_ms = now_ms
        elif event is Event.TRANSPORT_DIED and session.lost_since_ms is None:
            session.lost_since_ms = now_ms
