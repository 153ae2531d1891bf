"""`jvpnctl audit verify` as a user runs it."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path

import pytest

from jvpnd.cli import render
from jvpnd.observe.audit import AuditFile
from jvpnd.observe.log import EventLog, drops_event

from .test_cli import CLIENT, jvpnctl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    log = EventLog("gw1", lambda: 1_700_000_000_123)
    audit = AuditFile(tmp_path / "audit.jsonl", 3000, 9, "gw1", lambda: 1_700_000_000_000)
    audit.write(deque(log.append("REKEY", "ab" * 16, "laptop") for _ in range(12)))
    lost = [log.append("REKEY") for _ in range(3)]
    audit.write(deque([drops_event(3, lost[-1])]))
    audit.close()
    return tmp_path


def files(folder: Path) -> list[str]:
    return [str(file) for file in sorted(folder.iterdir())]


def test_a_sound_trail_is_told_with_lines_times_and_head(folder: Path) -> None:
    done = jvpnctl("audit", "verify", *files(folder))
    assert (done.returncode, done.stderr) == (0, "")
    first, times, head, dropped = done.stdout.splitlines()
    assert first.startswith("ok: ")
    assert f"in {len(files(folder))} files" in first
    assert times.count(":") == 4
    told = jvpnctl("audit", "verify", str(folder), "--json")
    found = json.loads(told.stdout)
    assert (found["finding"], found["is_complete"], found["dropped"]) == (None, True, 3)
    assert head == f"  head {found['head']}"
    assert dropped.startswith("  3 events dropped")
    assert jvpnctl("audit", "verify", str(folder), "--head", found["head"]).returncode == 0


def test_a_changed_line_is_named_and_the_status_is_1(folder: Path) -> None:
    file = folder / "audit.jsonl"
    lines = file.read_text().splitlines()
    lines[1] = lines[1].replace('"ts_ms":17', '"ts_ms":16')
    file.write_text("\n".join(lines) + "\n")
    done = jvpnctl("audit", "verify", str(folder))
    assert done.returncode == 1
    assert done.stdout.startswith(f"BROKEN: {file}:2: has been changed")
    told = json.loads(jvpnctl("--json", "audit", "verify", str(folder)).stdout)
    assert (told["finding"]["file"], told["finding"]["line"]) == (str(file), 2)


def test_the_newest_file_alone_says_that_the_trail_began_elsewhere(folder: Path) -> None:
    done = jvpnctl("audit", "verify", str(folder / "audit.jsonl"))
    assert done.returncode == 0
    assert "began in a file that is not among these" in done.stdout


def test_an_end_that_was_cut_off_is_told_to_who_knows_the_head(folder: Path) -> None:
    file = folder / "audit.jsonl"
    head = json.loads(jvpnctl("audit", "verify", str(folder), "--json").stdout)["head"]
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-1]) + "\n")
    assert jvpnctl("audit", "verify", str(folder)).returncode == 0
    done = jvpnctl("audit", "verify", str(folder), "--head", head)
    assert done.returncode == 1
    assert f"{file}:{len(lines)}: no line has the hash {head}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "FILE"),
        (["/nonexistent.jsonl"], "/nonexistent.jsonl: No such file"),
        (["/dev"], "/dev has no audit file"),
        (["/dev", "/dev"], "/dev: Is a directory"),
        (["x", "--head", "beef"], "64 hexadecimal digits"),
    ],
)
def test_wrong_usage_has_status_2(arguments: list[str], words: str) -> None:
    done = jvpnctl("audit", "verify", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_status_tells_which_exporters_work() -> None:
    rows = {
        "audit": {"written": 9, "dropped": 0, "queued": 0, "degraded": None},
        "syslog": {"written": 1, "dropped": 1, "queued": 3, "degraded": "Connection refused"},
        "prometheus": {"scrapes": 1, "failed": 0, "degraded": None},
    }
    lines = render.status({**CLIENT, "telemetry": rows}).splitlines()
    line = next(line for line in lines if "audit" in line)
    assert line.split(None, 1)[1] == (
        "audit ok; syslog degraded: Connection refused, 1 event lost; prometheus ok"
    )
    assert "telemetry" not in render.status(CLIENT)
