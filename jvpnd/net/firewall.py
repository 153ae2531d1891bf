"""Firewalls of others that drop what we forward: found and told of, never changed.

A packet has to pass every table that looks at it, so an accept of ours does not help where another
one's forward chain drops: Docker, ufw and firewalld do so by default.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from fnmatch import fnmatchcase
from typing import Any, Final

_log = logging.getLogger(__name__)

LOOK_S: Final = 10.0
_OWN: Final = re.compile(r"jvpn_")
_QUOTED: Final = re.compile(r'"([^"\n]*)"')


class Lookout:
    """What is in the way of interface `name`, looked at when asked, but not all the time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._found: tuple[str, ...] = ()
        self._next_s = 0.0

    async def look(self) -> tuple[str, ...]:
        """As `obstacles`; what is new is logged."""
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + LOOK_S
            before, self._found = self._found, await obstacles(self._name)
            for sentence in self._found:
                if sentence not in before:
                    _log.warning("%s", sentence)
        return self._found


async def obstacles(name: str) -> tuple[str, ...]:
    """A sentence, with the command that helps, for each table that drops forwarded packets and
    says nothing of interface `name`. None where nft cannot be asked."""
    chains = await _nft("-j", "list", "chains")
    if chains is None:
        return ()
    found = []
    for family, table, chain, drops in forward_chains(json.loads(chains)):
        text = await _nft("list", "table", family, table) or ""
        if drops or _closes_with_drop(text, chain):
            found += obstacle(name, family, table, chain, text)
    return tuple(found)


def forward_chains(listed: Any) -> list[tuple[str, str, str, bool]]:
    """(family, table, chain, whether the policy is drop) of what others have in the forward hook,
    out of nft's JSON."""
    chains = [each["chain"] for each in listed["nftables"] if "chain" in each]
    return [
        (each["family"], each["table"], each["name"], each.get("policy") == "drop")
        for each in chains
        if each.get("hook") == "forward"
        and each["family"] in ("ip", "ip6", "inet")
        and not _OWN.match(each["table"])
    ]


def obstacle(name: str, family: str, table: str, chain: str, text: str) -> list[str]:
    """The sentence about one table that drops, of which `text` is nft's listing."""
    if _speaks_of(name, text):
        return []
    command = _command(name, family, table, chain, text)
    return [
        f"the firewall (nft table {family} {table}) drops what it forwards by default, "
        f"so nothing passes between {name} and other interfaces; to let it: {command}"
    ]


def _command(name: str, family: str, table: str, chain: str, text: str) -> str:
    if table == "firewalld":
        return f"firewall-cmd --permanent --zone=trusted --add-interface={name} && " + (
            "firewall-cmd --reload"
        )
    if "chain ufw-" in text or "chain ufw6-" in text:
        return f"ufw route allow in on {name} && ufw route allow out on {name}"
    if chain == "FORWARD":
        tool = "ip6tables" if family == "ip6" else "iptables"
        target = "DOCKER-USER" if "chain DOCKER-USER" in text else chain
        return " && ".join(f"{tool} -I {target} {way} {name} -j ACCEPT" for way in ("-i", "-o"))
    rule = f"nft insert rule {family} {table} {chain}"
    return f"{rule} iifname {name} accept && {rule} oifname {name} accept"


def _speaks_of(name: str, text: str) -> bool:
    """Whether a rule names the interface: then somebody has thought of it."""
    lines = (line for line in text.splitlines() if "iif" in line or "oif" in line)
    return any(fnmatchcase(name, word) for line in lines for word in _QUOTED.findall(line))


def _closes_with_drop(text: str, chain: str) -> bool:
    """Whether the chain accepts by policy, but its last rule drops or rejects all that is left."""
    body = re.search(rf"chain {re.escape(chain)} {{\n(.*?)\n\t}}", text, re.DOTALL)
    last = body.group(1).splitlines()[-1].strip() if body else ""
    plain = re.sub(r"counter( packets \d+ bytes \d+)?", "", last).strip()
    return plain == "drop" or plain.startswith("reject")


async def _nft(*arguments: str) -> str | None:
    """What nft says, None if it cannot be asked."""
    try:
        process = await asyncio.create_subprocess_exec(
            "nft",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except FileNotFoundError:
        return None
    said, _ = await process.communicate()
    return said.decode(errors="replace") if process.returncode == 0 else None
