"""How a daemon fares while something is done to it: asked ten times a second, all the time."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lab.daemons import Daemon

PERIOD_S = 0.1
ANSWER_TIMEOUT_S = 20
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_WORKER = "jvpnd.dataplane.worker"
_RELAY = "jvpnd.transport.{}relay"


def _children(daemon: Daemon) -> dict[int, list[str]]:
    """The command lines of a daemon's processes, by pid."""
    assert daemon.process is not None
    control, found = daemon.process.pid, {}
    for pid in Path(f"/proc/{control}/task/{control}/children").read_text().split():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        found[int(pid)] = words
    return found


def workers(daemon: Daemon) -> dict[int, str]:
    """The roles of a daemon's workers by pid."""
    rows = _children(daemon).items()
    return {pid: words[words.index(_WORKER) + 1] for pid, words in rows if _WORKER in words}


def relay(daemon: Daemon, transport: str) -> int | None:
    """The pid of its relay for TLS or QUIC, if it runs."""
    module, rows = _RELAY.format(transport), _children(daemon).items()
    return next((pid for pid, words in rows if module in words), None)


def _memory_kib(pid: int) -> int:
    """VmRSS."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmRSS:"))
    return int(line.split()[1])


@dataclass
class Gauge:
    """What one daemon said, how long it took to say it, and the memory of its processes."""

    daemon: Daemon
    answers_s: list[float] = field(default_factory=list)
    statuses: list[dict[str, Any]] = field(default_factory=list)
    memory_kib: dict[int, list[int]] = field(default_factory=dict)  # by pid
    problem: str = ""

    def __post_init__(self) -> None:
        assert self.daemon.process is not None
        self.memory_kib = {self.daemon.process.pid: []}
        self.memory_kib |= {pid: [] for pid in workers(self.daemon)}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
                control.settimeout(ANSWER_TIMEOUT_S)
                control.connect(str(self.daemon.socket_file))
                with control.makefile("rwb") as lines:
                    while not self._stop.wait(PERIOD_S):
                        self._look(lines)
        except (OSError, ValueError) as error:
            self.problem = f"{type(error).__name__}: {error}"

    def _look(self, lines: IO[bytes]) -> None:
        asked = time.monotonic()
        lines.write(b'{"command": "status", "args": {}}\n')
        lines.flush()
        answer = json.loads(lines.readline())
        self.answers_s.append(time.monotonic() - asked)
        self.statuses.append(answer["result"])
        for pid, sizes in self.memory_kib.items():
            sizes.append(_memory_kib(pid))

    def __enter__(self) -> Gauge:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@contextlib.contextmanager
def hogs(count: int) -> Iterator[None]:
    """Processes that do nothing but take CPU time, at the usual priority."""
    pids: list[int] = []
    try:
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                while True:
                    pass
            pids.append(pid)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Processes that get no turn for a while."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
