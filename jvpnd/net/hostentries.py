"""What the kernel of a cluster's node has for the cluster's clients: routes, proxied neighbours."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import socket
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Final

from jvpnd.net import hostroutes
from jvpnd.net.errors import MissingFeature
from jvpnd.net.forwarding import lans_beside, proxy_ndp_of
from jvpnd.net.forwardplan import Forwarding, Lan, Neighbour, neighbours
from jvpnd.net.hoststate import HostState
from jvpnd.net.ownplan import HostRoute, addresses_in, network_of

_log = logging.getLogger(__name__)

_OFF_LINK: Final = (errno.EINVAL, errno.ENETUNREACH, errno.EHOSTUNREACH)  # said of a next hop
_SEND_REDIRECTS: Final = "net/ipv4/conf/{}/send_redirects"
_GONE: Final = (0, errno.ESRCH, errno.ENOENT, errno.ENODEV)


class HostEntries:
    """Of the interface `name`. One call at a time; what somebody else has made is left alone."""

    def __init__(self, name: str, state: HostState, settings: Forwarding) -> None:
        self._name, self._state, self._settings = name, state, settings
        self._routes: dict[str, set[HostRoute]] = {}
        self._answered: dict[str, set[Neighbour]] = {}  # by network, as routes are
        self._foreign: set[Neighbour] = set()
        self._lans: list[Lan] = []
        self.refused: dict[str, str] = {}
        """Networks that are not as they should be, and why."""

    async def take_stock(self) -> set[str]:
        """Look at what there is; the networks of all that is ours. Raises OSError."""
        self._lans = await lans_beside(self._name)
        tunnel = socket.if_nametoindex(self._name)
        routes, answered = await asyncio.to_thread(
            lambda: (list(hostroutes.present(tunnel)), set(hostroutes.answered()))
        )
        self._routes, self._answered = {}, {}
        for route in routes:
            if route.via is None or route.network in self._state.lent:
                self._routes.setdefault(route.network, set()).add(route)
        for each in answered & self._state.neighbours:
            self._answered.setdefault(network_of(each[0]), set()).add(each)
        self._foreign = answered - self._state.neighbours
        lent = self._state.lent.intersection(route.network for route in routes)
        self._state.note_owned(self._name, answered & self._state.neighbours, lent)
        return {*self._routes, *self._answered}

    def answered_at(self, network: str) -> Collection[Neighbour]:
        """How we answer for it now."""
        return self._answered.get(network, ())

    def answering(self, owned: Iterable[str]) -> frozenset[Neighbour]:
        """How we have to answer for what is owned: in each LAN that an address lies in."""
        return neighbours(self._settings, self._lans, addresses_in(owned))

    async def change(
        self, wanted: Mapping[str, HostRoute | None], answering: Collection[Neighbour]
    ) -> frozenset[Neighbour]:
        """Give each of these networks the route that is wanted, or none, and answer for their
        addresses as said; those that were not answered for before. Raises OSError.

        The new way is there before the old one goes, and no address is answered for without a way.
        """
        routes = {route for each in wanted for route in self._routes.get(each, ())}
        entries = {entry for each in wanted for entry in self._answered.get(each, ())}
        put = [route for route in wanted.values() if route is not None and route not in routes]
        drop = routes.difference(wanted.values())
        missing = frozenset(answering) - entries - self._foreign
        for network in wanted:
            self.refused.pop(network, None)
        self._note(missing, put)
        self._switch(missing, put)
        index = {name: number for number, name in socket.if_nameindex()}
        tunnel = index.get(self._name, 0)
        steps = [
            *(
                (hostroutes.leave(each, index[each[1]]), partial(self._left, each))
                for each in entries.difference(answering)
                if each[1] in index
            ),
            *((hostroutes.put(each, tunnel), partial(self._led, each)) for each in put),
            *((hostroutes.drop(each, tunnel), partial(self._dropped, each)) for each in drop),
            *(
                (hostroutes.answer_for(each, index[each[1]]), partial(self._entered, each))
                for each in missing
                if each[1] in index
            ),
        ]
        codes = await asyncio.to_thread(hostroutes.carry_out, [request for request, _ in steps])
        for (_, done), code in zip(steps, codes, strict=True):
            done(code)
        return missing

    def _note(self, missing: frozenset[Neighbour], put: Collection[HostRoute]) -> None:
        """On file before it is done. What is noted stays so, lest each move of a session writes the
        file: it says what may be ours if it is there."""
        lent = {route.network for route in put if route.via is not None}
        known = self._state
        if not (known.neighbours.issuperset(missing) and known.lent.issuperset(lent)):
            known.note_owned(self._name, known.neighbours | missing, known.lent | lent)

    def _switch(self, missing: frozenset[Neighbour], put: Iterable[HostRoute]) -> None:
        """Let IPv6 answer for others; and do not tell hosts to ask another node by themselves, who
        would go on with it when that node is dead."""
        ways = {route.via for route in put if route.via is not None and ":" not in route.via}
        beside = {
            name
            for name, network in self._lans
            for address in ways
            if ipaddress.ip_address(address) in network
        }
        settings = dict.fromkeys(proxy_ndp_of(missing), "1")
        settings |= {_SEND_REDIRECTS.format(name): "0" for name in beside}
        for key, value in sorted(settings.items()):
            try:
                self._state.set_sysctl(key, value)
            except MissingFeature as error:
                _log.warning("%s", error)

    def _left(self, entry: Neighbour, code: int) -> None:
        """What cannot be removed is gone."""
        self._answered[network_of(entry[0])].discard(entry)

    def _entered(self, entry: Neighbour, code: int) -> None:
        if code:
            self.refused[network_of(entry[0])] = f"{os.strerror(code)} ({entry[1]})"
        else:
            self._answered.setdefault(network_of(entry[0]), set()).add(entry)

    def _led(self, route: HostRoute, code: int) -> None:
        if code and route.via is not None and code in _OFF_LINK:
            self.refused[route.network] = f"{route.via} is in no network of this host"
        elif code:
            self.refused[route.network] = os.strerror(code)
        else:
            self._routes.setdefault(route.network, set()).add(route)

    def _dropped(self, route: HostRoute, code: int) -> None:
        if code in _GONE:
            self._routes[route.network].discard(route)
        else:
            self.refused[route.network] = f"the old one cannot be removed: {os.strerror(code)}"
