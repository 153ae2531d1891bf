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
from dataclasses import dataclass
from typing import Any, Final, Protocol

from jvpnd.observe.log import Event, drops_event

_log = logging.getLogger("jvpnd")

QUEUE: Final = 4096  # events; as many as the log itself remembers
BATCH: Final = 256
FIRST_RETRY_S: Final = 0.25
MAX_RETRY_S: Final = 5.0
# So long without a fault before "recovered" is told; doubled by each relapse, so that telling of
# a place that comes and goes cannot become a flood, nor its cause.
FIRST_CALM_S: Final = 1.0
MAX_CALM_S: Final = 600.0


class Output(Protocol):
    """A place. Only the sink's thread calls it, and each call ends within seconds."""

    def write(self, pending: deque[Event]) -> None:
        """Take events from the left, each when it is written. OSError: the rest comes again."""
        ...

    def settle(self) -> float | None:
        """Finish what could wait; in how many seconds there is more, or None. May raise OSError."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Change:
    """What a sink has to tell: `lost` events since it was degraded; `why` "" when it recovered."""

    name: str
    why: str
    lost: int


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
        self._tell = tell
        self._capacity = capacity
        self._queue: deque[Event] = deque()
        self._pending: deque[Event] = deque()  # the thread's: being written
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"jvpn-{name}", daemon=True)
        self._stopping = False
        self._untold = 0  # lost since the last EVENTS_DROPPED
        self._last_lost: Event = {}
        self._why = ""  # degraded, if not empty
        self._lost_before = 0  # `dropped` when that began
        self._first_calm_s = self._calm_s = calm_s
        self._fault_s = self._told_s = 0.0
        self._retry_s = FIRST_RETRY_S
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
                self._degrade("too slow: its queue is full")
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
            "degraded": self._why or None,
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
            _log.warning("%s: %s", self.name, _words(error))

    def _take(self, wait_s: float | None) -> bool:
        """Wait for events, or for that time; False at the end."""
        with self._changed:
            # While a batch is stuck, nothing new can be done before its time.
            is_due = (lambda: self._stopping) if self._pending else self._has_work
            self._changed.wait_for(is_due, wait_s)
            if not self._pending:
                self._fill()
            return not self._stopping or bool(self._pending and not self._why)

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
        try:
            if before:
                self._output.write(self._pending)
            more_s = self._output.settle()
        except OSError as error:
            return self._failed(error)
        finally:
            self.written += before - len(self._pending)
        self._retry_s = FIRST_RETRY_S
        return self._recover(more_s)

    def _failed(self, error: OSError) -> float:
        with self._changed:
            self._fault_s = time.monotonic()
            self._degrade(_words(error))
        wait_s, self._retry_s = self._retry_s, min(2 * self._retry_s, MAX_RETRY_S)
        return wait_s

    def _recover(self, more_s: float | None) -> float | None:
        """Tell that all is well, once it has been so for long enough."""
        with self._changed:
            if not self._why or self._queue or self._pending:
                return more_s
            now = time.monotonic()
            calm_s = now - self._fault_s
            if calm_s < self._calm_s:
                left_s = self._calm_s - calm_s
                return left_s if more_s is None else min(left_s, more_s)
            lost = self.dropped - self._lost_before
            self._why, self._told_s = "", now
            self._tell(Change(self.name, "", lost))
            return more_s

    def _degrade(self, why: str) -> None:
        """The lock is held. Tell once why."""
        now = self._fault_s = time.monotonic()
        if self._why:
            return
        if self._told_s:
            is_relapse = now - self._told_s < MAX_CALM_S
            grown_s = min(2 * self._calm_s, MAX_CALM_S)
            self._calm_s = grown_s if is_relapse else self._first_calm_s
        self._why = why
        # The one that is being dropped just now is among the lost.
        self._lost_before = self.dropped - self._untold
        self._tell(Change(self.name, why, 0))


def _words(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
