"""The gateway's shell: listening sockets, slots of the data plane and the table around the core."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jvpnd.config import Config
from jvpnd.core.constants import SCAN_MS
from jvpnd.core.effects import (
    BindReceive,
    BindSend,
    Endpoint,
    Expect,
    Load,
    NetworksChanged,
    Origin,
    ReleaseReceive,
    ReleaseSend,
    Send,
    SessionDown,
    SessionUp,
    Swap,
    Unexpect,
    Vouch,
)
from jvpnd.core.gateway import Gateway
from jvpnd.core.listing import ListChange
from jvpnd.core.peer import Stored
from jvpnd.core.sessionrow import Row
from jvpnd.core.states import State
from jvpnd.core.wire import PacketType
from jvpnd.dataplane.counters import SLOTS
from jvpnd.dataplane.plane import DataPlane
from jvpnd.entries import entries, networks_behind, sharing, told_endpoints
from jvpnd.entries import inner as inner_of
from jvpnd.entropy import SystemEntropy
from jvpnd.host import has_aes, now_ms
from jvpnd.listeners import Listeners
from jvpnd.narrowpaths import NarrowPaths
from jvpnd.net.firewall import Lookout
from jvpnd.net.forwardplan import Forwarding
from jvpnd.net.routes import HostNetwork
from jvpnd.net.tun import Tun
from jvpnd.observe.log import EventLog
from jvpnd.rates import RateMeter
from jvpnd.shell import CoreDriver
from jvpnd.store.meter import StoreMeter
from jvpnd.store.table import SessionTable
from jvpnd.transport.backlog import SAMPLE_MS, Backlog

if TYPE_CHECKING:  # of a node of a cluster only
    from jvpnd.cluster import Cluster
    from jvpnd.store.etcd import EtcdTable

_log = logging.getLogger("jvpnd")

SAMPLE_SLICE = 256  # so many sessions' counters are looked at in one turn
HOLD_MS = 500  # packets wait so long for sessions that a restart has unbound


class GatewayShell:
    """Runs one Gateway; implements the data plane's observer."""

    def __init__(
        self,
        config: Config,
        tun: Tun,
        plane: DataPlane,
        network: HostNetwork,
        events: EventLog,
        table: SessionTable,
        runtime: Path,
    ) -> None:
        """`plane`: launched, with the TUN left unread."""
        self.config = config
        self._tun = tun
        self.plane = plane
        self._network = network
        self._notes: tuple[str, ...] = ()  # about forwarding, of the start
        self._lookout = Lookout(tun.name)
        self._looking: asyncio.Task[tuple[str, ...]] | None = None
        self._table = table
        self.core = Gateway(
            config.node,
            config.private_key,
            entries(config),
            config.policy,
            SystemEntropy(),
            has_aes(config.disabled),
            [Endpoint(*each) for each in told_endpoints(config)],
            config.limits.core,
            sharing(config),
        )
        self.cluster: Cluster | None = None
        self.driver = CoreDriver(
            self.core,
            events,
            {
                Send: self._send,
                BindSend: self._bind_send,
                BindReceive: self._bind_receive,
                ReleaseSend: self._release_send,
                ReleaseReceive: lambda e: self.plane.release_receive(e.index),
                Expect: lambda e: self.plane.expect(e.index),
                Unexpect: lambda e: self.plane.unexpect(e.index),
                SessionUp: self._session_up,
                NetworksChanged: self._networks_changed,
                SessionDown: self._session_down,
                Swap: self._swap,
                Load: self._load,
                Vouch: lambda e: self.listeners.vouch(e.origin.socket_id),
            },
            self._sample,
            SCAN_MS,
        )
        self.narrow = NarrowPaths(config.private_key)
        self._held_until_ms: float | None = None  # until when the TUN is left unread at most
        self.rates = RateMeter()
        self.store_meter = StoreMeter()
        self._backlog = Backlog()
        self.slots: dict[bytes, int] = {}
        self._unsampled: list[tuple[bytes, int]] = []  # of this round of looks at the counters
        self._totals_ms = 0.0
        self._free = list(range(SLOTS - 1, -1, -1))
        self._resting: deque[tuple[float, int]] = deque()  # slots, and from when they are free
        self._inner: dict[bytes, tuple[str, ...]] = {}
        self.listeners = Listeners(
            config.listen, plane.lanes, config.node, runtime, config.limits.connections
        )

    def join(self, table: EtcdTable | None) -> None:
        """Be a node of a cluster; before the start. `table`: the one that it shares, if it does."""
        from jvpnd.cluster import Cluster
        from jvpnd.net.ownership import OwnedAddresses

        config = self.config
        assert config.cluster is not None
        traffic = OwnedAddresses(
            self._tun.name,
            config.node,
            self._network.state,
            self._forwarding,
            config.cluster.announce or None,
            str(config.cluster.hook) if config.cluster.hook else None,
        )
        its = self.core, self.driver.pump, self.plane
        self.cluster = Cluster(config.node, *its, table, traffic, config.clients)

    async def start(self) -> None:
        """Bring up the data plane, take up the sessions of before and listen; the interface comes
        last, since after a restart it is there."""
        rows, interface = self._table.rows(), self.config.interface
        await self.plane.ready(self)
        self.listeners.start(self.plane)
        if rows:
            self._take_up(rows)
        else:
            self.plane.pause(False)
        self.driver.pump()
        if self.cluster is not None:
            self.cluster.listen()
        await self._forward()
        await self._network.configure(interface.address, interface.mtu)
        if self.cluster is None:
            await self._network.route("split", networks_behind(self.config))
        else:
            await self.cluster.traffic.start()
        self._network.enable_forwarding()
        self._looking = asyncio.create_task(self._lookout.look())

    def _take_up(self, rows: Sequence[Row]) -> None:
        """Packets for the sessions wait with the kernel until they are bound again."""
        began_ms = now_ms()
        with self._table.together():
            useless = self.core.restore(began_ms, rows)
            self._table.expire(useless)
            self.driver.pump()
        if self.cluster is not None:  # their packets have to come here to wait
            for peer in self.core.sessions.values():
                inner = inner_of(peer.session.addresses, peer.entry.networks)
                self.cluster.session_up(peer.session.client, inner)
        self._held_until_ms = began_ms + HOLD_MS
        _log.info("%d sessions of before are taken up", len(self.core.sessions))

    async def stop(self) -> None:
        """Close what is ours but the host's network and the TUN. Clients find out and come back."""
        self.driver.stop()
        if self._looking is not None:
            self._looking.cancel()
        if self.cluster is not None:
            await self.cluster.traffic.close()
        await self.plane.close()
        await self.listeners.stop()

    async def apply_config(self, config: Config) -> ListChange:
        """Put the clients of `config` in place of those of before, in the host's routes too."""
        before = networks_behind(self.config)
        self.config = replace(self.config, clients=config.clients)
        if self.cluster is not None:
            self.cluster.relist(config.clients)
        listed = await asyncio.to_thread(entries, self.config)  # there may be thousands
        change = self.core.apply_clients(now_ms(), listed)
        self.driver.pump()
        await self._forward()
        networks = networks_behind(self.config)
        if networks != before and self.cluster is None:
            await self._network.route("split", networks)
        return change

    async def _forward(self) -> None:
        hosts = [address for client in self.config.clients for address in client.address]
        self._notes = await self._network.forward(
            self._forwarding, self.config.interface.address, hosts
        )

    @property
    def _forwarding(self) -> Forwarding:
        return replace(self.config.forwarding, cluster=self.config.cluster is not None)

    async def notes(self) -> list[str]:
        """What of forwarding this host does not do, and what is in its way."""
        cluster = [] if self.cluster is None else self.cluster.notes
        return [*self._notes, *cluster, *await self._lookout.look()]

    @property
    def dropped(self) -> dict[str, int]:
        """Packets that came for control and were dropped, by cause."""
        return {**self.core.dropped, **self.listeners.dropped, **self.narrow.dropped}

    @property
    def store_problem(self) -> str:
        """Why nothing new can be bound, "" if all is well."""
        return self._table.problem

    # --- the data plane's observer ---

    def packet_received(self, socket_id: int, remote: tuple[str, int], data: bytes) -> None:
        origin = self.listeners.origin(socket_id, remote)
        if origin is None:
            return
        if data[:1] == bytes([PacketType.SIZE_PROBE]):
            self.narrow.answer(origin, data, self._send)
            return
        whole = self.narrow.whole(origin, data)
        if whole is not None:
            self.core.packet_received(now_ms(), origin, whole)
            self.driver.pump()

    def heard_from_elsewhere(self, index: int, socket_id: int, remote: tuple[str, int]) -> None:
        origin = self.listeners.origin(socket_id, remote)
        if origin is not None:
            self.core.heard_from_elsewhere(now_ms(), index, origin)
            self.driver.pump()

    def socket_failed(self, socket_id: int, errno: int) -> None:
        self.listeners.failed(socket_id)

    def send_failed(self, slot: int, errno: int) -> None:
        """Counted by the worker; the session's own health decides."""

    def worker_died(self, name: str, why: str) -> None:
        """All keys are gone: ask every client for a new epoch."""
        self.driver.worker_restarted(name, why)
        for session_id, slot in self.slots.items():
            self.plane.set_routes(slot, self._inner[session_id])
        self.core.keys_lost(now_ms())
        self.driver.pump()

    # --- effects ---

    def _send(self, effect: Send) -> None:
        assert isinstance(effect.to, Origin)
        transport = self.listeners.transport(effect.to.socket_id)
        if transport is None:  # a connection that has ended
            return
        for packet in self.narrow.packets(effect):
            try:
                transport.send(packet, effect.to.remote)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    _log.debug("cannot send to %s: %s", effect.to, error)

    def _bind_send(self, effect: BindSend) -> None:
        assert isinstance(effect.to, Origin)
        slot, to = self.slots[effect.session_id], effect.to
        if self.listeners.transport(to.socket_id) is None:
            self.plane.release_send(slot)  # never under the old binding
            return
        address = self.listeners.address_for(to)
        self.plane.bind_send(
            *(slot, effect.index, effect.suite, effect.key, to.socket_id, address),
            cautious=to.transport == "udp",
        )
        if self._held_until_ms is not None:
            self._read_tun_again(now_ms())

    def _read_tun_again(self, now: float) -> None:
        """Once nobody is left to wait for, or has let us wait for too long."""
        patient = self._held_until_ms is not None and now < self._held_until_ms
        if not (self.core.awaits_clients and patient):
            self._held_until_ms = None
            self.plane.pause(False)

    def _bind_receive(self, effect: BindReceive) -> None:
        assert isinstance(effect.to, Origin)
        slot, sources = self.slots[effect.session_id], self._inner[effect.session_id]
        to = effect.to
        if self.listeners.transport(to.socket_id) is None:
            return
        address = self.listeners.address_for(to)
        self.plane.bind_receive(
            slot, effect.index, effect.suite, effect.key, sources, to.socket_id, address
        )

    def _release_send(self, effect: ReleaseSend) -> None:
        slot = self.slots.get(effect.session_id)
        if slot is not None:
            self.plane.release_send(slot)

    def _session_up(self, effect: SessionUp) -> None:
        slot = self._free.pop() if self._free else self._resting.popleft()[1]
        self.slots[effect.session_id] = slot
        self._inner[effect.session_id] = inner_of(effect.addresses, effect.networks)
        self.plane.set_routes(slot, self._inner[effect.session_id])
        if self.cluster is not None:
            client = self.core.sessions[effect.session_id].session.client
            self.cluster.session_up(client, self._inner[effect.session_id])

    def _networks_changed(self, effect: NetworksChanged) -> None:
        slot, peer = self.slots.get(effect.session_id), self.core.sessions.get(effect.session_id)
        if slot is not None and peer is not None:
            inner = inner_of(peer.session.addresses, effect.networks)
            before, self._inner[effect.session_id] = self._inner[effect.session_id], inner
            self.plane.set_sources(slot, inner)
            self.plane.set_routes(slot, inner)
            if self.cluster is not None:
                self.cluster.session_down([each for each in before if each not in inner])
                self.cluster.session_up(peer.session.client, inner)

    def _session_down(self, effect: SessionDown) -> None:
        slot = self.slots.pop(effect.session_id, None)
        inner = self._inner.pop(effect.session_id, ())
        if slot is not None:
            self.plane.set_routes(slot, ())
            # What was under way to the session may still come in, and counts as the slot's.
            self._resting.append((now_ms() + self.core.policy.drain_ms, slot))
        if self.cluster is not None:
            self.cluster.session_down(inner)

    def _swap(self, effect: Swap) -> None:
        key = effect.session_id.hex()

        def stored(outcome: Stored) -> None:
            if effect.record["state"] == State.TERMINATED:
                self._expire(key)
            self.core.store_result(now_ms(), effect.token, outcome)
            self.driver.pump()  # the answer may come after the turn of the effect

        self._table.swap(key, effect.expected, effect.record, self.store_meter.timed(stored))

    def _expire(self, key: str) -> None:
        if self.cluster is None or not self.cluster.shares:
            self._table.expire([key])
        else:
            self.cluster.ended(key)

    def _load(self, effect: Load) -> None:
        def loaded(row: Row | None, outcome: Stored) -> None:
            self.core.loaded(now_ms(), effect.token, row, outcome)
            self.driver.pump()

        self._table.load(effect.session_id.hex(), loaded)

    def _sample(self, now: float) -> None:
        if self._held_until_ms is not None:
            self._read_tun_again(now)
        while self._resting and self._resting[0][0] <= now:
            self._free.append(self._resting.popleft()[1])
        for _ in range(min(SAMPLE_SLICE, len(self.slots))):
            if not self._unsampled:
                self._unsampled = list(self.slots.items())
            session_id, slot = self._unsampled.pop()
            self.core.data_heard(now, session_id, *self.plane.last_heard(slot))
        if now >= self._totals_ms:
            self._totals_ms = now + SAMPLE_MS
            totals = self.plane.totals()
            self.rates.sample(now, totals["tx_bytes"], totals["rx_bytes"])
            if self._backlog.sample(now, totals["tx_bytes"]):
                self.listeners.limit_unsent(self._backlog.limit)
