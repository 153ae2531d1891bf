"""The audit file: one chain across rotation, restart, crash and faults of the disk."""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jvpnd.observe import audit
from jvpnd.observe.audit import AuditFile
from jvpnd.observe.log import Event, EventLog, drops_event
from jvpnd.observe.verify import Verdict, trail_in, verify

ROTATED_AT = 4000


def make_log() -> EventLog:
    clock = itertools.count(1_000)
    return EventLog("gw1", lambda: next(clock))


def made(log: EventLog, count: int) -> deque[Event]:
    return deque(log.append("REKEY", "ab" * 16, details={"epoch": n}) for n in range(count))


def opened(folder: Path, max_bytes: int = 1 << 20, keep: int = 5) -> AuditFile:
    return AuditFile(folder / "audit.jsonl", max_bytes, keep, "gw1", lambda: 7)


def checked(folder: Path, head: str | None = None) -> Verdict:
    return verify(trail_in(folder), head)


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def whats(file: Path) -> list[str]:
    return [row["details"].get("what", row["event_type"]) for row in rows(file)]


def test_every_event_is_a_line_with_its_fields_that_seals_the_one_before(tmp_path: Path) -> None:
    log, trail = make_log(), opened(tmp_path)
    events = made(log, 3)
    trail.write(deque(events))
    trail.close()
    lines = rows(tmp_path / "audit.jsonl")
    assert whats(tmp_path / "audit.jsonl") == ["begun", "opened", "REKEY", "REKEY", "REKEY"]
    assert [{k: v for k, v in row.items() if k not in ("prev", "hash")} for row in lines[2:]] == [
        *events
    ]
    assert [row["prev"] for row in lines] == ["0" * 64, *(row["hash"] for row in lines[:-1])]
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o640
    verdict = checked(tmp_path)
    assert verdict.finding is None
    assert (verdict.files, verdict.lines, verdict.is_complete) == (1, 5, True)
    assert verdict.head == trail.head == lines[-1]["hash"]


def test_a_restart_goes_on_with_the_chain(tmp_path: Path) -> None:
    for _ in range(3):
        trail = opened(tmp_path)
        trail.write(made(make_log(), 2))  # a new run counts its events anew
        trail.close()
    assert whats(tmp_path / "audit.jsonl") == ["begun", *(3 * ["opened", "REKEY", "REKEY"])]
    assert checked(tmp_path).finding is None


def test_rotation_keeps_the_chain_and_so_many_old_files(tmp_path: Path) -> None:
    for _ in range(4):
        trail = opened(tmp_path, ROTATED_AT, keep=3)
        trail.write(made(make_log(), 30))
        trail.close()
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2", "audit.jsonl.3"]
    for file in tmp_path.iterdir():
        assert file.stat().st_size <= ROTATED_AT
        assert whats(file)[0] == "begun"
    verdict = checked(tmp_path)
    assert verdict.finding is None
    assert not verdict.is_complete
    assert verdict.files == 4


def test_an_event_larger_than_a_file_has_one_for_itself(tmp_path: Path) -> None:
    log, trail = make_log(), opened(tmp_path, 1000)
    big = log.append("AUDIT_EVENT", details={"what": "x" * 5000})
    trail.write(deque([big, *made(log, 1)]))
    trail.close()
    assert checked(tmp_path).finding is None
    assert any(file.stat().st_size > 5000 for file in tmp_path.iterdir())


def test_a_kill_between_the_steps_of_a_rotation_leaves_a_chain(tmp_path: Path) -> None:
    trail = opened(tmp_path, ROTATED_AT)
    trail.write(made(make_log(), 25))
    trail.close()
    (tmp_path / "audit.jsonl").replace(tmp_path / "moved")
    for number in (2, 1):
        (tmp_path / f"audit.jsonl.{number}").replace(tmp_path / f"audit.jsonl.{number + 1}")
    (tmp_path / "moved").replace(tmp_path / "audit.jsonl.1")  # and no new one yet
    trail = opened(tmp_path, ROTATED_AT)
    trail.write(made(make_log(), 25))
    trail.close()
    assert checked(tmp_path).finding is None


@pytest.mark.parametrize("torn", ['{"ts_ms":17', "\x00" * 9000])
def test_a_line_that_a_crash_cut_off_is_set_aside_and_told(tmp_path: Path, torn: str) -> None:
    file = tmp_path / "audit.jsonl"
    trail = opened(tmp_path)
    trail.write(made(make_log(), 2))
    trail.close()
    with file.open("a") as more:
        more.write(torn)
    verdict = checked(tmp_path)
    assert (verdict.finding, verdict.unfinished) == (None, len(torn))
    trail = opened(tmp_path)
    trail.write(made(make_log(), 1))
    trail.close()
    verdict = checked(tmp_path)
    assert (verdict.finding, verdict.unfinished) == (None, 0)
    (line,) = [row for row in rows(file) if row["details"].get("torn")]
    assert line["details"]["torn"] == torn[:4096]


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    trail = opened(tmp_path)
    trail.write(made(make_log(), 2))
    trail.close()
    os.truncate(file, file.stat().st_size - 1)
    trail = opened(tmp_path)
    trail.write(made(make_log(), 1))
    trail.close()
    assert checked(tmp_path).finding is None
    assert whats(file) == ["begun", "opened", "REKEY", "REKEY", "opened", "REKEY"]


def test_every_cut_of_a_file_is_gone_on_from(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    trail = opened(whole)
    trail.write(made(make_log(), 2))
    trail.close()
    data = (whole / "audit.jsonl").read_bytes()
    for size in range(0, len(data), 7):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "audit.jsonl").write_bytes(data[:size])
        trail = opened(folder)
        trail.write(made(make_log(), 1))
        trail.close()
        assert checked(folder).finding is None, size


def test_after_a_damaged_last_line_only_that_one_is_blamed(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    trail = opened(tmp_path)
    trail.write(made(make_log(), 2))
    trail.close()
    head, _, rest = file.read_text().rpartition('"epoch":1')
    file.write_text(f'{head}"epoch":2{rest}')
    trail = opened(tmp_path)
    trail.write(made(make_log(), 1))
    trail.close()
    finding = checked(tmp_path).finding
    assert finding is not None
    assert (finding.line, finding.problem) == (
        4,
        "has been changed: its hash is not that of what it says",
    )
    assert rows(file)[4]["details"] == {"what": "opened", "torn": None, "damaged": True}


def test_a_file_that_was_removed_is_told_and_the_chain_goes_on_in_a_new_one(
    tmp_path: Path,
) -> None:
    file, log, trail = tmp_path / "audit.jsonl", make_log(), opened(tmp_path)
    trail.write(made(log, 2))
    file.replace(tmp_path / "audit.jsonl.1")  # as logrotate does
    waiting = made(log, 2)
    with pytest.raises(OSError, match="removed or replaced"):
        trail.write(waiting)
    assert len(waiting) == 2
    trail.write(waiting)
    trail.close()
    assert whats(file) == ["begun", "REKEY", "REKEY"]
    assert checked(tmp_path).finding is None


def test_another_file_in_its_place_is_moved_away(tmp_path: Path) -> None:
    file, log, trail = tmp_path / "audit.jsonl", make_log(), opened(tmp_path)
    trail.write(made(log, 2))
    file.unlink()
    file.write_text("not ours\n")
    with pytest.raises(OSError, match="removed or replaced"):
        trail.write(made(log, 1))
    trail.write(made(log, 1))
    trail.close()
    assert (tmp_path / "audit.jsonl.1").read_text() == "not ours\n"
    assert whats(file) == ["begun", "REKEY"]


def failing(after: int, code: int) -> Callable[[int, bytes], int]:
    """A write(2) that takes so many bytes, and then refuses."""
    left, real = [after], os.write

    def write(fd: int, data: bytes) -> int:
        if left[0] <= 0:
            raise OSError(code, os.strerror(code))
        taken = real(fd, data[: left[0]])
        left[0] -= taken
        return taken

    return write


@pytest.mark.parametrize("after", [0, 1, 100, 700])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_write_that_fails_half_way_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, code: int
) -> None:
    log, trail = make_log(), opened(tmp_path)
    trail.write(made(log, 2))
    waiting = made(log, 5)
    with monkeypatch.context() as patched:
        patched.setattr(audit.os, "write", failing(after, code))
        with pytest.raises(OSError, match=os.strerror(code)):
            trail.write(waiting)
        assert len(waiting) == 5
    trail.write(waiting)
    trail.close()
    verdict = checked(tmp_path)
    assert (verdict.finding, verdict.lines) == (None, 9)


@pytest.mark.parametrize("after", [0, 1, 300, 600])
@pytest.mark.parametrize("runs", [0, 1])
def test_a_disk_that_is_full_at_the_start_leaves_a_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, runs: int
) -> None:
    for _ in range(runs):
        trail = opened(tmp_path)
        trail.write(made(make_log(), 3))
        trail.close()
    trail, waiting = opened(tmp_path), made(make_log(), 2)
    with monkeypatch.context() as patched:
        patched.setattr(audit.os, "write", failing(after, errno.ENOSPC))
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                trail.write(waiting)
    trail.write(waiting)
    trail.close()
    assert checked(tmp_path).finding is None
    assert whats(tmp_path / "audit.jsonl").count("opened") == runs + 1


def test_dropped_events_are_a_line_of_the_trail(tmp_path: Path) -> None:
    log, trail = make_log(), opened(tmp_path)
    events = list(made(log, 9))
    trail.write(deque([events[0], events[1], drops_event(5, events[6]), events[7], events[8]]))
    trail.close()
    verdict = checked(tmp_path)
    assert (verdict.finding, verdict.dropped) == (None, 5)


def test_a_hole_in_seq_that_no_line_tells_of_is_found(tmp_path: Path) -> None:
    log, trail = make_log(), opened(tmp_path)
    events = list(made(log, 9))
    trail.write(deque([events[0], events[1], events[7]]))
    trail.close()
    finding = checked(tmp_path).finding
    assert finding is not None
    assert finding.line == 5
    assert finding.problem.startswith("has seq 8 behind 2")


def test_two_writers_are_not_let_at_one_file(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    first.write(made(make_log(), 1))
    with pytest.raises(OSError, match="another process's"):
        second.write(made(make_log(), 1))
    first.close()
    second.write(made(make_log(), 1))
    second.close()
    assert checked(tmp_path).finding is None


@pytest.mark.parametrize("kind", ["directory", "fifo", "symlink"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "audit.jsonl"
    if kind == "directory":
        file.mkdir()
    elif kind == "fifo":
        os.mkfifo(file)
    else:
        file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"regular file|directory|symbolic"):
        opened(tmp_path).write(made(make_log(), 1))
    assert not (tmp_path / "elsewhere").exists()


def test_the_disk_is_told_within_the_second_and_again_where_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "SYNC_S", 0.0)
    synced: list[int] = []
    trail = opened(tmp_path)
    trail.write(made(make_log(), 1))

    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(audit.os, "fsync", refuse)
        with pytest.raises(OSError, match="Input/output"):
            trail.settle()
    monkeypatch.setattr(audit.os, "fsync", synced.append)
    assert trail.settle() is None
    assert len(synced) == 1
    assert trail.settle() is None
    assert len(synced) == 1, "nothing new"
