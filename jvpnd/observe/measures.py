"""What the shells know and no event tells: the part of the metrics that is looked up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jvpnd.core.dataclass import dataclass, field


@dataclass(frozen=True, slots=True)
class PathMeasure:
    """One path of a client. Loss 0 to 1 by direction (up, down, probes), as far as it is known."""

    path: str
    state: str
    rtt_s: float | None
    jitter_s: float
    loss: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class StoreMeasure:
    """Writes to the session table: rows of (bound in s, how many took at most that)."""

    cumulative: Sequence[tuple[str, int]]
    sum_s: float
    outcomes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Measures:
    """One look. Counts are totals since the start, by cause, worker or exporter."""

    sessions: Mapping[str, int]  # by state
    policy_version: int
    tx_packets: int
    tx_bytes: int
    rx_packets: int
    rx_bytes: int
    packets_dropped: Mapping[str, int]
    control_dropped: Mapping[str, int]
    worker_restarts: Mapping[str, int]
    paths: Sequence[PathMeasure] = ()
    store: StoreMeasure | None = None
    exporters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
