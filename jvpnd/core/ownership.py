"""What a node of a cluster learns of the sessions of all: who owns which, and since when the shared
table is out of reach. It stops at once where a session is another's, or may be.
"""

from __future__ import annotations

from dataclasses import dataclass

from jvpnd.core import keys
from jvpnd.core.effects import Origin, Send
from jvpnd.core.gatewaystate import GatewayState
from jvpnd.core.messages import Control
from jvpnd.core.nodes import NodeState, Sharing, decode_node_probe, node_reply
from jvpnd.core.offers import Offers
from jvpnd.core.peer import Peer
from jvpnd.core.reasons import Reason
from jvpnd.core.states import Event, State
from jvpnd.core.ticket import open_ticket


@dataclass(frozen=True, slots=True)
class RowSeen:
    """What is in clear of a row that somebody has written. created_ms: of this node's clock."""

    session_id: bytes
    owner: str
    client: str
    state: str
    state_version: int
    created_ms: float


class Ownership:
    """Of the sessions of one node."""

    def __init__(self, state: GatewayState, offers: Offers) -> None:
        self._state = state
        self._offers = offers
        self._ticket_key = keys.ticket_key(state.secret)

    def row_seen(self, now_ms: float, seen: RowSeen) -> None:
        """Another node has written a row, a short time ago or a long one."""
        state = self._state
        peer = state.sessions.get(seen.session_id)
        if peer is not None:
            if seen.state_version > peer.stored_version:  # else it is from before it was ours
                state.lost_to(now_ms, peer, seen.owner)
            return
        mine = state.of_client.get(self._offers.key_of(seen.client) or b"")
        if mine is None or seen.state == State.TERMINATED or mine.session.id is None:
            return
        born = (mine.session.created_ms, mine.session.id)
        if (seen.created_ms, seen.session_id) > born:  # the client has begun again elsewhere
            state.end(now_ms, mine, Event.SUPERSEDED, Reason.SUPERSEDED)

    def row_gone(self, now_ms: float, session_id: bytes) -> None:
        """The row is there no more: nobody may serve the session."""
        peer = self._state.sessions.get(session_id)
        if peer is not None and peer.stored_version:
            self._state.lost_to(now_ms, peer, "nobody")

    def is_cut_off(self, now_ms: float) -> bool:
        """Whether the shared table has been out of reach for longer than sessions may go on."""
        state = self._state
        if state.sharing is not Sharing.STORE or state.store_seen_ms is None:
            return False
        return now_ms - state.store_seen_ms >= state.policy.store_loss_ttl_ms

    def cut_off(self, now_ms: float, peer: Peer) -> None:
        """Another node may serve it by now: fail closed, and say so to the client."""
        state = self._state
        assert state.store_seen_ms is not None
        away_ms = round(now_ms - state.store_seen_ms)
        details: dict[str, object] = {"what": "let go", "store_away_ms": away_ms}
        state.machine.note(peer.session, "OWNERSHIP", Reason.STORE_UNAVAILABLE, details)
        state.effects.append(Send(peer.origin, peer.channel.seal(bytes([Control.MOVE]))))
        state.let_go(now_ms, peer, Event.STORE_LOST, {"store_away_ms": away_ms})

    def node_state(self, now_ms: float) -> NodeState:
        """Whether this node takes sessions."""
        if self._state.is_draining:
            return NodeState.DRAINING
        return NodeState.NO_STORE if self.is_cut_off(now_ms) else NodeState.READY

    def on_node_probe(self, now_ms: float, origin: Origin, packet: bytes) -> None:
        """Anybody's client may ask how this node is; the answer is shorter than the question."""
        state, probe = self._state, decode_node_probe(packet)
        ticket = open_ticket(probe.ticket, self._ticket_key) if probe is not None else None
        if probe is None or ticket is None or state.sharing is Sharing.ALONE:
            state.count("bad NODE_PROBE")
            return
        reset_key = keys.reset_key(state.secret, ticket.session_id)
        if not probe.is_proven(reset_key):
            state.count("bad NODE_PROBE")
        elif not state.admission.may_probe(now_ms, ticket.session_id):
            state.count("probe rate")
        else:
            answer = node_reply(probe, self.node_state(now_ms), reset_key)
            state.effects.append(Send(origin, answer))
