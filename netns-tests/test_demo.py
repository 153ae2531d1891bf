"""The demonstration that the README promises: it succeeds, and leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

DEMO = Path(__file__).with_name("demo.py")


def namespaces() -> set[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return {line.split()[0] for line in listed.stdout.splitlines()}


def start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(DEMO)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def mine(pid: int) -> set[str]:
    return {name for name in namespaces() if name.startswith(f"jv{pid}-")}


def test_the_session_survives_both_faults_and_nothing_is_left() -> None:
    with start() as demo:
        out, _ = demo.communicate(timeout=120)
    assert demo.returncode == 0, out
    assert "the SessionID stayed" in out
    assert "NO " not in out
    assert out.count("TRANSPORT_DEAD") >= 2
    assert not mine(demo.pid)


def test_an_interrupted_demo_leaves_nothing() -> None:
    with start() as demo:
        deadline = time.monotonic() + 60
        while not mine(demo.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        demo.send_signal(signal.SIGINT)
        out, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, out
    assert not mine(demo.pid)
