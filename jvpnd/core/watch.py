"""Is the bound path alive? Suspicion by silence, a burst of probes, death with evidence."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from jvpnd.core.constants import (
    ACTIVE_FOR_MS,
    BURST_DEAD,
    BURST_GAP_MS,
    BURST_LIMIT,
    CONTINUOUS_MS,
    ONE_WAY_DEAD,
)
from jvpnd.core.dataclass import dataclass, field
from jvpnd.core.loss import RecordLog
from jvpnd.core.path import Path
from jvpnd.core.policy import Policy


@dataclass(frozen=True, slots=True)
class Traffic:
    """A look at the data plane's counters. Times are of the shell's clock, 0 for never.

    Records and missing ones are totals of the newest epoch: rx of what came to us, peer of what the
    gateway says came to it. They begin again at 0 with each epoch.
    """

    tx_packets: int = 0
    last_tx_ms: float = 0
    rx_packets: int = 0
    last_rx_ms: float = 0
    rx_index: int = 0  # receiver index of the newest packet: of which epoch it was
    rx_records: int = 0
    rx_missing: int = 0
    peer_records: int = 0
    peer_missing: int = 0
    tx_unsent: int = 0  # sealed, but dropped on this host: no loss of the path
    peer_unsent: int = 0

    @property
    def lost_down(self) -> int:
        return self.rx_missing - self.peer_unsent

    @property
    def lost_up(self) -> int:
        return self.peer_missing - self.tx_unsent


class Verdict(Enum):
    """What the watch thinks of the bound path."""

    ALIVE = "alive"
    UNANSWERED = "heard, but probes go unanswered"
    SUSPECT = "silent"
    LATE = "silent for the policy's volatile_after_ms"
    DEAD = "dead"


@dataclass(slots=True)
class BindingWatch:
    """The watch over one binding; a new binding gets a new one."""

    began_ms: float
    heard_ms: float = 0
    waiting_ms: float | None = None  # since when something sent is without any answer
    suspect_ms: float | None = None
    burst: list[float] = field(default_factory=list)
    traffic: Traffic = Traffic()
    up: RecordLog = field(default_factory=RecordLog)
    down: RecordLog = field(default_factory=RecordLog)
    why: str = ""

    def __post_init__(self) -> None:
        self.heard_ms = self.began_ms

    def heard(self, at_ms: float) -> None:
        """Anything authenticated came from the path."""
        self.heard_ms = max(self.heard_ms, at_ms)
        if self.waiting_ms is not None and at_ms >= self.waiting_ms:
            self.waiting_ms = None

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

    @property
    def is_tense(self) -> bool:
        """Whether what is sent now and heard next decides: until the burst is over."""
        return self.waiting_ms is not None and len(self.burst) < BURST_LIMIT

    def burst_due_ms(self, policy: Policy) -> float | None:
        """When the next probe of a burst should go out, None if the path is not suspect."""
        if self.suspect_ms is None:
            return None
        if not self.burst:
            return self.suspect_ms
        short = len(self.burst) < BURST_LIMIT
        return self.burst[-1] + (BURST_GAP_MS if short else policy.heartbeat_active_ms)

    def patience_ms(self, bound: Path) -> float | None:
        """Until when a path that became slower by its step would be silent as well.

        While sending goes on, the oldest question without an answer was asked a round trip before
        the last packet was heard; else it is the one that we wait for.
        """
        if self.waiting_ms is None:
            return None
        rtt = bound.rtt
        if rtt.srtt_ms is not None and self.waiting_ms - self.heard_ms <= CONTINUOUS_MS:
            return self.heard_ms + rtt.rto_ms - rtt.srtt_ms + bound.step_ms
        return self.waiting_ms + rtt.rto_ms + bound.step_ms

    def assess(
        self, now_ms: float, bound: Path, others: Iterable[Path], policy: Policy
    ) -> Verdict:
        """Look at the silence; `why` says what made it a death."""
        rto_ms = bound.rtt.rto_ms
        # A late answer to an old question is no evidence: only when a probe was sent counts.
        proven_ms = max((p.proven_ms for p in others if p.proven_ms is not None), default=None)
        silence_ms = now_ms - self.waiting_ms if self.waiting_ms is not None else 0
        overdue, since_ms = bound.probes.overdue(now_ms, rto_ms, self.began_ms)
        if silence_ms <= rto_ms and not overdue:
            self.suspect_ms = None
            self.burst.clear()
            return Verdict.ALIVE
        if self.suspect_ms is None:
            self.suspect_ms = now_ms
        if (
            overdue >= ONE_WAY_DEAD
            and proven_ms is not None
            and proven_ms >= since_ms
            and now_ms >= since_ms + rto_ms + bound.step_ms
        ):
            self.why = "probes unanswered on this path only"
            return Verdict.DEAD
        if silence_ms <= rto_ms:
            return Verdict.UNANSWERED
        timed_out = sum(1 for sent in self.burst if now_ms - sent > rto_ms)
        patience_ms = self.patience_ms(bound)
        if (
            timed_out >= BURST_DEAD
            and proven_ms is not None
            and proven_ms >= self.suspect_ms
            and patience_ms is not None
            and now_ms >= patience_ms
        ):
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
            self.heard_ms += late_ms
        if self.suspect_ms is not None:
            self.suspect_ms += late_ms
        self.burst = [sent + late_ms for sent in self.burst]
