"""What we changed on the host and must put back: kept in a file, so that kill -9 is no loss.

The file holds the interface whose rules and routes may be around, the sysctls as they were,
whether nft tables of ours are loaded, for which neighbours we answer, and which networks we route
to other nodes. It lies in the runtime directory and so goes at reboot, just as what it describes.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from jvpnd.net.errors import MissingFeature

_log = logging.getLogger(__name__)
_PROC_SYS = Path("/proc/sys")


class HostState:
    """The remembered changes of one daemon; every change is on file before it is made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.interface: str | None = None
        self.filtered = False
        self.forwards = False  # our nft table of a gateway may be there
        self.neighbours: frozenset[tuple[str, str]] = frozenset()  # (address, interface)
        self.lent: frozenset[str] = frozenset()  # networks with our routes to another node
        self._sysctls: dict[str, tuple[str, str | None]] = {}  # key: (before, ours)

    def load(self) -> None:
        """Read what an earlier run left; a file that makes no sense is reported and ignored."""
        try:
            stored = json.loads(self._path.read_text())
        except FileNotFoundError:
            return
        except ValueError as error:
            _log.warning("%s is damaged and ignored: %s", self._path, error)
            return
        if not self._accept(stored):
            _log.warning("%s does not hold what this version writes; ignored", self._path)

    def note(self, interface: str, *, filtered: bool) -> None:
        """Remember that rules and routes of `interface`, and our nft table, may be there."""
        if (self.interface, self.filtered) != (interface, filtered):
            self.interface, self.filtered = interface, filtered
            self._save()

    def note_forwarding(
        self, interface: str, *, forwards: bool, neighbours: Collection[tuple[str, str]]
    ) -> None:
        """Remember that our nft table of a gateway, and these neighbours, may be there."""
        noted = interface, forwards, frozenset(neighbours)
        if (self.interface, self.forwards, self.neighbours) != noted:
            self.interface, self.forwards, self.neighbours = noted
            self._save()

    def note_owned(
        self, interface: str, neighbours: Collection[tuple[str, str]], lent: Collection[str]
    ) -> None:
        """Remember that these neighbours, and our routes to these networks, may be there."""
        noted = interface, frozenset(neighbours), frozenset(lent)
        if (self.interface, self.neighbours, self.lent) != noted:
            self.interface, self.neighbours, self.lent = noted
            self._save()

    def forget(self) -> None:
        """All is put back: the file goes."""
        self.interface, self.filtered, self._sysctls = None, False, {}
        self.forwards, self.neighbours, self.lent = False, frozenset(), frozenset()
        self._path.unlink(missing_ok=True)

    def set_sysctl(self, key: str, value: str) -> None:
        """Set a sysctl (a path below /proc/sys) and remember what it was.

        Raises MissingFeature when it cannot be set.
        """
        before = read_sysctl(key)
        if before == value:
            return
        self._sysctls.setdefault(key, (before or "", value))
        self._save()
        try:
            write_sysctl(key, value)
        except OSError as error:
            raise MissingFeature(
                f"cannot set the sysctl {key.replace('/', '.')} to {value}: {error.strerror}; "
                "run as root with a writable /proc/sys, or set it before the start"
            ) from error

    def keep_sysctl(self, key: str) -> None:
        """Remember a sysctl that the kernel changes along with the next one we set."""
        before = read_sysctl(key)
        if before is not None:
            self._sysctls.setdefault(key, (before, None))

    def restore_sysctls(self, *keys: str) -> None:
        """Put back these (none named: all), last change first; what others changed since stays."""
        for key in [k for k in reversed(self._sysctls) if not keys or k in keys]:
            before, ours = self._sysctls.pop(key)
            current = read_sysctl(key)
            if current is None or current == before or ours not in (None, current):
                continue
            try:
                write_sysctl(key, before)
            except OSError as error:
                _log.warning("cannot put the sysctl %s back to %s: %s", key, before, error)
        if self._path.exists():
            self._save()

    def _accept(self, stored: Any) -> bool:
        if not isinstance(stored, dict) or not isinstance(stored.get("sysctls"), dict):
            return False
        sysctls: dict[str, tuple[str, str | None]] = {}
        for key, pair in stored["sysctls"].items():
            if not key.startswith("net/") or ".." in key or not _is_pair(pair):
                return False
            sysctls[key] = (pair[0], pair[1])
        interface, neighbours = stored.get("interface"), stored.get("neighbours", [])
        if not isinstance(interface, str | None) or not isinstance(neighbours, list):
            return False
        if not all(_is_pair(pair) and pair[1] for pair in neighbours):
            return False
        lent = stored.get("lent", [])
        if not isinstance(lent, list) or not all(isinstance(each, str) for each in lent):
            return False
        self.lent = frozenset(lent)
        self.interface, self.filtered = interface, bool(stored.get("filtered"))
        self.forwards = bool(stored.get("forwards"))
        self.neighbours = frozenset((address, where) for address, where in neighbours)
        self._sysctls = sysctls
        return True

    def _save(self) -> None:
        content = {
            "interface": self.interface,
            "filtered": self.filtered,
            "forwards": self.forwards,
            "neighbours": sorted(self.neighbours),
            "lent": sorted(self.lent),
            "sysctls": self._sysctls,
        }
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(content))
        os.replace(fresh, self._path)


def read_sysctl(key: str) -> str | None:
    """The value of a sysctl, None where the kernel has none of that name."""
    try:
        return (_PROC_SYS / key).read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_sysctl(key: str, value: str) -> None:
    """Set a sysctl for good; raises OSError."""
    (_PROC_SYS / key).write_text(value)


def _is_pair(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return isinstance(value[0], str) and isinstance(value[1], str | None)
