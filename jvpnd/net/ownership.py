"""Traffic follows the session: the addresses of a cluster's clients, as this node's kernel and the
hosts of its LANs see them.

What this node owns goes into the tunnel, and is answered for and announced in the LAN; what another
one owns is routed to it, so that stray packets arrive. At a node of a cluster this takes the place
of HostNetwork.route, and of the neighbours that a gateway has for all its clients at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Collection, Iterable
from typing import Final

from jvpnd.net.announcing import Announcer
from jvpnd.net.changes import Serializer
from jvpnd.net.errors import MissingFeature
from jvpnd.net.forwardplan import Forwarding, Neighbour
from jvpnd.net.hook import Hook, unsafe
from jvpnd.net.hostentries import HostEntries
from jvpnd.net.hoststate import HostState
from jvpnd.net.netlink import RECV_BYTES, subscribe
from jvpnd.net.ownplan import NOBODY, Holding, canonical, network_of, networks_of, shortened

_LINK_GROUPS: Final = (1, 5, 9)  # RTNLGRP_LINK, IPV4_IFADDR, IPV6_IFADDR
_BATCH: Final = 256  # messages taken before the rest of the daemon gets its turn
SLICE: Final = 1024  # networks at once, lest the event loop waits for thousands
STOCK_S: Final = 0.5
"""From a change of an interface, or a failure, until everything is looked at again."""


class OwnedAddresses:
    """Call `own`, `lend` and `forget` as often as you like; they return at once, and what is asked
    in one turn of the loop, or while a change is under way, goes to the kernel together.

    Addresses are single hosts ("10.77.0.2"), networks are CIDR. `settings` and `announce` say on
    which interfaces clients are answered for and announced (None: wherever they are answered for).
    """

    def __init__(
        self,
        name: str,
        node: str,
        state: HostState,
        settings: Forwarding,
        announce: Collection[str] | None = None,
        hook: str | None = None,
    ) -> None:
        """`name`: the TUN; `state`: HostNetwork's; `hook`: a program of the administrator."""
        self._node, self._announce = node, announce
        self._entries = HostEntries(name, state, settings)
        self._held: dict[str, Holding] = {}  # by network; what nobody has is not there
        self._dirty: dict[str, bool] = {}  # networks to look at, and whether somebody asked
        self._hook_path = hook
        self._hook = None if hook is None else Hook(hook, node, name)
        self._announcer = Announcer()
        self._changes = Serializer()
        self._events: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_stale = True
        self._is_queued = True  # until the start

    async def start(self) -> None:
        """Make it what has been asked for so far; whatever else a killed run left goes.

        The TUN has to be there. Raises MissingFeature for a hook that must not be run.
        """
        problem = None if self._hook_path is None else unsafe(self._hook_path)
        if problem is not None:
            raise MissingFeature(f"[cluster] hook: {problem}")
        self._events = subscribe(_LINK_GROUPS)
        asyncio.get_running_loop().add_reader(self._events, self._links_changed)
        self._changes.submit(self._flush)
        await self.settled()

    def own(self, addresses: Iterable[str], networks: Iterable[str]) -> None:
        """This node has the session."""
        self._hold(networks_of(addresses, networks), Holding("own", self._node))

    def lend(
        self,
        addresses: Iterable[str],
        networks: Iterable[str],
        via: Iterable[str],
        owner: str = "",
    ) -> None:
        """Another node has it, and can be reached by its LAN addresses `via`, of which the first of
        each IP version counts; without one there is no route."""
        self._hold(networks_of(addresses, networks), Holding("lend", owner, canonical(via)))

    def forget(self, addresses: Iterable[str], networks: Iterable[str]) -> None:
        """Nobody has it."""
        self._hold(networks_of(addresses, networks), NOBODY)

    @property
    def notes(self) -> list[str]:
        """What the kernel has refused."""
        by_reason: dict[str, list[str]] = {}
        for network, why in self._entries.refused.items():
            by_reason.setdefault(why, []).append(network)
        refused = [
            f"no traffic to {shortened(networks)}: {why}" for why, networks in by_reason.items()
        ]
        return [*refused, *([self._announcer.problem] if self._announcer.problem else [])]

    @property
    def counts(self) -> dict[str, int]:
        """Networks owned and lent, frames that announced them, runs of the hook that failed."""
        verbs = [each.verb for each in self._held.values()]
        return {
            "owned": verbs.count("own"),
            "lent": verbs.count("lend"),
            "announced": self._announcer.sent,
            "hook_runs": 0 if self._hook is None else self._hook.runs,
            "hook_failures": 0 if self._hook is None else self._hook.failures,
        }

    async def settled(self) -> None:
        """Until the kernel has what was asked; announcements and the hook may go on."""
        done = asyncio.Event()

        async def tell() -> None:
            done.set()

        self._changes.submit(tell)
        await done.wait()

    async def close(self) -> None:
        """Change nothing more. What there is stays until HostNetwork removes it."""
        if self._events is not None:
            asyncio.get_running_loop().remove_reader(self._events)
            self._events.close()
        self._is_queued = True
        await self.settled()  # a change that is under way cannot be called back
        await self._changes.close()
        if self._timer is not None:
            self._timer.cancel()
        self._announcer.close()
        if self._hook is not None:
            await self._hook.close()

    def _hold(self, networks: Iterable[str], holding: Holding) -> None:
        for network in networks:
            if self._held.get(network, NOBODY) == holding:
                continue
            if holding == NOBODY:
                del self._held[network]
            else:
                self._held[network] = holding
            if holding.verb != "own":  # it may be somebody else's by now
                self._announcer.withdraw(self._entries.answered_at(network))
            self._dirty[network] = True
        if self._dirty:
            self._submit()

    async def _flush(self) -> None:
        self._is_queued = False
        try:
            if self._is_stale:
                for network in (*await self._entries.take_stock(), *self._held):
                    self._dirty.setdefault(network, False)
                self._is_stale = False
            while self._dirty:
                await self._change_some(list(itertools.islice(self._dirty, SLICE)))
        except BaseException:
            self._look_later()
            raise

    async def _change_some(self, networks: list[str]) -> None:
        asked = {network: self._dirty.pop(network) for network in networks}
        try:
            await self._change(asked)
        except BaseException:
            for network, is_asked in asked.items():
                self._dirty[network] = is_asked or self._dirty.get(network, False)
            raise

    async def _change(self, asked: dict[str, bool]) -> None:
        """Make these networks what they have to be, for the kernel, the LAN and the hook."""
        holdings = {network: self._held.get(network, NOBODY) for network in asked}
        wanted = {network: each.route_to(network) for network, each in holdings.items()}
        owned = [network for network, each in holdings.items() if each.verb == "own"]
        answering = self._entries.answering(owned)
        fresh = await self._entries.change(wanted, answering)
        asked_for = {each for each in answering if asked[network_of(each[0])]}
        self._announcer.announce(filter(self._is_announced, asked_for | fresh))
        if self._hook is not None:
            for network, holding in holdings.items():
                if asked[network]:
                    self._hook.tell(network, holding)

    def _is_announced(self, neighbour: Neighbour) -> bool:
        address, interface = neighbour
        is_ours = self._held.get(network_of(address), NOBODY).verb == "own"  # still
        return is_ours and (self._announce is None or interface in self._announce)

    def _links_changed(self) -> None:
        """An interface that goes down takes along our routes by it, and those we answer for."""
        assert self._events is not None
        with contextlib.suppress(OSError):  # no more; or an overflow, which tells as much
            for _ in range(_BATCH):
                self._events.recv(RECV_BYTES)
        self._look_later()

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(STOCK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        self._is_stale = True
        self._submit()

    def _submit(self) -> None:
        if not self._is_queued:
            self._is_queued = True
            self._changes.submit(self._flush)
