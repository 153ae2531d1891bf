"""What can be asked of a row in etcd: each is one operation of a transaction.

A write names the mod_revision that it replaces. Where it fails the answer has what is there, so
that a write that was done already, and is asked for again, is found out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from jvpnd.core.peer import Stored
from jvpnd.core.sessionrow import Row
from jvpnd.store.mirror import Known
from jvpnd.store.table import Loaded, Written

Operation: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class LoadJob:
    """`until_s`: of time.monotonic(); then the answer is UNAVAILABLE if the store is away."""

    session_id: str
    until_s: float
    done: Loaded

    def give_up(self) -> None:
        self.done(None, Stored.UNAVAILABLE)


@dataclass(frozen=True, slots=True, eq=False)
class SwapJob:
    session_id: str
    until_s: float
    expected: int
    row: Row
    done: Written

    def give_up(self) -> None:
        self.done(Stored.UNAVAILABLE)

    def basis(self, known: Known | None) -> int | None:
        """The mod_revision to replace, None if what is known does not fit what is expected."""
        if self.expected == 0:
            return 0
        return known.revision if known is not None and known.version == self.expected else None


@dataclass(frozen=True, slots=True, eq=False)
class ExpireJob:
    """Only what this `node` owns."""

    session_id: str
    until_s: float
    node: str

    def give_up(self) -> None:
        """The row's lease ends some day."""

    def basis(self, known: Known | None) -> int | None:
        return known.revision if known is not None and known.owner == self.node else None


Job: TypeAlias = LoadJob | SwapJob | ExpireJob


def read(key: str) -> Operation:
    return {"request_range": {"key": key}}


def put_if(key: str, basis: int, value: str, lease: str) -> Operation:
    """Both texts as etcd's JSON has them."""
    return _if(key, basis, {"request_put": {"key": key, "value": value, "lease": lease}})


def delete_if(key: str, basis: int) -> Operation:
    return _if(key, basis, {"request_delete_range": {"key": key}})


def _if(key: str, basis: int, then: Operation) -> Operation:
    compare = {"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": str(basis)}
    parts = {"compare": [compare], "success": [then], "failure": [read(key)]}
    return {"request_txn": parts}
