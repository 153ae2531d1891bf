"""The data plane as control sees it: bind keys to sockets, routes to slots, read counters."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from hashlib import blake2b
from typing import Any, Final, Protocol

from jvpnd.core.offloads import Offloads
from jvpnd.core.wire import KEY_LEN, Suite
from jvpnd.dataplane.carriers import Carrier, Relay, Stream, Udp
from jvpnd.dataplane.counters import (
    ROLES,
    SlotCounters,
    last_heard,
    octets_and_packets,
    slot_base,
    total_drops,
    total_of,
    totals,
)
from jvpnd.dataplane.launch import Launched, Which, launch_worker
from jvpnd.dataplane.messages import Remote, Report, ReportKind, canonical
from jvpnd.dataplane.networks import PrefixTable
from jvpnd.dataplane.process import WorkerProcess
from jvpnd.dataplane.pulse import LOOK_S, Pulse
from jvpnd.seqpacket import close_all
from jvpnd.spawn import Spawned

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

    def worker_died(self, name: str, why: str) -> None:
        """A worker ("uplink", or "lane 1 uplink" where there are several) died or hung and has been
        restarted without any key: every session needs a new epoch. `why`: "hung", or how it ended
        ("signal SIGKILL", "exit status 1")."""


class DataPlane:
    """A TUN, and for each lane a queue of it, an uplink worker and a downlink worker.

    A lane has a nonce space and replay windows of its own. What is received belongs to the lane
    that the packet names, modulo the lanes here: the two ends may have different numbers of them.
    Slots are 0 .. SLOTS - 1, chosen by the caller, one a session, low ones first. Commands are
    carried out in order, and none of them waits. A remote is (numeric host, port), or None for a
    connected socket.
    """

    def __init__(
        self,
        launched: Launched,
        tun_fds: Sequence[int],
        offloads: Offloads,
        mtu: int,
        paused: bool = False,
    ) -> None:
        """Give the TUN to the workers, to be left unread if `paused`; then wait for `ready`.

        `tun_fds` are the non-blocking queues of a TUN, one a lane, with vnet headers of 10 bytes
        if offloads.vnet; they are duplicated. `mtu` is the TUN's, in bytes.
        """
        self.lanes = len(tun_fds)
        self._offloads = offloads
        self._mtu = mtu
        self._observer: PlaneObserver
        self._loop = asyncio.get_running_loop()
        self._tun_fds = [os.dup(fd) for fd in tun_fds]
        self._counters, self._counters_fd = launched.counters, launched.counters_fd
        self._sockets: dict[int, Carrier] = {}
        self._limits: dict[int, int] = {}
        self._routes: dict[int, tuple[str, ...]] = {}
        self._slots_used = 0
        self._paused = paused
        self._sent_under: dict[int, bytes] = {}
        self._workers: dict[Which, WorkerProcess] = {}
        self._started_at = dict.fromkeys(launched.workers, 0.0)
        self._ready = {which: self._loop.create_future() for which in launched.workers}
        self._pulse: Pulse[Which] = Pulse()
        self._look_timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.restarts = dict.fromkeys(ROLES, 0)
        for which, spawned in launched.workers.items():
            self._adopt(which, spawned)

    async def ready(self, observer: PlaneObserver) -> None:
        """Wait until the workers run without privileges; `observer` is told everything from now on.

        Raises DataPlaneError if one does not come up.
        """
        self._observer = observer
        try:
            await asyncio.wait_for(asyncio.gather(*self._ready.values()), START_TIMEOUT_S)
        except TimeoutError:
            await self.close()
            raise DataPlaneError("a data plane worker did not start in time") from None
        except DataPlaneError:
            await self.close()
            raise
        self._look()

    def worker_pids(self) -> dict[str, int]:
        """Process ids of the workers by name."""
        return {self._name(which): worker.pid for which, worker in self._workers.items()}

    def add_socket(
        self, socket_id: int, fds: Sequence[int], peer: Remote | None = None
    ) -> None:
        """Give UDP sockets to the workers: one for each lane, to which the packets of that lane
        come, and those that are not DATA to any. The descriptors are duplicated.

        What does not come from `peer` is dropped (for sockets that are not connected).
        """
        if len(fds) != self.lanes:
            raise ValueError(f"{len(fds)} sockets for {self.lanes} lanes")
        self._add(socket_id, Udp([os.dup(fd) for fd in fds], canonical(peer)))

    def add_stream(self, socket_id: int, stream: int, feed: int, intake: int) -> None:
        """Give a byte stream to the workers, and both ends of its feed: a SOCK_SEQPACKET pair.

        Control sends through `feed`. The descriptors are duplicated.
        """
        self._add(socket_id, Stream([os.dup(fd) for fd in (stream, feed, intake)]))

    def add_relay(self, socket_id: int, fd: int, limit: int) -> None:
        """Give a SOCK_SEQPACKET to the workers, each message of which is a tunnel datagram of at
        most `limit` bytes."""
        self._add(socket_id, Relay([os.dup(fd)]))
        self.set_limit(socket_id, limit)

    def set_limit(self, socket_id: int, limit: int) -> None:
        """What that relay, or the path of those UDP sockets, carries."""
        self._limits[socket_id] = limit
        self._tell("uplink", "set_limit", socket_id=socket_id, limit=limit)

    def _add(self, socket_id: int, transport: Carrier) -> None:
        self.remove_socket(socket_id)
        self._sockets[socket_id] = transport
        for which in self._workers:
            self._send_socket(which, socket_id)

    def remove_socket(self, socket_id: int) -> None:
        """Take a socket away; what is bound to it stops sending. Unknown ones are ignored."""
        gone = self._sockets.pop(socket_id, None)
        self._limits.pop(socket_id, None)
        if gone is not None:
            for role in ROLES:
                self._tell(role, "remove_socket", socket_id=socket_id)
            close_all(gone.fds)

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
        arguments: dict[str, Any] = {
            "slot": _checked_slot(slot),
            "index": index,
            "suite": int(suite),
            "key": _checked_key(key).hex(),
            "networks": _checked_networks(networks),
            "socket_id": self._checked_socket(socket_id),
            "remote": canonical(remote),
        }
        if not self._sockets[socket_id].one_reader:
            self._tell("downlink", "bind_receive", **arguments)
            return
        # The others must not take the same packets again from another transport.
        for lane in range(1, self.lanes):
            self._send(("downlink", lane), "release_receive", index=index)
        self._send(("downlink", 0), "bind_receive", all_lanes=True, **arguments)

    def set_sources(self, slot: int, networks: Sequence[str]) -> None:
        """The inner sources of what is bound for the slot, in place of those before."""
        checked = _checked_networks(networks)
        self._tell("downlink", "set_sources", slot=_checked_slot(slot), networks=checked)

    def release_receive(self, index: int) -> None:
        """Accept nothing for `index` any more, nor hold it."""
        self._tell("downlink", "release_receive", index=index)

    def expect(self, index: int) -> None:
        """Hold early data for `index`, for up to a second, until it is bound."""
        self._tell("downlink", "expect", index=index)

    def unexpect(self, index: int) -> None:
        """Forget what is held for `index`, and hold nothing for it any more."""
        self._tell("downlink", "unexpect", index=index)

    def bind_send(
        self,
        slot: int,
        index: int,
        suite: Suite,
        key: bytes,
        socket_id: int,
        remote: Remote | None,
        cautious: bool = False,
    ) -> None:
        """Send the slot's packets to receiver `index` through this transport and no other.

        `cautious`: in datagrams that any path carries, until the peer tells what this one does.
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
            "cautious": cautious,
        }
        self._sent_under[slot] = digest
        self._tell("uplink", "bind_send", **arguments)

    def release_send(self, slot: int) -> None:
        """Send nothing for the slot any more."""
        self._tell("uplink", "release_send", slot=slot)

    def set_routes(self, slot: int, networks: Sequence[str]) -> None:
        """The inner destinations of the slot, in place of those before; none takes all away."""
        self._routes[_checked_slot(slot)] = _checked_networks(networks)
        self._slots_used = max(self._slots_used, slot + 1)
        self._tell("uplink", "set_routes", slot=slot, networks=self._routes[slot])
        if not networks:
            del self._routes[slot]

    def pause(self, paused: bool) -> None:
        """Leave the TUN unread, so that the kernel queues, or read it again."""
        self._paused = paused
        self._tell("uplink", "pause", paused=paused)

    def turns(self) -> dict[str, int | None]:
        """How often each worker's loop went round; None for one that waits for its restart."""
        found: dict[str, int | None] = dict.fromkeys(map(self._name, self._started_at))
        for role, lane in self._workers:
            found[self._name((role, lane))] = self._counters[lane].turns(role)
        return found

    def allow_until(self, at_ms: float) -> None:
        """Send nothing from this time on (CLOCK_BOOTTIME, ms) unless a later one is told."""
        for counters in self._counters:
            counters.allow_until(int(at_ms))

    def slot_counters(self, slot: int) -> SlotCounters:
        """What went through the slot since the start, whatever session had it."""
        return total_of(self._counters, slot)

    def last_heard(self, slot: int) -> tuple[int, int]:
        """When the slot was last heard, in ms, and under which index: quickly, of the same."""
        return last_heard(self._counters, slot)

    def slot_totals(self, slot: int) -> tuple[int, int, int, int]:
        """Bytes sent, bytes received, packets sent, packets received: quickly, of the same."""
        return octets_and_packets(self._counters, slot)

    def lane_counters(self, slot: int) -> list[SlotCounters]:
        """What went through the slot in each lane."""
        return [counters.slot(slot) for counters in self._counters]

    def totals(self) -> dict[str, int]:
        """Inner packets and bytes since the start, of every session there was."""
        return totals(self._counters, self._slots_used)

    def drops(self) -> dict[str, int]:
        """Packets dropped since the start, by cause; causes that occurred only."""
        return total_drops(self._counters)

    async def close(self) -> None:
        """End the workers and release everything."""
        if self._closed:
            return
        self._closed = True
        if self._look_timer is not None:
            self._look_timer.cancel()
        await asyncio.gather(*(worker.stop() for worker in self._workers.values()))
        close_all([*self._tun_fds, self._counters_fd])
        for sockets in self._sockets.values():
            close_all(sockets.fds)
        self._sockets.clear()
        for counters in self._counters:
            counters.close()

    def _tell(self, role: str, name: str, **arguments: Any) -> None:
        """Send a command to the workers of a role in every lane."""
        for lane in range(self.lanes):
            self._send((role, lane), name, **arguments)

    def _send(self, which: Which, name: str, fds: Sequence[int] = (), **arguments: Any) -> None:
        worker = self._workers.get(which)
        if worker is not None:  # else it waits for its restart, and hears of the state then
            worker.send(name, fds, **arguments)

    def _send_socket(self, which: Which, socket_id: int) -> None:
        command = self._sockets[socket_id].for_worker(*which)
        if command is not None:
            name, fds, arguments = command
            self._send(which, name, fds, socket_id=socket_id, **arguments)

    def _adopt(self, which: Which, spawned: Spawned) -> None:
        role, lane = which
        self._started_at[which] = self._loop.time()
        self._pulse.begin(which, self._counters[lane].turns(role))
        self._workers[which] = WorkerProcess(
            spawned,
            partial(self._take_report, which),
            partial(self._worker_exited, which),
        )
        arguments = {"offloads": asdict(self._offloads), "mtu": self._mtu, "paused": self._paused}
        self._send(which, "start", (self._tun_fds[lane],), **arguments)

    def _worker_exited(self, which: Which) -> None:
        why = self._workers.pop(which).how_it_ended
        ready = self._ready[which]
        if not ready.done():
            name = self._name(which)
            ready.set_exception(DataPlaneError(f"the {name} worker ended while it started: {why}"))
        elif not self._closed:
            self._lose_streams(which)
            since = self._loop.time() - self._started_at[which]
            self._loop.call_later(max(0.0, RESTART_EVERY_S - since), self._relaunch, which, why)

    def _lose_streams(self, which: Which) -> None:
        """What it had read or written of a packet is gone with it."""
        if which[1] == 0:
            for socket_id in [n for n, each in self._sockets.items() if isinstance(each, Stream)]:
                self._observer.socket_failed(socket_id, errno.EPIPE)

    def _relaunch(self, which: Which, why: str) -> None:
        """Start a worker again and tell it the state of things, but no key: its counters begin at
        0, and a nonce must not repeat."""
        if self._closed:
            return
        self.restarts[which[0]] += 1
        self._adopt(which, launch_worker(which, self.lanes, self._counters_fd))
        for socket_id in self._sockets:
            self._send_socket(which, socket_id)
        if which[0] == "uplink":
            for slot, networks in self._routes.items():
                self._send(which, "set_routes", slot=slot, networks=networks)
            for socket_id, limit in self._limits.items():
                self._send(which, "set_limit", socket_id=socket_id, limit=limit)
        self._observer.worker_died(self._name(which), why)

    def _look(self) -> None:
        """End what hangs; it is restarted like what died."""
        turns = {(role, lane): self._counters[lane].turns(role) for role, lane in self._workers}
        for which in self._pulse.look(self._loop.time(), turns):
            self._workers[which].kill_hung()
        self._look_timer = self._loop.call_later(LOOK_S, self._look)

    def _name(self, which: Which) -> str:
        role, lane = which
        return role if self.lanes == 1 else f"lane {lane} {role}"

    def _take_report(self, which: Which, report: Report) -> None:
        observer, kind = self._observer, report.kind
        if kind == ReportKind.READY:
            if not self._ready[which].done():
                self._ready[which].set_result(None)
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


def _checked_networks(networks: Sequence[str]) -> tuple[str, ...]:
    """Refuse here, with a message, what would end a worker."""
    PrefixTable[bool]().set(True, networks)
    return tuple(networks)
