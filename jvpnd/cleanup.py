"""Removes from the host what a daemon left there for its next start, when there will be none."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from jvpnd.net.routes import HostNetwork


def main(runtime_dir: str) -> None:
    """Remove rules, routes, device and sysctls; sessions stay. The daemon must have ended."""
    logging.basicConfig(format="%(levelname).1s %(message)s")
    nobody = HostNetwork("", Path(runtime_dir))
    asyncio.run(nobody.resume())  # what is of another interface goes
