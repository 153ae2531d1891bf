"""A place that events go to, behind a bounded queue and in a thread of its own.

The event loop only ever puts an event into a queue. Whatever the place does - refuse, hang, fill up
- happens to the thread: what the queue cannot hold is dropped, oldest first, and counted; that the
place is degraded is told once, and once more when all is well again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from jvpnd.observe.log import Event, drops_event
from jvpnd.observe.trouble import FIRST_CALM_S, Change, Trouble, words_of

_log = logging.getLogger("jvpnd")

QUEUE: Final = 16_384  # events; a restart with 10,000 sessions tells so many at once, and more
BATCH: Final = 256
FIRST_RETRY_S: Final = 0.25
MAX_RETRY_S: Final = 5.0


class Output(Protocol):
    """A place. Only the sink's thread calls it, and each call ends within seconds."""

    def write(self, pending: deque[Event]) -> None:
        """Take events from the left, each when it is written. OSError: the rest comes again."""
        ...

    def settle(self) -> float | None:
        """Finish what could wait; in how many seconds there is more, or None. May raise OSError."""
        ...

    def close(self) -> None: ...


class Sink:
    """Offer events from one thread, the event loop's; start and stop it there, too."""

    def __init__(
        self,
        name: str,
        output: Output,
        tell: Callable[[Change], None],
        capacity: int = QUEUE,
        calm_s: float = FIRST_CALM_S,
    ) -> None:
        """`tell` is called from either thread and may not wait."""
        self.name = name
        self._output = output
        self._capacity = capacity
        self._queue: deque[Event] = deque()
        self._pending: deque[Event] = deque()  # the thread's: being written
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"jvpn-{name}", daemon=True)
        self._stopping = False
        self._untold = 0  # lost since the last EVENTS_DROPPED
        self._last_lost: Event = {}
        self._trouble = Trouble(name, tell, calm_s)
        self._retry_s = FIRST_RETRY_S
        self._is_stuck = False  # the last try failed
        self.dropped = 0
        self.written = 0

    def start(self) -> None:
        self._thread.start()

    def offer(self, event: Event) -> None:
        """Queue one event, at the price of the oldest one where the queue is full."""
        with self._changed:
            if len(self._queue) >= self._capacity:
                self._last_lost = self._queue.popleft()
                self._untold += 1
                self.dropped += 1
                # The one that is dropped just now is among the lost.
                self._trouble.fault("too slow: its queue is full", self.dropped - 1)
            self._queue.append(event)
            self._changed.notify()

    def stop(self, timeout_s: float) -> None:
        """Write what is queued, if the place takes it within that time; then give up."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        left = len(self._queue) + len(self._pending)
        if left:
            _log.warning("%s: %d events were not written before the end", self.name, left)

    def status(self) -> dict[str, Any]:
        """For `jvpnctl status`: `degraded` is why, or null."""
        return {
            "written": self.written,
            "dropped": self.dropped,
            "queued": len(self._queue) + len(self._pending),
            "degraded": self._trouble.why or None,
        }

    # --- the thread ---

    def _run(self) -> None:
        wait_s: float | None = None
        while self._take(wait_s):
            wait_s = self._work()
        try:
            self._work()
            self._output.close()
        except OSError as error:
            _log.warning("%s: %s", self.name, words_of(error))

    def _take(self, wait_s: float | None) -> bool:
        """Wait for events, or for that time; False at the end."""
        with self._changed:
            # While a batch is stuck, nothing new can be done before its time.
            is_due = (lambda: self._stopping) if self._pending else self._has_work
            self._changed.wait_for(is_due, wait_s)
            if not self._pending:
                self._fill()
            return not self._stopping or (bool(self._pending) and not self._is_stuck)

    def _has_work(self) -> bool:
        return self._stopping or bool(self._queue)

    def _fill(self) -> None:
        if self._untold:
            self._pending.append(drops_event(self._untold, self._last_lost))
            self._untold = 0
        while self._queue and len(self._pending) < BATCH:
            self._pending.append(self._queue.popleft())

    def _work(self) -> float | None:
        """Write what is pending; in how many seconds to come again, or None."""
        before = len(self._pending)
        self._is_stuck = True
        try:
            if before:
                self._output.write(self._pending)
            more_s = self._output.settle()
        except OSError as error:
            return self._failed(error)
        finally:
            self.written += before - len(self._pending)
        self._is_stuck, self._retry_s = False, FIRST_RETRY_S
        return self._recover(more_s)

    def _failed(self, error: OSError) -> float:
        with self._changed:
            self._trouble.fault(words_of(error), self.dropped)
        wait_s, self._retry_s = self._retry_s, min(2 * self._retry_s, MAX_RETRY_S)
        return wait_s

    def _recover(self, more_s: float | None) -> float | None:
        """Tell that all is well, once it has been so for long enough."""
        with self._changed:
            if self._queue or self._pending:
                return more_s
            left_s = self._trouble.over(self.dropped)
            return min((each for each in (left_s, more_s) if each is not None), default=None)
