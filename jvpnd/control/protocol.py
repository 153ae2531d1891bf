"""The control protocol: one JSON object a line, both ways, over a unix stream socket.

Request: {"command": str, "args": {...}}. Answer: {"ok": true, "result": any} or {"ok": false,
"error": {"reason": CODE, "message": str}}. A stream answers with any number of lines that have
"more": true too, then with a last line that has not.
"""

from __future__ import annotations

import json
from typing import Any, Final

from jvpnd.core.dataclass import dataclass

SOCKET_PATH: Final = "/run/jvpn/control.sock"
CONFIG_INVALID: Final = "CONFIG_INVALID"  # why a reload is refused
MAX_REQUEST: Final = 64 * 1024  # bytes of a line, its end included


class Refused(Exception):  # noqa: N818 - it is an answer
    """The daemon says no: `reason` is a code (docs/reason-codes.md), `message` is for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason, self.message = str(reason), message


@dataclass(frozen=True, slots=True)
class Request:
    """One command and its arguments."""

    command: str
    args: dict[str, Any]


def encode(value: object) -> bytes:
    """One line. What JSON has no word for is written as its str()."""
    return json.dumps(value, separators=(",", ":"), default=str).encode() + b"\n"


def decode_request(line: bytes) -> Request:
    """The request in one line; Refused (USAGE) for anything else."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise Refused("USAGE", "a request is one JSON object a line") from None
    if not isinstance(value, dict) or not isinstance(value.get("command"), str):
        raise Refused("USAGE", 'a request is {"command": string, "args": object}')
    args = value.get("args", {})
    if not isinstance(args, dict) or not value.keys() <= {"command", "args"}:
        raise Refused("USAGE", 'a request is {"command": string, "args": object}')
    return Request(value["command"], args)


def answer(result: object) -> bytes:
    """The line of a result, and the last line of a stream."""
    return encode({"ok": True, "result": result})


def item(result: object) -> bytes:
    """The line of one item of a stream."""
    return encode({"ok": True, "more": True, "result": result})


def refusal(refused: Refused) -> bytes:
    """The line that says no."""
    return encode({"ok": False, "error": {"reason": refused.reason, "message": refused.message}})
