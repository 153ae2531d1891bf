"""The data plane as control sees it: bind keys to sockets, routes to slots, read counters."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from hashlib import blake2b
from typing import Any, Final, Protocol

from jvpnd.core.offloads import Offloads
from jvpnd.core.wire import KEY_LEN, Suite
from jvpnd.dataplane.counters import ROLES, Counters, SlotCounters, slot_base
from jvpnd.dataplane.messages import Remote, Report, ReportKind, canonical
from jvpnd.dataplane.networks import PrefixTable
from jvpnd.dataplane.process import WorkerProcess

START_TIMEOUT_S: Final = 20.0
RESTART_EVERY_S: Final = 1.0


class DataPlaneError(Exception):
    """The workers could not be started; the message says which one, and stderr says why."""


class PlaneObserver(Protocol):
    """What the data plane tells; every method is called on the event loop."""

    def packet_received(self, socket_id: int, remote: Remote, data: bytes) -> None:
        """A packet that is not DATA; nothing about it has been checked but its length."""

    def heard_from_elsewhere(self, index: int, socket_id: int, remote: Remote) -> None:
        """Authentic DATA came from somewhere else than the index is bound to."""

    def socket_failed(self, socket_id: int, errno: int) -> None:
        """A transport socket reported an error on receiving (ICMP, end of a relay)."""

    def send_failed(self, slot: int, errno: int) -> None:
        """A packet of the slot could not be sent."""

    def worker_died(self, name: str) -> None:
        """The worker (uplink, downlink) died and has been restarted without any key: every
        session needs a new epoch."""


class DataPlane:
    """One lane: a TUN, an uplink worker and a downlink worker.

    Slots are 0 .. 4095, chosen by the caller, one a session. Commands are carried out in order,
    and none of them waits. A remote is (numeric host, port), or None for a connected socket.
    """

    def __init__(
        self, tun_fd: int, offloads: Offloads, mtu: int, observer: PlaneObserver
    ) -> None:
        """Use `start`."""
        self._offloads = offloads
        self._mtu = mtu
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._tun_fd = os.dup(tun_fd)
        self._counters, self._counters_fd = Counters.create()
        self._sockets: dict[int, int] = {}
        self._routes: dict[int, list[str]] = {}
        self._paused = False
        self._sent_under: dict[int, bytes] = {}
        self._workers: dict[str, WorkerProcess] = {}
        self._started_at = dict.fromkeys(ROLES, 0.0)
        self._ready: dict[str, asyncio.Future[None]] = {}
        self._closed = False

    @classmethod
    async def start(
        cls, tun_fd: int, offloads: Offloads, mtu: int, observer: PlaneObserver
    ) -> DataPlane:
        """Start the workers and wait until they run without privileges.

        `tun_fd` is a non-blocking TUN, with vnet headers of 10 bytes if offloads.vnet; it is
        duplicated. `mtu` is its MTU in bytes. Raises DataPlaneError if a worker does not come up.
        """
        plane = cls(tun_fd, offloads, mtu, observer)
        plane._ready = {role: plane._loop.create_future() for role in ROLES}
        for role in ROLES:
            plane._launch(role)
        try:
            await asyncio.wait_for(asyncio.gather(*plane._ready.values()), START_TIMEOUT_S)
        except TimeoutError:
            await plane.close()
            raise DataPlaneError("a data plane worker did not start in time") from None
        except DataPlaneError:
            await plane.close()
            raise
        return plane

    def worker_pids(self) -> dict[str, int]:
        """Process ids of the workers by name."""
        return {role: worker.pid for role, worker in self._workers.items()}

    def add_socket(self, socket_id: int, fd: int) -> None:
        """Give a transport socket to the workers; the descriptor is duplicated."""
        self.remove_socket(socket_id)
        self._sockets[socket_id] = os.dup(fd)
        for role in ROLES:
            self._send(role, "add_socket", fds=(self._sockets[socket_id],), socket_id=socket_id)

    def remove_socket(self, socket_id: int) -> None:
        """Take a socket away; what is bound to it stops sending. Unknown ones are ignored."""
        fd = self._sockets.pop(socket_id, None)
        if fd is not None:
            for role in ROLES:
                self._send(role, "remove_socket", socket_id=socket_id)
            os.close(fd)

    def bind_receive(
        self,
        slot: int,
        index: int,
        suite: Suite,
        key: bytes,
        networks: Sequence[str],
        socket_id: int,
        remote: Remote | None,
    ) -> None:
        """Accept DATA for `index` under `key`, with inner sources inside `networks`.

        DATA from another socket or remote is accepted too, and reported. An index that is bound
        again with the same key keeps its replay window. A slot can have several (draining).
        """
        self._send(
            "downlink",
            "bind_receive",
            slot=_checked_slot(slot),
            index=index,
            suite=int(suite),
            key=_checked_key(key).hex(),
            networks=_checked_networks(networks),
            socket_id=self._checked_socket(socket_id),
            remote=canonical(remote),
        )

    def release_receive(self, index: int) -> None:
        """Accept nothing for `index` any more, nor hold it."""
        self._send("downlink", "release_receive", index=index)

    def expect(self, index: int) -> None:
        """Hold early data for `index`, for up to a second, until it is bound."""
        self._send("downlink", "expect", index=index)

    def unexpect(self, index: int) -> None:
        """Forget what is held for `index`, and hold nothing for it any more."""
        self._send("downlink", "unexpect", index=index)

    def bind_send(
        self,
        slot: int,
        index: int,
        suite: Suite,
        key: bytes,
        socket_id: int,
        remote: Remote | None,
    ) -> None:
        """Send the slot's packets to receiver `index` through this socket and no other.

        Raises ValueError for the key that the slot was bound with last: its counters start at 0,
        and a second bind would repeat nonces.
        """
        digest = blake2b(_checked_key(key), digest_size=16).digest()
        if self._sent_under.get(slot) == digest:
            raise ValueError(f"slot {slot}: a key can be bound for sending only once")
        arguments: dict[str, Any] = {
            "slot": _checked_slot(slot),
            "index": index,
            "suite": int(suite),
            "key": key.hex(),
            "socket_id": self._checked_socket(socket_id),
            "remote": canonical(remote),
        }
        self._sent_under[slot] = digest
        self._send("uplink", "bind_send", **arguments)

    def release_send(self, slot: int) -> None:
        """Send nothing for the slot any more."""
        self._send("uplink", "release_send", slot=slot)

    def set_routes(self, slot: int, networks: Sequence[str]) -> None:
        """The inner destinations of the slot, in place of those before; none takes all away."""
        self._routes[_checked_slot(slot)] = _checked_networks(networks)
        self._send("uplink", "set_routes", slot=slot, networks=self._routes[slot])
        if not networks:
            del self._routes[slot]

    def pause(self, paused: bool) -> None:
        """Leave the TUN unread, so that the kernel queues, or read it again."""
        self._paused = paused
        self._send("uplink", "pause", paused=paused)

    def slot_counters(self, slot: int) -> SlotCounters:
        """What went through the slot since the start, whatever session had it."""
        return self._counters.slot(slot)

    def drops(self) -> dict[str, int]:
        """Packets dropped since the start, by cause; causes that occurred only."""
        return self._counters.drops()

    async def close(self) -> None:
        """End the workers and release everything."""
        if self._closed:
            return
        self._closed = True
        await asyncio.gather(*(worker.stop() for worker in self._workers.values()))
        for fd in (*self._sockets.values(), self._tun_fd, self._counters_fd):
            os.close(fd)
        self._sockets.clear()
        self._counters.close()

    def _send(self, role: str, name: str, fds: Sequence[int] = (), **arguments: Any) -> None:
        worker = self._workers.get(role)
        if worker is not None:  # else it waits for its restart, and hears of the state then
            worker.send(name, fds, **arguments)

    def _launch(self, role: str) -> None:
        self._started_at[role] = self._loop.time()
        self._workers[role] = WorkerProcess(
            role,
            self._counters_fd,
            partial(self._take_report, role),
            partial(self._worker_exited, role),
        )
        # One lane for now: its number is the lane byte in every header.
        self._send(role, "start", (self._tun_fd,), offloads=asdict(self._offloads), lane=0)
        if role == "uplink":
            self._send(role, "set_mtu", mtu=self._mtu)

    def _worker_exited(self, role: str) -> None:
        del self._workers[role]
        ready = self._ready[role]
        if not ready.done():
            ready.set_exception(DataPlaneError(f"the {role} worker ended while it started"))
        elif not self._closed:
            since = self._loop.time() - self._started_at[role]
            self._loop.call_later(max(0.0, RESTART_EVERY_S - since), self._relaunch, role)

    def _relaunch(self, role: str) -> None:
        if self._closed:
            return
        self._launch(role)
        for socket_id, fd in self._sockets.items():
            self._send(role, "add_socket", fds=(fd,), socket_id=socket_id)
        if role == "uplink":
            for slot, networks in self._routes.items():
                self._send(role, "set_routes", slot=slot, networks=networks)
            self._send(role, "pause", paused=self._paused)
        self._observer.worker_died(role)

    def _take_report(self, role: str, report: Report) -> None:
        observer, kind = self._observer, report.kind
        if kind == ReportKind.READY:
            if not self._ready[role].done():
                self._ready[role].set_result(None)
        elif kind == ReportKind.PACKET:
            observer.packet_received(report.number, report.remote, report.payload)
        elif kind == ReportKind.FROM_ELSEWHERE:
            observer.heard_from_elsewhere(report.number, report.other, report.remote)
        elif kind == ReportKind.SOCKET_ERROR:
            observer.socket_failed(report.number, report.other)
        elif kind == ReportKind.SEND_ERROR:
            observer.send_failed(report.number, report.other)

    def _checked_socket(self, socket_id: int) -> int:
        if socket_id not in self._sockets:
            raise ValueError(f"socket {socket_id}: not added, or removed again")
        return socket_id


def _checked_slot(slot: int) -> int:
    slot_base(slot)
    return slot


def _checked_key(key: bytes) -> bytes:
    if len(key) != KEY_LEN:
        raise ValueError(f"data key of {len(key)} bytes: must be {KEY_LEN}")
    return key


def _checked_networks(networks: Sequence[str]) -> list[str]:
    """Refuse here, with a message, what would end a worker."""
    PrefixTable[bool]().set(True, networks)
    return list(networks)
