"""What a table that several nodes share tells the node about the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from jvpnd.core.ownership import RowSeen

READY, DRAINING = "ready", "draining"


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node that is alive. `endpoints`: (transport, address, port) where clients reach it, address
    "" if it is that by which they have come; `address`: where other nodes do; `started_ms`: wall
    clock."""

    state: str
    endpoints: tuple[tuple[str, str, int], ...]
    address: tuple[str, ...]
    sessions: int
    started_ms: int


class StoreObserver(Protocol):
    """Is called in the event loop's thread."""

    def row_seen(self, seen: RowSeen) -> None:
        """Another node wrote, and the session is its own now."""

    def row_gone(self, session_id: bytes) -> None:
        """Its row is there no more; that may be told of what this node has expired itself too."""

    def nodes_changed(self, nodes: dict[str, NodeInfo]) -> None:
        """All nodes that are alive, this one too."""

    def store_seen(self, at_ms: float) -> None:
        """The store has answered what was asked at `at_ms`, of the core's clock."""
