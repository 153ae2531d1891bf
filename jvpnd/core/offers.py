"""How a gateway comes by sessions: INITs in, offers out, and the client's confirmation.

Strangers cost it a MAC, then a token, then (under load) a cookie, before any key exchange. An offer
is no session: only the client's first packet under the new keys makes it one, or makes the new root
of the one there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeAlias

from jvpnd.core import constants as c
from jvpnd.core import keys
from jvpnd.core.effects import (
    Endpoint,
    Expect,
    Origin,
    Send,
    SessionUp,
    Unexpect,
)
from jvpnd.core.gatewaystate import GatewayState
from jvpnd.core.handshake import GatewayHandshake, OpenedInit
from jvpnd.core.messages import (
    CAPABILITY_AES,
    MAX_ENDPOINTS,
    NO_SESSION,
    PolicyBounds,
    Welcome,
)
from jvpnd.core.packets import Init, encode_retry
from jvpnd.core.peer import ClientEntry, Offer, Peer, Stored
from jvpnd.core.reasons import Reason
from jvpnd.core.session import Session
from jvpnd.core.states import Event, State
from jvpnd.core.ticket import Ticket
from jvpnd.core.wire import Suite

# Answers the message that confirmed an offer.
Reply: TypeAlias = Callable[[float, Peer], None]
Then: TypeAlias = Callable[[float], None]


class Offers:
    """Answered INITs that wait for their client."""

    def __init__(
        self,
        state: GatewayState,
        clients: Iterable[ClientEntry],
        has_aes: bool,
        endpoints: tuple[Endpoint, ...],
    ) -> None:
        self._state = state
        self._endpoints = endpoints
        self.others: tuple[Endpoint, ...] = ()  # of the other nodes of the cluster
        self.clients = {entry.public_key: entry for entry in clients}
        self._names: dict[str, bytes] = {}  # the same by name, made when it is asked for
        self._has_aes = has_aes
        self._handshake = GatewayHandshake(state.secret, state.entropy)
        self._ticket_key = keys.ticket_key(state.secret)
        self._newest: dict[bytes, tuple[int, Origin]] = {}  # INIT of each client: timestamp, source
        self._births = 0  # sessions that the table is being told of

    def on_init(self, now_ms: float, origin: Origin, packet: bytes) -> None:
        init = self._handshake.decode(packet)
        if init is None:
            self._state.count("bad INIT")
            return
        admission = self._state.admission
        proven = admission.has_cookie(now_ms, origin, init.cookie)
        if not proven and admission.is_loaded(now_ms):
            self._ask_for_cookie(now_ms, origin, init)
            return
        if not admission.admits(now_ms, origin, proven):
            self._state.abuse(now_ms, Reason.SEC_ABUSE_CONTROL_PLANE, origin, "handshake rate")
            if not proven:  # perhaps somebody forges its address: this is its way in
                self._ask_for_cookie(now_ms, origin, init)
            return
        admission.count_exchange(now_ms)
        opened = self._handshake.open(init)
        if opened is None:
            self._state.count("bad INIT")
            return
        entry = self.clients.get(opened.client_public)
        if entry is None:
            self._state.abuse(now_ms, Reason.AUTH_FAIL, origin, "unknown client key")
            return
        newest_us, heard_from = self._newest.get(entry.public_key, (0, origin))
        late_us = newest_us - opened.payload.timestamp
        if late_us == 0 and origin == heard_from:
            self._state.count("duplicate INIT")  # the network doubled it
            return
        if 0 < late_us < c.HANDSHAKE_TIMEOUT_MS * 1000:
            self._state.count("late INIT")  # overtaken by another of the same birth
            return
        if late_us >= 0:
            what = f"old INIT of {entry.name}"
            self._state.abuse(now_ms, Reason.SEC_REPLAY_ATTEMPT, origin, what)
            return
        self._newest[entry.public_key] = (opened.payload.timestamp, origin)
        self._answer(now_ms, origin, entry, opened)

    def _ask_for_cookie(self, now_ms: float, origin: Origin, init: Init) -> None:
        cookie = self._state.admission.cookie(now_ms, origin)
        self._state.effects.append(Send(origin, encode_retry(init.index, cookie)))

    def _answer(
        self, now_ms: float, origin: Origin, entry: ClientEntry, opened: OpenedInit
    ) -> None:
        payload = opened.payload
        for transport in (payload.transport, origin.transport):
            if transport not in self._state.policy.allowed_transports:
                self._state.abuse(now_ms, Reason.POLICY_DENY, origin, f"transport {transport}")
                return
        rekeyed = self._state.sessions.get(payload.session_id)
        if payload.session_id != NO_SESSION and (
            rekeyed is None
            or rekeyed.entry is not entry
            or payload.attempt <= rekeyed.session.attempt
        ):
            self._state.count("rekey of an unknown session")
            return
        if self._state.is_draining and rekeyed is None:
            self._state.count("birth while draining")
            return
        if not self._has_place_for(now_ms, origin, entry):
            return
        try:
            secret, ciphertext = self._state.entropy.encapsulate(payload.kem_public)
        except ValueError:
            self._state.count("bad INIT")
            return
        self._limit(entry)
        if not self._has_place_for_offer(now_ms, origin):
            return
        session_id = rekeyed.session.id if rekeyed else self._state.entropy.draw(16)
        assert session_id is not None
        suite = self._suite(payload.capabilities)
        index, next_index = self._state.new_index(), self._state.new_index()
        first = Ticket(session_id, 0, next_index, self._state.tag)
        ticket = first.seal(self._ticket_key, self._state.nonce())
        welcome = Welcome(
            session_id,
            rekeyed.session.suite if rekeyed else suite,
            index,
            rekeyed.session.state_version if rekeyed else 1,
            ticket,
            next_index,
            keys.reset_key(self._state.secret, session_id),
            ciphertext,
            self._bounds(),
            entry.addresses,
            self._allowed_endpoints(),
        )
        packet, root, epoch = self._handshake.respond(opened, entry.psk, welcome, secret)
        offer = Offer(
            entry,
            origin,
            payload.path_number,
            origin.transport,
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
        self._state.add_offer(offer)
        self._state.effects += [Expect(index), Send(origin, packet)]

    def _allowed_endpoints(self) -> tuple[Endpoint, ...]:
        """As many as a client can be told, those of the preferred transports first."""
        allowed = self._state.policy.allowed_transports
        own = [replace(each, node=self._state.tag) for each in self._endpoints]
        found = [each for each in (*own, *self.others) if each.transport in allowed]
        found.sort(key=lambda each: allowed.index(each.transport))
        return tuple(found[:MAX_ENDPOINTS])

    def _suite(self, capabilities: int) -> Suite:
        both = self._has_aes and bool(capabilities & CAPABILITY_AES)
        return Suite.AES_256_GCM if both else Suite.CHACHA20_POLY1305

    def client(self, public_key: bytes | None) -> ClientEntry | None:
        """The client of this key, if the configuration lists it."""
        return self.clients.get(public_key) if public_key is not None else None

    def key_of(self, name: str) -> bytes | None:
        """The public key of the client that the configuration lists under this name."""
        if len(self._names) != len(self.clients):
            self._names = {entry.name: key for key, entry in self.clients.items()}
        return self._names.get(name)

    def relist(self, clients: dict[bytes, ClientEntry]) -> None:
        """The clients, by public key, from now on. Offers to who is no more among them are void."""
        self.clients, self._names = clients, {}
        for gone in self._newest.keys() - clients.keys():
            del self._newest[gone]
        for offer in self.all():
            entry = self.still_listed(offer.entry)
            if entry is not None:
                offer.entry = entry
            elif not offer.confirming:  # else it is seen to once the table has answered
                self._state.drop_offer(offer)

    def still_listed(self, entry: ClientEntry) -> ClientEntry | None:
        """What the list has of this client now; None if what it was given holds no more."""
        now = self.clients.get(entry.public_key)
        if now is None or (now.addresses, now.psk) != (entry.addresses, entry.psk):
            return None
        return now

    def remember(self, peer: Peer) -> None:
        """The INIT of a session from before a restart: it, and older ones, are replays."""
        self._newest[peer.entry.public_key] = (peer.timestamp, peer.origin)

    def all(self) -> list[Offer]:
        return list(self._state.offers.values())

    def _limit(self, entry: ClientEntry) -> None:
        mine = [offer for offer in self.all() if offer.entry is entry]
        for offer in mine[: max(0, len(mine) - c.MAX_PENDING_INITS + 1)]:
            self._state.drop_offer(offer)

    def _has_place_for(self, now_ms: float, origin: Origin, entry: ClientEntry) -> bool:
        """Whether this client may have a session: it takes the place of one that it has."""
        if entry.public_key in self._state.of_client:
            return True
        if len(self._state.sessions) + self._births < self._state.limits.sessions:
            return True
        self._state.abuse(now_ms, Reason.SEC_ABUSE_CONTROL_PLANE, origin, "too many sessions")
        return False

    def _has_place_for_offer(self, now_ms: float, origin: Origin) -> bool:
        """Whether there may be one more; it may cost the oldest birth its place, but no rekey: that
        client has perhaps the answer, and could not prove itself without it."""
        state = self._state
        if len(state.offers) < state.limits.half_open:
            return True
        what = "too many half-open handshakes"
        state.abuse(now_ms, Reason.SEC_ABUSE_CONTROL_PLANE, origin, what)
        for offer in state.offers.values():
            if not offer.confirming and offer.session_id not in state.sessions:
                state.drop_offer(offer)
                return True
        return False

    def forget_old(self, now_ms: float) -> None:
        """Births that nobody confirmed, and rekeys that the session has gone past.

        A rekey may be confirmed late: perhaps its client has the answer, and then lost every path.
        """
        for offer in self.all():
            peer = self._state.sessions.get(offer.session_id)
            if peer is not None:
                over = offer.keys.epoch <= peer.session.attempt
            else:
                over = now_ms - offer.made_ms > c.HANDSHAKE_TIMEOUT_MS and not offer.confirming
            if over:
                self._state.drop_offer(offer)
                if peer is not None:
                    peer.note_root(offer.root)

    def confirm(self, now_ms: float, offer: Offer, reply: Reply) -> None:
        """The client has shown that it holds the keys: the birth or the rekey takes effect, and
        the message that showed it is answered."""
        peer = self._state.sessions.get(offer.session_id)
        if peer is not None:
            if offer.keys.epoch > peer.session.attempt:
                self.confirm_rekey(now_ms, peer, offer, lambda at_ms: reply(at_ms, peer), reply)
            return
        if not self._has_place_for(now_ms, offer.origin, offer.entry):
            self._state.drop_offer(offer)
            return
        offer.confirming = True
        self._births += 1
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
            offer.made_ms,
            now_ms,
            offer.timestamp,
        )
        first = replace(session, state=State.ATTACHED, state_version=1)

        def stored(later_ms: float, outcome: Stored | None) -> None:
            self._births -= 1
            if outcome is Stored.OK:
                self._state.forget_offer(offer)
                born.entry = self.still_listed(offer.entry) or offer.entry
                session.client = born.entry.name
                self._born(later_ms, born, offer)
                reply(later_ms, born)
                if self.still_listed(born.entry) is None:  # the list changed meanwhile
                    event, why = Event.POLICY_TERMINATED, Reason.POLICY_TERMINATION
                    self._state.end(later_ms, born, event, why)
            elif outcome is not None:
                self._state.drop_offer(offer)
                self._state.store_failed(born, outcome)

        self._state.swap(now_ms, born, lambda: replace(born, session=first), stored)

    def _born(self, now_ms: float, peer: Peer, offer: Offer) -> None:
        session = peer.session
        assert session.id is not None
        for other in self.all():
            if other.entry is offer.entry:
                self._state.drop_offer(other)
        old = self._state.of_client.get(peer.entry.public_key)
        if old is not None:
            self._state.end(now_ms, old, Event.SUPERSEDED, Reason.SUPERSEDED)
        self._state.admit(peer)
        where: dict[str, object] = {"remote": str(peer.origin), "transport": peer.transport}
        before = offer.supersedes.hex() if offer.supersedes != NO_SESSION else None
        created = {"supersedes": before, "suite": session.suite.name, **where}
        self._state.machine.note(session, "SESSION_CREATED", Reason.HANDSHAKE_OK, created)
        self._state.machine.fire(session, Event.HANDSHAKE_ACCEPTED, now_ms, {**where})
        self._state.effects.append(SessionUp(session.id, session.addresses, peer.entry.networks))
        self._state.bind(peer)

    def confirm_rekey(
        self, now_ms: float, peer: Peer, offer: Offer, then: Then, otherwise: Reply | None = None
    ) -> None:
        """The new root takes effect once the table has it, and then `then` is called. What the
        table refuses may be confirmed again, a little later; till then the session goes on under
        the root before, and `otherwise` is called."""
        if offer.confirming:
            return
        if now_ms < offer.not_before_ms:
            if otherwise is not None:
                otherwise(now_ms, peer)
            return
        offer.confirming = True
        session = peer.session

        def renewed() -> Peer | None:
            dropped = self._state.offers.get(offer.keys.index) is not offer
            if dropped or offer.keys.epoch <= session.attempt:
                return None
            epoch = offer.keys.epoch
            return replace(
                peer,
                session=replace(
                    session,
                    root=offer.root,
                    epoch=epoch,
                    attempt=epoch,
                    rekeys=session.rekeys + 1,
                ),
                keys=offer.keys,
                next_index=offer.next_index,
                issue=0,
                anchor_ms=offer.made_ms,
                timestamp=offer.timestamp,
            )

        def stored(later_ms: float, outcome: Stored | None) -> None:
            offer.confirming = False
            if outcome is Stored.OK:
                self._rekeyed(later_ms, peer, offer)
                then(later_ms)
            elif outcome is not None:
                self._state.store_failed(peer, outcome)
                offer.not_before_ms = later_ms + c.STORE_RETRY_MS
                if otherwise is not None:
                    otherwise(later_ms, peer)

        self._state.swap(now_ms, peer, renewed, stored)

    def _rekeyed(self, now_ms: float, peer: Peer, offer: Offer) -> None:
        session = peer.session
        session.rekeys += 1
        former, session.root = session.root, offer.root
        peer.note_root(former)
        session.epoch = session.attempt = offer.keys.epoch
        self._state.forget_offer(offer)
        self._state.drain_epoch(now_ms, peer)
        self._state.reserved.discard(peer.next_index)
        self._state.effects.append(Unexpect(peer.next_index))
        peer.keys, peer.channel, peer.next_index = offer.keys, offer.channel, offer.next_index
        peer.issue, peer.anchor_ms, peer.timestamp = 0, offer.made_ms, offer.timestamp
        self._state.reserved.add(peer.next_index)
        self._state.by_index[peer.keys.index] = peer
        self._state.machine.note(session, "REKEY", Reason.HANDSHAKE_OK, {"epoch": session.epoch})
        self._state.bind(peer)

    def _bounds(self) -> PolicyBounds:
        names = [name for name in PolicyBounds.__slots__ if name != "version"]
        return PolicyBounds(
            self._state.policy.version,
            **{name: getattr(self._state.policy, name) for name in names},
        )
