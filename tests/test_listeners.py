"""Connections that a gateway accepts: strangers are few, have little time, and harm no session."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from jvpnd import listeners as module
from jvpnd.core.effects import Origin
from jvpnd.listeners import FIRST_CONNECTION, Listeners
from jvpnd.transport.endpoint import Listen
from jvpnd.transport.limits import DEFAULT_LIMITS, MAX_CONNECTIONS, ConnectionLimits

PATIENCE_S = 5
MAX_OF_SOURCE = DEFAULT_LIMITS.strangers_of_source


class Plane:
    """Which sockets the data plane has."""

    def __init__(self) -> None:
        self.streams: set[int] = set()

    def add_stream(self, socket_id: int, *fds: int) -> None:
        self.streams.add(socket_id)

    def remove_socket(self, socket_id: int) -> None:
        self.streams.remove(socket_id)


class Gate:
    """A gateway's listeners, and who connects."""

    def __init__(self, runtime: Path, limits: ConnectionLimits) -> None:
        self.plane = Plane()
        listen = [Listen("tcp", "127.0.0.1", 0)]
        self.listeners = Listeners(listen, 1, "gw", runtime, limits)
        (listening,) = self.listeners._sockets.values()
        self._address = listening.getsockname()
        self._made: list[socket.socket] = []
        self.listeners.start(self.plane)  # type: ignore[arg-type]

    @property
    def counts(self) -> tuple[int, int]:
        now = self.listeners.connections()
        assert now["open"] == len(self.plane.streams), "the data plane has others"
        return now["open"], now["strangers"]

    def connect(self, source: str) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._made.append(sock)
        sock.bind((source, 0))
        sock.connect(self._address)
        sock.setblocking(False)
        return sock

    async def connected(self, source: str = "127.0.0.1") -> tuple[socket.socket, int]:
        """A connection that is accepted, and its number."""
        before = set(self.plane.streams)
        sock = self.connect(source)
        await until(lambda: bool(self.plane.streams - before))
        (number,) = self.plane.streams - before
        return sock, number

    def close(self) -> None:
        self.listeners.close_sockets()
        for sock in self._made:
            sock.close()


@contextlib.asynccontextmanager
async def gate(
    runtime: Path, limits: ConnectionLimits = DEFAULT_LIMITS
) -> AsyncIterator[Gate]:
    made = Gate(runtime, limits)
    try:
        yield made
    finally:
        made.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0)


async def is_closed(sock: socket.socket) -> bool:
    async with asyncio.timeout(PATIENCE_S):
        return await asyncio.get_running_loop().sock_recv(sock, 1) == b""


@pytest.fixture(autouse=True)
def _limits() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("most", [MAX_OF_SOURCE, 7])
def test_one_source_has_so_many_strangers_and_others_have_theirs(
    tmp_path: Path, most: int
) -> None:
    async def body() -> None:
        async with gate(tmp_path, ConnectionLimits(strangers_of_source=most)) as at:
            made = [at.connect("127.0.0.2") for _ in range(most + 5)]
            dropped = at.listeners.dropped
            await until(lambda: dropped["too many connections of one source"] == 5)
            assert at.counts == (most, most)
            for sock in made[most:]:
                assert await is_closed(sock)
            await at.connected("127.0.0.3")
            assert at.counts == (most + 1, most + 1)

    asyncio.run(body())


def test_the_oldest_stranger_makes_room_and_no_session_does(tmp_path: Path) -> None:
    async def body() -> None:
        async with gate(tmp_path, ConnectionLimits(strangers=3)) as at:
            _, ours = await at.connected("127.0.0.2")
            at.listeners.vouch(ours)
            strangers = [await at.connected(f"127.0.1.{n}") for n in range(1, 7)]
            assert at.counts == (4, 3)
            for sock, _ in strangers[:3]:
                assert await is_closed(sock)
            assert at.plane.streams == {ours, *(number for _, number in strangers[3:])}
            dropped = at.listeners.dropped
            assert dropped == {"too many connections without a session": 3}

    asyncio.run(body())


def test_who_is_vouched_for_is_no_stranger_and_its_source_has_its_places_again(
    tmp_path: Path,
) -> None:
    async def body() -> None:
        async with gate(tmp_path) as at:
            for _ in range(MAX_OF_SOURCE + 3):
                _, number = await at.connected()
                at.listeners.vouch(number)
                at.listeners.vouch(number)
            assert at.counts == (MAX_OF_SOURCE + 3, 0)
            at.listeners.vouch(FIRST_CONNECTION - 1)  # one that has ended

    asyncio.run(body())


def test_strangers_have_little_time_and_silent_sessions_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SWEEP_S", 0.01)

    async def body() -> None:
        async with gate(tmp_path) as at:
            ours, number = await at.connected()
            at.listeners.vouch(number)
            monkeypatch.setattr(module, "STRANGER_S", 0)
            for _ in range(2):
                assert await is_closed(at.connect("127.0.0.1"))
            assert at.counts == (1, 0)
            monkeypatch.setattr(module, "SILENT_S", 0)
            assert await is_closed(ours)
            assert at.counts == (0, 0)
            assert at.listeners.dropped == {
                "connection without a session": 2,
                "silent connection": 1,
            }

    asyncio.run(body())


def test_all_connections_together_are_bounded(tmp_path: Path) -> None:
    async def body() -> None:
        async with gate(tmp_path, ConnectionLimits(connections=2, strangers=1)) as at:
            for _ in range(2):
                at.listeners.vouch((await at.connected())[1])
            assert await is_closed(at.connect("127.0.0.9"))
            assert at.counts == (2, 0)
            assert at.listeners.dropped == {"too many connections": 1}

    asyncio.run(body())


def test_a_connection_that_ended_has_no_origin_and_is_sent_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        async with gate(tmp_path) as at:
            sock, number = await at.connected("127.0.0.7")
            remote = sock.getsockname()
            origin = at.listeners.origin(number, ("", 0))
            assert origin == Origin(number, remote, "tcp")
            assert at.listeners.transport(number) is not None
            assert at.listeners.address_for(origin) is None
            at.listeners.failed(number)
            at.listeners.failed(number)
            assert await is_closed(sock)
            assert at.listeners.origin(number, ("", 0)) is None
            assert at.listeners.transport(number) is None
            assert at.counts == (0, 0)
            assert (await at.connected())[1] != number, "its number is not used again"

    asyncio.run(body())


@pytest.mark.parametrize("most", [100, DEFAULT_LIMITS.connections, MAX_CONNECTIONS])
def test_there_are_descriptors_for_all_connections_before_the_workers_start(
    tmp_path: Path, most: int
) -> None:
    """They inherit the limit, and a worker without descriptors ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))

    async def body() -> None:
        limits = ConnectionLimits(connections=most)
        made = Listeners([Listen("tcp", "127.0.0.1", 0)], 1, "gw", tmp_path, limits)
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft >= min(4 * most, hard)
        made.close_sockets()

    asyncio.run(body())


def test_few_connections_leave_the_descriptors_that_there_are(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))

    async def body() -> None:
        limits = ConnectionLimits(connections=2, strangers=1, strangers_of_source=1)
        made = Listeners([Listen("tcp", "127.0.0.1", 0)], 1, "gw", tmp_path, limits)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1024, hard)
        made.close_sockets()

    asyncio.run(body())
