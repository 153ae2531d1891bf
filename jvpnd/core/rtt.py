"""What the answers on one path say: retransmission timeout and jitter.

All times are milliseconds of the caller's monotonic clock. A new binding or path gets new objects.
"""

from __future__ import annotations

import math

RTO_INITIAL_MS = 250
RTO_MIN_MS = 30
RTO_MAX_MS = 3000
GRANULARITY_MS = 10


class RttEstimator:
    """Smoothed RTT and its variation as in RFC 6298 section 2, with bounds of our own for the RTO.

    Every probe has a number of its own, so an answer is never ambiguous (Karn's rule is met).
    """

    def __init__(self) -> None:
        self.srtt_ms: float | None = None  # None before the first sample
        self.rttvar_ms = 0.0
        self.rto_ms = RTO_INITIAL_MS  # after this long without an answer a probe is late

    def sample(self, rtt_ms: float) -> None:
        """Take one measurement; ValueError if it is negative or not finite."""
        _check_rtt(rtt_ms)
        if self.srtt_ms is None:
            self.srtt_ms, self.rttvar_ms = rtt_ms, rtt_ms / 2
        else:
            self.rttvar_ms += (abs(self.srtt_ms - rtt_ms) - self.rttvar_ms) / 4
            self.srtt_ms += (rtt_ms - self.srtt_ms) / 8
        rto_ms = math.ceil(self.srtt_ms + max(4 * self.rttvar_ms, GRANULARITY_MS))
        self.rto_ms = min(max(rto_ms, RTO_MIN_MS), RTO_MAX_MS)


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


def _check_rtt(rtt_ms: float) -> None:
    if not 0 <= rtt_ms < math.inf:
        raise ValueError(f"rtt_ms: {rtt_ms}, must be finite and not negative")
