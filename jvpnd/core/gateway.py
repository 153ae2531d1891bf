"""The gateway: births, reattaches and the health of many sessions. Sans-IO.

The shell calls the input methods with the time and performs what `drain` returns, in order.
Strangers cost it a MAC, then a token, then (under load) a cookie, before any key exchange.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from enum import Enum

from jvpnd.core import constants as c
from jvpnd.core import keys
from jvpnd.core.admission import Admission
from jvpnd.core.effects import (
    BindReceive,
    BindSend,
    Effect,
    Emit,
    Expect,
    Origin,
    ReleaseReceive,
    ReleaseSend,
    Send,
    SessionDown,
    SessionUp,
    Swap,
    Unexpect,
)
from jvpnd.core.entropy import Entropy
from jvpnd.core.handshake import EpochKeys, GatewayHandshake, OpenedInit
from jvpnd.core.messages import (
    CAPABILITY_AES,
    NO_SESSION,
    Cause,
    Control,
    PolicyBounds,
    ReattachAck,
    ReattachRequest,
    Welcome,
    decode_probe,
    decode_request,
    reason_from_wire,
    reason_to_wire,
)
from jvpnd.core.packets import (
    XNONCE_LEN,
    Response,
    clear_part,
    encode_reject,
    encode_retry,
    open_request,
    request_tag,
    request_ticket,
    seal,
)
from jvpnd.core.peer import ClientEntry, Offer, Peer
from jvpnd.core.policy import Policy
from jvpnd.core.reasons import Reason
from jvpnd.core.session import Machine, Session
from jvpnd.core.states import Event, State
from jvpnd.core.ticket import Ticket, open_ticket
from jvpnd.core.wire import PacketType, Suite, decode_sealed_header

LIVE = (State.ATTACHED, State.VOLATILE)


class Stored(Enum):
    """What the session table said to a Swap."""

    OK = "ok"
    CONFLICT = "conflict"
    UNAVAILABLE = "unavailable"


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
    ) -> None:
        self.node = node
        self.policy = policy
        self._secret = secret
        self._entropy = entropy
        self._has_aes = has_aes
        self._clients = {entry.public_key: entry for entry in clients}
        self._handshake = GatewayHandshake(secret, entropy)
        self._ticket_key = keys.ticket_key(secret)
        self._admission = Admission(entropy.draw(32))
        self._effects: list[Effect] = []
        self._machine = Machine(self._effects.append)
        self.sessions: dict[bytes, Peer] = {}
        self._by_index: dict[int, Peer | Offer] = {}
        self._reserved: set[int] = set()  # next indexes, announced but not bound
        self._timestamps: dict[bytes, int] = {}
        self._tombstones: OrderedDict[bytes, Reason] = OrderedDict()
        self._swaps: dict[int, Callable[[float, Stored], None]] = {}
        self._token = 0
        self._scan_ms = 0.0
        self.dropped: dict[str, int] = {}

    # --- outputs ---

    def drain(self) -> list[Effect]:
        """Everything the shell has to do, in order; empties the list."""
        effects = self._effects[:]
        self._effects.clear()
        return effects

    def next_timer_ms(self, now_ms: float) -> float:
        """When `timer` wants to be called next."""
        drains = (at for peer in self.sessions.values() for _, at in peer.draining.values())
        return max(now_ms, min([self._scan_ms, *drains], default=now_ms + c.SCAN_MS))

    # --- inputs ---

    def packet_received(self, now_ms: float, origin: Origin, packet: bytes) -> None:
        """Anything but DATA that came to a listening socket."""
        kind = packet[0] if packet else 0
        if kind == PacketType.CONTROL:
            self._on_control(now_ms, origin, packet)
        elif kind == PacketType.HANDSHAKE_INIT:
            self._on_init(now_ms, origin, packet)
        elif kind == PacketType.REATTACH_REQUEST:
            self._on_request(now_ms, origin, packet)
        else:
            self._count("unexpected packet")

    def heard_from_elsewhere(self, now_ms: float, index: int, origin: Origin) -> None:
        """The data plane opened DATA of a session that came from an address it is not bound to."""
        peer = self._by_index.get(index)
        if isinstance(peer, Peer) and origin != peer.origin:
            self._hint(now_ms, peer, origin)

    def data_heard(self, now_ms: float, session_id: bytes, at_ms: float, index: int) -> None:
        """The newest DATA of a session, from the data plane's counters."""
        peer = self.sessions.get(session_id)
        if peer is not None and index == peer.keys.index and at_ms > peer.heard_ms:
            peer.confirmed = True
            self._heard(peer, at_ms)

    def store_result(self, now_ms: float, token: int, outcome: Stored) -> None:
        """The answer to a Swap."""
        follow = self._swaps.pop(token, None)
        if follow is not None:
            follow(now_ms, outcome)

    def keys_lost(self, now_ms: float) -> None:
        """The data plane lost its keys: every client is asked to bind a new epoch."""
        for peer in self.sessions.values():
            self._hint(now_ms, peer, peer.origin)

    def terminate(self, now_ms: float, session_id: bytes) -> bool:
        """The operator ends a session. False if there is none of this id."""
        peer = self.sessions.get(session_id)
        if peer is None:
            return False
        self._end(now_ms, peer, Event.OPERATOR_TERMINATED, Reason.OPERATOR_TERMINATION)
        return True

    def timer(self, now_ms: float) -> None:
        """Time has passed."""
        for peer in list(self.sessions.values()):
            for index, (_, until_ms) in list(peer.draining.items()):
                if until_ms <= now_ms:
                    self._release_index(peer, index)
        if now_ms < self._scan_ms:
            return
        self._scan_ms = now_ms + c.SCAN_MS
        self._forget_old_offers(now_ms)
        for peer in list(self.sessions.values()):
            self._judge(now_ms, peer)

    # --- birth and rekey ---

    def _on_init(self, now_ms: float, origin: Origin, packet: bytes) -> None:
        init = self._handshake.decode(packet)
        if init is None:
            self._count("bad INIT")
            return
        if self._admission.wants_cookie(now_ms, origin, init.cookie):
            cookie = self._admission.cookie(now_ms, origin)
            self._effects.append(Send(origin, encode_retry(init.index, cookie)))
            return
        if not self._admission.admits(now_ms, origin):
            self._abuse(now_ms, Reason.SEC_ABUSE_CONTROL_PLANE, origin, "handshake rate")
            return
        self._admission.count_exchange(now_ms)
        opened = self._handshake.open(init)
        if opened is None:
            self._count("bad INIT")
            return
        entry = self._clients.get(opened.client_public)
        if entry is None:
            self._abuse(now_ms, Reason.AUTH_FAIL, origin, "unknown client key")
            return
        if opened.payload.timestamp <= self._timestamps.get(entry.public_key, 0):
            self._abuse(now_ms, Reason.SEC_REPLAY_ATTEMPT, origin, f"old INIT of {entry.name}")
            return
        self._timestamps[entry.public_key] = opened.payload.timestamp
        self._answer_init(now_ms, origin, entry, opened)

    def _answer_init(
        self, now_ms: float, origin: Origin, entry: ClientEntry, opened: OpenedInit
    ) -> None:
        payload = opened.payload
        if payload.transport not in self.policy.allowed_transports:
            self._abuse(now_ms, Reason.POLICY_DENY, origin, f"transport {payload.transport}")
            return
        rekeyed = self.sessions.get(payload.session_id)
        if payload.session_id != NO_SESSION and (
            rekeyed is None
            or rekeyed.entry is not entry
            or payload.attempt <= rekeyed.session.attempt
        ):
            self._count("rekey of an unknown session")
            return
        try:
            secret, ciphertext = self._entropy.encapsulate(payload.kem_public)
        except ValueError:
            self._count("bad INIT")
            return
        session_id = rekeyed.session.id if rekeyed else self._entropy.draw(16)
        assert session_id is not None
        suite = self._suite(payload.capabilities)
        index, next_index = self._new_index(), self._new_index()
        ticket = Ticket(session_id, 0, next_index).seal(self._ticket_key, self._nonce())
        welcome = Welcome(
            session_id,
            rekeyed.session.suite if rekeyed else suite,
            index,
            rekeyed.session.state_version if rekeyed else 1,
            ticket,
            next_index,
            keys.reset_key(self._secret, session_id),
            ciphertext,
            self._bounds(),
            entry.addresses,
        )
        packet, root, epoch = self._handshake.respond(opened, entry.psk, welcome, secret)
        offer = Offer(
            entry,
            origin,
            payload.path_number,
            payload.transport,
            epoch,
            epoch.channel(),
            root,
            welcome.suite,
            session_id,
            payload.supersedes,
            next_index,
            payload.timestamp,
            now_ms,
        )
        self._limit_offers(entry)
        self._by_index[index] = offer
        self._effects += [Expect(index), Send(origin, packet)]

    def _suite(self, capabilities: int) -> Suite:
        both = self._has_aes and bool(capabilities & CAPABILITY_AES)
        return Suite.AES_256_GCM if both else Suite.CHACHA20_POLY1305

    def _offers(self) -> list[Offer]:
        return [entry for entry in self._by_index.values() if isinstance(entry, Offer)]

    def _limit_offers(self, entry: ClientEntry) -> None:
        mine = [offer for offer in self._offers() if offer.entry is entry]
        for offer in mine[: max(0, len(mine) - c.MAX_PENDING_INITS + 1)]:
            self._drop_offer(offer)

    def _drop_offer(self, offer: Offer) -> None:
        self._by_index.pop(offer.keys.index, None)
        self._reserved -= {offer.keys.index, offer.next_index}
        self._effects.append(Unexpect(offer.keys.index))

    def _forget_old_offers(self, now_ms: float) -> None:
        for offer in self._offers():
            if now_ms - offer.made_ms > c.HANDSHAKE_TIMEOUT_MS and not offer.confirming:
                self._drop_offer(offer)

    def _confirm(self, now_ms: float, offer: Offer, origin: Origin, body: bytes) -> None:
        """The client has shown that it holds the keys: the birth or the rekey takes effect, and
        the message that showed it is answered."""
        offer.confirming = True
        peer = self.sessions.get(offer.session_id)
        if peer is not None:
            if offer.keys.epoch > peer.session.epoch:
                self._confirm_rekey(now_ms, peer, offer)
                self._on_message(now_ms, peer, origin, body)
            return
        session = Session(
            offer.session_id,
            offer.entry.name,
            now_ms,
            root=offer.root,
            suite=offer.suite,
            addresses=offer.entry.addresses,
            epoch=offer.keys.epoch,
            attempt=offer.keys.epoch,
            entered_ms=now_ms,
        )
        born = Peer(
            session,
            offer.entry,
            offer.origin,
            offer.path_number,
            offer.transport,
            offer.keys,
            offer.channel,
            offer.next_index,
            now_ms,
            now_ms,
            offer.timestamp,
        )
        record = born.record(self.node, State.ATTACHED, 1, session.epoch, session.attempt)

        def stored(later_ms: float, outcome: Stored) -> None:
            self._drop_offer_index_only(offer)
            if outcome is Stored.OK:
                self._born(later_ms, born, offer)
                self._on_message(later_ms, born, origin, body)
            else:
                self._store_failed(born, outcome)

        self._swap(born, 0, record, stored)

    def _drop_offer_index_only(self, offer: Offer) -> None:
        if self._by_index.get(offer.keys.index) is offer:
            del self._by_index[offer.keys.index]

    def _born(self, now_ms: float, peer: Peer, offer: Offer) -> None:
        session = peer.session
        assert session.id is not None
        for other in self._offers():
            if other.entry is offer.entry:
                self._drop_offer(other)
        for old in [p for p in self.sessions.values() if p.entry is peer.entry]:
            self._end(now_ms, old, Event.SUPERSEDED, Reason.SUPERSEDED)
        self.sessions[session.id] = peer
        self._by_index[peer.keys.index] = peer
        self._reserved.add(peer.next_index)
        self._machine.note(
            session,
            "SESSION_CREATED",
            Reason.HANDSHAKE_OK,
            {
                "supersedes": offer.supersedes.hex() if offer.supersedes != NO_SESSION else None,
                "remote": str(peer.origin),
                "suite": session.suite.name,
            },
        )
        self._machine.fire(
            session, Event.HANDSHAKE_ACCEPTED, now_ms, {"remote": str(peer.origin)}
        )
        self._effects.append(SessionUp(session.id, session.addresses, peer.entry.networks))
        self._bind(peer)

    def _confirm_rekey(self, now_ms: float, peer: Peer, offer: Offer) -> None:
        session = peer.session
        session.rekeys += 1
        session.root = offer.root
        session.epoch = session.attempt = offer.keys.epoch
        self._drain_epoch(now_ms, peer)
        self._reserved.discard(peer.next_index)
        self._effects.append(Unexpect(peer.next_index))
        peer.keys, peer.channel, peer.next_index = offer.keys, offer.channel, offer.next_index
        peer.issue, peer.anchor_ms, peer.timestamp = 0, now_ms, offer.timestamp
        self._reserved.add(peer.next_index)
        self._by_index[peer.keys.index] = peer
        self._machine.note(session, "REKEY", Reason.HANDSHAKE_OK, {"epoch": session.epoch})
        self._bind(peer)
        self._write_behind(peer)

    def _bind(self, peer: Peer) -> None:
        """Install the peer's present epoch in the data plane, both ways."""
        session, epoch = peer.session, peer.keys
        assert session.id is not None
        self._effects += [
            BindReceive(session.id, epoch.index, session.suite, epoch.receive.data, peer.origin),
            BindSend(session.id, epoch.peer_index, session.suite, epoch.send.data, peer.origin),
            Expect(peer.next_index),
        ]

    # --- control packets ---

    def _on_control(self, now_ms: float, origin: Origin, packet: bytes) -> None:
        header = decode_sealed_header(packet)
        holder = self._by_index.get(header.index) if header else None
        if header is None or holder is None:
            self._count("unknown index")
            return
        channel = holder.channel
        if isinstance(holder, Peer) and header.index in holder.draining:
            channel = holder.draining[header.index][0]
        body = channel.open(packet, header)
        if not body:
            self._count("bad CONTROL")
            return
        if isinstance(holder, Offer):
            if not holder.confirming:
                self._confirm(now_ms, holder, origin, body)
            return
        if channel is holder.channel:
            holder.confirmed = True
        self._heard(holder, now_ms)
        self._on_message(now_ms, holder, origin, body)

    def _on_message(self, now_ms: float, peer: Peer, origin: Origin, body: bytes) -> None:
        if body[0] == Control.PROBE:
            probe = decode_probe(body)
            if probe is None:
                self._count("bad CONTROL")
                return
            reply = peer.channel.seal(probe.encode(Control.PROBE_REPLY))
            self._effects.append(Send(origin, reply))
            moved = probe.path_number == peer.path_number and origin != peer.origin
            if moved or peer.session.state not in LIVE:
                self._hint(now_ms, peer, origin)
        elif body[0] == Control.CLOSE and len(body) == 2:
            word = reason_from_wire(body[1])
            expired = word == Reason.TTL_SESSION_EXPIRED
            event = Event.SESSION_TTL_OVER if expired else Event.OPERATOR_TERMINATED
            self._end(now_ms, peer, event, None)
        else:
            self._count("bad CONTROL")

    def _hint(self, now_ms: float, peer: Peer, origin: Origin) -> None:
        """Ask the client to bind the address it is heard from; nothing moves by itself."""
        if now_ms - peer.hinted_ms >= c.HINT_GAP_MS:
            peer.hinted_ms = now_ms
            self._effects.append(Send(origin, peer.channel.seal(bytes([Control.REBIND_HINT]))))

    # --- reattach: the checks in the order of docs/protocol.md ---

    def _on_request(self, now_ms: float, origin: Origin, packet: bytes) -> None:
        if not self._admission.admits(now_ms, origin):
            self._abuse(now_ms, Reason.SEC_ABUSE_CONTROL_PLANE, origin, "reattach rate")
            return
        sealed = request_ticket(packet)
        ticket = open_ticket(sealed, self._ticket_key) if sealed else None
        if ticket is None:
            self._count("bad ticket")
            return
        peer = self.sessions.get(ticket.session_id)
        if peer is None:
            ended = self._tombstones.get(ticket.session_id)
            if ended is None:
                reason = Reason.SESSION_NOT_FOUND
            else:  # a superseded client must rest, even if it never heard the CLOSE
                superseded = ended is Reason.SUPERSEDED
                reason = Reason.SUPERSEDED if superseded else Reason.SESSION_EXPIRED
            self._reject(origin, ticket.session_id, packet, reason, None)
            return
        request = self._prove(now_ms, peer, packet)
        if request is None:
            self._abuse(now_ms, Reason.AUTH_FAIL, origin, f"bad proof for {peer.entry.name}")
            return
        if peer.swapping:
            self._count("reattach while one is being stored")
            return
        reason_or_none = self._check(now_ms, peer, origin, packet, ticket, request)
        if reason_or_none is None:
            self._accept(now_ms, peer, origin, packet, ticket, request)

    def _prove(self, now_ms: float, peer: Peer, packet: bytes) -> ReattachRequest | None:
        """The request, if whoever made it knows the session's root (or that of a rekey offered)."""
        body = open_request(packet, keys.proof_key(peer.session.root))
        if body is None:
            for offer in self._offers():
                if offer.session_id == peer.session.id:
                    body = open_request(packet, keys.proof_key(offer.root))
                    if body is not None:
                        self._drop_offer_index_only(offer)
                        self._confirm_rekey(now_ms, peer, offer)
                        break
        return decode_request(body) if body is not None else None

    def _check(
        self,
        now_ms: float,
        peer: Peer,
        origin: Origin,
        packet: bytes,
        ticket: Ticket,
        request: ReattachRequest,
    ) -> Reason | None:
        """None if the request may bind; otherwise it has been answered and audited."""
        session = peer.session
        assert session.id is not None
        tag = request_tag(packet)
        if request.attempt <= session.attempt:
            seen_from = peer.remembers(tag)
            if seen_from == origin:
                self._count("duplicate request")
                return Reason.REPLAY_DETECTED
            reason = Reason.REPLAY_DETECTED if seen_from else Reason.FRESHNESS_INVALID
            self._reject(origin, session.id, packet, reason, peer)
            if seen_from and self._admission.may_audit(now_ms):
                self._machine.note(
                    session,
                    "SECURITY_EVENT",
                    Reason.SEC_REPLAY_ATTEMPT,
                    {"remote": str(origin), "attempt": request.attempt},
                )
            return reason
        refusal = self._refusal(now_ms, peer, ticket, request)
        if refusal is not None:
            session.attempt = request.attempt
            peer.requests.append((tag, origin))
            self._reject(origin, session.id, packet, refusal, peer)
        return refusal

    def _refusal(
        self, now_ms: float, peer: Peer, ticket: Ticket, request: ReattachRequest
    ) -> Reason | None:
        session, policy = peer.session, self.policy
        age_ms = (now_ms - peer.anchor_ms) - request.sent_ms
        if abs(age_ms) > policy.proof_max_age_ms:
            return Reason.FRESHNESS_INVALID
        if ticket.next_index not in (peer.next_index, peer.keys.index):
            return Reason.FRESHNESS_INVALID
        if request.transport not in policy.allowed_transports:
            return Reason.POLICY_DENY
        if peer.confirmed and not session.may_switch(now_ms, policy):
            return Reason.RATE_LIMITED
        last = session.switched_at_ms[-1] if session.switched_at_ms else None
        cooling = last is not None and now_ms - last < policy.switch_cooldown_ms
        if request.cause == Cause.SWITCH and cooling:
            return Reason.POLICY_DENY
        return None

    def _accept(
        self,
        now_ms: float,
        peer: Peer,
        origin: Origin,
        packet: bytes,
        ticket: Ticket,
        request: ReattachRequest,
    ) -> None:
        """One compare-and-swap decides; only then is anything bound or answered."""
        session = peer.session
        details: dict[str, object] = {
            "attempt": request.attempt,
            "cause": Cause(request.cause).name,
            "remote": str(origin),
        }
        if session.state is not State.RECOVERING:
            event = {
                Cause.NAT_REBIND: Event.NAT_REBOUND,
                Cause.SWITCH: Event.SWITCH_ORDERED,
            }.get(Cause(request.cause), Event.TRANSPORT_DIED)
            if session.state is State.DEGRADED:
                event = Event.CANDIDATE_VIABLE
            self._machine.fire(session, event, now_ms, details)
        version = session.state_version + 1
        record = peer.record(
            self.node, State.ATTACHED, version, request.attempt, request.attempt
        )
        peer.swapping = True

        def stored(later_ms: float, outcome: Stored) -> None:
            peer.swapping = False
            if session.state is not State.RECOVERING:
                return
            session.attempt = request.attempt
            peer.requests.append((request_tag(packet), origin))
            if outcome is Stored.OK:
                self._reattached(later_ms, peer, origin, ticket, request, details)
            else:
                assert session.id is not None
                self._reject(origin, session.id, packet, Reason.OWNERSHIP_CONFLICT, peer)
                self._store_failed(peer, outcome)

        self._swap(peer, peer.stored_version, record, stored)

    def _reattached(
        self,
        now_ms: float,
        peer: Peer,
        origin: Origin,
        ticket: Ticket,
        request: ReattachRequest,
        details: dict[str, object],
    ) -> None:
        session = peer.session
        assert session.id is not None
        nonce = self._entropy.draw(32)
        if ticket.next_index != peer.keys.index:
            self._drain_epoch(now_ms, peer)
        session.epoch = request.attempt
        if peer.confirmed:
            session.count_switch(now_ms)
        peer.keys = EpochKeys(
            request.attempt,
            ticket.next_index,
            request.receive_index,
            keys.gateway_to_client(session.root, request.attempt, request.client_nonce, nonce),
            keys.client_to_gateway(session.root, request.attempt, request.client_nonce),
        )
        peer.channel = peer.keys.channel()
        peer.origin, peer.transport = origin, request.transport
        peer.path_number, peer.confirmed, peer.heard_ms = request.path_number, False, now_ms
        self._by_index[peer.keys.index] = peer
        if ticket.next_index == peer.next_index:
            peer.next_index = self._new_index()
        peer.issue += 1
        self._send_ack(peer, request, nonce)
        details = {**details, "epoch": session.epoch}
        self._machine.note(session, "REATTACH_RESULT", Reason.REATTACH_ACCEPT, details)
        self._machine.note(session, "TRANSPORT_SWITCH", Reason.TRANSPORT_SWITCH_OK, details)
        self._machine.fire(session, Event.REATTACH_ACCEPTED, now_ms, details)
        self._bind(peer)

    def _send_ack(self, peer: Peer, request: ReattachRequest, nonce: bytes) -> None:
        session = peer.session
        assert session.id is not None
        ticket = Ticket(session.id, peer.issue, peer.next_index)
        body = ReattachAck(
            request.attempt,
            nonce,
            session.state_version + 1,
            ticket.seal(self._ticket_key, self._nonce()),
            peer.next_index,
        )
        clear = clear_part(Response(request.receive_index, b"").encode(PacketType.REATTACH_ACK))
        key = keys.ack_key(session.root, request.attempt, request.client_nonce)
        sealed = seal(key, self._entropy.draw(XNONCE_LEN), body.encode(), clear)
        self._effects.append(Send(peer.origin, clear + sealed))

    def _reject(
        self, origin: Origin, session_id: bytes, packet: bytes, reason: Reason, peer: Peer | None
    ) -> None:
        """A small, proven answer: its MAC is over exactly this request."""
        key = keys.reset_key(self._secret, session_id)
        answer = encode_reject(request_tag(packet), reason_to_wire(reason), key)
        self._effects.append(Send(origin, answer))
        self._effects.append(
            Emit(
                "REATTACH_RESULT",
                reason,
                session_id,
                peer.entry.name if peer else None,
                state_version=peer.session.state_version if peer else None,
                details={"remote": str(origin)},
            )
        )

    # --- health and the end ---

    @staticmethod
    def _heard(peer: Peer, at_ms: float) -> None:
        peer.heard_ms = max(peer.heard_ms, at_ms)

    def _judge(self, now_ms: float, peer: Peer) -> None:
        session, policy = peer.session, self.policy
        silence_ms = now_ms - peer.heard_ms
        if now_ms - session.created_ms >= policy.session_ttl_ms:
            self._end(now_ms, peer, Event.SESSION_TTL_OVER, Reason.TTL_SESSION_EXPIRED)
        elif (
            session.lost_since_ms is not None
            and now_ms - session.lost_since_ms >= policy.transport_loss_ttl_ms
        ):
            reason = Reason.TTL_TRANSPORT_LOSS_EXPIRED
            self._end(now_ms, peer, Event.TRANSPORT_LOSS_TTL_OVER, reason)
        elif session.state in LIVE:
            self._judge_live(now_ms, peer, silence_ms)
        elif session.state is State.RECOVERING and not peer.swapping:
            if now_ms - session.entered_ms >= policy.max_recovery_window_ms:
                self._fire_stored(now_ms, peer, Event.RECOVERY_WINDOW_OVER)

    def _judge_live(self, now_ms: float, peer: Peer, silence_ms: float) -> None:
        session, policy = peer.session, self.policy
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
        if self._machine.fire(peer.session, event, now_ms, details):
            self._write_behind(peer)

    def _end(self, now_ms: float, peer: Peer, event: Event, tell: Reason | None) -> None:
        session = peer.session
        assert session.id is not None
        if tell is not None:
            body = bytes([Control.CLOSE, reason_to_wire(tell)])
            self._effects.append(Send(peer.origin, peer.channel.seal(body)))
        self._machine.fire(session, event, now_ms)
        self._effects.append(ReleaseSend(session.id))
        for index in list(peer.draining):
            self._release_index(peer, index)
        self._by_index.pop(peer.keys.index, None)
        self._reserved -= {peer.next_index, peer.keys.index}
        self._effects += [
            ReleaseReceive(peer.keys.index),
            Unexpect(peer.next_index),
            SessionDown(session.id),
        ]
        del self.sessions[session.id]
        self._tombstones[session.id] = tell or Reason.OPERATOR_TERMINATION
        while len(self._tombstones) > c.MAX_TOMBSTONES:
            self._tombstones.popitem(last=False)
        self._write_behind(peer)

    def _drain_epoch(self, now_ms: float, peer: Peer) -> None:
        """The present epoch is received a little longer; it never sends again."""
        peer.draining[peer.keys.index] = (peer.channel, now_ms + self.policy.drain_ms)

    def _release_index(self, peer: Peer, index: int) -> None:
        del peer.draining[index]
        self._by_index.pop(index, None)
        self._reserved.discard(index)
        self._effects.append(ReleaseReceive(index))

    # --- the session table ---

    def _swap(
        self,
        peer: Peer,
        expected: int,
        record: Mapping[str, object],
        follow: Callable[[float, Stored], None],
    ) -> None:
        session_id = peer.session.id
        assert session_id is not None
        version = record["state_version"]
        assert isinstance(version, int)

        def keep(now_ms: float, outcome: Stored) -> None:
            if outcome is Stored.OK:
                peer.stored_version = version
            follow(now_ms, outcome)

        self._token += 1
        self._swaps[self._token] = keep
        self._effects.append(Swap(self._token, session_id, expected, record))

    def _write_behind(self, peer: Peer) -> None:
        """Tell the table of a change that bound nothing new."""
        session = peer.session
        record = peer.record(
            self.node, session.state, session.state_version, session.epoch, session.attempt
        )

        def stored(_: float, outcome: Stored) -> None:
            if outcome is not Stored.OK:
                self._store_failed(peer, outcome)

        self._swap(peer, peer.stored_version, record, stored)

    def _store_failed(self, peer: Peer, outcome: Stored) -> None:
        self._machine.note(
            peer.session, "OWNERSHIP", Reason.SEC_OWNERSHIP_ANOMALY, {"store": outcome.value}
        )

    # --- small things ---

    def _bounds(self) -> PolicyBounds:
        names = [name for name in PolicyBounds.__slots__ if name != "version"]
        return PolicyBounds(
            self.policy.version, **{name: getattr(self.policy, name) for name in names}
        )

    def _new_index(self) -> int:
        while True:
            index = int.from_bytes(self._entropy.draw(4), "little")
            if index not in self._by_index and index not in self._reserved:
                self._reserved.add(index)
                return index

    def _nonce(self) -> bytes:
        return self._entropy.draw(24)

    def _count(self, cause: str) -> None:
        self.dropped[cause] = self.dropped.get(cause, 0) + 1

    def _abuse(self, now_ms: float, reason: Reason, origin: Origin, what: str) -> None:
        """Count it, and audit it at a bounded rate."""
        self._count(what.split(" of ")[0])
        if self._admission.may_audit(now_ms):
            self._effects.append(
                Emit("SECURITY_EVENT", reason, details={"remote": str(origin), "what": what})
            )
