"""The interface of every session table."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from jvpnd.core.peer import Stored
from jvpnd.core.sessionrow import Row


class SessionTable(Protocol):
    """Rows by SessionID (hex). A write names the state_version that it expects to replace."""

    @property
    def problem(self) -> str:
        """Why it cannot be written at present, "" if all is well."""

    def swap(self, session_id: str, expected: int, row: Row) -> Stored:
        """Write if the stored state_version is `expected` (0: there must be no row)."""

    def rows(self) -> list[Row]:
        """Everything that is held."""

    def expire(self, session_ids: Sequence[str]) -> None:
        """Forget sessions that have ended."""

    def together(self) -> AbstractContextManager[None]:
        """Several writes as one."""
