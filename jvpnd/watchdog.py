"""Tells the service manager that the daemon does its work, not only that it runs: sd_notify(3).

A timer of the event loop tells it, so a loop that hangs tells nothing. Workers that hang are
restarted long before (dataplane/pulse.py): a restart of all is for what that does not mend.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from jvpnd.servicemanager import notify

BEATS: Final = 5  # in the time after which it is ended: some may be left out
_IFF_UP: Final = 0x1
_log = logging.getLogger("jvpnd")


class Plane(Protocol):
    def turns(self) -> Mapping[str, int | None]:
        """How often each worker's loop went round, None for one that is not there."""


class Watchdog:
    """Beats while all is well, if the service manager has asked for it (WatchdogSec=)."""

    def __init__(self, interface: str, plane: Plane) -> None:
        self._interface = interface
        self._plane = plane
        self._turns: Mapping[str, int | None] = {}
        self._problem: str | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        every_s = _timeout_s() / BEATS
        if every_s:
            self._turns = self._plane.turns()
            self._wait(every_s)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self, every_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(every_s, self._beat, every_s)

    def _beat(self, every_s: float) -> None:
        problem = self._look()
        if problem is None:
            notify("WATCHDOG=1")
        elif problem != self._problem:
            _log.warning("no word to the watchdog: %s", problem)
        self._problem = problem
        self._wait(every_s)

    def _look(self) -> str | None:
        """What is wrong, if anything."""
        before, self._turns = self._turns, self._plane.turns()
        for which, count in self._turns.items():
            if count is None or count == before.get(which):
                return f"the worker {which} does not go round"
        return None if _is_up(self._interface) else f"{self._interface} is not up"


def _timeout_s() -> float:
    """After how long without a word we are ended; 0 for never."""
    told = os.environ.get("WATCHDOG_USEC", "")
    ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(told) / 1e6 if ours and told.isdecimal() else 0.0


def _is_up(interface: str) -> bool:
    try:
        flags = Path(f"/sys/class/net/{interface}/flags").read_text()
    except OSError:
        return False
    return bool(int(flags, 16) & _IFF_UP)
