"""How a session moves, as the gateway sees it: checks in order, one compare-and-swap, the ACK."""

from __future__ import annotations

from dataclasses import replace

from jvpnd.core import keys
from jvpnd.core.effects import (
    Emit,
    Origin,
    Send,
    SessionUp,
)
from jvpnd.core.gatewaystate import GatewayState
from jvpnd.core.handshake import EpochKeys
from jvpnd.core.messages import (
    Cause,
    ReattachAck,
    ReattachRequest,
    decode_request,
    reason_to_wire,
)
from jvpnd.core.nodes import NO_NODE, Sharing
from jvpnd.core.offers import Offers
from jvpnd.core.packets import (
    XNONCE_LEN,
    Response,
    clear_part,
    encode_reject,
    open_request,
    request_tag,
    request_ticket,
    seal,
)
from jvpnd.core.peer import Offer, Peer, Stored
from jvpnd.core.reasons import Reason
from jvpnd.core.session import Session
from jvpnd.core.states import Event, State
from jvpnd.core.takeover import Takeover, Visit
from jvpnd.core.ticket import Ticket, open_ticket
from jvpnd.core.wire import PacketType


class Rebinding:
    """Reads REATTACH_REQUESTs; docs/protocol.md lists the checks in the same order."""

    def __init__(self, state: GatewayState, offers: Offers) -> None:
        self._state = state
        self._offers = offers
        self._takeover = Takeover(state, offers, self._on_known, self._refuse_visit)
        self._ticket_key = keys.ticket_key(state.secret)

    def row_seen(self, session_id: bytes, version: int) -> None:
        """Another node has written the row of a session that is not ours."""
        self._takeover.row_seen(session_id, version)

    def on_request(self, now_ms: float, origin: Origin, packet: bytes) -> None:
        # The ticket before the token: garbage in a client's name must not use up its tokens.
        sealed = request_ticket(packet)
        ticket = open_ticket(sealed, self._ticket_key) if sealed else None
        if ticket is None:
            self._state.count("bad ticket")
            return
        if not self._state.admission.admits(now_ms, origin, proven=True):
            self._state.abuse(now_ms, Reason.SEC_ABUSE_CONTROL_PLANE, origin, "reattach rate")
            return
        peer = self._state.sessions.get(ticket.session_id)
        if peer is not None:
            self._on_known(now_ms, Visit(origin, packet, ticket), peer)
        else:
            self._on_absent(now_ms, Visit(origin, packet, ticket))

    def _on_absent(self, now_ms: float, visit: Visit) -> None:
        """The session is not here: it has ended, or it is another node's, or there is none."""
        state, ticket = self._state, visit.ticket
        ended = state.tombstones.get(ticket.session_id)
        if ended is not None:  # a superseded client must rest, even if it never heard the CLOSE
            superseded = ended is Reason.SUPERSEDED
            reason = Reason.SUPERSEDED if superseded else Reason.SESSION_EXPIRED
            self._refuse_visit(now_ms, visit, reason)
        elif state.sharing is Sharing.STICKY and ticket.node != state.tag:
            self._refuse_visit(now_ms, visit, Reason.WRONG_NODE)
        elif state.sharing is not Sharing.STORE:
            self._refuse_visit(now_ms, visit, Reason.SESSION_NOT_FOUND)
        elif state.is_draining:
            self._refuse_visit(now_ms, visit, Reason.NODE_DRAINING)
        else:
            self._takeover.begin(now_ms, visit)

    def _refuse_visit(self, now_ms: float, visit: Visit, reason: Reason) -> None:
        session_id = visit.ticket.session_id
        self._reject(now_ms, visit.origin, session_id, visit.packet, reason, visit.ticket.node)

    def _on_known(self, now_ms: float, visit: Visit, peer: Peer) -> None:
        """Go on if whoever made it knows the session's root, or that of a rekey offered: then the
        rekey takes effect first."""
        packet = visit.packet
        body = open_request(packet, keys.proof_key(peer.session.root))
        if body is None:
            offer = self._offer_that_proves(peer, packet)
            if offer is None and self._is_of_another_root(peer, packet):
                self._state.count("request under another root")  # late, or not sure of the new one
                return
            if offer is None:
                what = f"bad proof for {peer.entry.name}"
                self._state.abuse(now_ms, Reason.AUTH_FAIL, visit.origin, what)
                return
            self._offers.confirm_rekey(
                now_ms, peer, offer, lambda at_ms: self._on_known(at_ms, visit, peer)
            )
            return
        request = decode_request(body)
        if request is None:
            self._state.count("bad request")
        elif peer.swapping:
            self._state.count("reattach while one is being stored")
        elif self._check(now_ms, peer, visit, request) is None:
            self._accept(now_ms, peer, visit, request)

    @staticmethod
    def _is_of_another_root(peer: Peer, packet: bytes) -> bool:
        roots = peer.other_roots
        return any(open_request(packet, keys.proof_key(root)) is not None for root in roots)

    def _offer_that_proves(self, peer: Peer, packet: bytes) -> Offer | None:
        for offer in self._offers.all():
            newer = offer.keys.epoch > peer.session.attempt
            if offer.session_id == peer.session.id and newer:
                if open_request(packet, keys.proof_key(offer.root)) is not None:
                    return offer
        return None

    def _check(
        self,
        now_ms: float,
        peer: Peer,
        visit: Visit,
        request: ReattachRequest,
    ) -> Reason | None:
        """None if the request may bind; otherwise it has been answered and audited."""
        session, origin, packet = peer.session, visit.origin, visit.packet
        assert session.id is not None
        tag = request_tag(packet)
        if request.attempt <= session.attempt:
            seen_from = peer.remembers(tag)
            if seen_from == origin:
                self._state.count("duplicate request")
                return Reason.REPLAY_DETECTED
            reason = Reason.REPLAY_DETECTED if seen_from else Reason.FRESHNESS_INVALID
            if visit.loads > 1:  # another node was quicker, with this attempt or a later one
                reason = Reason.OWNERSHIP_CONFLICT
            self._reject(now_ms, origin, session.id, packet, reason, 0, (peer, request))
            if seen_from and self._state.admission.may_audit(now_ms):
                self._state.machine.note(
                    session,
                    "SECURITY_EVENT",
                    Reason.SEC_REPLAY_ATTEMPT,
                    {"remote": str(origin), "attempt": request.attempt},
                )
            return reason
        refusal = self._refusal(now_ms, peer, origin, visit.ticket, request)
        if refusal is not None:
            session.attempt = request.attempt
            peer.remember(tag, origin)
            self._reject(now_ms, origin, session.id, packet, refusal, 0, (peer, request))
        return refusal

    def _refusal(
        self,
        now_ms: float,
        peer: Peer,
        origin: Origin,
        ticket: Ticket,
        request: ReattachRequest,
    ) -> Reason | None:
        session, policy = peer.session, self._state.policy
        age_ms = (now_ms - peer.anchor_ms) - request.sent_ms
        if abs(age_ms) > policy.proof_max_age_ms:
            return Reason.FRESHNESS_INVALID
        if ticket.next_index not in (peer.next_index, peer.keys.index):
            return Reason.FRESHNESS_INVALID
        if not {request.transport, origin.transport} <= set(policy.allowed_transports):
            return Reason.POLICY_DENY
        spent = peer.confirmed and not session.may_switch(now_ms, policy)
        if spent or not peer.may_rebind(now_ms):
            return Reason.RATE_LIMITED
        last = session.switched_at_ms[-1] if session.switched_at_ms else None
        cooling = last is not None and now_ms - last < policy.switch_cooldown_ms
        if request.cause == Cause.SWITCH and cooling:
            return Reason.POLICY_DENY
        return None

    def _accept(
        self, now_ms: float, peer: Peer, visit: Visit, request: ReattachRequest
    ) -> None:
        """One compare-and-swap decides; only then is anything bound or answered."""
        session, origin, ticket = peer.session, visit.origin, visit.ticket
        details = _asked(request, origin)
        if not peer.is_visiting:
            self._lead_to_recovering(now_ms, session, request, details)
        peer.swapping, root = True, session.root
        nonce = self._state.entropy.draw(32)
        first = ticket.next_index == peer.next_index
        next_index = self._state.new_index() if first else peer.next_index
        bound = replace(
            peer,
            origin=origin,
            path_number=request.path_number,
            transport=origin.transport,
            keys=_epoch_keys(root, ticket, request, nonce),
            next_index=next_index,
            issue=peer.issue + 1,
        )

        def future() -> Peer | None:
            led = _led(session) if peer.is_visiting else session
            if led.state is not State.RECOVERING or led.root != root:
                return None
            attached = _attached(now_ms, led, request.attempt, peer.confirmed)
            return replace(bound, session=attached)

        def stored(later_ms: float, outcome: Stored | None) -> None:
            peer.swapping = False
            visiting = peer.is_visiting
            if visiting and outcome is Stored.OK and self._takeover.is_outdone(peer):
                outcome = Stored.CONFLICT
            if visiting and outcome is Stored.OK:
                self._takeover.admit(later_ms, visit, peer)
                self._lead_to_recovering(later_ms, session, request, details)
            if first and (outcome is not Stored.OK or session.state is not State.RECOVERING):
                self._state.reserved.discard(next_index)
            if visiting and outcome is not Stored.OK:
                self._takeover.not_stored(later_ms, visit, outcome)
                return
            if peer.is_fenced and outcome is Stored.CONFLICT:
                self._on_absent(later_ms, visit)
                return
            if outcome not in (Stored.OK, None):
                self._state.store_failed(peer, outcome)
            if outcome is None or session.state is not State.RECOVERING:
                return
            session.attempt = request.attempt
            peer.remember(request_tag(visit.packet), origin)
            if outcome is Stored.OK:
                self._reattached(later_ms, peer, bound, request, nonce, details)
            else:
                self._not_stored(later_ms, peer, visit, request, outcome)

        self._state.swap(now_ms, peer, future, stored)

    def _lead_to_recovering(
        self, now_ms: float, session: Session, request: ReattachRequest, details: dict[str, object]
    ) -> None:
        if session.state is State.RECOVERING:
            return
        told = {Cause.NAT_REBIND: Event.NAT_REBOUND, Cause.SWITCH: Event.SWITCH_ORDERED}
        event = told.get(Cause(request.cause), Event.TRANSPORT_DIED)
        if session.state is State.DEGRADED:
            event = Event.CANDIDATE_VIABLE
        self._state.machine.fire(session, event, now_ms, details)

    def _not_stored(
        self,
        now_ms: float,
        peer: Peer,
        visit: Visit,
        request: ReattachRequest,
        outcome: Stored,
    ) -> None:
        """Nothing is bound. A table that cannot be reached leaves what is bound alone."""
        session, unreachable = peer.session, outcome is Stored.UNAVAILABLE
        assert session.id is not None
        reason = Reason.STORE_UNAVAILABLE if unreachable else Reason.OWNERSHIP_CONFLICT
        asked = (peer, request)
        self._reject(now_ms, visit.origin, session.id, visit.packet, reason, 0, asked)
        if unreachable:
            kept = session.lost_since_ms is None
            event = Event.REATTACH_REFUSED_BOUND if kept else Event.REATTACH_REFUSED_UNBOUND
            peer.unstable_ms = now_ms
            self._state.machine.fire(session, event, now_ms)

    def _reattached(
        self,
        now_ms: float,
        peer: Peer,
        bound: Peer,
        request: ReattachRequest,
        nonce: bytes,
        details: dict[str, object],
    ) -> None:
        """Make the peer what the table says that it is: `bound`."""
        session = peer.session
        assert session.id is not None
        if bound.keys.index != peer.keys.index:
            self._state.drain_epoch(now_ms, peer)
        session.epoch = request.attempt
        peer.rebound_ms.append(now_ms)
        if peer.confirmed:
            session.count_switch(now_ms)
        peer.keys, peer.channel = bound.keys, bound.keys.channel()
        peer.origin, peer.transport = bound.origin, bound.transport
        peer.path_number, peer.confirmed, peer.heard_ms = bound.path_number, False, now_ms
        peer.next_index, peer.issue = bound.next_index, bound.issue
        self._state.by_index[peer.keys.index] = peer
        self._send_ack(peer, request, nonce)
        details = {**details, "epoch": session.epoch}
        self._state.machine.note(session, "REATTACH_RESULT", Reason.REATTACH_ACCEPT, details)
        self._state.machine.note(session, "TRANSPORT_SWITCH", Reason.TRANSPORT_SWITCH_OK, details)
        self._state.machine.fire(session, Event.REATTACH_ACCEPTED, now_ms, details)
        if peer.is_restored:
            peer.is_restored = False
            self._state.awaited.discard(session.id)
            addresses, networks = session.addresses, peer.entry.networks
            self._state.effects.append(SessionUp(session.id, addresses, networks))
        self._state.bind(peer)

    def _send_ack(self, peer: Peer, request: ReattachRequest, nonce: bytes) -> None:
        session = peer.session
        assert session.id is not None
        ticket = Ticket(session.id, peer.issue, peer.next_index, self._state.tag)
        body = ReattachAck(
            request.attempt,
            nonce,
            session.state_version + 1,
            ticket.seal(self._ticket_key, self._state.nonce()),
            peer.next_index,
        )
        clear = clear_part(Response(request.receive_index, b"").encode(PacketType.REATTACH_ACK))
        key = keys.ack_key(session.root, request.attempt, request.client_nonce)
        sealed = seal(key, self._state.entropy.draw(XNONCE_LEN), body.encode(), clear)
        self._state.effects.append(Send(peer.origin, clear + sealed))

    def _reject(
        self,
        now_ms: float,
        origin: Origin,
        session_id: bytes,
        packet: bytes,
        reason: Reason,
        owner: int = NO_NODE,
        asked: tuple[Peer, ReattachRequest] | None = None,
    ) -> None:
        """A small, proven answer: its MAC is over exactly this request. `owner`: the tag of the
        node to ask instead. `asked`: whom the request is from and what it says, where that could
        be read."""
        key = keys.reset_key(self._state.secret, session_id)
        answer = encode_reject(request_tag(packet), reason_to_wire(reason), key, owner)
        self._state.effects.append(Send(origin, answer))
        if not self._state.admission.may_tell_refusal(now_ms, session_id):
            self._state.count("reattach refused")
            return
        if asked is None:
            details = _whence(origin)
            self._state.effects.append(
                Emit("REATTACH_RESULT", reason, session_id, details=details)
            )
        else:
            peer, request = asked
            details = _asked(request, origin)
            self._state.machine.note(peer.session, "REATTACH_RESULT", reason, details)


def _epoch_keys(
    root: bytes, ticket: Ticket, request: ReattachRequest, nonce: bytes
) -> EpochKeys:
    """Those of the epoch that the request begins, if it is accepted with `nonce`."""
    attempt, theirs = request.attempt, request.client_nonce
    return EpochKeys(
        attempt,
        ticket.next_index,
        request.receive_index,
        keys.gateway_to_client(root, attempt, theirs, nonce),
        keys.client_to_gateway(root, attempt, theirs),
    )


def _led(session: Session) -> Session:
    """A visitor's session on its way: RECOVERING, as it will have been once it is ours."""
    if session.state is State.RECOVERING:
        return session
    version = session.state_version + 1
    return replace(session, state=State.RECOVERING, state_version=version)


def _attached(now_ms: float, session: Session, attempt: int, is_switch: bool) -> Session:
    """The session as it will be, for the table."""
    return replace(
        session,
        state=State.ATTACHED,
        state_version=session.state_version + 1,
        epoch=attempt,
        attempt=attempt,
        lost_since_ms=None,
        switches=session.switches + is_switch,
        switched_at_ms=[*session.switched_at_ms, *([now_ms] if is_switch else [])],
    )


def _asked(request: ReattachRequest, origin: Origin) -> dict[str, object]:
    """The request, for events."""
    cause = Cause(request.cause).name
    return {"attempt": request.attempt, "cause": cause, **_whence(origin)}


def _whence(origin: Origin) -> dict[str, object]:
    return {"remote": str(origin), "transport": origin.transport}
