"""Round trips of ICMP echoes through a tunnel."""

from __future__ import annotations

import math
import re
import statistics
import time
from dataclasses import dataclass

from lab.namespace import Namespace

INTERVAL_S = 0.01
START_S = 20.0
_TIME = re.compile(r"time=([0-9.]+) ms")


@dataclass(frozen=True)
class RoundTrips:
    median_ms: float
    p95_ms: float
    lost: int


def percentile(values: list[float], fraction: float) -> float:
    """The smallest value that at least this fraction of all does not exceed."""
    return sorted(values)[max(0, math.ceil(fraction * len(values)) - 1)]


def ping(host: Namespace, address: str, count: int) -> RoundTrips:
    done = host.run(
        *("ping", "-n", "-i", str(INTERVAL_S), "-W", "1", "-c", str(count), address), check=False
    )
    times = [float(value) for value in _TIME.findall(done.stdout)]
    if not times:
        raise RuntimeError(f"ping {address}: no answer\n{done.stdout}{done.stderr}")
    return RoundTrips(statistics.median(times), percentile(times, 0.95), count - len(times))


def wait_until_up(host: Namespace, address: str) -> None:
    """Until the first echo comes back."""
    deadline = time.monotonic() + START_S
    while host.run("ping", "-n", "-c", "1", "-W", "1", address, check=False).returncode:
        if time.monotonic() > deadline:
            raise RuntimeError(f"no answer from {address} within {START_S:.0f} s")
        time.sleep(0.1)
