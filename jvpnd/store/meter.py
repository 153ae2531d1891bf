"""How the session table does: a histogram of what its writes took, and how they came out."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from typing import Final

from jvpnd.core.peer import Stored
from jvpnd.store.table import Written

BOUNDS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0)


class StoreMeter:
    """`counts`: writes by the first of BOUNDS_S that they did not exceed, the last for the rest."""

    def __init__(self, clock_s: Callable[[], float] = time.perf_counter) -> None:
        self._clock_s = clock_s
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0
        self.outcomes = Counter({outcome.value: 0 for outcome in Stored})

    def timed(self, done: Written) -> Written:
        """`done` for a write that begins now; the answer is counted before it is passed on."""
        begin_s = self._clock_s()

        def answered(outcome: Stored) -> None:
            took_s = self._clock_s() - begin_s
            self.counts[bisect_left(BOUNDS_S, took_s)] += 1
            self.sum_s += took_s
            self.outcomes[outcome.value] += 1
            done(outcome)

        return answered
