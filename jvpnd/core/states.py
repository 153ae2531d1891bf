"""The session's state table: the only place where a transition is allowed.

A (state, event) pair that is not listed does not exist: it is refused and audited. Each event has
one reason code, so every transition has one too.
"""

from __future__ import annotations

from enum import StrEnum

from jvpnd.core.reasons import Reason


class State(StrEnum):
    """Where a session is; TERMINATED is absorbing."""

    BIRTH = "BIRTH"
    ATTACHED = "ATTACHED"
    VOLATILE = "VOLATILE"
    DEGRADED = "DEGRADED"
    RECOVERING = "RECOVERING"
    TERMINATED = "TERMINATED"


class Event(StrEnum):
    """What can happen to a session."""

    HANDSHAKE_ACCEPTED = "handshake accepted"
    HANDSHAKE_FAILED = "handshake failed"
    HEARTBEAT_LATE = "heartbeat late"
    QUALITY_BELOW_FLOOR = "quality below floor"
    STABILITY_RESTORED = "stability restored"
    DEGRADATION_OVER = "degradation over"
    INSTABILITY_PERSISTED = "instability persisted"
    TRANSPORT_DIED = "transport died"
    SWITCH_ORDERED = "switch ordered"
    NAT_REBOUND = "NAT rebound"
    CANDIDATE_VIABLE = "candidate viable"
    REATTACH_ACCEPTED = "reattach accepted"
    REATTACH_REFUSED_BOUND = "reattach refused, old binding delivers"
    REATTACH_REFUSED_UNBOUND = "reattach refused, old binding is gone"
    RECOVERY_WINDOW_OVER = "recovery window over"
    SESSION_UNKNOWN = "session unknown to the gateway"
    SESSION_EXPIRED = "session expired at the gateway"
    OWNER_AMBIGUOUS = "ambiguous owner"
    SESSION_TTL_OVER = "session TTL over"
    TRANSPORT_LOSS_TTL_OVER = "transport-loss TTL over"
    OPERATOR_TERMINATED = "operator terminated"
    POLICY_TERMINATED = "policy terminated"
    SUPERSEDED = "superseded"
    OWNER_MOVED = "owner moved"
    STORE_LOST = "store out of reach for too long"
    PROTOCOL_BROKEN = "fatal protocol error"


LIVE = (State.ATTACHED, State.VOLATILE)  # a transport carries the session

_B, _A, _V, _D, _R = (
    State.BIRTH,
    State.ATTACHED,
    State.VOLATILE,
    State.DEGRADED,
    State.RECOVERING,
)
_T = State.TERMINATED

_ROWS: tuple[tuple[tuple[State, ...], Event, State, Reason], ...] = (
    ((_B,), Event.HANDSHAKE_ACCEPTED, _A, Reason.HANDSHAKE_OK),
    ((_B,), Event.HANDSHAKE_FAILED, _T, Reason.HANDSHAKE_FAIL),
    ((_A,), Event.HEARTBEAT_LATE, _V, Reason.VOLATILITY_SIGNAL),
    ((_A,), Event.QUALITY_BELOW_FLOOR, _V, Reason.QUALITY_FLOOR_VIOLATION),
    ((_V,), Event.STABILITY_RESTORED, _A, Reason.HEALTH_RECOVERED),
    ((_D,), Event.DEGRADATION_OVER, _A, Reason.EXIT_DEGRADED_MODE),
    ((_V,), Event.INSTABILITY_PERSISTED, _D, Reason.ENTER_DEGRADED_MODE),
    ((_A, _V), Event.TRANSPORT_DIED, _R, Reason.TRANSPORT_DEAD),
    ((_A, _V, _D), Event.SWITCH_ORDERED, _R, Reason.RECOVERY_START),
    ((_A, _V, _D), Event.NAT_REBOUND, _R, Reason.NAT_REBIND),
    ((_D,), Event.CANDIDATE_VIABLE, _R, Reason.RECOVERY_RETRY),
    ((_R,), Event.REATTACH_ACCEPTED, _A, Reason.TRANSPORT_SWITCH_OK),
    ((_R,), Event.REATTACH_REFUSED_BOUND, _V, Reason.TRANSPORT_SWITCH_DENIED),
    ((_R,), Event.REATTACH_REFUSED_UNBOUND, _D, Reason.TRANSPORT_SWITCH_DENIED),
    ((_R,), Event.RECOVERY_WINDOW_OVER, _D, Reason.RECOVERY_BOUNDS_EXCEEDED),
    ((_R,), Event.SESSION_UNKNOWN, _T, Reason.SESSION_NOT_FOUND),
    ((_R,), Event.SESSION_EXPIRED, _T, Reason.SESSION_EXPIRED),
    ((_R,), Event.OWNER_AMBIGUOUS, _T, Reason.OWNERSHIP_CONFLICT),
    ((_B, _A, _V, _D, _R), Event.SESSION_TTL_OVER, _T, Reason.TTL_SESSION_EXPIRED),
    ((_B, _A, _V, _D, _R), Event.TRANSPORT_LOSS_TTL_OVER, _T, Reason.TTL_TRANSPORT_LOSS_EXPIRED),
    ((_B, _A, _V, _D, _R), Event.OPERATOR_TERMINATED, _T, Reason.OPERATOR_TERMINATION),
    ((_B, _A, _V, _D, _R), Event.POLICY_TERMINATED, _T, Reason.POLICY_TERMINATION),
    ((_B, _A, _V, _D, _R), Event.SUPERSEDED, _T, Reason.SUPERSEDED),
    ((_B, _A, _V, _D, _R), Event.OWNER_MOVED, _T, Reason.OWNER_MOVED),
    ((_B, _A, _V, _D, _R), Event.STORE_LOST, _T, Reason.STORE_UNAVAILABLE),
    ((_B, _A, _V, _D, _R), Event.PROTOCOL_BROKEN, _T, Reason.FATAL_PROTOCOL_ERROR),
)

TABLE: dict[tuple[State, Event], tuple[State, Reason]] = {
    (source, event): (target, reason)
    for sources, event, target, reason in _ROWS
    for source in sources
}
