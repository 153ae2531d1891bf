"""What a running client recorded replays identically, and leaves no doubt where it does not."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.daemons import Pair
from lab.stage import Stage, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


def replay(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jvpnd.cli.main", "replay", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def has_lines(pair: Pair) -> bool:
    """Whether there is something to draw of both paths."""
    rows = pair.client.ask("samples")
    return len(rows) == 2 and all(len(each) > 2 for each in rows.values())


def test_a_link_down_under_traffic_is_recorded_and_replays(stage: Stage, tmp_path: Path) -> None:
    pair = stage.pair()
    file = tmp_path / "laptop.rec"
    with stage.watch(pair) as watch:
        lost = watch.bound()
        until(lambda: has_lines(pair), "both paths have been sampled")
        stage.uplink(lost).set_down()
        watch.wait_attached()
        watch.assert_flows()
        done = pair.client.ctl("record", str(file))
        assert done.returncode == 0, done.stderr
        drawn = pair.client.ctl("timeline", watch.session, "--html", "-").stdout
        assert {"TRANSPORT_DEAD", "up-a udp", "up-b udp"} <= set(re.split(r"[<>]", drawn))
        assert drawn.count('class="rtt"') == 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = replay(file)
    assert found.returncode == 0, found.stdout
    assert "ATTACHED -> RECOVERING  TRANSPORT_DEAD" in found.stdout
    assert found.stdout.splitlines()[-1].startswith("identical: ")
    again = pair.client.ctl("record", str(file))
    assert again.returncode == 2
    assert "allowed: a new file" in again.stderr
    lines = file.read_text().splitlines()
    at = next(n for n, line in enumerate(lines) if '"in":"path_removed"' in line)
    (tmp_path / "changed.rec").write_text("\n".join([*lines[:at], *lines[at + 1 :]]))
    changed = replay(tmp_path / "changed.rec")
    assert changed.returncode == 1
    assert "DIFFERENT at line" in changed.stdout
    stage.uplink(lost).set_up()
    stage.wait_paths(2)


def test_a_recording_that_is_followed_ends_with_ctrl_c(stage: Stage, tmp_path: Path) -> None:
    pair = stage.pair()
    file = tmp_path / "followed.rec"
    options = ("--socket", str(pair.client.socket_file), "record", "--follow", str(file))
    recording = subprocess.Popen([sys.executable, "-m", "jvpnd.cli.main", *options])
    try:
        with stage.watch(pair) as watch:
            until(file.exists, "the recording has begun")
            goal = stage.other(watch.bound()).device
            assert pair.client.ctl("switch", goal).returncode == 0
            watch.wait_attached()
            until(lambda: "RECOVERY_START" in file.read_text(), "the switch is on file")
        recording.send_signal(signal.SIGINT)
        assert recording.wait(20) == 0
    finally:
        recording.kill()
        recording.wait()
    found = replay(file)
    assert found.returncode == 0, found.stdout
    assert "RECOVERY_START" in found.stdout


def test_a_gateway_makes_no_recording(stage: Stage, tmp_path: Path) -> None:
    done = stage.pair().gateway.ctl("record", str(tmp_path / "x"))
    assert done.returncode == 1
    assert "WRONG_ROLE" in done.stderr
