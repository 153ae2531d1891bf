"""Reading the configuration again while all goes on: `jvpnctl reload`, and SIGHUP."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from jvpnd.config import Config, ConfigError, load
from jvpnd.control.protocol import CONFIG_INVALID, Refused
from jvpnd.core.dataclass import dataclass
from jvpnd.core.policy import Policy
from jvpnd.host import now_ms
from jvpnd.servicemanager import notify
from jvpnd.shell import Core, CoreDriver

if TYPE_CHECKING:  # a client has no list
    from jvpnd.core.listing import ListChange

_log = logging.getLogger("jvpnd")

_LIVE: Final = ("policy", "clients")  # what can change while the daemon runs
# As the file calls what Config calls otherwise.
_TABLES: Final = {"private_key": "identity", "disabled": "debug", "telemetry": "audit, export"}


class Reloadable(Protocol):
    """What a shell of either role has to have."""

    driver: CoreDriver

    @property
    def core(self) -> Core: ...
    async def apply_config(self, config: Config) -> ListChange | None:
        """Go by this configuration as far as that is possible; its policy is applied already."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What came of it. `policy_version`: of the policy in force, `policy_changed` or not.
    `clients`: a gateway's. `needs_restart`: tables and keys that have changed and count at
    the next start."""

    file: str
    policy_version: int
    policy_changed: bool = False
    clients: ListChange | None = None
    needs_restart: tuple[str, ...] = ()


class Reloader:
    """Takes over what has changed in the configuration file, one time after the other."""

    def __init__(self, file: Path, started: Config, shell: Reloadable) -> None:
        """`started`: the configuration that the daemon was started with."""
        self._file = file.absolute()
        self._started = started
        self._shell = shell
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._is_due = False

    async def command(self, _: Mapping[str, Any]) -> Any:
        """The handler of the control command. Refused where the file is no good: all stays."""
        try:
            return asdict(await self.reload())
        except ConfigError as error:
            raise Refused(CONFIG_INVALID, str(error)) from None

    def hang_up(self) -> None:
        """The handler of SIGHUP."""
        if not self._is_due:
            self._is_due = True
            self._task = asyncio.create_task(self._after_signal())

    async def _after_signal(self) -> None:
        try:
            await self.reload()
        except ConfigError as error:
            _log.error("not reloaded, all stays as it is: %s", error)

    async def reload(self) -> Reloaded:
        """Read the file and apply it. Raises ConfigError, and then nothing has changed."""
        async with self._lock:
            self._is_due = False
            notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            try:
                done = await self._apply(await asyncio.to_thread(load, self._file))
            finally:
                notify("READY=1")
        _log.info("reloaded: %s", done)
        return done

    async def _apply(self, config: Config) -> Reloaded:
        core = self._shell.core
        if config.role != self._started.role:  # then all is another's
            return Reloaded(str(self._file), core.own_policy.version, needs_restart=("role",))
        policy = successor(core.own_policy, config.policy)
        if policy is not None:
            core.apply_policy(now_ms(), policy)
            self._shell.driver.pump()
        clients = await self._shell.apply_config(config)
        return Reloaded(
            str(self._file),
            core.own_policy.version,
            policy is not None,
            clients,
            needing_restart(self._started, config),
        )


def successor(present: Policy, wanted: Policy) -> Policy | None:
    """The policy to put in force, None if it is the present one. Its version is that of the file
    where that is a higher one, else the next."""
    if replace(wanted, version=present.version) == present and wanted.version <= present.version:
        return None
    return replace(wanted, version=max(wanted.version, present.version + 1))


def needing_restart(before: Config, after: Config) -> tuple[str, ...]:
    """The tables and keys of the file that differ and cannot change in a running daemon."""
    return tuple(
        _TABLES.get(each.name, each.name)
        for each in fields(Config)
        if each.name not in _LIVE and getattr(before, each.name) != getattr(after, each.name)
    )
