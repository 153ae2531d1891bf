"""Runs the nft command: rulesets of our own tables go in whole or not at all."""

from __future__ import annotations

import asyncio

from jvpnd.net.routeplan import fwmark_of


async def load(ruleset: str) -> str | None:
    """Apply a ruleset in one transaction; None, or why it could not be done."""
    try:
        process = await asyncio.create_subprocess_exec(
            "nft",
            "-f",
            "-",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError:
        return "the nft command is missing (package nftables)"
    _, complaint = await process.communicate(ruleset.encode())
    if process.returncode == 0:
        return None
    lines = complaint.decode(errors="replace").strip().splitlines()
    return lines[0] if lines else f"nft ended with status {process.returncode}"


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
