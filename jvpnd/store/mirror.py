"""What this node knows of the rows in etcd: enough to write the next one in one request."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Known:
    """A row as it was last heard of. `revision`: mod_revision of its key."""

    version: int
    revision: int
    owner: str


class Mirror:
    """Known rows by SessionID. Two threads may bring news of one row in either order: the higher
    revision counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[str, Known] = {}
        self._doubtful: set[str] = set()  # among them: a write to them may have been done or not

    def get(self, session_id: str) -> Known | None:
        """None: ask before the next write."""
        return None if session_id in self._doubtful else self._rows.get(session_id)

    def put(self, session_id: str, row: Known) -> bool:
        """Whether that changes the owner."""
        with self._lock:
            self._doubtful.discard(session_id)
            before = self._rows.get(session_id)
            if before is not None and before.revision >= row.revision:
                return False
            self._rows[session_id] = row
        return before is None or before.owner != row.owner

    def gone(self, session_id: str, revision: int) -> bool:
        """There is no row at `revision`. Whether one was known."""
        with self._lock:
            before = self._rows.get(session_id)
            if before is None or before.revision > revision:
                return False
            del self._rows[session_id]
            self._doubtful.discard(session_id)
        return True

    def doubt(self, session_id: str) -> None:
        """A write was not answered."""
        with self._lock:
            if session_id in self._rows:
                self._doubtful.add(session_id)

    def missing_from(self, found: Collection[str]) -> list[str]:
        """Who is known but not among those that were found."""
        with self._lock:
            return [session_id for session_id in self._rows if session_id not in found]

    def clear(self) -> list[str]:
        """Who was known."""
        with self._lock:
            known = list(self._rows)
            self._rows.clear()
            self._doubtful.clear()
        return known

    def count_of(self, owner: str) -> int:
        with self._lock:
            return sum(row.owner == owner for row in self._rows.values())
