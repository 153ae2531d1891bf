"""Where telemetry goes: a journal and a syslog collector that can be told to misbehave."""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.namespace import Namespace


class Journal:
    """A socket as journald has one. It reads while it is not `blocked`."""

    def __init__(self, path: Path) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []  # (type, details)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._may_read = threading.Event()
        self._may_read.set()
        self._closing = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        self._may_read.clear()
        try:
            yield
        finally:
            self._may_read.set()

    def of(self, exporter: str) -> list[tuple[str, dict[str, Any]]]:
        """What was told of an exporter."""
        return [row for row in list(self.events) if row[1].get("exporter") == exporter]

    def _run(self) -> None:
        while not self._closing:
            self._may_read.wait()
            if not select.select([self._socket], [], [], 0.1)[0]:
                continue
            fields = dict(
                line.split("=", 1)
                for line in self._socket.recv(1 << 18).decode().splitlines()
                if "=" in line
            )
            self.events.append((fields["JVPN_EVENT"], json.loads(fields["JVPN_DETAILS"])))

    def close(self) -> None:
        self._closing = True
        self._may_read.set()
        self._thread.join()
        self._socket.close()


class Collector:
    """A syslog collector over TCP in a namespace. It reads while it is not `deaf`."""

    def __init__(self, namespace: Namespace, port: int) -> None:
        self._namespace = namespace
        self._port = port
        self.sequence: list[int] = []
        self.connections: list[socket.socket] = []
        self._may_read = threading.Event()
        self._may_read.set()
        self._closing = False
        self._listener = self._listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _listen(self) -> socket.socket:
        def make() -> socket.socket:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            listener.bind(("127.0.0.1", self._port))
            listener.listen()
            return listener

        return self._namespace.within(make)

    @contextlib.contextmanager
    def deaf(self) -> Iterator[None]:
        """It accepts, and reads nothing."""
        self._may_read.clear()
        try:
            yield
        finally:
            self._may_read.set()

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """It is gone: connections are reset, new ones refused."""
        self._stop()
        try:
            yield
        finally:
            self._closing, self._listener = False, self._listen()
            self._thread = threading.Thread(target=self._run)
            self._thread.start()

    def _run(self) -> None:
        pending: dict[socket.socket, bytes] = {}
        while not self._closing:
            sockets = [self._listener, *(self.connections if self._may_read.is_set() else ())]
            for ready in select.select(sockets, [], [], 0.1)[0]:
                if ready is self._listener:
                    self.connections.append(ready.accept()[0])
                    continue
                try:
                    data = ready.recv(65536)
                except ConnectionError:
                    data = b""
                if not data:
                    self.connections.remove(ready)
                    ready.close()
                    continue
                pending[ready] = self._parsed(pending.get(ready, b"") + data)

    def _parsed(self, data: bytes) -> bytes:
        """Take whole messages; what is left."""
        while (found := re.match(rb"([0-9]+) ", data)) is not None:
            end = found.end() + int(found[1])
            if len(data) < end:
                break
            message, data = data[found.end() : end], data[end:]
            seq = re.search(rb' seq="([0-9]+)"', message)
            assert seq is not None, message
            self.sequence.append(int(seq[1]))
        return data

    def _stop(self) -> None:
        self._closing = True
        self._thread.join()
        for each in (self._listener, *self.connections):
            each.close()
        self.connections.clear()

    def close(self) -> None:
        self._stop()
