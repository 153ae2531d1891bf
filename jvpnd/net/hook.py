"""Runs the administrator's program whenever a client's address comes to this node or leaves it.

One at a time, in order; while one runs, what happens to an address replaces what was to be told of
it. The daemon never waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import stat
from pathlib import Path
from typing import Final

from jvpnd.net.ownplan import Holding, shortened

_log = logging.getLogger(__name__)

TIMEOUT_S: Final = 10.0
MAX_NETWORKS: Final = 256  # in one run
_WRITABLE: Final = stat.S_IWGRP | stat.S_IWOTH
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def unsafe(path: str) -> str | None:
    """Why this program must not be run as root; None if it may be."""
    try:
        if not path.startswith("/") or os.path.realpath(path, strict=True) != path:
            return f"{path} has to be an absolute path without symbolic links"
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) or not found.st_mode & stat.S_IXUSR:
            return f"{path} is no program (a regular file with the mode's x)"
        for each in (Path(path), *Path(path).parents):
            found = each.stat()
            is_sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
            if found.st_uid != 0:
                return f"{each} has to be owned by root, not by uid {found.st_uid}"
            if found.st_mode & _WRITABLE and not is_sticky:
                mode = stat.S_IMODE(found.st_mode)
                return f"{each} may be written by others than root (mode {mode:o})"
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None


class Hook:
    """`PATH own|lend|forget NETWORK...`; docs/gateway-network.md has its contract."""

    def __init__(self, path: str, node: str, interface: str) -> None:
        self._path = path
        self._environment = {
            "PATH": _PATH,
            "LANG": "C.UTF-8",
            "JVPN_NODE": node,
            "JVPN_INTERFACE": interface,
        }
        self._waiting: dict[str, Holding] = {}  # by network, in the order of what came last
        self._task: asyncio.Task[None] | None = None
        self.runs = 0
        self.failures = 0

    @property
    def waiting(self) -> int:
        """Networks that are still to be told of."""
        return len(self._waiting)

    def tell(self, network: str, holding: Holding) -> None:
        """Tell of it in its turn."""
        self._waiting.pop(network, None)
        self._waiting[network] = holding
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def settled(self) -> None:
        """Until nothing is left to tell."""
        while self._task is not None:
            await asyncio.shield(self._task)

    async def close(self) -> None:
        """Tell no more; a run that is under way is ended."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        try:
            while self._waiting:
                holding, networks = self._next()
                self.runs += 1
                problem = await self._call(holding, networks)
                if problem is not None:
                    self.failures += 1
                    told = f"{holding.verb} {shortened(networks)}"
                    _log.error("hook %s %s: %s", self._path, told, problem)
        finally:
            self._task = None

    def _next(self) -> tuple[Holding, list[str]]:
        """What has waited longest, and all that is to be told in the same words."""
        holding = next(iter(self._waiting.values()))
        same = [network for network, each in self._waiting.items() if each == holding]
        networks = same[:MAX_NETWORKS]
        for network in networks:
            del self._waiting[network]
        return holding, networks

    async def _call(self, holding: Holding, networks: list[str]) -> str | None:
        """None, or how it failed."""
        problem = unsafe(self._path)
        if problem is not None:
            return f"refused: {problem}"
        environment = {
            **self._environment,
            "JVPN_OWNER": holding.owner,
            "JVPN_VIA": " ".join(holding.via),
        }
        try:
            process = await asyncio.create_subprocess_exec(
                *(self._path, holding.verb, *networks),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=2,  # all it says is in the daemon's own log
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            return f"cannot be run: {error.strerror}"
        try:
            status = await asyncio.wait_for(process.wait(), TIMEOUT_S)
        except TimeoutError:
            return f"was killed after {TIMEOUT_S:g} s"
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started
                await process.wait()
        return None if status == 0 else f"ended with status {status}"
