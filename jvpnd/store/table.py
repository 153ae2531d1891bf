"""The interface of every session table, and the one that lives in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from jvpnd.core.gateway import Stored

Record = Mapping[str, object]


class SessionTable(Protocol):
    """Records by SessionID (hex). A write names the state_version that it expects to replace."""

    def swap(self, session_id: str, expected: int, record: Record) -> Stored:
        """Write if the stored state_version is `expected` (0: there must be no record)."""
        ...

    def get(self, session_id: str) -> Record | None: ...

    def list(self) -> list[Record]: ...

    def expire(self, session_id: str) -> None:
        """Forget the record of a session that has ended."""
        ...


class MemoryTable:
    """Sessions that live as long as the daemon."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}

    def swap(self, session_id: str, expected: int, record: Record) -> Stored:
        held = self._records.get(session_id)
        version = held["state_version"] if held is not None else 0
        if version != expected:
            return Stored.CONFLICT
        self._records[session_id] = dict(record)
        return Stored.OK

    def get(self, session_id: str) -> Record | None:
        return self._records.get(session_id)

    def list(self) -> list[Record]:
        return list(self._records.values())

    def expire(self, session_id: str) -> None:
        self._records.pop(session_id, None)
