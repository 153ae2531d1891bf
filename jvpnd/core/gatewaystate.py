"""What the parts of a gateway share: sessions, receiver indexes, the session table's answers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from jvpnd.core import constants as c
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
    Swap,
    Unexpect,
)
from jvpnd.core.entropy import Entropy
from jvpnd.core.messages import (
    Control,
    reason_to_wire,
)
from jvpnd.core.peer import Follow, Offer, Peer, Stored
from jvpnd.core.policy import Policy
from jvpnd.core.reasons import Reason
from jvpnd.core.session import Machine
from jvpnd.core.states import Event


class GatewayState:
    """Every session of one node, and what holds for all of them."""

    def __init__(self, node: str, secret: bytes, policy: Policy, entropy: Entropy) -> None:
        self.node = node
        self.secret = secret
        self.policy = policy
        self.entropy = entropy
        self.admission = Admission(entropy.draw(32))
        self.effects: list[Effect] = []
        self.machine = Machine(self.effects)
        self.sessions: dict[bytes, Peer] = {}
        self.by_index: dict[int, Peer | Offer] = {}
        self.reserved: set[int] = set()  # next indexes, announced but not bound
        self.tombstones: OrderedDict[bytes, Reason] = OrderedDict()
        self.swaps: dict[int, Follow] = {}
        self.token = 0
        self.dropped: dict[str, int] = {}

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
        peer.draining[peer.keys.index] = (peer.channel, now_ms + self.policy.drain_ms)

    def release_index(self, peer: Peer, index: int) -> None:
        del peer.draining[index]
        self.by_index.pop(index, None)
        self.reserved.discard(index)
        self.effects.append(ReleaseReceive(index))

    def drop_offer(self, offer: Offer) -> None:
        self.by_index.pop(offer.keys.index, None)
        self.reserved -= {offer.keys.index, offer.next_index}
        self.effects.append(Unexpect(offer.keys.index))

    def hint(self, now_ms: float, peer: Peer, origin: Origin) -> None:
        """Ask the client to bind the address it is heard from; nothing moves by itself."""
        if now_ms - peer.hinted_ms >= c.HINT_GAP_MS:
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
        self.effects.append(ReleaseSend(session.id))
        for index in list(peer.draining):
            self.release_index(peer, index)
        for offer in list(self.by_index.values()):  # no late rekey brings it back
            if isinstance(offer, Offer) and offer.session_id == session.id:
                self.drop_offer(offer)
        self.by_index.pop(peer.keys.index, None)
        self.reserved -= {peer.next_index, peer.keys.index}
        self.effects += [
            ReleaseReceive(peer.keys.index),
            Unexpect(peer.next_index),
            SessionDown(session.id),
        ]
        del self.sessions[session.id]
        self.tombstones[session.id] = tell or Reason.OPERATOR_TERMINATION
        while len(self.tombstones) > c.MAX_TOMBSTONES:
            self.tombstones.popitem(last=False)
        self.write_behind(peer)

    def swap(self, peer: Peer, record: Mapping[str, object], follow: Follow) -> None:
        """Write the record behind those that are under way: a write knows what it follows."""
        peer.writes.append((record, follow))
        if len(peer.writes) == 1:
            self._write_first(peer)

    def _write_first(self, peer: Peer) -> None:
        record, follow = peer.writes[0]
        session_id, version = peer.session.id, record["state_version"]
        assert session_id is not None
        assert isinstance(version, int)

        def written(now_ms: float, outcome: Stored) -> None:
            if outcome is Stored.OK:
                peer.stored_version = version
            follow(now_ms, outcome)
            peer.writes.popleft()
            if peer.writes:
                self._write_first(peer)

        self.token += 1
        self.swaps[self.token] = written
        self.effects.append(Swap(self.token, session_id, peer.stored_version, record))

    def write_behind(self, peer: Peer) -> None:
        """Tell the table of a change that bound nothing new."""
        session = peer.session
        record = peer.record(
            self.node, session.state, session.state_version, session.epoch, session.attempt
        )

        def stored(_: float, outcome: Stored) -> None:
            if outcome is not Stored.OK:
                self.store_failed(peer, outcome)

        self.swap(peer, record, stored)

    def store_failed(self, peer: Peer, outcome: Stored) -> None:
        self.machine.note(
            peer.session, "OWNERSHIP", Reason.SEC_OWNERSHIP_ANOMALY, {"store": outcome.value}
        )

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
