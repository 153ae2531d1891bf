"""Does what forwardplan.py says, and undoes it; what it changes is noted in the host's state."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Collection, Sequence
from types import ModuleType
from typing import Final

from jvpnd.net import nft
from jvpnd.net.errors import MissingFeature
from jvpnd.net.forwardplan import (
    Forwarding,
    Lan,
    Neighbour,
    forward_rules,
    forward_table,
    neighbours,
    without_forward_table,
)
from jvpnd.net.hoststate import HostState

_log = logging.getLogger(__name__)
_PROXY_NDP: Final = "net/ipv6/conf/{}/proxy_ndp"


class Forwarder:
    """A gateway's table and neighbours. HostNetwork calls it, one at a time."""

    def __init__(self, state: HostState) -> None:
        self._state = state

    async def apply(
        self, name: str, settings: Forwarding, own: Sequence[str], clients: Sequence[str]
    ) -> tuple[str, ...]:
        """Make it so for interface `name`; sentences about what cannot be. Raises MissingFeature.

        The table goes in whole: no packet meets an old rule without the others, or none.
        """
        wanted, notes = await self._wanted(name, settings, clients)
        proxied = {interface for _, interface in wanted}
        rules = forward_rules(name, settings, own, proxied)
        has_rules = rules != without_forward_table(name)
        self._note(name, forwards=True)
        problem = await nft.load(rules)  # without rules too: who knows what a killed run left
        if has_rules and problem is not None:
            notes += _without_rules(problem, settings)
        self._note(name, forwards=has_rules)
        if not settings.cluster:
            await self._answer_for(name, wanted)
        return notes

    async def remove(self, name: str) -> None:
        """Undo it; the interface may be gone already."""
        if self._state.neighbours:
            await self._answer_for(name, frozenset())
        if self._state.forwards:
            problem = await nft.load(without_forward_table(name))
            if problem is not None:
                _log.warning("cannot remove the nft table %s: %s", forward_table(name), problem)
            self._state.note_forwarding(name, forwards=False, neighbours=())

    def _note(self, name: str, *, forwards: bool) -> None:
        self._state.note_forwarding(name, forwards=forwards, neighbours=self._state.neighbours)

    async def _wanted(
        self, name: str, settings: Forwarding, clients: Sequence[str]
    ) -> tuple[frozenset[Neighbour], tuple[str, ...]]:
        if not settings.proxy_neighbours:
            return frozenset(), ()
        wanted = neighbours(settings, await lans_beside(name), clients)
        where = "any interface"
        if not isinstance(settings.proxy_neighbours, bool):
            idle = set(settings.proxy_neighbours) - {interface for _, interface in wanted}
            where = ", ".join(sorted(idle))
            if not idle:
                return wanted, ()
        elif wanted:
            return wanted, ()
        return wanted, (f"proxy_neighbours: no client's address lies in a network of {where}",)

    async def _answer_for(self, name: str, wanted: frozenset[Neighbour]) -> None:
        """Ours are those on file; an entry that somebody else made is left alone."""
        before = self._state.neighbours
        if not wanted and not before:
            return
        netlink = await _netlink()
        async with netlink.AsyncIPRoute() as ip:
            there = await netlink.answered(ip)
            missing = wanted - there
            ours = (wanted & before) | missing
            self._state.note_forwarding(
                name, forwards=self._state.forwards, neighbours=ours | before
            )
            for key in sorted(proxy_ndp_of(wanted)):
                self._state.set_sysctl(key, "1")
            await netlink.answer_for(ip, missing)
            await netlink.leave(ip, before - wanted)
            self._state.note_forwarding(name, forwards=self._state.forwards, neighbours=ours)
        idle = proxy_ndp_of(before) - proxy_ndp_of(wanted)
        if idle:
            self._state.restore_sysctls(*idle)


async def lans_beside(name: str) -> list[Lan]:
    """The networks of all interfaces but this one."""
    netlink = await _netlink()
    async with netlink.AsyncIPRoute() as ip:
        found: list[Lan] = await netlink.lans(ip, name)
    return found


def proxy_ndp_of(those: Collection[Neighbour]) -> set[str]:
    """IPv6 answers for neighbours only where this is 1; IPv4 asks for no switch."""
    return {_PROXY_NDP.format(interface) for address, interface in those if ":" in address}


def _without_rules(problem: str, settings: Forwarding) -> tuple[str, ...]:
    """What follows from it. Raises MissingFeature for what must hold."""
    if settings.nat or not settings.client_to_client:
        key = "nat = true" if settings.nat else "client_to_client = false"
        raise MissingFeature(f"[forwarding] {key} needs nftables: {problem}")
    return (f"TCP's MSS is not clamped, paths must tell of large packets: {problem}",)


async def _netlink() -> ModuleType:
    """jvpnd.net.neighbours, imported when it is first needed: pyroute2 takes its time."""
    return await asyncio.to_thread(importlib.import_module, "jvpnd.net.neighbours")
