"""What is measured, and how values of several rounds become one figure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Values = Mapping[str, Sequence[float]]  # metric -> one value a round


@dataclass(frozen=True)
class Metric:
    """One row of the table; values are stored in `unit`."""

    key: str
    label: str
    unit: str
    digits: int
    better: Literal["more", "less"] = "more"


METRICS = (
    Metric("tcp1_up", "TCP, 1 stream, client to gateway", "Gbit/s", 2),
    Metric("tcp1_down", "TCP, 1 stream, gateway to client", "Gbit/s", 2),
    Metric("tcp4_up", "TCP, 4 streams, client to gateway", "Gbit/s", 2),
    Metric("tcp4_down", "TCP, 4 streams, gateway to client", "Gbit/s", 2),
    Metric("udp64", "UDP, 64 bytes, less than 1 % lost", "kpps", 0),
    Metric("udp1300", "UDP, 1300 bytes, less than 1 % lost", "kpps", 0),
    Metric("idle_median", "RTT idle, median", "ms", 2, "less"),
    Metric("idle_p95", "RTT idle, 95 %", "ms", 2, "less"),
    Metric("load_median", "RTT under one TCP stream, median", "ms", 2, "less"),
    Metric("load_p95", "RTT under one TCP stream, 95 %", "ms", 2, "less"),
    Metric("client_cpu", "CPU, client's processes (sender)", "s/GB", 2, "less"),
    Metric("gateway_cpu", "CPU, gateway's processes (receiver)", "s/GB", 2, "less"),
    Metric("machine_cpu", "CPU, whole machine", "s/GB", 2, "less"),
    Metric("client_memory", "peak memory, client", "MB", 0, "less"),
    Metric("gateway_memory", "peak memory, gateway", "MB", 0, "less"),
)


@dataclass(frozen=True)
class Summary:
    """Several rounds as one figure and its spread."""

    median: float
    least: float
    most: float


def summary(values: Sequence[float]) -> Summary | None:
    """None if there is no value, as with the CPU time of a VPN that is none."""
    if not values:
        return None
    return Summary(statistics.median(values), min(values), max(values))


def ratio(metric: Metric, ours: Values, theirs: Values) -> float | None:
    """How many times better ours is, by medians: above 1 is good whatever the metric.

    None where one of the two has no value, or nothing to divide by.
    """
    a, b = summary(ours.get(metric.key, ())), summary(theirs.get(metric.key, ()))
    if a is None or b is None or not a.median or not b.median:
        return None
    return a.median / b.median if metric.better == "more" else b.median / a.median
