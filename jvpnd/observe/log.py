"""The event log: a bounded ring of JSON objects and subscribers that can never hold it up.

Append, read and subscribe from one thread: the one that runs the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, TypeAlias

Event: TypeAlias = dict[str, Any]

QUEUE: Final = 1024  # events a subscriber may lag behind
DROPPED: Final = "EVENTS_DROPPED"
SCHEMA: Final = 1  # of every event: docs/events.schema.json


class EventLog:
    """Numbers, stamps and keeps events (docs/events.md has the fields); oldest go first."""

    def __init__(self, node_id: str, clock_ms: Callable[[], int], capacity: int = 4096) -> None:
        self._node_id = node_id
        self._clock_ms = clock_ms  # wall clock
        self._capacity = capacity
        self._ring: deque[Event] = deque(maxlen=capacity)
        self._seq = itertools.count(1)
        self._subscribers: set[Subscription] = set()
        self._taps: list[Callable[[Event], None]] = []

    def append(
        self,
        event_type: str,
        session_id: str | None = None,
        client: str | None = None,
        from_state: str | None = None,
        to_state: str | None = None,
        reason: str | None = None,
        state_version: int | None = None,
        policy_version: int | None = None,
        details: Mapping[str, object] | None = None,
    ) -> Event:
        """Write one event, hand it to every subscriber and return it. Never blocks."""
        event: Event = {
            "schema": SCHEMA,
            "ts_ms": self._clock_ms(),
            "seq": next(self._seq),
            "node_id": self._node_id,
            "event_type": str(event_type),
            "session_id": session_id,
            "client": client,
            "from": None if from_state is None else str(from_state),
            "to": None if to_state is None else str(to_state),
            "reason": None if reason is None else str(reason),
            "state_version": state_version,
            "policy_version": policy_version,
            "details": dict(details or {}),
        }
        self._ring.append(event)
        for subscriber in self._subscribers:
            subscriber.offer(event)
        for take in self._taps:
            take(event)
        return event

    def tap(self, take: Callable[[Event], None]) -> None:
        """Call `take` with every event from now on. It may neither wait nor append."""
        self._taps.append(take)

    def recent(self, session_id: str | None = None, limit: int | None = None) -> list[Event]:
        """What the ring holds, oldest first: of one session (its id, or how the id begins), and
        only the newest `limit`."""
        matching = (event for event in self._ring if concerns(event, session_id))
        return list(deque(matching, maxlen=limit))

    def status(self) -> dict[str, int]:
        """How many events the ring holds, how many it can, and how many it had to forget."""
        kept = len(self._ring)
        forgotten = self._ring[-1]["seq"] - kept if kept else 0
        return {"kept": kept, "limit": self._capacity, "forgotten": forgotten}

    def subscribe(self, capacity: int = QUEUE) -> Subscription:
        """Events from now on. Use as a context manager and iterate asynchronously."""
        subscriber = Subscription(capacity, self._subscribers.discard)
        self._subscribers.add(subscriber)
        return subscriber


class Subscription:
    """A bounded queue of events. Who falls behind loses the oldest, and is told how many."""

    def __init__(self, capacity: int, on_close: Callable[[Subscription], None]) -> None:
        self._queue: deque[Event] = deque()
        self._capacity = capacity
        self._on_close = on_close
        self._wake = asyncio.Event()
        self._closed = False
        self._untold = 0
        self._last_dropped: Event = {}
        self.dropped = 0  # in all

    def offer(self, event: Event) -> None:
        """Queue one event, at the price of the oldest one where the queue is full."""
        if len(self._queue) >= self._capacity:
            self._last_dropped = self._queue.popleft()
            self._untold += 1
            self.dropped += 1
        self._queue.append(event)
        self._wake.set()

    def close(self) -> None:
        """Take no more events; iteration ends with what is queued."""
        self._closed = True
        self._on_close(self)
        self._wake.set()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        if self._untold:
            count, self._untold = self._untold, 0
            return drops_event(count, self._last_dropped)
        return self._queue.popleft()


def drops_event(count: int, last: Event) -> Event:
    """`count` lost events as one, in the place of the last of them, so that seq still rises."""
    return {
        **dict.fromkeys(last),
        "schema": SCHEMA,
        "ts_ms": last["ts_ms"],
        "seq": last["seq"],
        "node_id": last["node_id"],
        "event_type": DROPPED,
        "details": {"dropped": count},
    }


def concerns(event: Event, session_id: str | None) -> bool:
    """Whether the event is of the session whose id is, or begins with, this; None: of any."""
    return session_id is None or (event["session_id"] or "").startswith(session_id)
