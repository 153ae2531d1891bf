"""The highest rate that still passes, found in few trials although single trials are noisy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

LOSS_MAX = 0.01
PRECISION = 1.03  # the search ends when the lowest failing rate is this close to the passing one
SHORTFALL = 0.9  # a sender that reaches less of the wanted rate is itself the limit
GROWTH = 2.0


@dataclass(frozen=True)
class Trial:
    """One trial: rates in datagrams a second, `received` over the time the sender took."""

    wanted: float
    sent: float
    received: float

    @property
    def loss(self) -> float:
        return 1.0 if self.sent <= 0 else max(0.0, 1 - self.received / self.sent)

    @property
    def passed(self) -> bool:
        return self.loss < LOSS_MAX

    @property
    def sender_limited(self) -> bool:
        return self.sent < SHORTFALL * self.wanted


@dataclass(frozen=True)
class Found:
    """`rate`: the most that was received in a passing trial, datagrams a second, 0 if none passed.

    `sender_limited`: the sender could not go higher, so the true limit may lie above.
    """

    rate: float
    sender_limited: bool
    trials: tuple[Trial, ...]


def search(trial: Callable[[float], Trial], start: float, most_trials: int) -> Found:
    """Grow the rate until it fails (or shrink it until it passes), then halve what is between.

    A rate fails only when it fails twice: a moment in which the machine was busy elsewhere must
    not decide. Rates are spaced by ratio, so the precision is the same for slow and fast.
    """
    trials: list[Trial] = []

    def passes(rate: float) -> bool:
        for _ in range(min(2, most_trials - len(trials))):
            trials.append(trial(rate))
            if trials[-1].passed:
                return True
        return False

    low, high, rate = 0.0, math.inf, start
    while len(trials) < most_trials and high > low * PRECISION:
        if passes(rate):
            low = rate
            if trials[-1].sender_limited:
                break
        else:
            high = rate
        if math.isinf(high):
            rate = low * GROWTH
        elif not low:
            rate = high / GROWTH
        else:
            rate = math.sqrt(low * high)
    good = [t for t in trials if t.passed]
    best = max(good, key=lambda t: t.received, default=None)
    limited = any(t.sender_limited for t in good)
    return Found(best.received if best else 0.0, limited, tuple(trials))
