"""A real control server, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from jvpnd.control.server import ControlServer, Handler

T = TypeVar("T")


class Served:
    """Runs coroutines and functions on the loop that the server runs on."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, work: Awaitable[T]) -> T:
        async def wait() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(wait(), self.loop).result(20)

    def call(self, function: Callable[[], T]) -> T:
        async def wait() -> T:
            return function()

        return self.run(wait())

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@contextlib.contextmanager
def served(path: Path, handlers: dict[str, Handler], **options: Any) -> Iterator[Served]:
    """A server at `path` for the time of the block."""
    host = Served()
    try:
        server = ControlServer(path, handlers, **options)
        host.run(server.start())
        try:
            yield host
        finally:
            host.run(server.close())
    finally:
        host.close()
