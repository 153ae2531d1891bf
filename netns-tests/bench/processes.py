"""What a product's processes used: CPU time and memory, from /proc."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PPID, _UTIME, _CSTIME = 1, 11, 14  # fields of /proc/PID/stat after the name: proc(5)
_IDLE, _IOWAIT, _STEAL = 3, 4, 7  # of the first line of /proc/stat


def _fields(pid: int) -> list[str]:
    """After the name, which may itself have spaces and brackets; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def tree(roots: Iterable[int]) -> list[int]:
    """These processes and all that descend from them."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _fields(int(entry))):
            children[int(fields[_PPID])].append(int(entry))
    found = list(roots)
    for pid in found:  # grows while it is walked
        found += children[pid]
    return found


def cpu_s(roots: Iterable[int]) -> float:
    """User and system time of the trees so far, ended children too, in seconds.

    Softirq work of the kernel is in it only where the kernel did it within a system call.
    """
    ticks = 0
    for pid in tree(roots):
        if fields := _fields(pid):
            ticks += sum(int(value) for value in fields[_UTIME : _CSTIME + 1])
    return ticks / _TICKS


def machine_cpu_s() -> float:
    """Busy time of all cores since the start, interrupts and everybody's work included."""
    values = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = values[_IDLE] + values[_IOWAIT] + values[_STEAL]
    return (sum(values) - idle) / _TICKS


def peak_memory_bytes(roots: Iterable[int]) -> int:
    """Each process's own peak (VmHWM), summed; pages that they share count once for each."""
    total = 0
    for pid in tree(roots):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return total
