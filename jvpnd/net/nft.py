"""Runs the nft command: rulesets of our own tables go in whole or not at all."""

from __future__ import annotations

import asyncio
import subprocess

from jvpnd.net.routeplan import fwmark_of


async def load(ruleset: str) -> str | None:
    """Apply a ruleset in one transaction; None, or why it could not be done."""
    return await asyncio.to_thread(load_now, ruleset)


def load_now(ruleset: str) -> str | None:
    """The same, waiting for it."""
    try:
        done = subprocess.run(["nft", "-f", "-"], input=ruleset.encode(), capture_output=True)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            return "the nft command is missing (package nftables)"
        return f"the nft command cannot be run: {error.strerror}"
    if done.returncode == 0:
        return None
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[0] if lines else f"nft ended with status {done.returncode}"


def without_table(name: str) -> str:
    """Removes the table of interface `name`, there or not."""
    table = _table(name)
    return f"add table {table}\ndelete table {table}\n"


def reverse_path_marks(name: str) -> str:
    """Packets for our transport sockets carry the sockets' mark already where they come in.

    With src_valid_mark the strict reverse-path filter (rp_filter = 1) then looks up their way
    back as our own packets go, past the tunnel, and does not drop them. IPv4 only, as the filter.
    """
    mark = f"{fwmark_of(name):#x}"
    return without_table(name) + (
        f"table {_table(name)} {{\nchain prerouting {{\n"
        "type filter hook prerouting priority mangle; policy accept;\n"
        f"socket mark {mark} meta mark set {mark}\n"
        "}\n}\n"
    )


def _table(name: str) -> str:
    return f"ip jvpn_{fwmark_of(name):x}"
