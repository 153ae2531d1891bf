"""Changes of the host's network, one at a time, behind the back of who asks for them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from jvpnd.net.errors import MissingFeature

_log = logging.getLogger("jvpnd")


class Serializer:
    """Runs asynchronous host-network changes one at a time, in order."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())

    def submit(self, change: Callable[[], Awaitable[None]]) -> None:
        """Queue a change; what the host refuses is told of in the log, and a bug raises here."""
        if self._task.done():
            self._task.result()
        self._queue.put_nowait(change)

    async def _run(self) -> None:
        while True:
            change = await self._queue.get()
            try:
                await change()
            except (OSError, MissingFeature) as error:
                _log.error("the host's network refused a change: %s", error)

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
