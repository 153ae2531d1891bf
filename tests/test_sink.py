"""A sink never holds up who offers events, and tells once of each trouble and of its end."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable

import pytest

from jvpnd.observe import sink as module
from jvpnd.observe.log import DROPPED, Event, EventLog
from jvpnd.observe.sink import Sink
from jvpnd.observe.trouble import Change


class Place:
    """Takes events while it is `well`, and while `open` is set."""

    def __init__(self) -> None:
        self.got: list[Event] = []
        self.well = True
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.tries = 0
        self.settled = self.closed = 0

    def write(self, pending: deque[Event]) -> None:
        self.entered.set()
        self.open.wait()
        self.tries += 1
        while pending:
            if not self.well:
                raise OSError(28, "No space left on device")
            self.got.append(pending.popleft())

    def settle(self) -> float | None:
        self.settled += 1
        return None

    def close(self) -> None:
        self.closed += 1


class Told:
    """What a sink told, in order."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self._more = threading.Condition()

    def __call__(self, change: Change) -> None:
        with self._more:
            self.changes.append(change)
            self._more.notify_all()

    def wait(self, count: int) -> list[Change]:
        with self._more:
            assert self._more.wait_for(lambda: len(self.changes) >= count, 10), self.changes
            return list(self.changes)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(module, "MAX_RETRY_S", 0.02)


@pytest.fixture
def events() -> Callable[[int], list[Event]]:
    clock = itertools.count(1)
    log = EventLog("gw1", lambda: next(clock))
    return lambda count: [log.append("REKEY") for _ in range(count)]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def seqs(place: Place) -> list[int]:
    return [event["seq"] for event in place.got]


def started(place: Place, told: Told, capacity: int = 100, calm_s: float = 0.05) -> Sink:
    sink = Sink("place", place, told, capacity, calm_s)
    sink.start()
    return sink


def test_events_arrive_in_order_and_the_end_waits_for_the_last(
    events: Callable[[int], list[Event]],
) -> None:
    place, told = Place(), Told()
    sink = started(place, told, capacity=5000)
    for event in events(1000):
        sink.offer(event)
    sink.stop(10)
    assert seqs(place) == [*range(1, 1001)]
    assert place.closed == 1
    assert place.settled >= 1
    assert told.changes == []
    assert sink.status() == {"written": 1000, "dropped": 0, "queued": 0, "degraded": None}


def test_a_place_that_refuses_is_told_of_once_and_gets_everything_later(
    events: Callable[[int], list[Event]],
) -> None:
    place, told = Place(), Told()
    sink = started(place, told)
    place.well = False
    for event in events(20):
        sink.offer(event)
    assert told.wait(1) == [Change("place", "No space left on device", 0)]
    assert sink.status()["degraded"] == "No space left on device"
    until(lambda: place.tries > 5)
    assert len(told.changes) == 1
    place.well = True
    assert told.wait(2)[1:] == [Change("place", "", 0)]
    assert seqs(place) == [*range(1, 21)]
    sink.stop(10)
    assert len(told.changes) == 2


def test_a_place_that_hangs_costs_the_oldest_events_and_nobody_waits(
    events: Callable[[int], list[Event]],
) -> None:
    place, told = Place(), Told()
    sink = started(place, told, capacity=10)
    place.open.clear()
    (first,) = events(1)
    sink.offer(first)
    assert place.entered.wait(10)
    for event in events(40):
        sink.offer(event)  # would never return if it waited for the place
    assert told.wait(1) == [Change("place", "too slow: its queue is full", 0)]
    assert sink.status() == {
        "written": 0,
        "dropped": 30,
        "queued": 11,
        "degraded": "too slow: its queue is full",
    }
    place.open.set()
    assert told.wait(2)[1] == Change("place", "", 30)
    sink.stop(10)
    assert seqs(place) == [1, *range(31, 42)]
    lost = place.got[1]
    assert (lost["event_type"], lost["details"]) == (DROPPED, {"dropped": 30})


def test_a_place_that_hangs_does_not_hang_the_end(
    events: Callable[[int], list[Event]], caplog: pytest.LogCaptureFixture
) -> None:
    place, told = Place(), Told()
    sink = started(place, told)
    place.open.clear()
    for event in events(3):
        sink.offer(event)
    assert place.entered.wait(10)
    sink.stop(0.05)
    assert "were not written" in caplog.text
    place.open.set()


def test_the_end_waits_for_a_place_that_was_too_slow_but_works(
    events: Callable[[int], list[Event]],
) -> None:
    place, told = Place(), Told()
    place.open.clear()
    sink = started(place, told, capacity=1000)
    sink.offer(events(1)[0])
    assert place.entered.wait(10)
    for event in events(1500):
        sink.offer(event)
    told.wait(1)
    place.open.set()
    sink.stop(10)
    assert sink.status()["queued"] == 0
    assert seqs(place)[-1] == 1501


def test_the_end_of_a_place_that_refuses_is_not_put_off(
    events: Callable[[int], list[Event]],
) -> None:
    place, told = Place(), Told()
    place.well = False
    sink = started(place, told)
    sink.offer(events(1)[0])
    told.wait(1)
    sink.stop(10)
    assert place.closed == 1
    assert sink.status()["queued"] == 1


def test_who_comes_and_goes_is_told_of_ever_more_rarely(
    events: Callable[[int], list[Event]],
) -> None:
    """The telling is an event, too: it comes to the place as any other, and makes it fail again."""
    place = Place()
    told: list[tuple[float, str]] = []
    flaps = itertools.count()

    def write(pending: deque[Event]) -> None:
        if next(flaps) % 2 == 0:
            raise OSError(111, "Connection refused")
        pending.clear()

    place.write = write  # type: ignore[method-assign]

    def tell(change: Change) -> None:
        told.append((time.monotonic(), change.why))
        if len(told) < 12:
            threading.Thread(target=sink.offer, args=(event,)).start()

    (event,) = events(1)
    sink = Sink("place", place, tell, calm_s=0.01)
    sink.start()
    sink.offer(event)
    until(lambda: len(told) >= 11)
    sink.stop(10)
    recovered = [at - told[n - 1][0] for n, (at, why) in enumerate(told) if n and not why]
    for n, took_s in enumerate(recovered):
        assert took_s >= 0.01 * 2**n


def test_settle_is_called_again_when_it_asked_for_it(
    events: Callable[[int], list[Event]],
) -> None:
    place, told = Place(), Told()
    waits = [0.01, 0.01, 0.01]

    def settle() -> float | None:
        return waits.pop() if waits else None

    place.settle = settle  # type: ignore[method-assign]
    sink = started(place, told)
    sink.offer(events(1)[0])
    until(lambda: not waits)
    sink.stop(10)
    assert seqs(place) == [1]
