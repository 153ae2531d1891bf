"""The state table: what is not in it does not happen, and is told."""

from __future__ import annotations

import itertools

import pytest

from jvpnd.core.effects import Effect, Emit
from jvpnd.core.reasons import Reason
from jvpnd.core.session import Machine, Session
from jvpnd.core.states import TABLE, Event, State

PAIRS = list(itertools.product(State, Event))


def machine() -> tuple[Machine, list[Effect]]:
    effects: list[Effect] = []
    return Machine(effects), effects


def session_in(state: State) -> Session:
    return Session(bytes(16), "laptop", 0, state=state, state_version=7)


@pytest.mark.parametrize(("state", "event"), sorted(TABLE))
def test_a_listed_transition_raises_the_version_by_one_and_is_told_once(
    state: State, event: Event
) -> None:
    subject, effects = machine()
    session = session_in(state)
    assert subject.fire(session, event, 5.0)
    target, reason = TABLE[state, event]
    assert (session.state, session.state_version) == (target, 8)
    told = [e for e in effects if isinstance(e, Emit) and e.event_type == "STATE_CHANGE"]
    assert [(e.from_state, e.to_state, e.reason, e.state_version) for e in told] == [
        (state, target, reason, 8)
    ]


@pytest.mark.parametrize(("state", "event"), [p for p in PAIRS if p not in TABLE])
def test_a_transition_that_is_not_listed_is_refused_and_audited(state: State, event: Event) -> None:
    subject, effects = machine()
    session = session_in(state)
    assert not subject.fire(session, event, 5.0)
    assert (session.state, session.state_version) == (state, 7)
    assert [(e.event_type, e.reason) for e in effects if isinstance(e, Emit)] == [
        ("SECURITY_EVENT", Reason.SEC_INVALID_TRANSITION)
    ]


def test_terminated_is_absorbing() -> None:
    assert not [state for state, _ in TABLE if state is State.TERMINATED]


def test_every_state_but_terminated_can_be_ended_by_the_operator_and_by_both_ttls() -> None:
    for state in set(State) - {State.TERMINATED}:
        for event in (
            Event.OPERATOR_TERMINATED,
            Event.SESSION_TTL_OVER,
            Event.TRANSPORT_LOSS_TTL_OVER,
            Event.SUPERSEDED,
            Event.OWNER_MOVED,
        ):
            assert TABLE[state, event][0] is State.TERMINATED
