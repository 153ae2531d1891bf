"""The table that the nodes of a cluster share, and each node's own way to it.

A request takes its time both ways, may be lost either way, and may come so late that its node no
longer waits: then the node does not know what became of it. News of every change comes to each
node in order. Times in rows are wall clock in the table and of the node's own clock behind a link.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol, TypeAlias

from jvpnd.core.ownership import RowSeen
from jvpnd.core.peer import Stored
from jvpnd.core.sessionrow import Row, version_of
from jvpnd.core.states import State

from .owners import Owners

TOMBSTONE_MS = 20_000  # how long an ended session's row stays
TIMEOUT_MS = 1_000
PING_MS = 1_000
_TIMES = ("created_ms", "lost_since_ms", "anchor_ms")

# A row has been written, or (None) removed.
News: TypeAlias = tuple[bytes, Row | None]
Answer: TypeAlias = Callable[[Any, float], None]


class Scheduler(Protocol):
    """What of a World a table needs."""

    now_ms: int

    def at(self, time_ms: int, action: Callable[[], None]) -> None: ...


class SharedTable:
    """Rows by SessionID, compare-and-swap by state_version, and news to all links."""

    def __init__(self, world: Scheduler, owners: Owners) -> None:
        self.rows: dict[bytes, Row] = {}
        self.links: list[Link] = []
        self.conflicts = 0
        self._world = world
        self._owners = owners

    def swap(self, session_id: bytes, expected: int, row: Row) -> Stored:
        held = self.rows.get(session_id)
        if (version_of(held) if held is not None else 0) != expected:
            self.conflicts += 1
            return Stored.CONFLICT
        self._owners.written(session_id, held, row)
        self.rows[session_id] = row
        self._tell((session_id, row))
        if row["state"] == State.TERMINATED:
            now_ms = self._world.now_ms
            self._world.at(now_ms + TOMBSTONE_MS, lambda: self._forget(session_id, row))
        return Stored.OK

    def of(self, node: str) -> list[Row]:
        return [row for row in self.rows.values() if row["owner"] == node]

    def _forget(self, session_id: bytes, row: Row) -> None:
        if self.rows.get(session_id) is row:
            self.remove(session_id)

    def remove(self, session_id: bytes) -> None:
        """The row is there no more."""
        del self.rows[session_id]
        self._tell((session_id, None))

    def _tell(self, news: News) -> None:
        for link in self.links:
            link.tell(news)


@dataclass(slots=True)
class Weather:
    """How a link is. Jitter is uniform from 0 on top of the delay, each way; loss is of requests
    and of answers."""

    delay_ms: int = 1
    jitter_ms: int = 0
    loss: float = 0.0
    is_cut: bool = False


class Link:
    """One node's way to the table."""

    def __init__(self, world: Scheduler, table: SharedTable, random: Random) -> None:
        self.weather = Weather()
        self._world = world
        self._table = table
        self._random = random
        self._enter: Callable[[Answer], None] | None = None
        self._shift_ms = 0
        self._news: deque[tuple[int, News]] = deque()
        self._newest_ms = 0
        table.links.append(self)

    # --- the node's side ---

    def begin(self, enter: Callable[[Answer], None], shift_ms: int) -> None:
        """A new life of the node. `enter` runs an action in it, perhaps later, or never if this
        life is over then. `shift_ms`: what its clock is ahead of the wall clock."""
        self.end()
        self._enter, self._shift_ms = enter, shift_ms

    def end(self) -> None:
        """The node is gone; what it asked for goes on."""
        self._enter = None
        self._news.clear()

    def rows(self, node: str, then: Callable[[Any, list[Row] | None], None]) -> None:
        """All that are its own; from then on it hears of news."""
        here = self._enter

        def read() -> list[Row]:
            if self._enter is here:
                self._news.clear()
            return [self._shifted(row, self._shift_ms) for row in self._table.of(node)]

        self._ask(read, lambda end, rows, _: then(end, rows))

    def swap(self, token: int, session_id: bytes, expected: int, row: Row) -> None:
        wall = self._shifted(row, -self._shift_ms)

        def answer(end: Any, outcome: Stored | None, sent_ms: float) -> None:
            end.answered(sent_ms, outcome is not None)
            end.stored(token, outcome or Stored.UNAVAILABLE)

        self._ask(lambda: self._table.swap(session_id, expected, wall), answer)

    def load(self, token: int, session_id: bytes) -> None:
        def read() -> tuple[Row | None]:
            row = self._table.rows.get(session_id)
            return (self._shifted(row, self._shift_ms) if row is not None else None,)

        def answer(end: Any, found: tuple[Row | None] | None, sent_ms: float) -> None:
            end.answered(sent_ms, found is not None)
            end.loaded_row(
                token, found[0] if found else None, Stored.OK if found else Stored.UNAVAILABLE
            )

        self._ask(read, answer)

    def ping(self) -> None:
        self._ask(lambda: True, lambda end, came, at: end.answered(at, came is not None))

    def _ask(self, act: Callable[[], Any], answer: Callable[[Any, Any, float], None]) -> None:
        """`answer` gets the node, what `act` gave (None: nobody knows) and when it was asked."""
        world, enter, waits, sent_ms = self._world, self._enter, [True], self._world.now_ms
        assert enter is not None

        def give(what: Any) -> None:
            def once(end: Any, _: float) -> None:
                if waits:
                    waits.clear()
                    answer(end, what, sent_ms)

            enter(once)

        def arrive() -> None:
            what = act()
            if not self._is_lost():
                world.at(world.now_ms + self._delay_ms(), lambda: give(what))

        if not self._is_lost():
            world.at(sent_ms + self._delay_ms(), arrive)
        world.at(sent_ms + TIMEOUT_MS, lambda: give(None))

    def _is_lost(self) -> bool:
        return self.weather.is_cut or self._random.random() < self.weather.loss

    def _delay_ms(self) -> int:
        weather = self.weather
        return weather.delay_ms + int(self._random.random() * (weather.jitter_ms + 1))

    # --- news ---

    def tell(self, news: News) -> None:
        if self._enter is not None:
            due_ms = self._newest_ms = max(self._newest_ms, self._world.now_ms + self._delay_ms())
            self._news.append((due_ms, news))
            self._world.at(due_ms, self._deliver)

    def change(self, weather: Weather) -> None:
        """News that waited comes late, and in order."""
        self.weather = weather
        self._world.at(self._world.now_ms + self._delay_ms(), self._deliver)

    def _deliver(self) -> None:
        while self._news and not self.weather.is_cut and self._news[0][0] <= self._world.now_ms:
            session_id, row = self._news.popleft()[1]
            assert self._enter is not None
            seen = self._seen(session_id, row) if row is not None else None
            self._enter(lambda end, _, i=session_id, seen=seen: end.heard_of(i, seen))

    def _seen(self, session_id: bytes, row: Row) -> RowSeen:
        return RowSeen(
            session_id,
            str(row["owner"]),
            str(row["client"]),
            str(row["state"]),
            version_of(row),
            float(str(row["created_ms"])) + self._shift_ms,
        )

    @staticmethod
    def _shifted(row: Row, by_ms: int) -> Row:
        times: dict[str, Any] = {name: row[name] for name in _TIMES}
        switched: Any = row["switched_at_ms"]
        return {
            **row,
            **{name: at_ms if at_ms is None else at_ms + by_ms for name, at_ms in times.items()},
            "switched_at_ms": [at_ms + by_ms for at_ms in switched],
        }
