"""The lines of an audit file: JSON objects, each of which seals the one before.

`prev` is the hash of the line before and `hash` that of this line: SHA-256 of its bytes up to, not
including, `,"hash":`. So a line that was changed is told from one that is missing before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

from jvpnd.core.dataclass import dataclass
from jvpnd.observe.log import DROPPED

GENESIS: Final = "0" * 64  # `prev` of the first line ever
FILE: Final = "AUDIT_FILE"  # the event type of what the file tells of itself
BEGUN: Final = "begun"  # `details.what` of the first line of each file
OPENED: Final = "opened"  # and of the first line that a daemon writes after its start

_YEAR_10000_MS: Final = 253_402_300_800_000
_SEAL: Final = re.compile(rb',"hash":"([0-9a-f]{64})"\}$')


@dataclass(frozen=True, slots=True)
class Line:
    """What a line says and how it is chained."""

    record: dict[str, Any]
    prev: str
    hash: str

    @property
    def what(self) -> str | None:
        """BEGUN or OPENED; None for an event."""
        is_ours = self.record["event_type"] == FILE
        return str(self.record["details"]["what"]) if is_ours else None


def sealed(record: Mapping[str, object], prev: str) -> tuple[bytes, str]:
    """The record as a line with its newline, and its hash."""
    body = json.dumps({**record, "prev": prev}, separators=(",", ":"))[:-1].encode()
    digest = sha256(body).hexdigest()
    return b'%s,"hash":"%s"}\n' % (body, digest.encode()), digest


def unsealed(raw: bytes) -> Line:
    """The line without its newline; ValueError says what is wrong with it."""
    seal = _SEAL.search(raw)
    if seal is None:
        raise ValueError("is not a line of an audit file")
    digest = seal[1].decode()
    if sha256(raw[: seal.start()]).hexdigest() != digest:
        raise ValueError("has been changed: its hash is not that of what it says")
    try:
        record = json.loads(raw)
        line = Line(record, record["prev"], digest)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("is not a line of an audit file") from None
    if not _is_event(record):
        raise ValueError("is not a line of an audit file")
    return line


def _is_event(record: dict[str, Any]) -> bool:
    """Whether it has what is read of it: who can write a line can seal one, too."""
    kind, details = record.get("event_type"), record.get("details")
    ts_ms = record.get("ts_ms")
    if type(ts_ms) is not int or not 0 <= ts_ms < _YEAR_10000_MS or not isinstance(details, dict):
        return False
    if kind == FILE:
        return isinstance(details.get("what"), str)
    counted = [record.get("seq")] + ([details.get("dropped")] if kind == DROPPED else [])
    return all(type(number) is int for number in counted)
