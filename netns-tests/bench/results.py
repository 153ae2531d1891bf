"""All values of a run, and where they come from; the JSON file."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.link import MTU
from bench.metrics import METRICS, Values, summary
from bench.peers.base import Peer
from bench.tcp import CONGESTION_CONTROL

ROOT = Path(__file__).parents[2]


@dataclass
class Results:
    """What was measured, by contender. `order` is the order of the table."""

    peers: list[Peer]
    command: str
    machine: dict[str, Any] = field(default_factory=lambda: machine())
    skipped: dict[str, str] = field(default_factory=dict)  # name -> why
    failures: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _rounds: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, name: str, values: dict[str, float], details: dict[str, Any]) -> None:
        """One round of one contender."""
        self._rounds[name].append({"values": values, "details": details})

    def failed(self, name: str, problem: str) -> None:
        self.failures[name].append(problem)

    def values(self, name: str) -> Values:
        """Each metric's values, in the order of the rounds."""
        found: dict[str, list[float]] = defaultdict(list)
        for row in self._rounds[name]:
            for key, value in row["values"].items():
                found[key].append(value)
        return found

    def measured(self) -> list[Peer]:
        return [peer for peer in self.peers if self._rounds[peer.name]]

    def rivals(self) -> list[Peer]:
        """Those to compare with: the newest of each family that is neither ours nor plain."""
        newest: dict[str, Peer] = {}
        for peer in self.measured():
            best = newest.get(peer.family)
            if best is None or numbers(peer.version()) > numbers(best.version()):
                newest[peer.family] = peer
        return [peer for family, peer in newest.items() if family not in ("jvpn", "plain")]

    def sender_limited(self, name: str, metric: str) -> bool:
        """Whether in any round the sender of a UDP search could not go higher."""
        details = [row["details"].get(metric, {}) for row in self._rounds[name]]
        return any(detail.get("sender_limited") for detail in details)

    def json(self) -> dict[str, Any]:
        return {
            "command": self.command,
            "machine": self.machine,
            "metrics": [asdict(metric) for metric in METRICS],
            "contenders": {
                peer.name: {
                    "label": peer.label,
                    "version": peer.version(),
                    "summary": self._summaries(peer.name),
                    "rounds": self._rounds[peer.name],
                    "failures": self.failures.get(peer.name, []),
                }
                for peer in self.peers
                if self._rounds[peer.name] or peer.name in self.failures
            },
            "skipped": self.skipped,
        }

    def _summaries(self, name: str) -> dict[str, Any]:
        found = {key: summary(values) for key, values in self.values(name).items()}
        return {key: asdict(value) for key, value in found.items() if value is not None}


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def machine() -> dict[str, Any]:
    """What the figures depend on besides the contenders, as it is now."""
    models = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": models[0].strip() if models else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "Linux"),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
        "commit": _commit(),
        "link": f"veth, MTU {MTU}, offloads as the kernel sets them",
        "tcp_congestion_control": CONGESTION_CONTROL,
    }


def _commit() -> str:
    """Of this checkout, `-dirty` when it differs; empty where there is no git."""
    safe = ("-c", f"safe.directory={ROOT}")  # under sudo it is another user's
    command = ["git", *safe, "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
