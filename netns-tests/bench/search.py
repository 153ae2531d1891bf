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

    Whatever is not a clean pass is tried twice: a moment in which the machine was busy elsewhere
    must not decide. Rates are spaced by ratio, so the precision is the same for slow and fast.
    """
    trials: list[Trial] = []

    def tried(rate: float) -> list[Trial]:
        """At most two trials; those that passed."""
        found = []
        for _ in range(min(2, most_trials - len(trials))):
            found.append(trial(rate))
            trials.append(found[-1])
            if found[-1].passed and not found[-1].sender_limited:
                break
        return [t for t in found if t.passed]

    low, high, rate, limited = 0.0, math.inf, start, False
    while len(trials) < most_trials and high > low * PRECISION and not limited:
        if passed := tried(rate):
            low, limited = rate, passed[-1].sender_limited
        else:
            high = rate
        rate = _next(low, high)
    rates = [t.received for t in trials if t.passed]
    return Found(max(rates, default=0.0), limited, tuple(trials))


def _next(low: float, high: float) -> float:
    """The rate to try when `low` passed and `high` failed; 0 and infinity: none did yet."""
    if math.isinf(high):
        return low * GROWTH
    return math.sqrt(low * high) if low else high / GROWTH
