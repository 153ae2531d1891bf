"""Nodes that share a table in a real etcd, and hear of each other."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from jvpnd.configcluster import ClusterSettings, EtcdAccess
from jvpnd.core.ownership import RowSeen
from jvpnd.core.peer import Stored
from jvpnd.store.etcd import EtcdTable
from jvpnd.store.observer import NodeInfo

A, B, C = "aa" * 16, "bb" * 16, "cc" * 16
KEY, OTHER_KEY = b"k" * 32, b"o" * 32
ROOT, HEARD = "5ec2e7" + "ab" * 29, "4ea2d1" + "cd" * 29
DAY_MS = 86_400_000
ENDPOINTS = [("udp", "192.0.2.1", 7700), ("tls", "", 443)]


def row(session_id: str = A, version: int = 1, owner: str = "a", **more: object) -> dict[str, Any]:
    """As core/record.py makes them."""
    made: dict[str, Any] = {
        **{"session_id": session_id, "client": "laptop", "state": "BOUND", "owner": owner},
        **{"state_version": version, "epoch": 3, "attempt": 4, "root": ROOT, "suite": 1},
        **{"addresses": ["10.77.0.2/24"], "created_ms": 1000.5, "lost_since_ms": None},
        **{"switches": 1, "rekeys": 2, "switched_at_ms": [1500.0, 2500.0], "client_key": "cd" * 32},
        **{"anchor_ms": 1200.0, "timestamp": 5, "issue": 0, "next_index": 7, "index": 8},
        **{"peer_index": 9, "heard_key": HEARD, "socket_id": 1, "remote": ["10.0.0.1", 7000]},
        **{"transport": "udp", "path_number": 1},
    }
    return {**made, **more}


class Observer:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.moves: list[tuple[str, str | None]] = []
        self.nodes: dict[str, NodeInfo] = {}
        self.seen_ms: list[float] = []
        self._news = asyncio.Event()

    def row_seen(self, seen: RowSeen) -> None:
        self.moves.append((seen.session_id.hex(), seen.owner))
        self._news.set()

    def row_gone(self, session_id: bytes) -> None:
        self.moves.append((session_id.hex(), None))
        self._news.set()

    def nodes_changed(self, nodes: dict[str, NodeInfo]) -> None:
        self.nodes = nodes
        self._news.set()

    def store_seen(self, at_ms: float) -> None:
        self.seen_ms.append(at_ms)
        self._news.set()

    async def until(self, holds: Callable[[], bool], within_s: float = 15.0) -> None:
        async with asyncio.timeout(within_s):
            while not holds():
                self._news.clear()
                await self._news.wait()

    async def until_moved(self, *moves: tuple[str, str | None]) -> None:
        await self.until(lambda: all(move in self.moves for move in moves))


class Node:
    """A table whose answers can be awaited."""

    def __init__(self, table: EtcdTable, observer: Observer) -> None:
        self.table = table
        self.observer = observer

    def swap(self, new: dict[str, Any], expected: int | None = None) -> asyncio.Future[Stored]:
        """`expected`: the version before by default."""
        told: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        before = new["state_version"] - 1 if expected is None else expected
        self.table.swap(new["session_id"], before, new, told.set_result)
        return told

    def load(self, session_id: str) -> asyncio.Future[tuple[Any, Stored]]:
        told: asyncio.Future[tuple[Any, Stored]] = asyncio.get_running_loop().create_future()
        self.table.load(session_id, lambda found, outcome: told.set_result((found, outcome)))
        return told

    async def version(self, session_id: str) -> int | None:
        found, outcome = await self.load(session_id)
        assert outcome is Stored.OK
        return None if found is None else found["state_version"]


@contextlib.asynccontextmanager
async def node(
    access: EtcdAccess,
    name: str = "a",
    prefix: str = "/jvpn/",
    keys: tuple[bytes, ...] = (KEY,),
    ttl_s: int = 10,
    address: str = "10.0.0.7",
) -> AsyncIterator[Node]:
    """One that is open."""
    settings = ClusterSettings(access, keys, prefix, ttl_s, (address,))
    table, observer = EtcdTable(settings, name, ENDPOINTS, DAY_MS), Observer()
    try:
        await table.open()
        table.observe(observer)
        yield Node(table, observer)
    finally:
        await table.close()


class Wire:
    """A TCP relay to a member that can be cut, or lose what comes back."""

    def __init__(self, access: EtcdAccess) -> None:
        ((scheme, host, port),) = access.endpoints
        self._to = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.access = EtcdAccess(((scheme, *self._listener.getsockname()[:2]),))
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.is_cut = False
        self.answers_to_lose = b""  # lose the next answer to a request that has this
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        with self._lock:
            self.is_cut = True
            for each in self._open:
                _shut(each)

    def mend(self) -> None:
        self.is_cut = False

    def close(self) -> None:
        self.cut()
        _shut(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.is_cut:
                near.close()
                continue
            far = socket.create_connection(self._to)
            state = {"lose": False}
            with self._lock:
                self._open |= {near, far}
            for source, to in ((near, far), (far, near)):
                arguments = (source, to, state, source is near)
                threading.Thread(target=self._relay, args=arguments, daemon=True).start()

    def _relay(
        self, source: socket.socket, to: socket.socket, state: dict[str, bool], is_up: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if is_up and self.answers_to_lose and self.answers_to_lose in data:
                    state["lose"], self.answers_to_lose = True, b""
                elif not is_up and state["lose"]:
                    self.lost += 1
                    break
                to.sendall(data)
        for each in (source, to):
            _shut(each)
        with self._lock:
            self._open -= {source, to}


def _shut(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
