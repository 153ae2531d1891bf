"""The gateway: many sessions, their births, moves and health. Sans-IO.

The shell calls the input methods with the time and performs what `drain` returns, in order. Births
(offers.py) and moves (rebinding.py) are parts of it; what they share is in gatewaystate.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from jvpnd.core import constants as c
from jvpnd.core.effects import (
    Effect,
    Endpoint,
    Origin,
    Send,
    Vouch,
)
from jvpnd.core.entropy import Entropy
from jvpnd.core.gatewaystate import GatewayState
from jvpnd.core.leaving import Leaving
from jvpnd.core.limits import DEFAULT_LIMITS, Limits
from jvpnd.core.listing import ListChange, Listing
from jvpnd.core.messages import (
    Control,
    decode_probe,
    reason_from_wire,
)
from jvpnd.core.nodes import Sharing
from jvpnd.core.offers import Offers
from jvpnd.core.ownership import Ownership, RowSeen
from jvpnd.core.peer import ClientEntry, Offer, Peer, Stored
from jvpnd.core.policy import Policy
from jvpnd.core.reasons import Reason
from jvpnd.core.rebinding import Rebinding
from jvpnd.core.restoring import Restoring
from jvpnd.core.sessionrow import Row
from jvpnd.core.states import LIVE, Event, State
from jvpnd.core.wire import PacketType, decode_sealed_header

__all__ = ["Gateway", "Stored"]


class Gateway:
    """Every session of one node."""

    def __init__(
        self,
        node: str,
        secret: bytes,
        clients: Iterable[ClientEntry],
        policy: Policy,
        entropy: Entropy,
        has_aes: bool = False,
        endpoints: Iterable[Endpoint] = (),
        limits: Limits = DEFAULT_LIMITS,
        sharing: Sharing = Sharing.ALONE,
    ) -> None:
        """`endpoints`: where clients can reach it, as they are told. `sharing`: what it has in
        common with other nodes of the same key."""
        self._state = GatewayState(node, secret, policy, entropy, limits, sharing)
        self._offers = Offers(self._state, clients, has_aes, tuple(endpoints))
        self._rebinding = Rebinding(self._state, self._offers)
        self._restoring = Restoring(self._state, self._offers)
        self._listing = Listing(self._state, self._offers)
        self._ownership = Ownership(self._state, self._offers)
        self._leaving = Leaving(self._state)
        self._scan_ms = 0.0
        self._unseen: list[Peer] = []  # of this round of looking at all sessions

    # --- outputs ---

    @property
    def sessions(self) -> dict[bytes, Peer]:
        """Live sessions by SessionID."""
        return self._state.sessions

    @property
    def awaits_clients(self) -> bool:
        """Whether sessions that a restart has unbound are about to be bound again."""
        return bool(self._state.awaited)

    @property
    def policy(self) -> Policy:
        return self._state.policy

    @property
    def own_policy(self) -> Policy:
        """The same: nobody bounds a gateway."""
        return self._state.policy

    @property
    def dropped(self) -> dict[str, int]:
        """Packets that came for control and were dropped, by cause."""
        return self._state.dropped

    def drain(self) -> list[Effect]:
        """Everything the shell has to do, in order; empties the list."""
        effects = self._state.effects[:]
        self._state.effects.clear()
        return effects

    def next_timer_ms(self, now_ms: float) -> float:
        """When `timer` wants to be called next."""
        wishes = [self._scan_ms, *self._restoring.due_ms(), *self._leaving.due_ms()]
        if self._state.drains:
            wishes.append(self._state.drains[0][0])
        return max(now_ms, min(wishes))

    # --- inputs ---

    def restore(self, now_ms: float, rows: Iterable[Row]) -> list[str]:
        """Take up the sessions that the table held when this gateway ended; call it first. Returns
        the ids of the rows to forget."""
        return self._restoring.restore(now_ms, rows)

    def packet_received(self, now_ms: float, origin: Origin, packet: bytes) -> None:
        """Anything but DATA that came to a listening socket."""
        kind = packet[0] if packet else 0
        if kind == PacketType.CONTROL:
            self._on_control(now_ms, origin, packet)
        elif kind == PacketType.HANDSHAKE_INIT:
            self._offers.on_init(now_ms, origin, packet)
        elif kind == PacketType.REATTACH_REQUEST:
            self._rebinding.on_request(now_ms, origin, packet)
        elif kind == PacketType.NODE_PROBE:
            self._ownership.on_node_probe(now_ms, origin, packet)
        else:
            self._state.count("unexpected packet")

    def heard_from_elsewhere(self, now_ms: float, index: int, origin: Origin) -> None:
        """The data plane opened DATA of a session that came from an address it is not bound to."""
        peer = self._state.by_index.get(index)
        if isinstance(peer, Peer) and origin != peer.origin and not peer.is_fenced:
            self._state.hint(now_ms, peer, origin)

    def data_heard(self, now_ms: float, session_id: bytes, at_ms: float, index: int) -> None:
        """The newest DATA of a session, from the data plane's counters."""
        peer = self._state.sessions.get(session_id)
        if peer is not None and index == peer.keys.index and at_ms > peer.heard_ms:
            peer.confirmed = True
            self._state.heard(peer, at_ms)

    def store_result(self, now_ms: float, token: int, outcome: Stored) -> None:
        """The answer to a Swap."""
        follow = self._state.swaps.pop(token, None)
        if follow is not None:
            follow(now_ms, outcome)

    def loaded(self, now_ms: float, token: int, row: Row | None, outcome: Stored) -> None:
        """The answer to a Load: the row, None if there is none or it could not be read."""
        follow = self._state.loads.pop(token, None)
        if follow is not None:
            follow(now_ms, row, outcome)

    def row_seen(self, now_ms: float, seen: RowSeen) -> None:
        """Somebody has written this row of the shared table."""
        if seen.owner != self._state.node:
            self._rebinding.row_seen(seen.session_id, seen.state_version)
            self._ownership.row_seen(now_ms, seen)

    def row_gone(self, now_ms: float, session_id: bytes) -> None:
        """The row of a session has been removed from the shared table."""
        self._ownership.row_gone(now_ms, session_id)

    def store_seen(self, now_ms: float, asked_ms: float) -> None:
        """The shared table has answered what it was asked at `asked_ms`. Sessions go on for the
        policy's store_loss_ttl_ms after that; those that did not are not brought back by it."""
        if self._ownership.is_cut_off(now_ms):
            for peer in list(self._state.sessions.values()):
                self._ownership.cut_off(now_ms, peer)
        self._state.store_seen_ms = max(asked_ms, self._state.store_seen_ms or asked_ms)

    def nodes_seen(self, endpoints: Iterable[Endpoint]) -> None:
        """Where the other nodes of the cluster can be reached: new clients are told."""
        self._offers.others = tuple(endpoints)

    def leave(self, now_ms: float, leave: bool) -> None:
        """Give all sessions away to other nodes, and take no new ones; or stop doing so."""
        self._leaving.order(now_ms, leave)

    @property
    def is_leaving(self) -> bool:
        return self._state.is_draining

    def keys_lost(self, now_ms: float) -> None:
        """The data plane lost its keys: every client is asked to bind a new epoch."""
        for peer in self._state.sessions.values():
            self._state.hint(now_ms, peer, peer.origin)

    def terminate(self, now_ms: float, session_id: bytes) -> bool:
        """The operator ends a session. False if there is none of this id."""
        peer = self._state.sessions.get(session_id)
        if peer is None:
            return False
        self._state.end(now_ms, peer, Event.OPERATOR_TERMINATED, Reason.OPERATOR_TERMINATION)
        return True

    def apply_policy(self, now_ms: float, policy: Policy) -> None:
        """Replace the policy, for the present sessions too: its bounds hold from now on, and
        clients learn them with their next keys."""
        before, self._state.policy = self._state.policy, policy
        self._state.machine.policy_applied(None, before, policy)
        self._scan_ms = now_ms

    def apply_clients(self, now_ms: float, entries: Iterable[ClientEntry]) -> ListChange:
        """Replace the list of clients. Nobody's session ends but that of a client which is listed
        no more, or with other addresses or another pre-shared key."""
        return self._listing.apply(now_ms, entries)

    def timer(self, now_ms: float) -> None:
        """Time has passed."""
        self._state.end_drains(now_ms)
        self._restoring.tell_some(now_ms)
        self._leaving.ask_some(now_ms)
        if now_ms >= self._scan_ms:
            self._scan(now_ms)

    def _scan(self, now_ms: float) -> None:
        """Look at the sessions' health, at some of them each time: however many there are, nobody
        has to wait for it."""
        state = self._state
        if not self._unseen:
            self._offers.forget_old(now_ms)
            self._unseen = list(reversed(state.sessions.values()))  # the oldest last
        live = len(state.sessions)
        for _ in range(min(c.SCAN_SLICE, len(self._unseen))):
            peer = self._unseen.pop()
            if peer.session.state is not State.TERMINATED:
                self._judge(now_ms, peer)
            if live - len(state.sessions) == c.SCAN_ENDS:  # more work than a look
                break
        slices = max(1, -(-live // c.SCAN_SLICE))
        self._scan_ms = now_ms + c.SCAN_MS / slices

    # --- control packets ---

    def _on_control(self, now_ms: float, origin: Origin, packet: bytes) -> None:
        header = decode_sealed_header(packet)
        holder = self._state.by_index.get(header.index) if header else None
        if header is None or holder is None or (isinstance(holder, Peer) and holder.is_fenced):
            self._state.count("unknown index")
            return
        channel = holder.channel
        if isinstance(holder, Peer) and header.index in holder.draining:
            channel = holder.draining[header.index][0]
        body = channel.open(packet, header)
        if not body:
            self._state.count("bad CONTROL")
            return
        if origin == holder.origin:
            origin = holder.origin  # what is kept of it shares one object
        if origin.transport != "udp":  # where there is no connection
            self._state.effects.append(Vouch(origin))
        if isinstance(holder, Offer):
            if not holder.confirming:
                self._offers.confirm(
                    now_ms, holder, lambda at_ms, peer: self._on_message(at_ms, peer, origin, body)
                )
            return
        if holder.is_restored and body[0] == Control.PROBE:
            self._state.hint(now_ms, holder, origin)  # it may be a replay: it counts for nothing
            return
        if channel is holder.channel:
            holder.confirmed = True
        self._state.heard(holder, now_ms)
        self._on_message(now_ms, holder, origin, body)

    def _on_message(self, now_ms: float, peer: Peer, origin: Origin, body: bytes) -> None:
        if body[0] == Control.PROBE:
            probe, session_id = decode_probe(body), peer.session.id
            if probe is None or session_id is None:
                self._state.count("bad CONTROL")
                return
            if not self._state.admission.may_probe(now_ms, session_id):
                self._state.count("probe rate")
                return
            self._state.effects.append(Send(origin, peer.channel.seal(peer.answer(probe).encode())))
            moved = probe.path_number == peer.path_number and origin != peer.origin
            if moved or peer.session.state not in LIVE:
                self._state.hint(now_ms, peer, origin)
        elif body[0] == Control.CLOSE and len(body) == 2:
            word = reason_from_wire(body[1])
            expired = word == Reason.TTL_SESSION_EXPIRED
            event = Event.SESSION_TTL_OVER if expired else Event.OPERATOR_TERMINATED
            self._state.end(now_ms, peer, event, None)
        else:
            self._state.count("bad CONTROL")

    # --- health ---

    def _judge(self, now_ms: float, peer: Peer) -> None:
        session, policy = peer.session, self._state.policy
        silence_ms = now_ms - peer.heard_ms
        if self._ownership.is_cut_off(now_ms):
            self._ownership.cut_off(now_ms, peer)
        elif now_ms - session.created_ms >= policy.session_ttl_ms:
            self._state.end(now_ms, peer, Event.SESSION_TTL_OVER, Reason.TTL_SESSION_EXPIRED)
        elif (
            session.lost_since_ms is not None
            and now_ms - session.lost_since_ms >= policy.transport_loss_ttl_ms
        ):
            reason = Reason.TTL_TRANSPORT_LOSS_EXPIRED
            self._state.end(now_ms, peer, Event.TRANSPORT_LOSS_TTL_OVER, reason)
        elif session.state in LIVE:
            self._judge_live(now_ms, peer, silence_ms)
        elif session.state is State.RECOVERING and not peer.swapping:
            if now_ms - session.entered_ms >= policy.max_recovery_window_ms:
                if session.lost_since_ms is None:  # the table refused a move: nobody is bound
                    session.lost_since_ms = session.entered_ms
                self._fire_stored(now_ms, peer, Event.RECOVERY_WINDOW_OVER)

    def _judge_live(self, now_ms: float, peer: Peer, silence_ms: float) -> None:
        session, policy = peer.session, self._state.policy
        if silence_ms >= policy.volatile_after_ms:
            peer.unstable_ms = now_ms
            if session.state is State.ATTACHED:
                self._fire_stored(now_ms, peer, Event.HEARTBEAT_LATE)
            elif silence_ms >= policy.volatile_to_degraded_ms:
                self._fire_stored(now_ms, peer, Event.TRANSPORT_DIED)
        elif session.state is State.VOLATILE:
            if now_ms - peer.unstable_ms >= policy.stability_window_ms:
                self._fire_stored(now_ms, peer, Event.STABILITY_RESTORED)

    def _fire_stored(self, now_ms: float, peer: Peer, event: Event) -> None:
        details: dict[str, object] = {"silent_ms": round(now_ms - peer.heard_ms)}
        if self._state.machine.fire(peer.session, event, now_ms, details):
            self._state.write_behind(now_ms, peer)
