"""The watchdog hears of a daemon that does its work, and of no other.

The service manager is a real socket, the interface a real one: lo, and one that is not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jvpnd.watchdog import Watchdog

EVERY_S = 0.01
PATIENCE_S = 20


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Its end of NOTIFY_SOCKET; it has asked for a word every 5 * EVERY_S."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", str(int(5 * EVERY_S * 1e6)))
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        yield end


class Workers:
    """Counts the looks at it; `turn` says how a look is answered."""

    def __init__(self, turn: Callable[[int], int | None]) -> None:
        self.looks, self._turn = 0, turn
        self.seen_thrice = asyncio.Event()

    def turns(self) -> dict[str, int | None]:
        self.looks += 1
        if self.looks > 3:
            self.seen_thrice.set()
        return {"lane 0 uplink": self.looks, "lane 0 downlink": self._turn(self.looks)}


def words(manager: socket.socket, interface: str, turn: Callable[[int], int | None]) -> list[bytes]:
    """What the manager heard during three looks."""

    async def run() -> None:
        workers = Workers(turn)
        watchdog = Watchdog(interface, workers)
        watchdog.start()
        await asyncio.wait_for(workers.seen_thrice.wait(), PATIENCE_S)
        watchdog.stop()

    asyncio.run(run())
    heard = []
    with contextlib.suppress(BlockingIOError):
        while True:
            heard.append(manager.recv(4096))
    return heard


def test_it_hears_of_a_daemon_whose_workers_turn(manager: socket.socket) -> None:
    heard = words(manager, "lo", lambda look: look)
    assert len(heard) >= 2
    assert set(heard) == {b"WATCHDOG=1"}


@pytest.mark.parametrize("turn", [lambda look: 7, lambda look: None], ids=["hangs", "is gone"])
def test_it_hears_nothing_where_a_worker(
    manager: socket.socket, turn: Callable[[int], int | None], caplog: pytest.LogCaptureFixture
) -> None:
    assert words(manager, "lo", turn) == []
    assert [each.message for each in caplog.records] == [
        "no word to the watchdog: the worker lane 0 downlink does not go round"
    ]


def test_it_hears_nothing_without_the_interface(
    manager: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    assert words(manager, "jvpnnone", lambda look: look) == []
    assert "jvpnnone is not up" in caplog.text


def test_it_hears_again_of_a_worker_that_came_back(manager: socket.socket) -> None:
    heard = words(manager, "lo", lambda look: None if look == 2 else look)
    assert heard
    assert set(heard) == {b"WATCHDOG=1"}


@pytest.mark.parametrize(
    ("name", "value"), [("WATCHDOG_USEC", None), ("WATCHDOG_PID", "1"), ("WATCHDOG_USEC", "x")]
)
def test_who_was_not_asked_is_silent(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, name: str, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)

    async def run() -> int:
        workers = Workers(lambda look: look)
        watchdog = Watchdog("lo", workers)
        watchdog.start()
        await asyncio.sleep(0)
        watchdog.stop()
        return workers.looks

    assert asyncio.run(run()) == 0
    with pytest.raises(BlockingIOError):
        manager.recv(64)
