"""What the probes of one path say: retransmission timeout, loss, jitter.

All times are milliseconds of the caller's monotonic clock. A new binding or path gets new objects.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

RTO_INITIAL_MS = 250
RTO_MIN_MS = 30
RTO_MAX_MS = 3000
GRANULARITY_MS = 10
MAX_PROBES = 1024  # remembered by one LossWindow; beyond that the oldest go first


class RttEstimator:
    """Smoothed RTT and its variation as in RFC 6298 section 2, with bounds of our own for the RTO.

    Every probe has a number of its own, so an answer is never ambiguous (Karn's rule is met).
    """

    def __init__(self) -> None:
        self.srtt_ms: float | None = None  # None before the first sample
        self.rttvar_ms = 0.0

    def sample(self, rtt_ms: float) -> None:
        """Take one measurement; ValueError if it is negative or not finite."""
        _check_rtt(rtt_ms)
        if self.srtt_ms is None:
            self.srtt_ms, self.rttvar_ms = rtt_ms, rtt_ms / 2
            return
        self.rttvar_ms += (abs(self.srtt_ms - rtt_ms) - self.rttvar_ms) / 4
        self.srtt_ms += (rtt_ms - self.srtt_ms) / 8

    @property
    def rto_ms(self) -> int:
        """After this long without an answer a probe is late."""
        if self.srtt_ms is None:
            return RTO_INITIAL_MS
        rto_ms = math.ceil(self.srtt_ms + max(4 * self.rttvar_ms, GRANULARITY_MS))
        return min(max(rto_ms, RTO_MIN_MS), RTO_MAX_MS)


class Jitter:
    """Interarrival jitter as in RFC 3550 section 6.4.1, over RTTs in place of one-way transits."""

    def __init__(self) -> None:
        self.jitter_ms = 0.0
        self._last_rtt_ms: float | None = None

    def sample(self, rtt_ms: float) -> None:
        """Take one measurement; ValueError if it is negative or not finite."""
        _check_rtt(rtt_ms)
        if self._last_rtt_ms is not None:
            self.jitter_ms += (abs(rtt_ms - self._last_rtt_ms) - self.jitter_ms) / 16
        self._last_rtt_ms = rtt_ms


@dataclass(slots=True)
class _Probe:
    sent_ms: float
    heard: bool = False


class LossWindow:
    """Which share of the probes of the last `window_ms` was lost."""

    def __init__(self, window_ms: int) -> None:
        if window_ms <= 0:
            raise ValueError(f"window_ms: {window_ms}, must be above 0")
        self._window_ms = window_ms
        self._probes: OrderedDict[int, _Probe] = OrderedDict()  # by number, in order of sending

    def sent(self, number: int, now_ms: float) -> None:
        """A probe went out. `number` names it and is not used twice."""
        self._forget_before(now_ms - self._window_ms - RTO_MAX_MS)
        if number in self._probes:
            raise ValueError(f"probe {number} was sent already")
        self._probes[number] = _Probe(now_ms)
        if len(self._probes) > MAX_PROBES:
            self._probes.popitem(last=False)

    def answered(self, number: int, now_ms: float) -> float | None:
        """An answer came: the RTT in ms, late or not; None for a duplicate or an unknown number."""
        self._forget_before(now_ms - self._window_ms - RTO_MAX_MS)
        probe = self._probes.get(number)
        if probe is None or probe.heard:
            return None
        probe.heard = True
        return now_ms - probe.sent_ms

    def loss(self, now_ms: float, rto_ms: float) -> float | None:
        """Lost / (lost + heard), 0 to 1; None while nothing can be said.

        A probe without an answer is lost once it is older than the RTO and says nothing before
        that. The window reaches back one RTO further, so that a slow path is judged as well.
        """
        oldest_ms, lost, heard = now_ms - self._window_ms - rto_ms, 0, 0
        for probe in self._probes.values():
            if probe.sent_ms < oldest_ms:
                continue
            if probe.heard:
                heard += 1
            elif now_ms - probe.sent_ms > rto_ms:
                lost += 1
        return lost / (lost + heard) if lost + heard else None

    def _forget_before(self, time_ms: float) -> None:
        while self._probes and next(iter(self._probes.values())).sent_ms < time_ms:
            self._probes.popitem(last=False)


def _check_rtt(rtt_ms: float) -> None:
    if not 0 <= rtt_ms < math.inf:
        raise ValueError(f"rtt_ms: {rtt_ms}, must be finite and not negative")
