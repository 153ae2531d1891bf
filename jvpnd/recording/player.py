"""Tells a core again what a recording says it was told, and compares what it does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final, TypeVar

from jvpnd import __version__
from jvpnd.core.client import ClientAgent, Refusal
from jvpnd.core.dataclass import dataclass, field
from jvpnd.core.handshake import Established, PendingInit
from jvpnd.core.messages import InitPayload
from jvpnd.core.packets import Response
from jvpnd.core.path import PathInfo
from jvpnd.core.policy import Policy, PolicyError
from jvpnd.core.watch import Traffic
from jvpnd.recording.snapshot import SnapshotError, decode, encode, plain
from jvpnd.recording.tape import FORMAT, digest, output

MAX_LINE: Final = 16 * 1024 * 1024

Row = Mapping[str, Any]
T = TypeVar("T")
# What a line that does not fit makes of the core: told as a difference, with the line's number.
_MISFITS = (KeyError, TypeError, ValueError, AttributeError, IndexError, AssertionError)


class RecordingError(Exception):
    """No recording that this version can replay. One line: what is wrong, and what is allowed."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where the core does not do what the recording says."""

    line: int  # of the file, from 1
    at_ms: float
    what: str
    recorded: Any
    replayed: Any


@dataclass(slots=True)
class Replay:
    """What came of it. Times are of the recording's own clock."""

    header: Row
    inputs: int = 0
    outputs: int = 0
    snapshots: int = 0
    first_ms: float | None = None
    last_ms: float = 0.0
    decisions: list[tuple[float, Row]] = field(default_factory=list)  # STATE_CHANGE events
    difference: Difference | None = None


def replay(lines: Iterable[str]) -> Replay:
    """Run the recording through the core of this version, up to the first difference.

    Raises RecordingError for what is none, or one of another format.
    """
    rows = enumerate(lines, start=1)
    header = _header(next(rows, (1, ""))[1])
    found, player = Replay(header), _Player()
    for number, line in rows:
        row = _row(line, number)
        if "in" in row and isinstance(row.get("t"), int | float):
            found.first_ms = row["t"] if found.first_ms is None else found.first_ms
            found.last_ms = row["t"]
        try:
            player.take(row, found)
        except _Differs as differs:
            found.difference = Difference(number, found.last_ms, *differs.args)
        except _MISFITS as error:
            told = f"{type(error).__name__}: {error}"
            found.difference = Difference(number, found.last_ms, "does not fit", row, told)
        if found.difference is not None:
            break
    if not found.snapshots:
        raise RecordingError("has no snapshot to begin with: it is damaged or not complete")
    return found


def _header(line: str) -> Row:
    row = _row(line, 1)
    if row.get("jvpn_recording") != FORMAT:
        problem = f"format {row['jvpn_recording']}" if "jvpn_recording" in row else "no recording"
        raise RecordingError(f"{problem} (allowed: a file of jvpnctl record, format {FORMAT})")
    return row


def _row(line: str, number: int) -> Row:
    try:
        row = json.loads(line) if len(line) <= MAX_LINE else None
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise RecordingError(f"line {number} is damaged (allowed: one JSON object a line)")
    return row


class _Differs(Exception):  # noqa: N818 - what, recorded, replayed
    """The core does something else."""


@dataclass(slots=True)
class _Answers:
    """What entropy and handshake gave during the present input, in order."""

    left: list[Any] = field(default_factory=list)

    def next(self) -> Any:
        if not self.left:
            raise _Differs("entropy", "none", "asked for")
        return self.left.pop(0)


@dataclass(frozen=True, slots=True)
class _Entropy:
    answers: _Answers

    def draw(self, count: int) -> bytes:
        drawn = bytes.fromhex(self.answers.next())
        if len(drawn) != count:
            raise _Differs("the entropy that is drawn", f"{len(drawn)} bytes", f"{count} bytes")
        return drawn

    def encapsulate(self, public_key: bytes) -> tuple[bytes, bytes]:
        raise _Differs("an encapsulation", "none", "one")


@dataclass(frozen=True, slots=True)
class _Handshake:
    answers: _Answers

    def start(
        self, now_ms: float, path_id: str, payload: InitPayload, cookie: bytes
    ) -> PendingInit:
        asked, gave = self.answers.next()
        if asked != (now := digest([plain(payload), path_id, cookie.hex()])):
            raise _Differs("the content of an INIT", asked, now)
        return self._read(gave, PendingInit)

    def finish(self, pending: PendingInit, response: Response) -> Established | None:
        gave = self.answers.next()
        return None if gave is None else self._read(gave, Established)

    def _read(self, gave: Any, kind: type[T]) -> T:
        found = decode(gave, {})
        if not isinstance(found, kind):
            raise SnapshotError(f"no {kind.__name__}")
        return found


class _Player:
    """The agent of the recording, and the entropy and handshake that it is given again."""

    def __init__(self) -> None:
        self._agent: ClientAgent | None = None
        self._answers = _Answers()
        self._holes = {
            "entropy": _Entropy(self._answers),
            "handshake": _Handshake(self._answers),
        }

    def take(self, row: Row, found: Replay) -> None:
        """One line."""
        if "snapshot" in row:
            self._snapshot(row["snapshot"])
            found.snapshots += 1
        elif self._agent is None:
            raise RecordingError("begins without a snapshot: it is damaged or not complete")
        elif "in" in row:
            self._input(self._agent, row)
            found.inputs += 1
        elif "out" in row:
            self._output(self._agent, row)
            found.outputs += 1
            events = [e for e in row["events"] if e.get("event_type") == "STATE_CHANGE"]
            found.decisions += [(found.last_ms, event) for event in events]
        else:
            raise RecordingError(f"unknown line {str(row)[:60]!r} (allowed: in, out, snapshot)")

    def _snapshot(self, data: Any) -> None:
        """The first one is where we begin; at a later one the state must be the same."""
        if self._agent is None:
            try:
                agent = decode(data, self._holes)
            except SnapshotError as error:
                raise RecordingError(f"{error} (allowed: recordings of {__version__})") from error
            if not isinstance(agent, ClientAgent):
                raise RecordingError("its snapshot is of no client (allowed: a client's)")
            self._agent = agent
        elif (now := encode(self._agent, self._holes)) != data:
            raise _Differs("the state", *_first_unlike(data, now))

    def _input(self, agent: ClientAgent, row: Row) -> None:
        if row["in"] == "next_timer_ms" and (left := agent.drain()):
            raise _Differs("effects that are not in the recording", [], output(left)["events"])
        self._answers.left = list(row.get("gave", []))
        said = _INPUTS[row["in"]](agent, row["t"], *row.get("args", []))
        if isinstance(said, Refusal):
            said = asdict(said)
        if said != row.get("said"):
            raise _Differs(f"the answer to {row['in']}", row.get("said"), said)
        if self._answers.left:
            raise _Differs("entropy that is not asked for", len(self._answers.left), 0)

    def _output(self, agent: ClientAgent, row: Row) -> None:
        now = json.loads(json.dumps(output(agent.drain())))
        if now["events"] != row["events"]:
            raise _Differs("the events", row["events"], now["events"])
        if now["out"] != row["out"]:
            raise _Differs("the bytes of the effects", row["out"], now["out"])


def _first_unlike(recorded: Any, replayed: Any) -> tuple[Any, Any]:
    """The first objects of two snapshots that are not the same."""
    pairs = zip(recorded["objects"], replayed["objects"], strict=False)
    return next(((a, b) for a, b in pairs if a != b), ("more or fewer objects", None))


def _policy(table: Row) -> Policy:
    try:
        return Policy.from_table(table)
    except PolicyError as error:
        raise SnapshotError(str(error)) from error


_INPUTS: dict[str, Callable[..., Any]] = {
    "path_added": lambda agent, now, info: agent.path_added(now, PathInfo(**info)),
    "path_removed": lambda agent, now, path, why: agent.path_removed(now, path, why),
    "path_failed": lambda agent, now, *args: agent.path_failed(now, *args),
    "keys_lost": lambda agent, now, why: agent.keys_lost(now, why),
    "packet_received": lambda agent, now, path, packet: agent.packet_received(
        now, path, bytes.fromhex(packet)
    ),
    "traffic": lambda agent, now, *counters: agent.traffic(now, Traffic(*counters)),
    "timer": lambda agent, now: agent.timer(now),
    "switch": lambda agent, now, path: agent.switch(now, path),
    "terminate": lambda agent, now: agent.terminate(now),
    "apply_policy": lambda agent, now, table: agent.apply_policy(now, _policy(table)),
    "next_timer_ms": lambda agent, now: agent.next_timer_ms(now),
}
