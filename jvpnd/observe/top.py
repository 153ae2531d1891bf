"""The busiest sessions: rates from successive looks at totals."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

from jvpnd.core.dataclass import dataclass

Key = TypeVar("Key", bound=Hashable)


class Totals(NamedTuple):
    """Since the start; whatever began to be counted anew may fall."""

    tx_bytes: int
    rx_bytes: int
    tx_packets: int
    rx_packets: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Each a second."""

    tx_bytes_per_s: int
    rx_bytes_per_s: int
    tx_packets_per_s: int
    rx_packets_per_s: int


IDLE = Rates(0, 0, 0, 0)


class RateTable(Generic[Key]):
    """Rates of many, between the last look and this one; who was not there then is idle."""

    def __init__(self) -> None:
        self._before: dict[Key, Totals] = {}
        self._looked_ms = 0.0

    def look(self, now_ms: float, totals: Mapping[Key, Totals], most: int) -> dict[Key, Rates]:
        """The rates of the `most` with the highest, these first; equal ones as in `totals`."""
        seconds = (now_ms - self._looked_ms) / 1000
        busiest = heapq.nlargest(most, totals, key=lambda key: self._bytes(key, totals[key]))
        rates = {key: self._rates(key, totals[key], seconds) for key in busiest}
        self._before, self._looked_ms = dict(totals), now_ms
        return rates

    def _bytes(self, key: Key, total: Totals) -> int:
        """Both ways, since the last look."""
        before = self._before.get(key, total)
        return max(0, total[0] - before[0]) + max(0, total[1] - before[1])

    def _rates(self, key: Key, total: Totals, seconds: float) -> Rates:
        before = self._before.get(key)
        if before is None or seconds <= 0:
            return IDLE
        grown = (max(0, now - then) for now, then in zip(total, before, strict=True))
        return Rates(*(round(value / seconds) for value in grown))
