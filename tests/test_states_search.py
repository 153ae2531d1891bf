"""Every sequence of events through the state table, against the design's table written anew."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator

from jvpnd.core.effects import Effect, Emit
from jvpnd.core.reasons import Reason
from jvpnd.core.session import Machine, Session
from jvpnd.core.states import TABLE, Event, State

DEPTH = 6  # transitions in a row; at each point every event is tried, also those that are refused
STEP_MS = 10.0

# Section 3 of the design, row by row in its words: from | what happens | to. Where the code has
# several events for one word, they stand behind it.
DESIGN = """
BIRTH                       | handshake ok                          | ATTACHED
BIRTH                       | handshake failed                      | TERMINATED
ATTACHED                    | quality below a floor, heartbeat late | VOLATILE
ATTACHED VOLATILE           | transport dead                        | RECOVERING
ATTACHED VOLATILE DEGRADED  | switch ordered                        | RECOVERING
VOLATILE                    | stability restored                    | ATTACHED
DEGRADED                    | stability restored from degradation   | ATTACHED
VOLATILE                    | instability persisted                 | DEGRADED
RECOVERING                  | reattach accepted                     | ATTACHED
RECOVERING                  | refused, the old binding delivers     | VOLATILE
RECOVERING                  | refused, it does not                  | DEGRADED
RECOVERING                  | refused for good                      | TERMINATED
RECOVERING                  | recovery window over, TTL left        | DEGRADED
DEGRADED                    | a candidate is viable again           | RECOVERING
BIRTH ATTACHED VOLATILE DEGRADED RECOVERING | ended                 | TERMINATED
"""
WORDS: dict[str, set[Event]] = {
    "handshake ok": {Event.HANDSHAKE_ACCEPTED},
    "handshake failed": {Event.HANDSHAKE_FAILED},
    "quality below a floor, heartbeat late": {Event.QUALITY_BELOW_FLOOR, Event.HEARTBEAT_LATE},
    "transport dead": {Event.TRANSPORT_DIED},
    "switch ordered": {Event.SWITCH_ORDERED, Event.NAT_REBOUND},
    "stability restored": {Event.STABILITY_RESTORED},
    "stability restored from degradation": {Event.DEGRADATION_OVER},
    "instability persisted": {Event.INSTABILITY_PERSISTED},
    "reattach accepted": {Event.REATTACH_ACCEPTED},
    "refused, the old binding delivers": {Event.REATTACH_REFUSED_BOUND},
    "refused, it does not": {Event.REATTACH_REFUSED_UNBOUND},
    "refused for good": {Event.SESSION_UNKNOWN, Event.SESSION_EXPIRED, Event.OWNER_AMBIGUOUS},
    "recovery window over, TTL left": {Event.RECOVERY_WINDOW_OVER},
    "a candidate is viable again": {Event.CANDIDATE_VIABLE},
    "ended": {
        Event.SESSION_TTL_OVER,
        Event.TRANSPORT_LOSS_TTL_OVER,
        Event.OPERATOR_TERMINATED,
        Event.POLICY_TERMINATED,
        Event.SUPERSEDED,
        Event.OWNER_MOVED,
        Event.STORE_LOST,
        Event.PROTOCOL_BROKEN,
    },
}


def _rows() -> Iterator[tuple[State, Event, State]]:
    for line in DESIGN.strip().splitlines():
        sources, words, target = (part.strip() for part in line.split("|"))
        for source in sources.split():
            for event in WORDS[words]:
                yield State(source), event, State(target)


EXPECTED = {(source, event): target for source, event, target in _rows()}


def test_the_table_is_the_designs() -> None:
    assert {pair: target for pair, (target, _) in TABLE.items()} == EXPECTED


def test_each_event_has_one_reason_whatever_the_state() -> None:
    reasons: dict[Event, set[Reason]] = {}
    for (_, event), (_, reason) in TABLE.items():
        reasons.setdefault(event, set()).add(reason)
    assert reasons.keys() == set(Event), "an event that can never happen"
    assert all(len(each) == 1 for each in reasons.values())


def _reachable(start: State) -> set[State]:
    seen, queue = {start}, deque([start])
    while queue:
        at = queue.popleft()
        for (source, _), target in EXPECTED.items():
            if source is at and target not in seen:
                seen.add(target)
                queue.append(target)
    return seen


def test_every_state_is_reached_from_birth_and_none_but_terminated_is_a_dead_end() -> None:
    assert _reachable(State.BIRTH) == set(State)
    for state in State:
        assert State.TERMINATED in _reachable(state)
        live = state is not State.TERMINATED
        assert (State.ATTACHED in _reachable(state)) == live
    assert _reachable(State.TERMINATED) == {State.TERMINATED}
    assert State.BIRTH not in EXPECTED.values()


class Walk:
    """One sequence so far: the session as the machine has it, and as it should be."""

    def __init__(self) -> None:
        self.session = Session(bytes(16), "laptop", 0.0)
        self.state, self.version, self.now_ms = State.BIRTH, 0, 0.0
        self.entered_ms = self.attached_ms = 0.0
        self.lost_ms: float | None = None
        self.story: tuple[Event, ...] = ()

    def expect(self, event: Event) -> None:
        """What an accepted event should do to the record, by the design's words."""
        before, self.state = self.state, EXPECTED[self.state, event]
        self.version += 1
        self.entered_ms = self.now_ms
        if self.state is State.ATTACHED:
            self.lost_ms = None  # a transport carries the session
            if before in (State.BIRTH, State.RECOVERING):  # over a new binding
                self.attached_ms = self.now_ms
        elif event is Event.TRANSPORT_DIED and self.lost_ms is None:
            self.lost_ms = self.now_ms

    def try_each(self) -> Iterator[Walk]:
        """Fire every event there is; gives the walks that go on."""
        for event in Event:
            after = copy.copy(self)
            after.session, after.story = copy.copy(self.session), (*self.story, event)
            after.now_ms += STEP_MS
            effects: list[Effect] = []
            done = Machine(effects).fire(after.session, event, after.now_ms)
            listed = (self.state, event) in EXPECTED
            assert done == listed, after.told()
            if listed:
                after.expect(event)
            else:
                after.now_ms = self.now_ms
            after.check(event, self.state, listed, effects)
            if listed:
                yield after

    def check(self, event: Event, before: State, listed: bool, effects: list[Effect]) -> None:
        session = self.session
        is_now = (session.state, session.state_version, session.entered_ms)
        assert is_now == (self.state, self.version, self.entered_ms), self.told()
        assert session.attached_since_ms == self.attached_ms, self.told()
        assert session.lost_since_ms == self.lost_ms, self.told()
        events = [effect for effect in effects if isinstance(effect, Emit)]
        assert len(events) == len(effects)
        if not listed:
            expected = [("SECURITY_EVENT", Reason.SEC_INVALID_TRANSITION, None, None)]
        else:
            reason = TABLE[before, event][1]
            expected = [("STATE_CHANGE", reason, before, self.state)]
            if self.state is State.TERMINATED:
                expected.append(("SESSION_TERMINATED", reason, None, None))
        told = [(e.event_type, e.reason, e.from_state, e.to_state) for e in events]
        assert told == expected, self.told()
        assert {e.state_version for e in events} == {self.version}, self.told()

    def told(self) -> str:
        return " > ".join(str(event) for event in self.story)


def test_every_sequence_of_events_does_what_the_design_says() -> None:
    layer, seen = [Walk()], set()
    for _ in range(DEPTH):
        layer = [after for walk in layer for after in walk.try_each()]
        seen |= {(walk.story[-1], walk.state) for walk in layer}
    assert len(layer) > 5_000
    assert {event for event, _ in seen} == set(Event), "an event that no sequence reaches"
