"""Metrics for whoever asks on a loopback address or a unix socket: HTTP, in threads of its own.

A scraper has a few seconds to ask and to read, and there are few threads: who is slow costs others
nothing but a thread for that time. What is rendered, and from where, is somebody else's.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from jvpnd.observe.trouble import Change, Trouble, words_of

THREADS: Final = 4
BACKLOG: Final = 16
MAX_REQUEST: Final = 8192  # bytes
ASK_TIMEOUT_S: Final = 2.0
READ_TIMEOUT_S: Final = 3.0
RETRY_S: Final = 2.0
_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"


def missing() -> str:
    """What to install before metrics work; "" if it is there."""
    if importlib.util.find_spec("prometheus_client") is not None:
        return ""
    problem = "metrics need prometheus-client, which is not installed"
    return f"{problem}: pip install 'jvpn[metrics]'"


class ScrapeServer:
    """Answers GET /metrics with what `render` makes; TimeoutError from it is a 503."""

    def __init__(
        self, listen: str, render: Callable[[], bytes], tell: Callable[[Change], None]
    ) -> None:
        """`listen`: "ADDRESS:PORT" or the absolute name of a unix socket. `tell` may not wait."""
        self.name = "prometheus"
        self._listen = listen
        self._render = render
        self._lock = threading.Lock()
        self._trouble = Trouble(self.name, tell)
        self._stopped = threading.Event()
        self._listener: socket.socket | None = None
        self.scrapes = 0
        self.failed = 0

    def start(self) -> None:
        threading.Thread(target=self._run, name="jvpn-prometheus", daemon=True).start()

    def stop(self) -> None:
        """Answer nobody any more; whoever is being answered just now is left alone."""
        self._stopped.set()
        with self._lock:
            if self._listener is not None:
                with contextlib.suppress(OSError):
                    self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
                self._listener.close()
                if self._listen.startswith("/"):
                    with contextlib.suppress(OSError):
                        os.unlink(self._listen)

    def status(self) -> dict[str, Any]:
        """For `jvpnctl status`."""
        counts = {"scrapes": self.scrapes, "failed": self.failed}
        return {**counts, "degraded": self._trouble.why or None}

    # --- threads ---

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                listener = _bound(self._listen)
            except OSError as error:
                self._count(f"cannot listen on {self._listen}: {words_of(error)}")
                self._stopped.wait(RETRY_S)
                continue
            with self._lock:
                self._listener = listener
            for _ in range(THREADS):
                threading.Thread(target=self._serve, args=(listener,), daemon=True).start()
            return

    def _serve(self, listener: socket.socket) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if self._stopped.is_set():
                    return
                self._count(f"cannot accept: {words_of(error)}")
                self._stopped.wait(RETRY_S)  # descriptors may be short
                continue
            with connection:
                why: str | None
                try:
                    why = self._answer(connection)
                except OSError as error:
                    why = f"a scraper was given up: {words_of(error)}"
            self._count(why)

    def _answer(self, connection: socket.socket) -> str | None:
        """Why the daemon could not answer, "" if it did; None if that was no question."""
        request = _request(connection)
        if request is None:
            return None
        method, target = request
        if method not in ("GET", "HEAD"):
            _send(connection, "405 Method Not Allowed", b"GET\n")
        elif target.partition("?")[0] != "/metrics":
            _send(connection, "404 Not Found", b"/metrics\n")
        else:
            try:
                body = self._render()
            except TimeoutError:
                _send(connection, "503 Service Unavailable", b"the daemon is busy\n")
                return "the daemon did not answer in time"
            _send(connection, "200 OK", body, with_body=method == "GET")
        return ""

    def _count(self, why: str | None) -> None:
        if why is None:
            return
        with self._lock:
            if why:
                self.failed += 1
                self._trouble.fault(why, 0)
            else:
                self.scrapes += 1
                self._trouble.over(0)


def _bound(listen: str) -> socket.socket:
    if listen.startswith("/"):
        return _bound_unix(listen)
    address, _, port = listen.rpartition(":")
    address = address.strip("[]")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, int(port)))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _bound_unix(name: str) -> socket.socket:
    """For root and its group. A socket that was left behind is replaced, nothing else is."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(name).st_mode):
            raise OSError(errno.EEXIST, "is there and is no socket")
        os.unlink(name)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(name)
        os.chmod(name, 0o660)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _request(connection: socket.socket) -> tuple[str, str] | None:
    """(method, target) of the request line; None for what is no HTTP. TimeoutError."""
    deadline, data = time.monotonic() + ASK_TIMEOUT_S, b""
    while b"\r\n\r\n" not in data:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        connection.settimeout(left_s)
        chunk = connection.recv(4096)
        data += chunk
        if not chunk or len(data) > MAX_REQUEST:
            return None
    words = data.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    return (words[0], words[1]) if len(words) == 3 and words[2].startswith("HTTP/1.") else None


def _send(connection: socket.socket, status: str, body: bytes, with_body: bool = True) -> None:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {_TEXT}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    connection.settimeout(READ_TIMEOUT_S)
    connection.sendall(head.encode() + (body if with_body else b""))
