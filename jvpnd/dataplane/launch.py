"""Starts the workers. Imports little: they import their own while control does the rest."""

from __future__ import annotations

from typing import Final

from jvpnd.core.dataclass import dataclass
from jvpnd.dataplane.counters import ROLES, Counters
from jvpnd.spawn import Spawned, spawn

_MODULE: Final = "jvpnd.dataplane.worker"

Which = tuple[str, int]
"""A worker: its role and its lane."""


@dataclass(frozen=True, slots=True)
class Launched:
    """The workers of all lanes, waiting for their TUN, and the counters that they share."""

    counters: list[Counters]  # one a lane
    counters_fd: int
    workers: dict[Which, Spawned]


def launch(lanes: int) -> Launched:
    """Start the workers of so many lanes. They end with the channels in what is returned."""
    first, fd = Counters.create(lanes)
    counters = [first, *(Counters(fd, lane) for lane in range(1, lanes))]
    every = [(role, lane) for lane in range(lanes) for role in ROLES]
    return Launched(counters, fd, {which: launch_worker(which, lanes, fd) for which in every})


def launch_worker(which: Which, lanes: int, counters_fd: int) -> Spawned:
    """Start one."""
    role, lane = which
    return spawn(_MODULE, (role, str(lane), str(lanes)), [counters_fd])
