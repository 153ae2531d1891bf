"""How a gateway takes up its sessions after a restart.

They are bound to nothing, since no key that sends outlived the restart. Clients are told at once,
where they were last heard from; what they ask then is an ordinary reattach.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from jvpnd.core import constants as c
from jvpnd.core.effects import Emit, Expect
from jvpnd.core.gatewaystate import GatewayState
from jvpnd.core.offers import Offers
from jvpnd.core.peer import ClientEntry, Peer
from jvpnd.core.reasons import Reason
from jvpnd.core.record import client_key, peer_of
from jvpnd.core.sessionrow import Row
from jvpnd.core.states import LIVE, Event, State


class Restoring:
    """Sessions out of the rows of the session table."""

    def __init__(self, state: GatewayState, offers: Offers) -> None:
        self._state = state
        self._offers = offers
        self._untold: deque[Peer] = deque()
        self._tell_ms = 0.0

    def restore(self, now_ms: float, rows: Iterable[Row]) -> list[str]:
        """Take the sessions up, the oldest first, so that the newest of a client stays."""
        useless = []
        for row in sorted(rows, key=_age_of):
            entry = self._offers.client(client_key(row))
            peer = peer_of(row, entry, self._state.entropy.draw)
            if peer is None or peer.session.state is State.TERMINATED:
                useless.append(str(row.get("session_id")))
                if peer is None:
                    self._tell_of_nonsense(row)
            else:
                self._take_up(now_ms, peer, entry)
        self._tell_ms = now_ms
        return useless

    def _take_up(self, now_ms: float, peer: Peer, entry: ClientEntry | None) -> None:
        state, session = self._state, peer.session
        older = state.of_client.get(peer.entry.public_key)
        if older is not None:
            state.end(now_ms, older, Event.SUPERSEDED, Reason.SUPERSEDED)
        state.admit(peer)
        session.entered_ms = peer.heard_ms = now_ms
        if entry is None or entry.addresses != session.addresses:
            state.end(now_ms, peer, Event.POLICY_TERMINATED, Reason.POLICY_TERMINATION)
            return
        self._offers.remember(peer)
        if session.state in LIVE:
            assert session.id is not None
            state.awaited.add(session.id)
        if session.lost_since_ms is None:
            session.lost_since_ms = now_ms
        self._untold.append(peer)

    def _tell_of_nonsense(self, row: Row) -> None:
        details: dict[str, object] = {"what": "a row of the session table makes no sense"}
        details["row"] = str(row.get("session_id"))[:64]
        self._state.effects.append(
            Emit("OWNERSHIP", Reason.SEC_OWNERSHIP_ANOMALY, details=details)
        )

    # --- telling the clients ---

    def due_ms(self) -> list[float]:
        """When the next clients are to be told, if there are any."""
        return [self._tell_ms] if self._untold else []

    def tell_some(self, now_ms: float) -> None:
        """By and by: each answers with a request, and they are not to come all at once."""
        if now_ms < self._tell_ms:
            return
        for _ in range(min(c.TELL_SLICE, len(self._untold))):
            peer = self._untold.popleft()
            if peer.is_restored and peer.session.state is not State.TERMINATED:
                self._tell(now_ms, peer)
        self._tell_ms = now_ms + c.TELL_GAP_MS

    def _tell(self, now_ms: float, peer: Peer) -> None:
        state, session = self._state, peer.session
        details: dict[str, object] = {"why": "gateway started again"}
        if session.state in LIVE:
            state.machine.fire(session, Event.TRANSPORT_DIED, now_ms, details)
            state.write_behind(now_ms, peer)
        else:
            state.machine.note(session, "TRANSPORT_LOST", Reason.TRANSPORT_DEAD, details)
        state.effects.append(Expect(peer.next_index))
        state.hint(now_ms, peer, peer.origin)


def _age_of(row: Row) -> float:
    value = row.get("created_ms")
    return float(value) if isinstance(value, int | float) else 0.0
