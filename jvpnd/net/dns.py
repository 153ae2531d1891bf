"""The host's name servers while there is a session: those inside the tunnel. docs/routing.md.

Whatever goes wrong here is told in the log and in the status, and does not stop the tunnel.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast, get_args

from jvpnd.net import dnsmanagers
from jvpnd.net.dnsmanagers import Manager
from jvpnd.net.resolvconf import RESOLV_CONF, NotOurs, ResolvConf

_log = logging.getLogger(__name__)
_NOTE: Final = "dns.json"
_PATIENCE_S: Final = 5
_CHANGED: Final = "somebody has changed it since, and it is left as it is"


class HostDns:
    """Of one tunnel interface. `resume` once, `apply` as often as a session is up, then `restore`.

    Which manager was told is on file in the runtime directory before it is told, so that a run
    after a kill undoes the right thing; a managed resolv.conf outlives even a reboot, and is put
    back by whoever comes next.
    """

    def __init__(
        self, name: str, runtime: Path, servers: Sequence[str], domains: Sequence[str]
    ) -> None:
        self._name = name
        self._servers, self._domains = servers, domains
        self._file = runtime / _NOTE
        self._resolv_conf = ResolvConf()
        self._told: tuple[Manager, str] | None = None  # and of which interface
        self._lock = threading.Lock()  # a change that was given up may still go on in its thread
        self._problem: str | None = None
        self._is_set = False

    async def resume(self, is_left: bool) -> None:
        """After the start. `is_left`: a killed run had this interface; then what it said is kept
        until the session is up. Anything else that was left is undone."""
        self._told = _noted(self._file)
        kept = is_left and self._servers and self._told and self._told[1] == self._name
        if not kept:
            await self.restore()

    async def apply(self) -> None:
        """Have names looked up inside the tunnel."""
        if not self._servers:
            return
        manager = self._told[0] if self._told else self._choose()
        is_first = self._told is None
        self._note(manager)
        self._problem = await asyncio.to_thread(self._tell, manager, is_first)
        self._is_set = self._problem is None
        if self._problem:
            _log.warning("name servers are not set: %s", self._problem)
        elif self._domains and manager != "resolved":
            _log.warning("without systemd-resolved all names are for the tunnel's name servers")

    async def restore(self) -> None:
        """Put back what was there before."""
        told, self._told = self._told, None
        self._problem, self._is_set = None, False
        problem = await asyncio.to_thread(self._undo, told)
        if problem:
            _log.warning("name servers are not put back: %s", problem)
        self._file.unlink(missing_ok=True)

    def status(self) -> dict[str, Any] | None:
        """None where names are none of our business."""
        if not self._servers:
            return None
        return {
            "manager": self._told[0] if self._told else None,
            "servers": list(self._servers),
            "domains": list(self._domains),
            "is_set": self._is_set,
            "problem": self._problem,
        }

    def _choose(self) -> Manager:
        return dnsmanagers.choose(
            RESOLV_CONF.resolve(),
            self._resolv_conf.servers(),
            dnsmanagers.is_resolved_live(),
            shutil.which,
        )

    def _note(self, manager: Manager) -> None:
        self._told = (manager, self._name)
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps({"manager": manager, "interface": self._name}))
        fresh.replace(self._file)

    def _undo(self, told: tuple[Manager, str] | None) -> str | None:
        with self._lock:
            return undo(told, self._name)

    def _tell(self, manager: Manager, is_first: bool) -> str | None:
        with self._lock:
            if self._told is None:  # undone before it was done
                return None
            if manager == "file":
                return self._write(is_first)
            name, servers, domains = self._name, self._servers, self._domains
            if manager == "resolved":
                commands = dnsmanagers.resolved_commands(name, servers, domains)
                return next(filter(None, map(_run, commands)), None)
            return _run(*dnsmanagers.resolvconf_command(name, servers, domains))

    def _write(self, is_first: bool) -> str | None:
        try:
            held = self._resolv_conf.held()
            if not is_first and (held is None or held.owner != self._name):
                return f"{RESOLV_CONF}: {_CHANGED}"
            self._resolv_conf.put(self._name, self._servers, self._domains)
        except NotOurs:
            return f"{RESOLV_CONF}: {_CHANGED}"
        except OSError as error:
            return f"{RESOLV_CONF}: {error.strerror}"
        except ValueError as error:
            return str(error)
        return None


def restore_left(runtime: Path) -> str | None:
    """Undo all that a daemon which is gone has left; what could not be undone."""
    file = runtime / _NOTE
    problem = undo(_noted(file), None)
    file.unlink(missing_ok=True)
    return problem


def undo(told: tuple[Manager, str] | None, owner: str | None) -> str | None:
    """Undo what a manager was told, and put back a managed file that was written for the interface
    `owner` (None: for any), be it before a reboot. What could not be undone."""
    problem = None
    owner = told[1] if told and owner else owner  # it may have had another name then
    if told is not None and told[0] == "resolved":
        # a link that is gone took its servers along
        if Path("/sys/class/net", told[1]).exists():
            problem = _run(dnsmanagers.resolved_undo(told[1]))
    elif told is not None and told[0] == "resolvconf":
        problem = _run(dnsmanagers.resolvconf_undo(told[1]))
    try:
        is_back = ResolvConf().restore(owner)
    except NotOurs:
        return f"{RESOLV_CONF}: {_CHANGED}"
    except OSError as error:
        return f"{RESOLV_CONF}: {error.strerror}"
    if told is not None and told[0] == "file" and not is_back:
        return f"{RESOLV_CONF}: {_CHANGED}"
    return problem


def _noted(file: Path) -> tuple[Manager, str] | None:
    try:
        stored = json.loads(file.read_text())
        manager, name = stored["manager"], stored["interface"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        _log.warning("%s is damaged and ignored", file)
        return None
    if manager not in get_args(Manager) or not isinstance(name, str):
        return None
    return cast(Manager, manager), name


def _run(command: Sequence[str], text: str = "") -> str | None:
    """None, or why it failed."""
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_PATIENCE_S
        )
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"{command[0]} takes longer than {_PATIENCE_S} s"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return f"{' '.join(command[:2])}: {lines[-1] if lines else f'status {done.returncode}'}"
