"""What a check has found."""

from __future__ import annotations

from enum import StrEnum

from jvpnd.core.dataclass import dataclass


class Level(StrEnum):
    """WARN: it may do harm, or something works less well. FAIL: the tunnel will not work so."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line about one thing. `remedy`: what to do, "" where nothing has to be done."""

    check: str
    level: Level
    found: str
    remedy: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check, Level.OK, found)


def warn(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, Level.WARN, found, remedy)


def fail(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, Level.FAIL, found, remedy)
