"""What the threads of the etcd table have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jvpnd.core.ownership import RowSeen
from jvpnd.store.contact import Contact
from jvpnd.store.etcdrows import EtcdRows
from jvpnd.store.mirror import Mirror


@dataclass(frozen=True, slots=True)
class Shared:
    """`moved`: takes a session and its row of another node, None if it is gone, from any thread."""

    node: str
    rows: EtcdRows
    mirror: Mirror
    contact: Contact
    moved: Callable[[str, RowSeen | None], None]
