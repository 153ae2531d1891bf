"""A client's paths: each uplink times each endpoint of the gateway, opened, kept and closed.

A UDP path is there as soon as its socket is. Others need a connection first: those that the policy
keeps warm are made at once, the rest when the agent seeks, and again with growing pauses: a
gateway that is started again is found after a third of the time that it was away.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, Protocol

from jvpnd.config import GatewayPeer
from jvpnd.configendpoint import ip_of
from jvpnd.core import effects
from jvpnd.core.choice import warm
from jvpnd.core.dataclass import dataclass
from jvpnd.core.effects import host_port
from jvpnd.core.path import PathInfo
from jvpnd.core.policy import Policy
from jvpnd.net.links import Uplink
from jvpnd.transport.carrier import Transport
from jvpnd.transport.dial import Dialer
from jvpnd.transport.endpoint import Endpoint, missing
from jvpnd.transport.udp import PathError, open_path

_log = logging.getLogger("jvpnd")

RESOLVE_RETRY_S: Final = 5.0
RETRY_S: Final = 0.1  # before the next try of what failed, then longer up to the maximum
RETRY_GROWTH: Final = 1.35
MAX_RETRY_S: Final = 15.0
MAX_CONNECTIONS: Final = 16  # while the agent seeks
MAX_ENDPOINTS: Final = 32
DRAIN_MORE_MS: Final = 250  # the gateway begins to drain when it hears of the move


@dataclass(slots=True)
class OpenPath:
    """A path that can carry packets."""

    info: PathInfo
    socket_id: int
    transport: Transport
    source: str
    opened_s: float


@dataclass(frozen=True, slots=True)
class _Wanted:
    info: PathInfo
    source: str
    endpoint: Endpoint


@dataclass(slots=True)
class _Trouble:
    """A path that could not be opened lately."""

    why: str
    failures: int
    not_before_s: float


class PathUser(Protocol):
    """Whom the paths are for."""

    @property
    def policy(self) -> Policy: ...
    @property
    def is_resting(self) -> bool:
        """Whether it wants no session by itself."""

    def bound_path(self) -> str | None:
        """The path that carries the session, if any."""

    def path_opened(self, path: OpenPath) -> None: ...
    def path_closed(self, path: OpenPath, why: str) -> None:
        """It has to be closed by the callee."""

    def paths_changed(self) -> None:
        """All that has changed at this time was told."""


class ClientPaths:
    """Follows uplinks, endpoints, policy and the agent's wishes."""

    def __init__(self, gateway: GatewayPeer, mark: int, lanes: int, user: PathUser) -> None:
        self._gateway = gateway
        self._mark = mark
        self._lanes = lanes
        self._user = user
        self._dialer = Dialer(mark, gateway.proxy)
        self._loop = asyncio.get_running_loop()
        self._uplinks: dict[str, Uplink] = {}
        self._endpoints: list[Endpoint] = []
        self._learned: tuple[effects.Endpoint, ...] = ()
        self._open: dict[str, OpenPath] = {}
        self._by_socket: dict[int, OpenPath] = {}
        self._next_socket = 1
        self._dialing: dict[str, asyncio.Task[None]] = {}
        self._troubles: dict[str, _Trouble] = {}
        self._seeking = False
        self._closed = False
        self._again: asyncio.TimerHandle | None = None
        self._resolver: asyncio.Task[None] | None = None

    # --- what they follow ---

    def start(self, uplinks: dict[str, Uplink]) -> None:
        self._uplinks = uplinks
        self._resolver = asyncio.create_task(self._resolve())

    def uplinks_changed(self, uplinks: dict[str, Uplink]) -> None:
        """What failed may work now: nothing waits for its next try."""
        self._uplinks = uplinks
        self._hurry()
        self.refresh()

    def seek(self, wanted: bool) -> None:
        """Open all that the policy allows, at once; or keep the warm ones only."""
        self._seeking = wanted
        if wanted:
            self._hurry()
        self._loop.call_soon(self.refresh)

    def moved(self, drain_ms: int) -> None:
        """Another path may carry the session now: once the one before has drained, it may not be
        needed any more."""
        self._loop.call_later((drain_ms + DRAIN_MORE_MS) / 1000, self.refresh)

    def learn(self, endpoints: tuple[effects.Endpoint, ...]) -> None:
        """The gateway told where else it can be reached."""
        self._learned = endpoints
        self._loop.call_soon(self.refresh)

    def freeze(self) -> None:
        """Open and close nothing any more."""
        self._closed = True
        if self._again is not None:
            self._again.cancel()

    async def close(self) -> None:
        self.freeze()
        tasks = [*self._dialing.values(), *([self._resolver] if self._resolver else [])]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._dialer.close()
        for path in self._open.values():
            path.transport.close()

    # --- look-up ---

    def get(self, path_id: str) -> OpenPath | None:
        return self._open.get(path_id)

    def by_socket(self, socket_id: int) -> OpenPath | None:
        return self._by_socket.get(socket_id)

    def __iter__(self) -> Iterator[OpenPath]:
        return iter(self._open.values())

    def pending(self) -> list[tuple[PathInfo, str]]:
        """Paths that are wanted and not open, and why not."""
        wanted = self._wanted()
        rows = []
        for path_id in {*self._dialing, *self._troubles} & wanted.keys() - self._open.keys():
            trouble = self._troubles.get(path_id)
            rows.append((wanted[path_id].info, trouble.why if trouble else "connecting"))
        return sorted(rows, key=lambda row: row[0].id)

    # --- endpoints ---

    async def _resolve(self) -> None:
        """Turn host names into addresses; tried again until every name has answered."""
        while True:
            found: list[Endpoint] = []
            failed = False
            for endpoint in self._gateway.endpoints:
                if endpoint.transport == "tls" and self._gateway.proxy is not None:
                    found.append(endpoint)  # the proxy knows
                    continue
                try:
                    found += await self._addresses(endpoint)
                except socket.gaierror as error:
                    failed = True
                    _log.warning("cannot resolve %s: %s", endpoint.address, error)
            if found != self._endpoints:
                self._endpoints = found
                self.refresh()
            if not failed:
                return
            await asyncio.sleep(RESOLVE_RETRY_S)

    async def _addresses(self, endpoint: Endpoint) -> list[Endpoint]:
        rows = await self._loop.getaddrinfo(
            endpoint.address, endpoint.port, type=socket.SOCK_DGRAM
        )
        name = endpoint.server_name or endpoint.address
        return [
            replace(endpoint, address=str(row[4][0]), server_name=name) for row in rows
        ]

    def _all_endpoints(self) -> list[Endpoint]:
        """The configured ones, then those that the gateway told of and that we can use."""
        found = {(e.transport, e.address, e.port): e for e in self._endpoints}
        hosts = dict.fromkeys((e.address, e.server_name) for e in self._endpoints)
        for told in self._learned:
            if missing(told.transport):
                continue
            for host, name in [(told.address, None)] if told.address else hosts:
                if ip_of(host) is None and told.transport != "tls":
                    continue  # a name that only the proxy knows
                key = told.transport, host, told.port
                found.setdefault(key, Endpoint(*key, server_name=name, node=told.node))
        return list(found.values())[:MAX_ENDPOINTS]

    # --- opening and closing ---

    def refresh(self) -> None:
        """Make the open paths those of the present uplinks and endpoints; losses first."""
        if self._closed:
            return
        wanted = self._wanted()
        for path_id, path in list(self._open.items()):
            source = wanted[path_id].source if path_id in wanted else None
            if source != path.source:
                self._close(path, "uplink lost" if source is None else "address changed")
        connected = self._worth_connecting(wanted)
        for path_id in [p for p in self._dialing if p not in connected]:
            self._dialing.pop(path_id).cancel()
        for path in list(self._open.values()):
            if path.info.transport != "udp" and path.info.id not in connected:
                self._close(path, "not needed")
        for path_id, row in wanted.items():
            if path_id not in self._open and path_id not in self._dialing:
                if row.info.transport == "udp" or path_id in connected:
                    self._open_path(row)
        self._troubles = {k: v for k, v in self._troubles.items() if k in wanted}
        self._plan_retry()
        self._user.paths_changed()

    def _wanted(self) -> dict[str, _Wanted]:
        found = {}
        for uplink in self._uplinks.values():
            for endpoint in self._all_endpoints():
                proxied = endpoint.transport == "tls" and self._gateway.proxy is not None
                if proxied:
                    source = uplink.ipv4 or uplink.ipv6
                else:
                    source = uplink.ipv6 if ":" in endpoint.address else uplink.ipv4
                if source is None:
                    continue
                remote = host_port(endpoint.address, endpoint.port)
                path_id = f"{uplink.name}/{endpoint.transport}/{remote}"
                where = endpoint.transport, uplink.name, source, remote, endpoint.node
                info = PathInfo(path_id, *where)
                found[path_id] = _Wanted(info, source, endpoint)
        return found

    def _worth_connecting(self, wanted: dict[str, _Wanted]) -> set[str]:
        """Of the paths that need a connection those that should have one now."""
        policy, bound = self._user.policy, self._user.bound_path()
        if self._user.is_resting:
            return set()
        infos = [row.info for row in wanted.values() if row.info.transport != "udp"]
        if self._seeking:
            allowed = [info for info in infos if policy.allows(info.transport, info.uplink)]
            allowed.sort(key=lambda info: policy.preference(info.transport, info.uplink))
            chosen = {info.id for info in allowed[:MAX_CONNECTIONS]}
        else:
            chosen = {info.id for info in warm(infos, policy)}
        return chosen | ({bound} if bound is not None else set())

    def _open_path(self, row: _Wanted) -> None:
        trouble = self._troubles.get(row.info.id)
        if trouble is not None and self._loop.time() < trouble.not_before_s:
            return
        if row.info.transport != "udp":
            self._dialing[row.info.id] = asyncio.create_task(self._dial(row))
            return
        remote = (row.endpoint.address, row.endpoint.port)
        try:
            group = open_path(row.info.uplink, row.source, remote, self._mark, self._lanes)
        except PathError as error:
            self._failed(row.info.id, str(error))
        else:
            self._opened(row, group)

    async def _dial(self, row: _Wanted) -> None:
        try:
            transport = await self._dialer.dial(row.info.uplink, row.source, row.endpoint)
        except PathError as error:
            self._failed(row.info.id, str(error))
            self._plan_retry()
        else:
            self._opened(row, transport)
            self._user.paths_changed()
        finally:
            if self._dialing.get(row.info.id) is asyncio.current_task():
                del self._dialing[row.info.id]

    def _opened(self, row: _Wanted, transport: Transport) -> None:
        path = OpenPath(
            row.info, self._next_socket, transport, row.source, self._loop.time()
        )
        self._next_socket += 1
        self._open[row.info.id] = self._by_socket[path.socket_id] = path
        self._user.path_opened(path)

    def _hurry(self) -> None:
        for trouble in self._troubles.values():
            trouble.not_before_s = 0

    def _failed(self, path_id: str, why: str) -> None:
        before = self._troubles.get(path_id)
        failures = before.failures + 1 if before is not None else 1
        if before is None or before.why != why:
            _log.info("%s: %s", path_id, why)
        wait_s = min(RETRY_S * RETRY_GROWTH ** min(failures - 1, 50), MAX_RETRY_S)
        self._troubles[path_id] = _Trouble(why, failures, self._loop.time() + wait_s)

    def _plan_retry(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        now_s = self._loop.time()
        times = [each.not_before_s for each in self._troubles.values()]
        due_s = min((at for at in times if at > now_s), default=None)
        if due_s is not None and not self._closed:
            self._again = self._loop.call_at(due_s + 0.001, self.refresh)

    def lost(self, path: OpenPath, number: int) -> None:
        """Its connection has ended."""
        if self._closed:
            return
        why = f"connection lost: {errno.errorcode.get(number, str(number))}"
        if self._loop.time() - path.opened_s > MAX_RETRY_S:  # it was a good one
            self._troubles.pop(path.info.id, None)
        self._failed(path.info.id, why)
        self._close(path, why)
        self._plan_retry()
        self._user.paths_changed()

    def _close(self, path: OpenPath, why: str) -> None:
        del self._open[path.info.id]
        del self._by_socket[path.socket_id]
        self._user.path_closed(path, why)
