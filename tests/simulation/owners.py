"""What must hold of the nodes of a cluster together, after every single step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from jvpnd.core.effects import BindSend, Emit
from jvpnd.core.gateway import Gateway
from jvpnd.core.sessionrow import Row, number_of, version_of

CONSTANT = ("session_id", "client", "client_key", "addresses", "created_ms", "suite")
LET_GO = ("lost", "let go")


@dataclass
class Owners:
    """What the table was ever told, which node bound what, and who has learned what."""

    takeovers: int = 0
    # By session, then by epoch: who wrote it first, and who has ever had its keys to send with.
    _writers: dict[bytes, dict[int, set[str]]] = field(default_factory=dict)
    _bound: dict[tuple[bytes, int], str] = field(default_factory=dict)
    _newest: dict[bytes, int] = field(default_factory=dict)  # epoch that anybody has bound
    _of_key: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    _versions: dict[bytes, int] = field(default_factory=dict)  # in the table
    _held: set[tuple[str, bytes]] = field(default_factory=set)  # as events tell
    _lost: dict[tuple[str, bytes], int] = field(default_factory=dict)  # version then
    _before: dict[tuple[str, bytes], str] = field(default_factory=dict)  # whom it was taken from

    # --- the table ---

    def written(self, session_id: bytes, held: Row | None, row: Row) -> None:
        """A row has taken the place of another."""
        owner, epoch = str(row["owner"]), number_of(row, "epoch")
        newest = self._newest.get(session_id, 0)
        assert epoch >= newest, f"the table's epoch goes back from {newest} to {epoch}"
        assert number_of(row, "attempt") >= newest, "the table's attempt goes back"
        if held is not None:
            for name in CONSTANT:
                assert row[name] == held[name], f"{name} changes from {held[name]} to {row[name]}"
            assert version_of(row) > version_of(held), "the table's version does not rise"
            if held["owner"] != owner:
                assert epoch > number_of(held, "epoch"), "taken over without a new epoch"
                self._before[owner, session_id] = str(held["owner"])
                self.takeovers += 1
        self._versions[session_id] = version_of(row)
        self._writers.setdefault(session_id, {}).setdefault(epoch, set()).add(owner)

    # --- the nodes ---

    def bound(self, node: str, gateway: Gateway, effect: BindSend) -> None:
        """The node may send from now on."""
        session_id, peer = effect.session_id, gateway.sessions.get(effect.session_id)
        if peer is None or peer.keys.send.data != effect.key:
            return  # released again in the same step
        epoch = peer.keys.epoch
        agreed = self._writers.get(session_id, {}).get(epoch, set())
        assert node in agreed, f"{node} bound epoch {epoch}, which the table does not have"
        first = self._bound.setdefault((session_id, epoch), node)
        assert first == node, f"dual owner: {first} and {node} both have epoch {epoch}"
        lost_at = self._lost.pop((node, session_id), None)
        if lost_at is not None:
            assert peer.stored_version > lost_at, "bound again without having won again"
        self._newest[session_id] = max(epoch, self._newest.get(session_id, 0))
        self._of_key[effect.key] = session_id, epoch

    def told(self, node: str, event: Emit) -> None:
        """Ownership as the events tell it: taken, then lost or ended, then perhaps taken again."""
        if event.session_id is None:
            return
        held, what = (node, event.session_id), event.details.get("what")
        if event.event_type == "SESSION_CREATED":
            self._held.add(held)
        elif event.event_type == "SESSION_TERMINATED":
            self._held.discard(held)
        elif event.event_type == "OWNERSHIP" and what == "taken over":
            assert held not in self._held, f"{node} took over what it had"
            told, before = event.details["from"], self._before.get(held)
            assert told == node or before, "told of a takeover that the table does not have"
            assert told in (node, before), f"taken from {before}, but told of {told}"
            self._held.add(held)
        elif event.event_type == "OWNERSHIP" and what in LET_GO:
            assert held in self._held, f"{node} lost what it did not have"
            self._lost[held] = self._versions.get(event.session_id, 0)

    def began(self, node: str, session_ids: Iterable[bytes]) -> None:
        """The node was started, with these sessions."""
        self._held = {held for held in self._held if held[0] != node}
        self._held |= {(node, session_id) for session_id in session_ids}

    def check_node(self, node: str, gateway: Gateway, sending: Iterable[bytes]) -> None:
        """It sends for sessions that it has and has not lost, and its events tell which it has."""
        for session_id in sending:
            assert session_id in gateway.sessions, "it sends for a session that it does not have"
            assert not gateway.sessions[session_id].is_fenced, "it sends for a session it has lost"
            assert (node, session_id) not in self._lost, "it sends for a session it has lost"
        told = {session_id for name, session_id in self._held if name == node}
        assert told == gateway.sessions.keys(), "the events tell of other sessions"

    def check_client(self, accepted: dict[bytes, str]) -> None:
        """`accepted`: who would be heard now, by the keys that it could send with."""
        for key, node in accepted.items():
            assert self._bound[self._of_key[key]] == node, f"{node} is heard under another's epoch"

    def check_heard(self, node: str, session_id: bytes, epoch: int) -> None:
        """A client has taken the node's word that it has bound the epoch."""
        assert self._bound.get((session_id, epoch)) == node, f"{node} said what is not so"

    # --- at rest ---

    def check_rest(
        self, rows: dict[bytes, Row], nodes: Iterable[tuple[str, Gateway]]
    ) -> None:
        """All news has come: who has a session is who the table says."""
        for node, gateway in nodes:
            for session_id in gateway.sessions:
                row = rows.get(session_id)
                assert row is not None, f"{node} has a session that the table does not have"
                assert row["owner"] == node, f"{node} has a session of {row['owner']}"
