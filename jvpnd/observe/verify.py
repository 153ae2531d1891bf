"""Does an audit trail still say what was written? The first line that does not is named."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from jvpnd.core.dataclass import dataclass, field
from jvpnd.observe.chain import BEGUN, GENESIS, OPENED, Line, unsealed
from jvpnd.observe.log import DROPPED

MAX_LINE: Final = 16 * 1024 * 1024  # bytes; no line of ours comes near
_NAME: Final = re.compile(r"(?P<base>.+?)(?:\.(?P<number>[0-9]+))?")


@dataclass(frozen=True, slots=True)
class Finding:
    """The first line that is wrong; lines are counted from 1."""

    file: str
    line: int
    problem: str


@dataclass(slots=True)
class Verdict:
    """`unfinished`: bytes of a last line that is being written, or that a crash cut off.

    `is_complete`: the first line ever is there. `dropped`: events that the trail itself says it
    lacks. Times are wall clock, None without lines.
    """

    files: int
    lines: int = 0
    first_ms: int | None = None
    last_ms: int | None = None
    head: str = GENESIS
    is_complete: bool = True
    unfinished: int = 0
    dropped: int = 0
    finding: Finding | None = None


@dataclass(slots=True)
class _Reader:
    """One pass over all lines, oldest first."""

    files: Sequence[Path]
    unfinished: int = field(default=0)

    def __iter__(self) -> Iterator[tuple[Path, int, bytes]]:
        """(file, line number, line without its newline); what a crash cut off at the very end is
        only counted."""
        for file in self.files:
            with file.open("rb") as opened:
                number = 0
                while raw := opened.readline(MAX_LINE):
                    number += 1
                    if raw.endswith(b"\n"):
                        yield file, number, raw[:-1]
                    elif file is self.files[-1] and len(raw) < MAX_LINE:
                        self.unfinished = len(raw)
                    else:
                        yield file, number, raw


def verify(files: Sequence[Path], head: str | None = None) -> Verdict:
    """Check the files of one trail, oldest first. OSError where one cannot be read.

    `head`: the hash of a line that must be there. Without it nobody can tell that lines at the very
    end were cut off, nor that all was written anew.
    """
    reader, verdict = _Reader(files), Verdict(len(files))
    seq: int | None = None
    is_head_seen = head is None or head == GENESIS
    number, file = 0, files[-1]
    for file, number, raw in reader:
        try:
            line = unsealed(raw)
            _check_place(files, file, number, line, verdict)
            seq = _check_seq(line, seq)
        except ValueError as error:
            verdict.finding = Finding(str(file), number, str(error))
            return verdict
        if not verdict.lines:
            verdict.first_ms, verdict.is_complete = line.record["ts_ms"], line.prev == GENESIS
        if line.record["event_type"] == DROPPED:
            verdict.dropped += line.record["details"]["dropped"]
        verdict.lines += 1
        verdict.last_ms, verdict.head = line.record["ts_ms"], line.hash
        is_head_seen = is_head_seen or line.hash == head
    verdict.unfinished = reader.unfinished
    if not is_head_seen:
        problem = f"no line has the hash {head}: the end was cut off, or all was written anew"
        verdict.finding = Finding(str(file), number + 1, problem)
    return verdict


def _check_place(
    files: Sequence[Path], file: Path, number: int, line: Line, verdict: Verdict
) -> None:
    """ValueError if it does not follow the line before."""
    if not verdict.lines:
        if line.what != BEGUN:
            raise ValueError("is not the first line of a file: lines before it are missing")
        seal = f',"hash":"{line.prev}"}}'.encode()
        for other, at, raw in _Reader(files):
            if raw.endswith(seal):
                raise ValueError(f"is out of order: it belongs behind line {at} of {other}")
        return
    if line.prev == verdict.head:
        return
    is_behind = False
    for other, at, found in _readable(files):
        if (other, at) == (file, number):
            is_behind = True
        elif not is_behind and found.hash == line.hash:
            raise ValueError(f"repeats line {at} of {other}")
        elif found.prev == verdict.head:
            raise ValueError(f"is out of order: the line that belongs here is line {at} of {other}")
    raise ValueError("does not follow the line before: lines between them are missing")


def _readable(files: Sequence[Path]) -> Iterator[tuple[Path, int, Line]]:
    for file, number, raw in _Reader(files):
        try:
            yield file, number, unsealed(raw)
        except ValueError:
            continue


def _check_seq(line: Line, seq: int | None) -> int | None:
    """The seq of the last event so far; None where that is not known. ValueError for a hole."""
    if line.what is not None:
        return 0 if line.what == OPENED else seq
    own, step = line.record["seq"], 1
    if line.record["event_type"] == DROPPED:
        step = line.record["details"]["dropped"]
    if seq is not None and own != seq + step:
        raise ValueError(f"has seq {own} behind {seq}, and no line says that events were dropped")
    return int(own)


def in_order(files: Sequence[Path]) -> list[Path]:
    """Oldest first: those of one trail by the number of their rotation, others as they came."""
    rows = [_NAME.fullmatch(file.name) for file in files]
    if len({(f.parent, row["base"]) for f, row in zip(files, rows, strict=True) if row}) != 1:
        return list(files)
    return sorted(files, key=lambda file: -_number(file))


def trail_in(folder: Path) -> list[Path]:
    """The files of the trail in a folder, oldest first. ValueError unless there is exactly one."""
    found = [f for f in folder.iterdir() if re.fullmatch(r".+\.jsonl(\.[0-9]+)?", f.name)]
    bases = sorted({re.sub(r"\.[0-9]+$", "", file.name) for file in found})
    if len(bases) != 1:
        problem = f"has the trails {', '.join(bases)}" if bases else "has no audit file"
        raise ValueError(f"{folder} {problem} (allowed: one trail, name.jsonl and name.jsonl.N)")
    return in_order(found)


def _number(file: Path) -> int:
    row = _NAME.fullmatch(file.name)
    return int(row["number"] or 0) if row else 0
