"""Removes from the host what a daemon left there for its next start, when there will be none."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from jvpnd.net.dns import restore_left
from jvpnd.net.routes import HostNetwork

_log = logging.getLogger(__name__)


def main(runtime_dir: str) -> None:
    """Remove rules, routes, device and sysctls, and put name servers back; sessions stay. The
    daemon must have ended."""
    logging.basicConfig(format="%(levelname).1s %(message)s")
    runtime = Path(runtime_dir)
    problem = restore_left(runtime)
    if problem is not None:
        _log.warning("%s", problem)
    asyncio.run(HostNetwork("", runtime).resume())  # what is of another interface goes
