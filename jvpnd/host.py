"""What the shell takes from the operating system for the core: the time, and what the CPU has."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from functools import cache
from pathlib import Path


def now_ms() -> float:
    """CLOCK_BOOTTIME in ms, which goes on while the host sleeps: the clock of the core and of the
    data plane's counters."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) / 1e6


def wall_ms() -> int:
    """Milliseconds since the epoch, for events."""
    return time.time_ns() // 1_000_000


def has_aes(disabled: Collection[str] = frozenset()) -> bool:
    """Whether the CPU has AES instructions, and "aes" is not `disabled`; without them
    ChaCha20-Poly1305 is faster."""
    return "aes" not in disabled and _cpu_has_aes()


def default_lanes() -> int:
    """Lanes for the CPUs that this process may use: a lane is two busy processes, and the kernel
    and other programs need some too."""
    return max(1, min(8, len(os.sched_getaffinity(0)) // 4))


@cache
def _cpu_has_aes() -> bool:
    words = Path("/proc/cpuinfo").read_text().split()
    return "aes" in words or "pmull" in words
