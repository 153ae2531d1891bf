"""When the store was reached last, and why not since; kept by several threads, told in the loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from functools import partial

_log = logging.getLogger("jvpnd")


class Contact:
    """Whether the store answers this node, and whether the node hears what others write: only with
    both can it know that a session is its own."""

    def __init__(self, where: str, seen: Callable[[float], None]) -> None:
        """`seen`: is told in the loop of each answer, with the time at which it was asked for,
        unless the node does not hear."""
        self._where = where
        self._seen = seen
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._hears = False
        self._failed = ""
        self._deaf = ""

    @property
    def problem(self) -> str:
        """Why the store cannot be used at present, "" if all is well."""
        return self._failed or self._deaf

    @property
    def is_failing(self) -> bool:
        """Whether the last that was heard of a request is that it failed."""
        return bool(self._failed)

    def open(self) -> None:
        """From now on things are told, in the loop that is running."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Nothing is told any more."""
        self._loop = None

    def reached(self, at_ms: float) -> None:
        """The store has answered what was asked at `at_ms`."""
        with self._lock:
            if self._failed:
                _log.info("%s answers again", self._where)
            self._failed = ""
        if self._hears:
            self.tell(partial(self._seen, at_ms))

    def failed(self, why: str) -> None:
        """It has not answered, or said no."""
        with self._lock:
            if not self._failed:
                _log.error("%s cannot be used: %s", self._where, why)
            self._failed = why

    def hears(self) -> None:
        """What others write comes in."""
        with self._lock:
            if self._deaf:
                _log.info("%s tells of changes again", self._where)
            self._hears, self._deaf = True, ""

    def deaf(self, why: str) -> None:
        """It does not."""
        with self._lock:
            if not self._deaf:
                _log.error("%s does not tell of changes: %s", self._where, why)
            self._hears, self._deaf = False, why

    def tell(self, what: Callable[[], None]) -> None:
        """Have `what` called in the loop."""
        if (loop := self._loop) is not None:
            loop.call_soon_threadsafe(self._call, what)

    def _call(self, what: Callable[[], None]) -> None:
        if self._loop is not None:
            what()
