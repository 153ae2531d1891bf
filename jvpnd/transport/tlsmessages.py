"""What the TLS relay tells control. Fixed layout, checked field by field: a relay that was taken
over must not be able to hurt control with it."""

from __future__ import annotations

import struct
from typing import Final

from jvpnd.core.dataclass import dataclass

MAX_WHY: Final = 200

_REPORT = struct.Struct("<BI")  # kind, number of the connection; then why, if it failed
_READY: Final = 1
_FAILED: Final = 2
MAX_REPORT: Final = _REPORT.size + MAX_WHY


@dataclass(frozen=True, slots=True)
class Report:
    """A connection has TLS, or has come to nothing: why, one short sentence."""

    number: int
    why: str | None = None


def encode_report(report: Report) -> bytes:
    if report.why is None:
        return _REPORT.pack(_READY, report.number)
    why = report.why.encode("ascii", "replace")[:MAX_WHY]
    return _REPORT.pack(_FAILED, report.number) + why


def decode_report(data: bytes) -> Report | None:
    """The relay's report, None if it is not one."""
    if not _REPORT.size <= len(data) <= MAX_REPORT:
        return None
    kind, number = _REPORT.unpack_from(data)
    why = data[_REPORT.size :].decode("ascii", "replace")
    if kind == _READY and not why:
        return Report(number)
    if kind == _FAILED and why and why.isascii() and why.isprintable():
        return Report(number, why)
    return None
