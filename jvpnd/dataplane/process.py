"""Control's hold on one worker process: start it, talk to it, notice its end. Never blocks."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import jvpnd
from jvpnd.dataplane.messages import (
    MAX_REPORT,
    Report,
    decode_report,
    encode_command,
    send_command,
)

MAX_QUEUED: Final = 4096
REPORTS_A_TURN: Final = 64
STOP_TIMEOUT_S: Final = 2.0

_PACKAGE_ROOT: Final = str(Path(jvpnd.__file__).resolve().parent.parent)


class WorkerProcess:
    """One running worker. `on_exit` is called once if it ends without having been stopped."""

    def __init__(
        self,
        role: str,
        lane: int,
        lanes: int,
        counters_fd: int,
        on_report: Callable[[Report], None],
        on_exit: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_report = on_report
        self._on_exit = on_exit
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = _spawn((role, str(lane), str(lanes)), theirs.fileno(), counters_fd)
        self._channel.setblocking(False)
        self._loop.add_reader(self._channel, self._read)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, name: str, fds: Sequence[int] = (), **arguments: Any) -> None:
        """Send a command, or queue it while the channel is full.

        A worker that leaves MAX_QUEUED commands lying is stuck, and is ended. Commands to one
        that has ended are lost; `on_exit` tells.
        """
        data = encode_command(name, arguments)
        if not self._queue and self._try_send(data, fds):
            return
        if len(self._queue) >= MAX_QUEUED:
            self._process.kill()
            return
        if not self._queue:
            self._loop.add_writer(self._channel, self._write_queued)
        self._queue.append((data, [os.dup(fd) for fd in fds]))

    async def stop(self) -> None:
        """End the worker and wait for it."""
        self._close_channel()
        try:
            await asyncio.to_thread(self._process.wait, STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    def _try_send(self, data: bytes, fds: Sequence[int]) -> bool:
        try:
            send_command(self._channel, data, fds)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            return True
        return True

    def _write_queued(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            if not self._try_send(data, fds):
                return
            self._queue.popleft()
            _close_all(fds)
        self._loop.remove_writer(self._channel)

    def _read(self) -> None:
        for _ in range(REPORTS_A_TURN):
            try:
                data = self._channel.recv(MAX_REPORT + 1)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self._ended()
                return
            report = decode_report(data)
            if report is not None:
                self._on_report(report)
            if self._channel.fileno() < 0:  # stopped by what the report led to
                return

    def _ended(self) -> None:
        self._close_channel()
        self._process.kill()  # it closed its channel: it is ending, or out of its mind
        self._process.wait()
        self._on_exit()

    def _close_channel(self) -> None:
        if self._channel.fileno() >= 0:
            self._loop.remove_reader(self._channel)
            self._loop.remove_writer(self._channel)
            self._channel.close()
        for _data, fds in self._queue:
            _close_all(fds)
        self._queue.clear()


def _spawn(
    which: tuple[str, str, str], channel_fd: int, counters_fd: int
) -> subprocess.Popen[bytes]:
    """Start a worker that finds this very package, and nothing in the working directory."""
    descriptors = (channel_fd, counters_fd)
    command = [sys.executable, "-P", "-m", "jvpnd.dataplane.worker", *which]
    command += [str(number) for number in (*descriptors, os.getpid())]
    paths = [_PACKAGE_ROOT, os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        pass_fds=descriptors,
        env={"PYTHONPATH": os.pathsep.join(filter(None, paths))},  # no secret, no NOTIFY_SOCKET
    )


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
