"""The lines of a recording, bounded, and what each looks like.

One JSON object a line. The first is the header; then come, in any number:
{"snapshot": ...}                           the whole state of the agent
{"in": name, "t": now_ms, "args": [...]}    an input; "gave": what entropy and handshake answered,
                                            "said": what the agent answered
{"out": digest, "events": [...]}            effects that were taken from the agent
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from typing import Any, Final, Protocol

from jvpnd import __version__
from jvpnd.core.effects import Effect, Emit
from jvpnd.recording.snapshot import plain

FORMAT: Final = 1
HALF_BYTES: Final = 4 * 1024 * 1024
DIGEST_BYTES: Final = 8


class Listener(Protocol):
    """A bounded queue of lines, like asyncio.Queue."""

    def full(self) -> bool: ...
    def put_nowait(self, line: str) -> None: ...


class Tape:
    """Two halves of lines; when the second is full the first goes. Listeners get each new line, as
    long as they have room."""

    def __init__(self, node: str, half_bytes: int = HALF_BYTES) -> None:
        self._node = node
        self._half_bytes = half_bytes
        self._old: list[str] = []
        self._new: list[str] = []
        self._size = 0
        self.listeners: set[Listener] = set()
        self.gave: list[Any] = []  # what entropy and handshake answered during the present input

    def write(self, row: dict[str, Any]) -> None:
        line = dumps(row)
        self._new.append(line)
        self._size += len(line) + 1
        for listener in self.listeners:
            if not listener.full():
                listener.put_nowait(line)

    def wants_snapshot(self) -> bool:
        """Whether the next line has to begin a half."""
        return not self._new or self._size >= self._half_bytes

    def begin_half(self, snapshot: Any) -> None:
        self._old, self._new, self._size = self._new, [], 0
        self.write({"snapshot": snapshot})

    def lines(self) -> list[str]:
        """The header and everything that is held."""
        header = {
            "jvpn_recording": FORMAT,
            "version": __version__,
            "python": platform.python_version(),
            "node": self._node,
        }
        return [dumps(header), *self._old, *self._new]


def dumps(row: dict[str, Any]) -> str:
    return json.dumps(row, separators=(",", ":"))


def output(effects: Sequence[Effect]) -> dict[str, Any]:
    """The line of some effects: a digest of every byte, and the events in full."""
    events = [_event(effect) for effect in effects if isinstance(effect, Emit)]
    return {"out": digest([plain(effect) for effect in effects]), "events": events}


def digest(value: Any) -> str:
    """A short name of any JSON value."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=DIGEST_BYTES).hexdigest()


def _event(event: Emit) -> dict[str, Any]:
    found = {
        "event_type": event.event_type,
        "session_id": event.session_id.hex() if event.session_id else None,
        "from": event.from_state,
        "to": event.to_state,
        "reason": event.reason,
        "details": dict(event.details),
    }
    return {name: value for name, value in found.items() if value is not None}
