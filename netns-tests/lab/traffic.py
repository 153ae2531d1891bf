"""Traffic as users make it: a UDP echo at a steady rate, and a TCP stream that checks its content.

Each runs as a process of its own inside a namespace (`python -m lab.traffic ...`); a client prints
a JSON report for each line it gets on stdin, about the time since the line before.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import selectors
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from lab.namespace import Namespace

ECHO_PORT, TCP_PORT = 7777, 7778
BLOCK = bytes(range(251)) * 257  # a prime period: a shifted byte never goes unseen
TCP_PAUSE_S = 0.02
SETTLED_S = 0.5  # an echo that is not back by then is lost


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def serve_echo(address: str) -> None:
    with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
        sock.bind((address, ECHO_PORT))
        print("ready", flush=True)
        while True:
            data, sender = sock.recvfrom(2048)
            with contextlib.suppress(OSError):
                sock.sendto(data, sender)


class _Echo:
    """Sends numbered datagrams and notes when each comes back."""

    def __init__(self, address: str, rate_hz: float) -> None:
        self.sock = socket.socket(_family(address), socket.SOCK_DGRAM)
        self.sock.connect((address, ECHO_PORT))
        self.sock.setblocking(False)
        self.period_s = 1 / rate_hz
        self._sent: dict[int, float] = {}  # not told of yet
        self._back: set[int] = set()
        self._arrivals: list[float] = [time.monotonic()]  # since the last report, and one before
        self._rtts: list[float] = []

    def send(self, number: int) -> None:
        self._sent[number] = time.monotonic()
        with contextlib.suppress(OSError):  # no route, or a full queue: counted as lost
            self.sock.send(b"%d" % number)

    def receive(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                number = int(self.sock.recv(64))
                now = time.monotonic()
                if number in self._sent and number not in self._back:
                    self._back.add(number)
                    self._arrivals.append(now)
                    self._rtts.append(now - self._sent[number])

    def report(self) -> dict[str, Any]:
        """Counts are of datagrams that had SETTLED_S to come back; gaps go up to now."""
        now = time.monotonic()
        settled = [number for number, at in self._sent.items() if now - at > SETTLED_S]
        back = [number for number in settled if number in self._back]
        gaps = [later - earlier for earlier, later in itertools.pairwise([*self._arrivals, now])]
        rtts = sorted(self._rtts)
        for number in settled:
            del self._sent[number]
        self._back.difference_update(back)
        self._arrivals, self._rtts = self._arrivals[-1:], []
        return {
            "sent": len(settled),
            "received": len(back),
            "longest_gap_ms": round(1000 * max(gaps), 1),
            "rtt_ms": round(1000 * rtts[len(rtts) // 2], 2) if rtts else None,
        }


def run_echo(address: str, rate_hz: float) -> None:
    echo, number = _Echo(address, rate_hz), 0
    start = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(echo.sock, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            wait_s = start + number * echo.period_s - time.monotonic()
            if wait_s <= 0:
                echo.send(number)
                number += 1
            for key, _ in selector.select(max(0, wait_s)):
                if key.fileobj is echo.sock:
                    echo.receive()
                elif sys.stdin.readline():
                    print(json.dumps(echo.report()), flush=True)
                else:
                    return


def serve_tcp(address: str) -> None:
    """Sends the same endless text to whoever connects, at a few MB/s."""

    def feed(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while True:
                connection.sendall(BLOCK)
                time.sleep(TCP_PAUSE_S)

    with socket.create_server((address, TCP_PORT), family=_family(address)) as server:
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            threading.Thread(target=feed, args=(connection,), daemon=True).start()


def run_tcp(address: str) -> None:
    """One connection, never a second one: a report says whether it still carries the text."""
    connection = socket.create_connection((address, TCP_PORT), timeout=20)
    total, marked, problem = 0, 0, ""
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not connection:
                    if not sys.stdin.readline():
                        return
                    report = {"bytes": total - marked, "total": total, "problem": problem}
                    print(json.dumps(report), flush=True)
                    marked = total
                    continue
                try:
                    data = connection.recv(1 << 16)
                except OSError as error:
                    data, problem = b"", str(error)
                at = total % 251
                if not data:
                    problem = problem or "closed by the other end"
                    selector.unregister(connection)
                elif data != (BLOCK + BLOCK)[at : at + len(data)]:
                    problem = problem or f"wrong content after {total} bytes"
                total += len(data)


class Traffic:
    """One client process and its server; ask it for reports."""

    def __init__(
        self, kind: str, client: Namespace, server: Namespace, address: str, *more: str
    ) -> None:
        module = (sys.executable, "-m", "lab.traffic")
        env = {"PYTHONPATH": str(Path(__file__).parents[1])}
        self._server = server.popen(*module, f"serve-{kind}", address, env=env)
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"
        self._client = client.popen(
            *module, kind, address, *more, stdin=subprocess.PIPE, env=env
        )

    def report(self) -> dict[str, Any]:
        """What happened since the report before."""
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        self._client.stdin.write("\n")
        self._client.stdin.flush()
        answer: dict[str, Any] = json.loads(self._client.stdout.readline())
        return answer

    def wait_until(self, what: str, above: float, timeout_s: float = 10) -> list[dict[str, Any]]:
        """Ask until the sum of `what` is above a number; all the reports till then."""
        deadline = time.monotonic() + timeout_s
        reports: list[dict[str, Any]] = []
        while sum(report[what] for report in reports) <= above:
            assert time.monotonic() < deadline, f"no {what} above {above}: {reports[-1:]}"
            time.sleep(0.05)
            reports.append(self.report())
        return reports

    def close(self) -> None:
        for process in (self._client, self._server):
            if process.poll() is None:
                process.kill()
            process.wait()

    def __enter__(self) -> Traffic:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


if __name__ == "__main__":
    role, where = sys.argv[1], sys.argv[2]
    with contextlib.suppress(KeyboardInterrupt):
        if role == "serve-echo":
            serve_echo(where)
        elif role == "serve-tcp":
            serve_tcp(where)
        elif role == "echo":
            run_echo(where, float(sys.argv[3]))
        else:
            run_tcp(where)
