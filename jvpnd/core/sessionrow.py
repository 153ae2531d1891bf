"""A session as a row of the session table, and back; both ends build theirs on it.

Rows hold JSON values: keys and ids are hexadecimal, times are of the core's clock, in ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from jvpnd.core.session import Session
from jvpnd.core.states import State
from jvpnd.core.wire import KEY_LEN, Suite

Row: TypeAlias = Mapping[str, object]

MISFITS = (KeyError, TypeError, ValueError, AttributeError)
"""What reading a row raises that makes no sense."""


def row_of_session(session: Session) -> dict[str, object]:
    assert session.id is not None
    return {
        "session_id": session.id.hex(),
        "client": session.client,
        "state": str(session.state),
        "state_version": session.state_version,
        "epoch": session.epoch,
        "attempt": session.attempt,
        "root": session.root.hex(),
        "suite": int(session.suite),
        "addresses": list(session.addresses),
        "created_ms": session.created_ms,
        "lost_since_ms": session.lost_since_ms,
        "switches": session.switches,
        "rekeys": session.rekeys,
        "switched_at_ms": list(session.switched_at_ms),
    }


def session_of_row(row: Mapping[str, Any]) -> Session:
    """Raises one of MISFITS."""
    lost_ms = row["lost_since_ms"]
    return Session(
        bytes_of(row, "session_id", 16),
        str(row["client"]),
        float(row["created_ms"]),
        bytes_of(row, "root", KEY_LEN),
        Suite(row["suite"]),
        tuple(str(each) for each in row["addresses"]),
        State(row["state"]),
        number_of(row, "state_version"),
        number_of(row, "epoch"),
        number_of(row, "attempt"),
        lost_since_ms=None if lost_ms is None else float(lost_ms),
        switches=number_of(row, "switches"),
        rekeys=number_of(row, "rekeys"),
        switched_at_ms=[float(each) for each in row["switched_at_ms"]],
    )


def number_of(row: Mapping[str, Any], key: str) -> int:
    """A number that is not negative. Raises one of MISFITS."""
    value = row[key]
    if not isinstance(value, int) or value < 0:
        raise ValueError(key)
    return value


def version_of(row: Row) -> int:
    """The state_version of a row, 0 if it has none."""
    version = row.get("state_version")
    return version if isinstance(version, int) else 0


def bytes_of(row: Mapping[str, Any], key: str, length: int) -> bytes:
    """`length` bytes. Raises one of MISFITS."""
    value = bytes.fromhex(row[key])
    if len(value) != length:
        raise ValueError(key)
    return value
