"""What a client keeps of its session across a restart, and how it takes it up again.

The row is kept before anything that follows from it leaves the host. It holds no key that sends:
the session goes on with a new attempt, which is a new epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jvpnd.core.binding import Binding
from jvpnd.core.births import Births
from jvpnd.core.clientstate import ClientState
from jvpnd.core.effects import Effect, Endpoint, Keep, Learned, SessionUp
from jvpnd.core.messages import PolicyBounds
from jvpnd.core.reasons import Reason
from jvpnd.core.reattach import Credentials
from jvpnd.core.session import Session
from jvpnd.core.sessionrow import (
    MISFITS,
    Row,
    bytes_of,
    number_of,
    row_of_session,
    session_of_row,
)
from jvpnd.core.states import LIVE, Event, State
from jvpnd.core.ticket import TICKET_LEN
from jvpnd.core.wire import KEY_LEN


class Keeping:
    """The row of a client's session."""

    def __init__(self, state: ClientState, births: Births) -> None:
        self._state = state
        self._births = births
        self._session: Session | None = None  # the one that was kept last,
        self._kept: tuple[object, ...] = ()  # and how it was then

    def changed(self, paths_made: int) -> list[Effect]:
        """What has to be kept before anything else is done. `paths_made`: the number of the last
        path; the gateway counts probes by it."""
        session, former = self._state.session, self._session
        effects: list[Effect] = []
        if former is not None and former is not session:
            # It ended in the step in which the next one began.
            effects += self._keep(former, paths_made)
            self._session = None
        if session is not None and session.id is not None:
            effects += self._keep(session, paths_made)
            self._session = session
        return effects

    def _keep(self, session: Session, paths_made: int) -> list[Effect]:
        ticket = self._state.credentials
        now = (session.id, session.state_version, session.attempt, session.epoch, ticket)
        if now == self._kept:
            return []
        self._kept = now
        return [Keep(self._row(session, paths_made))]

    def _row(self, session: Session, paths_made: int) -> Row:
        state, ticket, bounds = self._state, self._state.credentials, self._state.bounds
        return {
            **row_of_session(session),
            "anchor_ms": state.anchor_ms,
            "ticket": ticket.ticket.hex() if ticket else None,
            "next_index": ticket.next_index if ticket else None,
            "reset_key": ticket.reset_key.hex() if ticket else None,
            "bounds": [getattr(bounds, name) for name in bounds.__slots__] if bounds else None,
            "endpoints": [[e.transport, e.address, e.port, e.node] for e in self._births.endpoints],
            "home": state.home,
            "paths_made": paths_made,
        }

    def take_up(self, now_ms: float, row: Mapping[str, Any]) -> int | None:
        """Go on with the session of the row, or only remember that a new one supersedes it where it
        has ended. Returns the number of the last path, None if the row makes no sense."""
        try:
            paths_made = number_of(row, "paths_made")
            session = session_of_row(row)
            if session.state is not State.TERMINATED:
                self._go_on(now_ms, session, row)
        except MISFITS:
            return None
        self._births.follow(now_ms, session)
        return paths_made

    def _go_on(self, now_ms: float, session: Session, row: Mapping[str, Any]) -> None:
        state = self._state
        credentials = Credentials(
            bytes_of(row, "ticket", TICKET_LEN),
            number_of(row, "next_index"),
            bytes_of(row, "reset_key", KEY_LEN),
        )
        bounds = PolicyBounds(*(int(each) for each in row["bounds"]))
        rows = row["endpoints"]
        endpoints = tuple(Endpoint(str(t), str(a), int(p), int(n)) for t, a, p, n in rows)
        state.learn_nodes(endpoints)
        state.set_home(number_of(row, "home"))
        state.anchor_ms = float(row["anchor_ms"])
        state.credentials, state.bounds, state.session = credentials, bounds, session
        session.entered_ms = now_ms
        state.renew_policy()
        assert session.id is not None
        state.binding = Binding(session.id, session.suite, state.effects, session.epoch)
        self._births.endpoints = endpoints
        state.effects += [Learned(endpoints), SessionUp(session.id, session.addresses)]
        details: dict[str, object] = {"why": "client started again"}
        if session.state in LIVE:
            state.machine.fire(session, Event.TRANSPORT_DIED, now_ms, details)
        else:
            state.machine.note(session, "TRANSPORT_LOST", Reason.TRANSPORT_DEAD, details)
        if session.lost_since_ms is None:
            session.lost_since_ms = now_ms
