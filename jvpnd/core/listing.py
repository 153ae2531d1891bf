"""How a gateway's list of clients changes while it runs: who is new may come at once, who is gone
goes at once, and nobody else notices."""

from __future__ import annotations

from collections.abc import Iterable

from jvpnd.core.dataclass import dataclass
from jvpnd.core.effects import Emit, NetworksChanged
from jvpnd.core.gatewaystate import GatewayState
from jvpnd.core.offers import Offers
from jvpnd.core.peer import ClientEntry, Peer
from jvpnd.core.reasons import Reason
from jvpnd.core.states import Event

MAX_NAMES = 32  # in one event


@dataclass(frozen=True, slots=True)
class ListChange:
    """What a new list changed: names, sorted. A client with another key is one that is removed and
    one that is added, of the same name."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


class Listing:
    """Puts another list of clients in place of the one before."""

    def __init__(self, state: GatewayState, offers: Offers) -> None:
        self._state = state
        self._offers = offers

    def apply(self, now_ms: float, entries: Iterable[ClientEntry]) -> ListChange:
        """Sessions and handshakes of clients that are listed no more, or with other addresses or
        another pre-shared key, end: the client is told, and may come again if it is listed."""
        before = self._offers.clients
        wanted = {entry.public_key: entry for entry in entries}
        # What stays is the same object: handshakes under way go on.
        after = {
            key: before[key] if before.get(key) == entry else entry
            for key, entry in wanted.items()
        }
        change = _difference(before, after)
        if not change:
            return change
        self._offers.relist(after)
        self._tell(change)
        for peer in list(self._state.sessions.values()):
            self._settle(now_ms, peer)
        return change

    def _settle(self, now_ms: float, peer: Peer) -> None:
        entry = self._offers.still_listed(peer.entry)
        if entry is None:
            event, reason = Event.POLICY_TERMINATED, Reason.POLICY_TERMINATION
            self._state.end(now_ms, peer, event, reason)
            return
        networks, peer.entry = peer.entry.networks, entry
        session = peer.session
        session.client = entry.name
        if networks != entry.networks:
            assert session.id is not None
            self._state.effects.append(NetworksChanged(session.id, entry.networks))

    def _tell(self, change: ListChange) -> None:
        names = sorted({*change.added, *change.removed, *change.changed})
        details: dict[str, object] = {
            "what": "clients applied",
            "added": len(change.added),
            "removed": len(change.removed),
            "changed": len(change.changed),
            "names": names[:MAX_NAMES],
        }
        self._state.effects.append(Emit("AUDIT_EVENT", details=details))


def _difference(
    before: dict[bytes, ClientEntry], after: dict[bytes, ClientEntry]
) -> ListChange:
    return ListChange(
        tuple(sorted(after[key].name for key in after.keys() - before.keys())),
        tuple(sorted(before[key].name for key in before.keys() - after.keys())),
        tuple(sorted(e.name for key, e in after.items() if before.get(key, e) is not e)),
    )
