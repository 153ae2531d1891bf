"""Which workers hang: alive as a process, but their loop has stopped going round.

A worker counts the turns of its loop in the shared memory, a few a second even when it has nothing
to do, and control looks now and then whether the number moved. Looks are what is counted, not
time: a host that was suspended, or control that got no turn itself, is no worker's fault.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Final, Generic, TypeVar

BEAT_S: Final = 0.5  # a worker makes a turn at least this often
LOOK_S: Final = 0.5  # between two looks of control
LATE_LOOK_S: Final = 2 * LOOK_S  # a look later than this tells of control, not of the workers
HUNG_LOOKS: Final = 5  # in a row without a turn between them: the worker hangs
START_LOOKS: Final = 40  # so many until its first turn: an interpreter has to start

Worker = TypeVar("Worker", bound=Hashable)


class Pulse(Generic[Worker]):
    """The turns of every worker, as of the last look."""

    def __init__(self) -> None:
        self._turns: dict[Worker, int] = {}
        self._left: dict[Worker, int] = {}  # looks without a turn, until it counts as hung
        self._looked_s: float | None = None

    def begin(self, worker: Worker, turns: int) -> None:
        """It is being started, and may take its time; its number goes on from `turns`."""
        self._turns[worker], self._left[worker] = turns, START_LOOKS

    def look(self, now_s: float, turns: Mapping[Worker, int]) -> list[Worker]:
        """Those of the workers in `turns` that hang. `now_s`: a clock that stands still while the
        host is suspended. One that hangs is told of again HUNG_LOOKS later."""
        late = self._looked_s is not None and now_s - self._looked_s > LATE_LOOK_S
        self._looked_s = now_s
        hung = []
        for worker, count in turns.items():
            if late or count != self._turns[worker]:
                self._turns[worker] = count
                self._left[worker] = max(HUNG_LOOKS, self._left[worker] if late else 0)
                continue
            self._left[worker] -= 1
            if not self._left[worker]:
                self._left[worker] = HUNG_LOOKS
                hung.append(worker)
        return hung
