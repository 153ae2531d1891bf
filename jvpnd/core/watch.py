"""Is the bound path alive? Suspicion by silence, a burst of probes, death with evidence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from jvpnd.core.constants import (
    ACTIVE_FOR_MS,
    BURST_DEAD,
    BURST_GAP_MS,
    BURST_LIMIT,
    ONE_WAY_DEAD,
)
from jvpnd.core.path import Path
from jvpnd.core.policy import Policy


@dataclass(frozen=True, slots=True)
class Traffic:
    """A look at the data plane's counters. Times are of the shell's clock, 0 for never."""

    tx_packets: int = 0
    last_tx_ms: float = 0
    rx_packets: int = 0
    last_rx_ms: float = 0
    rx_index: int = 0  # receiver index of the newest packet: of which epoch it was


class Verdict(Enum):
    """What the watch thinks of the bound path."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    LATE = "late"  # silent for the policy's volatile_after_ms
    DEAD = "dead"


@dataclass(slots=True)
class BindingWatch:
    """The watch over one binding; a new binding gets a new one."""

    heard_ms: float
    waiting_ms: float | None = None  # since when something sent is without any answer
    suspect_ms: float | None = None
    burst: list[float] = field(default_factory=list)
    traffic: Traffic = Traffic()
    why: str = ""

    def heard(self, at_ms: float) -> None:
        """Anything authenticated came from the path: suspicion is over."""
        self.heard_ms = max(self.heard_ms, at_ms)
        if self.waiting_ms is not None and at_ms >= self.waiting_ms:
            self.waiting_ms = None
            self.suspect_ms = None
            self.burst.clear()

    def sent(self, at_ms: float) -> None:
        """Something went out that may be answered."""
        if self.waiting_ms is None:
            self.waiting_ms = at_ms

    def observe(self, traffic: Traffic, index: int) -> bool:
        """Take in the counters; returns whether data was heard on this binding's `index`."""
        before, self.traffic = self.traffic, traffic
        heard = traffic.rx_index == index and traffic.rx_packets != before.rx_packets
        if heard:
            self.heard(traffic.last_rx_ms)
        if traffic.tx_packets != before.tx_packets and traffic.last_tx_ms > self.heard_ms:
            self.sent(traffic.last_tx_ms)
        return heard

    def is_busy(self, now_ms: float) -> bool:
        latest = max(self.traffic.last_tx_ms, self.traffic.last_rx_ms)
        return now_ms - latest < ACTIVE_FOR_MS

    def burst_due_ms(self, policy: Policy) -> float | None:
        """When the next probe of a burst should go out, None if the path is not suspect."""
        if self.suspect_ms is None:
            return None
        if not self.burst:
            return self.suspect_ms
        short = len(self.burst) < BURST_LIMIT
        return self.burst[-1] + (BURST_GAP_MS if short else policy.heartbeat_active_ms)

    def assess(
        self, now_ms: float, bound: Path, others: Iterable[Path], policy: Policy
    ) -> Verdict:
        """Look at the silence; `why` says what made it a death."""
        # A late answer to an old question is no evidence: only when a probe was sent counts.
        proven_ms = max((p.proven_ms for p in others if p.proven_ms is not None), default=None)
        one_way = proven_ms is not None and proven_ms >= bound.unanswered_since_ms
        if bound.unanswered >= ONE_WAY_DEAD and one_way:
            self.why = "probes unanswered on this path only"
            return Verdict.DEAD
        if self.waiting_ms is None:
            return Verdict.ALIVE
        silence_ms = now_ms - self.waiting_ms
        if silence_ms <= bound.rtt.rto_ms:
            return Verdict.ALIVE
        if self.suspect_ms is None:
            self.suspect_ms = now_ms
        since = self.suspect_ms
        timed_out = sum(1 for sent in self.burst if now_ms - sent > bound.rtt.rto_ms)
        if timed_out >= BURST_DEAD and proven_ms is not None and proven_ms >= since:
            self.why = "silent while another path answers"
            return Verdict.DEAD
        if silence_ms >= policy.volatile_to_degraded_ms:
            self.why = "silent, and no other path answers"
            return Verdict.DEAD
        return Verdict.LATE if silence_ms >= policy.volatile_after_ms else Verdict.SUSPECT

    def shift(self, late_ms: float) -> None:
        """The shell was stalled: silence in that time is not the path's."""
        if self.waiting_ms is not None:
            self.waiting_ms += late_ms
        if self.suspect_ms is not None:
            self.suspect_ms += late_ms
        self.burst = [sent + late_ms for sent in self.burst]
