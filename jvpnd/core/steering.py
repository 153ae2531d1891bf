"""Moves that nobody is forced to make: ordered by an operator, for quality, or back home."""

from __future__ import annotations

from dataclasses import dataclass

from jvpnd.core import choice
from jvpnd.core import constants as c
from jvpnd.core.births import Births
from jvpnd.core.clientstate import ClientState
from jvpnd.core.path import Path
from jvpnd.core.reasons import Reason
from jvpnd.core.recovery import Recovery
from jvpnd.core.session import Session
from jvpnd.core.states import Event, State

SWITCHABLE = (State.ATTACHED, State.VOLATILE, State.DEGRADED)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an order was not carried out."""

    reason: Reason
    message: str


class Steering:
    """Orders planned switches, within the policy's bounds."""

    def __init__(self, state: ClientState, births: Births, recovery: Recovery) -> None:
        self._state = state
        self._births = births
        self._recovery = recovery
        self._not_before_ms = 0.0
        self._denied: Reason | None = None  # told already
        self._wanted: str | None = None  # by the operator: stayed on for as long as it is well

    # --- the operator ---

    def switch(self, now_ms: float, path_id: str | None) -> Refusal | None:
        """Move to a path (None: the best other one), make before break."""
        state, session = self._state, self._state.session
        if session is None or session.state not in SWITCHABLE:
            now = "none" if session is None else session.state
            text = f"the session is not attached: {now}"
            return self._denied_order(Refusal(Reason.TRANSPORT_SWITCH_DENIED, text), path_id)
        if path_id is not None and path_id not in state.paths:
            known = ", ".join(sorted(state.paths)) or "none"
            return Refusal(Reason.POLICY_DENY, f"no path {path_id}; known: {known}")
        wanted = [state.paths[path_id]] if path_id else state.others()
        target = next(iter(choice.ranked(wanted, state.policy, now_ms)), None)
        if target is None:
            text = "no other path that the policy allows"
            return self._denied_order(Refusal(Reason.POLICY_DENY, text), path_id)
        if target is state.bound:
            return Refusal(Reason.POLICY_DENY, f"{target.id} carries the session already")
        refusal = self._bound_reached(now_ms, session, state.policy.max_switches_per_minute)
        if refusal is not None:
            return self._denied_order(refusal, target.id)
        self._wanted = path_id
        self.move(now_ms, target, {"why": "operator"})
        return None

    def _denied_order(self, refusal: Refusal, path_id: str | None) -> Refusal:
        """What cannot be ordered (there is no such session, no such path) is not told."""
        session = self._state.live_session()
        if session is not None and session.id is not None:
            known = path_id if path_id in self._state.paths else None
            self._tell_denied(session, known, refusal)
        return refusal

    # --- by itself ---

    def mend(self, now_ms: float, session: Session, bound: Path) -> Refusal | None:
        """Leave a path that is below a floor for a better one. A refusal is the rate bound."""
        state = self._state
        # Where traffic itself is too much for every path, each looks better as long as it is idle.
        fit = [
            path
            for path in state.others()
            if state.times_left(now_ms, path) < 2 or state.is_steady(now_ms, path)
        ]
        target = choice.rescue(bound, fit, state.policy, now_ms)
        if target is None:
            return None
        wrong = bound.violations(state.policy)
        refusal = self._choose(now_ms, session, target, {"why": "quality", **wrong})
        if session.state is State.RECOVERING:
            state.note_left(now_ms, bound)
        return refusal

    def go_home(self, now_ms: float, session: Session, bound: Path) -> None:
        """Back to a preferred uplink or transport, once a path there has been steady."""
        state = self._state
        if bound.id == self._wanted:
            return
        self._wanted = None  # it died, or was not to be had
        target = choice.home(bound, state.others(), state.policy, now_ms)
        if target is None:
            return
        if state.is_steady(now_ms, target):
            steady_ms = round(now_ms - target.steady_since_ms)
            self._choose(now_ms, session, target, {"why": "failback", "steady_ms": steady_ms})

    def leave_node(self, now_ms: float, session: Session) -> None:
        """The gateway asks us to go to another node of its cluster, as it does again and again."""
        state = self._state
        if session.state not in SWITCHABLE or state.bound is None:
            return
        away = [path for path in state.others() if path.is_elsewhere and not path.turns_away]
        fresh = [path for path in away if path.is_fresh(now_ms, state.policy)]
        target = next(iter(choice.ranked(fresh, state.policy, now_ms)), None)
        if target is None:
            refusal: Refusal | None = Refusal(Reason.NODE_DRAINING, "no path to another node")
        else:
            most = state.policy.max_switches_per_minute
            refusal = self._bound_reached(now_ms, session, most)
        if target is not None and refusal is None:
            self._denied = None
            self.move(now_ms, target, {"why": "drain"})
        elif refusal is not None and self._denied is not refusal.reason:
            self._denied = refusal.reason
            self._tell_denied(session, target.id if target else None, refusal)

    def in_trial(self, now_ms: float, path: Path) -> bool:
        """Whether this candidate is about to be moved to, and must show now what it can do."""
        state, bound = self._state, self._state.bound
        if bound is None or path.died_ms is not None:
            return False
        if not choice.is_preferred(path, bound, state.policy):
            return False
        return state.is_steady(now_ms, path, choice.trial_ms(state.policy))

    def _choose(
        self, now_ms: float, session: Session, target: Path, details: dict[str, object]
    ) -> Refusal | None:
        """Half of the switches of a minute are kept for deaths."""
        most = (self._state.policy.max_switches_per_minute + 1) // 2
        refusal = self._bound_reached(now_ms, session, most)
        if refusal is None:
            self._denied = None
            if now_ms >= self._not_before_ms:
                self._not_before_ms = now_ms + c.CHOICE_GAP_MS
                self.move(now_ms, target, details)
        elif refusal.reason is Reason.RATE_LIMITED:
            if self._denied is not refusal.reason:
                self._denied = refusal.reason
                self._tell_denied(session, target.id, refusal)
            return refusal
        return None

    # --- both ---

    def move(self, now_ms: float, target: Path, details: dict[str, object]) -> None:
        """Make before break, whatever the bounds."""
        if target.id != self._wanted:
            self._wanted = None
        self._births.cancel_rekey(now_ms)
        ordered = {"to_path": target.id, **details}
        self._recovery.move(now_ms, target, Event.SWITCH_ORDERED, ordered)

    def _bound_reached(self, now_ms: float, session: Session, most: int) -> Refusal | None:
        policy = self._state.policy
        last = session.switched_at_ms[-1] if session.switched_at_ms else None
        if last is not None and now_ms - last < policy.switch_cooldown_ms:
            text = f"within switch_cooldown_ms {policy.switch_cooldown_ms} of the last switch"
            return Refusal(Reason.POLICY_DENY, text)
        if session.switches_in_last_minute(now_ms) >= most:
            text = f"max_switches_per_minute {policy.max_switches_per_minute} reached"
            if most < policy.max_switches_per_minute:
                text = f"{most} of " + text.replace(" reached", " used, the rest is for deaths")
            return Refusal(Reason.RATE_LIMITED, text)
        return None

    def _tell_denied(self, session: Session, to_path: str | None, refusal: Refusal) -> None:
        details: dict[str, object] = {"to_path": to_path, "why": refusal.message}
        self._state.machine.note(session, "TRANSPORT_SWITCH_DENIED", refusal.reason, details)
