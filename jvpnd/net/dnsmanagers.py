"""Who looks after the host's name servers, and what to tell them. Decisions only.

systemd-resolved keeps servers and domains by link; resolvconf (openresolv's or Debian's) makes
/etc/resolv.conf of what each interface has; where there is neither, the file is managed by us.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

Manager = Literal["resolved", "resolvconf", "file"]

_RESOLVED: Final = Path("/run/systemd/resolve")
_STUBS: Final = ("127.0.0.53", "127.0.0.54")
_ORDER: Final = Path("/etc/resolvconf/interface-order")  # Debian's resolvconf


def choose(
    target: Path, servers: Sequence[str], is_live: bool, which: Callable[[str], str | None]
) -> Manager:
    """`target`: what /etc/resolv.conf is in the end, `servers`: those that it names; `is_live`:
    resolved runs; `which`: the file of a command, as shutil.which."""
    points = target.is_relative_to(_RESOLVED) or (bool(servers) and servers[0] in _STUBS)
    if is_live and points and which("resolvectl"):
        return "resolved"
    command = which("resolvconf")
    # resolved brings a command of that name, which only talks to resolved
    if command is not None and Path(command).resolve().name != "resolvectl":
        return "resolvconf"
    return "file"


def is_resolved_live() -> bool:
    return (_RESOLVED / "stub-resolv.conf").exists()


def resolved_commands(
    name: str, servers: Sequence[str], domains: Sequence[str]
) -> list[tuple[str, ...]]:
    """`~.`: every name is for this link's servers."""
    return [
        ("resolvectl", "dns", name, *servers),
        ("resolvectl", "domain", name, *(domains or ("~.",))),
        ("resolvectl", "default-route", name, "no" if domains else "yes"),
    ]


def resolved_undo(name: str) -> tuple[str, ...]:
    return ("resolvectl", "revert", name)


def resolvconf_command(
    name: str, servers: Sequence[str], domains: Sequence[str]
) -> tuple[tuple[str, ...], str]:
    """The command and its standard input. Of openresolv's options, before all others and instead of
    them; Debian's resolvconf takes them and goes by the name."""
    lines = [f"nameserver {server}\n" for server in servers]
    lines += [f"search {' '.join(domains)}\n"] if domains else []
    return ("resolvconf", "-a", _record(name), "-m", "0", "-x"), "".join(lines)


def resolvconf_undo(name: str) -> tuple[str, ...]:
    return ("resolvconf", "-d", _record(name), "-f")


def first_prefix(order: Iterable[str]) -> str:
    """What names begin with that come early in Debian's interface-order, as wg-quick finds it."""
    for line in order:
        found = re.fullmatch(r"([A-Za-z0-9-]+)\*", line.strip())
        if found:
            return f"{found[1]}."
    return ""


def _record(name: str) -> str:
    order = _ORDER.read_text().splitlines() if _ORDER.exists() else []
    return f"{first_prefix(order)}{name}.jvpn"
