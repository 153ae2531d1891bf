"""Sessions as keys and values in etcd: `{prefix}sessions/{SessionID}`."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from jvpnd.core.ownership import RowSeen
from jvpnd.core.sessionrow import MISFITS, Row, number_of
from jvpnd.host import now_ms, wall_ms
from jvpnd.store.mirror import Known
from jvpnd.store.rowtimes import from_wall, to_wall
from jvpnd.store.sealing import Sealer

_log = logging.getLogger("jvpnd")

_CLEAR: Final = ("owner", "state", "state_version", "epoch", "attempt", "client")
_MAX_TOLD: Final = 1024


@dataclass(frozen=True, slots=True)
class Found:
    """A row out of etcd, with its times by this node's clock."""

    known: Known
    row: Row

    def seen(self) -> RowSeen:
        """What the core is told of it, if it is another node's. Raises one of MISFITS."""
        row: Mapping[str, Any] = self.row
        return RowSeen(
            bytes.fromhex(row["session_id"]),
            self.known.owner,
            str(row["client"]),
            str(row["state"]),
            self.known.version,
            float(row["created_ms"]),
        )


class EtcdRows:
    """Makes values of rows and rows of values."""

    def __init__(self, prefix: str, sealer: Sealer) -> None:
        self.prefix = f"{prefix}sessions/"
        self._sealer = sealer
        self._told: set[str] = set()  # keys that were complained of

    def key(self, session_id: str) -> str:
        return encoded(self.prefix + session_id)

    def session_id(self, key: str) -> str | None:
        """Whose key it is, None for one that is no session's."""
        name = key.removeprefix(self.prefix)
        return name if name != key and re.fullmatch("[0-9a-f]{32}", name) else None

    def value(self, session_id: str, row: Row) -> str:
        clear = {key: row[key] for key in _CLEAR if key in row}
        secret = to_wall(row, now_ms(), wall_ms())
        return encoded(self._sealer.sealed(session_id, clear, secret))

    def found(self, session_id: str, kv: Mapping[str, Any]) -> Found | None:
        """The row of a key with its value. None, and said in the log once, for one that no node has
        written, or under a key that is not ours."""
        try:
            opened = self._sealer.opened(session_id, base64.b64decode(kv.get("value", "")))
            if opened is not None:
                clear, secret = opened
                version = number_of(clear, "state_version")
                known = Known(version, int(kv["mod_revision"]), str(clear["owner"]))
                return Found(known, from_wall(secret, now_ms(), wall_ms()))
        except MISFITS:
            pass
        self._complain(session_id)
        return None

    def _complain(self, session_id: str) -> None:
        if session_id not in self._told and len(self._told) < _MAX_TOLD:
            self._told.add(session_id)
            _log.warning("the row of session %s in etcd does not open: left alone", session_id)


def encoded(text: str | bytes) -> str:
    """As etcd's JSON has keys and values."""
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def decoded(text: str) -> str:
    """A key as it is. Raises ValueError."""
    return base64.b64decode(text).decode()
