"""How a gateway comes by a session of another node: its row is loaded, and checked like one's own.

Only the compare-and-swap that follows makes the session this node's. Until then the peer made of
the row is a visitor: nothing is bound, told or written for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from jvpnd.core import constants as c
from jvpnd.core.effects import Emit, Expect, Origin, Unexpect
from jvpnd.core.gatewaystate import GatewayState
from jvpnd.core.offers import Offers
from jvpnd.core.peer import Peer, Stored
from jvpnd.core.reasons import Reason
from jvpnd.core.record import client_key, peer_of
from jvpnd.core.sessionrow import Row, owner_of
from jvpnd.core.states import Event, State
from jvpnd.core.ticket import Ticket


@dataclass(frozen=True, slots=True)
class Visit:
    """A request for a session that is not here. `loads`: how often its row was looked at."""

    origin: Origin
    packet: bytes
    ticket: Ticket
    loads: int = 0


Check: TypeAlias = Callable[[float, Visit, Peer], None]
Refuse: TypeAlias = Callable[[float, Visit, Reason], None]


class Takeover:
    """Visitors, one for each session at a time."""

    def __init__(
        self, state: GatewayState, offers: Offers, check: Check, refuse: Refuse
    ) -> None:
        """`check`: go on with the request as if the peer were ours. `refuse`: answer it."""
        self._state = state
        self._offers = offers
        self._check = check
        self._refuse = refuse
        # By SessionID: the newest version that is known to be another node's.
        self._visited: dict[bytes, int] = {}

    def begin(self, now_ms: float, visit: Visit) -> None:
        """Look the session up. Data that follows the request at once is held meanwhile."""
        state, ticket = self._state, visit.ticket
        state.forget_former(ticket.session_id, ticket.next_index)
        if ticket.session_id in self._visited:
            state.count("reattach while its session is looked up")
        elif len(self._visited) >= c.MAX_VISITS:
            state.count("too many sessions to look up")
        elif ticket.next_index in state.by_index or ticket.next_index in state.reserved:
            self._refuse(now_ms, visit, Reason.POLICY_DENY)  # two nodes chose the same number
        else:
            self._visited[ticket.session_id] = 0
            state.reserved.add(ticket.next_index)
            state.effects.append(Expect(ticket.next_index))
            self._load(now_ms, replace(visit, loads=visit.loads + 1))

    def not_stored(self, now_ms: float, visit: Visit, outcome: Stored | None) -> None:
        """Where another was quicker to write, what the table holds now decides."""
        if outcome is not Stored.CONFLICT:
            self._give_up(now_ms, visit, Reason.STORE_UNAVAILABLE)
        elif visit.loads < c.STORE_TRIES:
            self._load(now_ms, replace(visit, loads=visit.loads + 1))
        else:
            self._give_up(now_ms, visit, Reason.OWNERSHIP_CONFLICT)

    def _load(self, now_ms: float, visit: Visit) -> None:
        self._state.load(
            visit.ticket.session_id,
            lambda at_ms, row, outcome: self._loaded(at_ms, visit, row, outcome),
        )

    def _loaded(self, now_ms: float, visit: Visit, row: Row | None, outcome: Stored) -> None:
        if outcome is not Stored.OK:
            self._give_up(now_ms, visit, Reason.STORE_UNAVAILABLE)
            return
        if row is None:
            self._give_up(now_ms, visit, Reason.SESSION_NOT_FOUND)
            return
        entry = self._offers.client(client_key(row))
        peer = peer_of(row, entry, self._state.entropy.draw)
        if peer is None:
            self._tell_of_nonsense(visit)
            self._give_up(now_ms, visit, Reason.SESSION_NOT_FOUND)
            return
        reason = self._hindrance(now_ms, peer, row)
        if reason is None and (entry is None or entry.addresses != peer.session.addresses):
            reason = Reason.POLICY_DENY
        if reason is not None:
            self._give_up(now_ms, visit, reason)
            return
        peer.is_visiting, peer.owner = True, owner_of(row)
        peer.session.entered_ms = peer.heard_ms = now_ms
        self._check(now_ms, visit, peer)
        if not peer.swapping:  # refused, or not worth an answer
            self.end(visit)

    def _hindrance(self, now_ms: float, peer: Peer, row: Row) -> Reason | None:
        """What keeps this node from taking the session, whoever asks."""
        state, session = self._state, peer.session
        if session.state is State.TERMINATED:
            superseded = row.get("ended") == Reason.SUPERSEDED
            return Reason.SUPERSEDED if superseded else Reason.SESSION_EXPIRED
        policy = state.policy
        lost_ms = session.lost_since_ms
        if now_ms - session.created_ms >= policy.session_ttl_ms:
            return Reason.SESSION_EXPIRED
        if lost_ms is not None and now_ms - lost_ms >= policy.transport_loss_ttl_ms:
            return Reason.SESSION_EXPIRED
        mine = state.of_client.get(peer.entry.public_key)
        if mine is not None and mine.session.created_ms > session.created_ms:
            return Reason.SUPERSEDED
        if mine is None and len(state.sessions) >= state.limits.sessions:
            return Reason.RATE_LIMITED
        assert session.id is not None
        state.forget_former(session.id, peer.keys.index)
        if peer.keys.index in state.by_index:
            return Reason.POLICY_DENY  # two nodes chose the same number
        return None

    def row_seen(self, session_id: bytes, version: int) -> None:
        """Another node has written the row: perhaps later than we, whose answer is on its way."""
        if session_id in self._visited:
            self._visited[session_id] = max(version, self._visited[session_id])

    def is_outdone(self, peer: Peer) -> bool:
        """Whether the session was taken from us before we knew that we had it."""
        assert peer.session.id is not None
        return self._visited.get(peer.session.id, 0) > peer.stored_version

    def admit(self, now_ms: float, visit: Visit, peer: Peer) -> None:
        """The table has it: the session is this node's."""
        state = self._state
        self.end(visit, keep=True)
        peer.is_visiting = False
        older = state.of_client.get(peer.entry.public_key)
        if older is not None:
            state.end(now_ms, older, Event.SUPERSEDED, Reason.SUPERSEDED)
        state.admit(peer)
        self._offers.remember(peer)
        details: dict[str, object] = {
            "what": "taken over",
            "from": peer.owner,
            "loads": visit.loads,
        }
        state.machine.note(peer.session, "OWNERSHIP", Reason.OWNER_MOVED, details)

    def end(self, visit: Visit, keep: bool = False) -> None:
        """The visit is over. `keep`: its index is about to be bound."""
        self._visited.pop(visit.ticket.session_id, None)
        if not keep:
            self._state.reserved.discard(visit.ticket.next_index)
            self._state.effects.append(Unexpect(visit.ticket.next_index))

    def _give_up(self, now_ms: float, visit: Visit, reason: Reason) -> None:
        self.end(visit)
        self._refuse(now_ms, visit, reason)

    def _tell_of_nonsense(self, visit: Visit) -> None:
        details: dict[str, object] = {"what": "a row of the session table makes no sense"}
        details["row"] = visit.ticket.session_id.hex()
        self._state.effects.append(
            Emit("OWNERSHIP", Reason.SEC_OWNERSHIP_ANOMALY, details=details)
        )
