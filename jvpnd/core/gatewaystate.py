"""What the parts of a gateway share: sessions, receiver indexes, the session table's answers."""

from __future__ import annotations

import heapq
from collections import OrderedDict

from jvpnd.core import constants as c
from jvpnd.core.admission import Admission
from jvpnd.core.effects import (
    BindReceive,
    BindSend,
    Effect,
    Emit,
    Expect,
    Load,
    Origin,
    ReleaseReceive,
    ReleaseSend,
    Send,
    SessionDown,
    Swap,
    Unexpect,
)
from jvpnd.core.entropy import Entropy
from jvpnd.core.limits import Limits
from jvpnd.core.messages import (
    Control,
    reason_to_wire,
)
from jvpnd.core.nodes import NO_NODE, Sharing, node_tag
from jvpnd.core.peer import Follow, Future, Loaded, Offer, Peer, Stored
from jvpnd.core.policy import Policy
from jvpnd.core.reasons import Reason
from jvpnd.core.record import row_of
from jvpnd.core.session import Machine
from jvpnd.core.sessionrow import Row, owner_of, version_of
from jvpnd.core.states import Event, State


class GatewayState:
    """Every session of one node, and what holds for all of them."""

    def __init__(
        self,
        node: str,
        secret: bytes,
        policy: Policy,
        entropy: Entropy,
        limits: Limits,
        sharing: Sharing = Sharing.ALONE,
    ) -> None:
        self.node = node
        self.sharing = sharing
        self.tag = NO_NODE if sharing is Sharing.ALONE else node_tag(node)
        self.is_draining = False  # takes no session from others, and gives away those that it has
        self.store_seen_ms: float | None = None  # when the shared table was reached last
        self.secret = secret
        self.policy = policy
        self.entropy = entropy
        self.limits = limits
        self.admission = Admission(entropy.draw(32))
        self.effects: list[Effect] = []
        self.machine = Machine(self.effects)
        self.sessions: dict[bytes, Peer] = {}
        self.of_client: dict[bytes, Peer] = {}  # by public key
        self.offers: dict[int, Offer] = {}  # by receiver index, the oldest first
        self.by_index: dict[int, Peer | Offer] = {}
        self.awaited: set[bytes] = set()  # bound until a restart, and expected back at once
        self.reserved: set[int] = set()  # next indexes, announced but not bound
        self.tombstones: OrderedDict[bytes, Reason] = OrderedDict()
        self.swaps: dict[int, Follow] = {}
        self.loads: dict[int, Loaded] = {}
        self.token = 0
        self.drains: list[tuple[float, int]] = []  # a heap: when each old epoch is released
        self.dropped: dict[str, int] = {}

    def admit(self, peer: Peer) -> None:
        """A session of this node from now on."""
        assert peer.session.id is not None
        self.sessions[peer.session.id] = self.of_client[peer.entry.public_key] = peer
        self.by_index[peer.keys.index] = peer
        self.reserved.add(peer.next_index)

    def bind(self, peer: Peer) -> None:
        """Install the peer's present epoch in the data plane, both ways."""
        session, epoch = peer.session, peer.keys
        assert session.id is not None
        self.effects += [
            BindReceive(session.id, epoch.index, session.suite, epoch.receive.data, peer.origin),
            BindSend(session.id, epoch.peer_index, session.suite, epoch.send.data, peer.origin),
            Expect(peer.next_index),
        ]

    def drain_epoch(self, now_ms: float, peer: Peer) -> None:
        """The present epoch is received a little longer; it never sends again."""
        until_ms = now_ms + self.policy.drain_ms
        peer.draining[peer.keys.index] = (peer.channel, until_ms)
        heapq.heappush(self.drains, (until_ms, peer.keys.index))

    def end_drains(self, now_ms: float) -> None:
        """Release the old epochs whose time is over."""
        while self.drains and self.drains[0][0] <= now_ms:
            until_ms, index = heapq.heappop(self.drains)
            peer = self.by_index.get(index)
            if isinstance(peer, Peer) and peer.draining.get(index, (None, None))[1] == until_ms:
                self.release_index(peer, index)

    def release_index(self, peer: Peer, index: int) -> None:
        peer.draining.pop(index, None)
        self.by_index.pop(index, None)
        self.reserved.discard(index)
        self.effects.append(ReleaseReceive(index))

    def forget_former(self, session_id: bytes, index: int) -> None:
        """The index drains for a session that was ours until just now, and is about to be again."""
        peer = self.by_index.get(index)
        if isinstance(peer, Peer) and peer.is_fenced and peer.session.id == session_id:
            self.release_index(peer, index)

    def add_offer(self, offer: Offer) -> None:
        self.offers[offer.keys.index] = self.by_index[offer.keys.index] = offer

    def forget_offer(self, offer: Offer) -> None:
        """It has become a session, or the new root of one."""
        if self.offers.pop(offer.keys.index, None) is not None:
            del self.by_index[offer.keys.index]

    def drop_offer(self, offer: Offer) -> None:
        self.forget_offer(offer)
        self.reserved -= {offer.keys.index, offer.next_index}
        self.effects.append(Unexpect(offer.keys.index))

    def hint(self, now_ms: float, peer: Peer, origin: Origin) -> None:
        """Ask the client to bind the address it is heard from; nothing moves by itself."""
        if now_ms - peer.hinted_ms >= c.HINT_GAP_MS and not peer.is_fenced:
            peer.hinted_ms = now_ms
            self.effects.append(Send(origin, peer.channel.seal(bytes([Control.REBIND_HINT]))))

    @staticmethod
    def heard(peer: Peer, at_ms: float) -> None:
        peer.heard_ms = max(peer.heard_ms, at_ms)

    def end(self, now_ms: float, peer: Peer, event: Event, tell: Reason | None) -> None:
        session = peer.session
        assert session.id is not None
        if tell is not None:
            body = bytes([Control.CLOSE, reason_to_wire(tell)])
            self.effects.append(Send(peer.origin, peer.channel.seal(body)))
        self.machine.fire(session, event, now_ms)
        self._release(peer)
        self.tombstones[session.id] = peer.ended = tell or Reason.OPERATOR_TERMINATION
        while len(self.tombstones) > c.MAX_TOMBSTONES:
            self.tombstones.popitem(last=False)
        self.write_behind(now_ms, peer)

    def let_go(self, now_ms: float, peer: Peer, event: Event, details: dict[str, object]) -> None:
        """Serve the session no more, at once: what the table says of it is another's affair."""
        peer.is_fenced = True
        self.machine.fire(peer.session, event, now_ms, details)
        self._release(peer)

    def _release(self, peer: Peer) -> None:
        self._stop_sending(peer)
        for index in list(peer.draining):
            self.release_index(peer, index)
        self.by_index.pop(peer.keys.index, None)
        self.reserved.discard(peer.keys.index)
        self.effects.append(ReleaseReceive(peer.keys.index))

    def _stop_sending(self, peer: Peer) -> None:
        session = peer.session
        assert session.id is not None
        self.effects.append(ReleaseSend(session.id))
        for offer in list(self.offers.values()):  # no late rekey brings it back
            if offer.session_id == session.id:
                self.drop_offer(offer)
        self.reserved.discard(peer.next_index)
        self.effects += [Unexpect(peer.next_index), SessionDown(session.id)]
        del self.sessions[session.id]
        self.awaited.discard(session.id)
        if self.of_client.get(peer.entry.public_key) is peer:
            del self.of_client[peer.entry.public_key]

    def swap(self, now_ms: float, peer: Peer, future: Future, follow: Follow) -> None:
        """Write what the peer is about to be, behind the writes that are under way: each knows what
        it follows."""
        peer.writes += ((future, follow),)
        if len(peer.writes) == 1:
            self._write_first(now_ms, peer)

    def _write_first(self, now_ms: float, peer: Peer, tries: int = 1) -> None:
        future = None if peer.is_fenced else peer.writes[0][0]()
        if future is None:
            self._written(now_ms, peer, None, 0)
            return
        assert peer.session.id is not None
        # Above what it replaces, whatever the row says: nobody takes one row for another.
        version = max(future.session.state_version, peer.stored_version + 1)
        self.token += 1
        self.swaps[self.token] = lambda at_ms, outcome: self._answered(
            at_ms, peer, outcome, version, tries
        )
        row = {**row_of(future, self.node), "state_version": version}
        self.effects.append(Swap(self.token, peer.session.id, peer.stored_version, row))

    def _answered(
        self, now_ms: float, peer: Peer, outcome: Stored | None, version: int, tries: int
    ) -> None:
        """What is refused may have been written already, by a try of ours whose answer was lost; or
        another node owns the session."""
        shared = self.sharing is Sharing.STORE and not peer.is_visiting
        if outcome is not Stored.CONFLICT or not shared or peer.is_fenced:
            self._written(now_ms, peer, outcome, version)
            return

        def loaded(at_ms: float, row: Row | None, read: Stored) -> None:
            if peer.is_fenced:  # it was heard of meanwhile
                self._written(at_ms, peer, Stored.CONFLICT, version)
            elif read is not Stored.OK or tries == c.STORE_TRIES:
                self._written(at_ms, peer, Stored.UNAVAILABLE, version)
            elif row is not None and row.get("owner") == self.node:
                peer.stored_version = version_of(row)
                self._write_first(at_ms, peer, tries + 1)
            else:
                self.lost_to(at_ms, peer, owner_of(row))
                self._written(at_ms, peer, Stored.CONFLICT, version)

        assert peer.session.id is not None
        self.load(peer.session.id, loaded)

    def lost_to(self, now_ms: float, peer: Peer, owner: str) -> None:
        """The table says that another node owns the session: stop at once. What the client sent
        before it knew is received for as long as any old epoch."""
        if peer.session.state is State.TERMINATED:
            peer.is_fenced = True
            return
        details: dict[str, object] = {"what": "lost", "owner": owner}
        self.machine.note(peer.session, "OWNERSHIP", Reason.OWNER_MOVED, details)
        peer.is_fenced = True
        self.machine.fire(peer.session, Event.OWNER_MOVED, now_ms, {"owner": owner})
        self._stop_sending(peer)
        self.drain_epoch(now_ms, peer)

    def load(self, session_id: bytes, follow: Loaded) -> None:
        """Have the session's row read."""
        self.token += 1
        self.loads[self.token] = follow
        self.effects.append(Load(self.token, session_id))

    def _written(self, now_ms: float, peer: Peer, outcome: Stored | None, version: int) -> None:
        if outcome is Stored.OK:
            peer.stored_version = version
        peer.writes[0][1](now_ms, outcome)
        peer.writes = peer.writes[1:]
        if peer.writes:
            self._write_first(now_ms, peer)

    def write_behind(self, now_ms: float, peer: Peer) -> None:
        """Tell the table of a change that bound nothing new."""

        def stored(_: float, outcome: Stored | None) -> None:
            if outcome not in (Stored.OK, None) and not peer.is_fenced:
                self.store_failed(peer, outcome)

        self.swap(now_ms, peer, lambda: peer, stored)

    def store_failed(self, peer: Peer, outcome: Stored) -> None:
        details: dict[str, object] = {"store": outcome.value}
        self.machine.note(peer.session, "OWNERSHIP", Reason.SEC_OWNERSHIP_ANOMALY, details)

    def new_index(self) -> int:
        while True:
            index = int.from_bytes(self.entropy.draw(4), "little")
            if index not in self.by_index and index not in self.reserved:
                self.reserved.add(index)
                return index

    def nonce(self) -> bytes:
        return self.entropy.draw(24)

    def count(self, cause: str) -> None:
        self.dropped[cause] = self.dropped.get(cause, 0) + 1

    def abuse(self, now_ms: float, reason: Reason, origin: Origin, what: str) -> None:
        """Count it, and audit it at a bounded rate."""
        self.count(what.split(" of ")[0])
        if self.admission.may_audit(now_ms):
            self.effects.append(
                Emit("SECURITY_EVENT", reason, details={"remote": str(origin), "what": what})
            )
