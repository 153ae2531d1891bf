"""The interface of every session table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

from jvpnd.core.peer import Stored
from jvpnd.core.sessionrow import Row

Written: TypeAlias = Callable[[Stored], None]
Loaded: TypeAlias = Callable[[Row | None, Stored], None]


class SessionTable(Protocol):
    """Rows by SessionID (hex). A write names the state_version that it expects to replace.

    Answers come in the event loop's thread, within the call or later, those of one session in the
    order of the calls.
    """

    @property
    def problem(self) -> str:
        """Why it cannot be written at present, "" if all is well."""

    def swap(self, session_id: str, expected: int, row: Row, done: Written) -> None:
        """Write if the stored state_version is `expected` (0: there must be no row)."""

    def load(self, session_id: str, done: Loaded) -> None:
        """The row of a session; None with OK if there is none. A row is never a CONFLICT."""

    def rows(self) -> list[Row]:
        """What this node held when it started."""

    def expire(self, session_ids: Sequence[str]) -> None:
        """Forget sessions of this node that have ended."""

    def together(self) -> AbstractContextManager[None]:
        """Several writes as one, where that is quicker."""
