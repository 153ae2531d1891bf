"""The gateway's shell: listening sockets, slots of the data plane and the table around the core."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
from collections.abc import Sequence

from jvpnd.config import Client, Config, Endpoint
from jvpnd.core.constants import SCAN_MS
from jvpnd.core.effects import (
    BindReceive,
    BindSend,
    Expect,
    Origin,
    ReleaseReceive,
    ReleaseSend,
    Send,
    SessionDown,
    SessionUp,
    Swap,
    Unexpect,
)
from jvpnd.core.gateway import Gateway
from jvpnd.core.peer import ClientEntry
from jvpnd.core.states import State
from jvpnd.dataplane.counters import SLOTS
from jvpnd.dataplane.plane import DataPlane
from jvpnd.host import SystemEntropy, has_aes, now_ms
from jvpnd.net.routes import HostNetwork
from jvpnd.net.tun import Tun
from jvpnd.observe.log import EventLog
from jvpnd.rates import RateMeter
from jvpnd.shell import CoreDriver
from jvpnd.store.table import SessionTable
from jvpnd.transport.backlog import Backlog
from jvpnd.transport.group import SocketGroup
from jvpnd.transport.udp import ListenError, open_listener

_log = logging.getLogger("jvpnd")


class GatewayShell:
    """Runs one Gateway; implements the data plane's observer."""

    def __init__(
        self,
        config: Config,
        tun: Tun,
        queues: Sequence[int],
        network: HostNetwork,
        events: EventLog,
        table: SessionTable,
    ) -> None:
        """`queues`: the descriptors of the TUN, one a lane."""
        self.config = config
        self._tun = tun
        self._queues = queues
        self._network = network
        self._table = table
        self.core = Gateway(
            config.node,
            config.private_key,
            [_entry(client, config.interface.address) for client in config.clients],
            config.policy,
            SystemEntropy(),
            has_aes(config.disabled),
        )
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
                SessionDown: self._session_down,
                Swap: self._swap,
            },
            self._sample,
            SCAN_MS,
        )
        self.plane: DataPlane
        self.rates = RateMeter()
        self._backlog = Backlog()
        self.slots: dict[bytes, int] = {}
        self._free = list(range(SLOTS - 1, -1, -1))
        self._inner: dict[bytes, tuple[str, ...]] = {}
        self._sockets = {
            number: _open_listen(number, endpoint, len(queues))
            for number, endpoint in enumerate(config.listen, start=1)
        }
        self.listening = {
            number: f"{endpoint.transport}/{endpoint.address}:{endpoint.port}"
            for number, endpoint in enumerate(config.listen, start=1)
        }

    async def start(self) -> None:
        """Bring up the interface and the data plane, then listen."""
        interface = self.config.interface
        await self._network.configure(interface.address, interface.mtu)
        networks = [network for client in self.config.clients for network in client.networks]
        await self._network.route("split", networks)
        self._network.enable_forwarding()
        mtu = self.config.interface.mtu
        self.plane = await DataPlane.start(self._queues, self._tun.offloads, mtu, self)
        for number, sockets in self._sockets.items():
            self.plane.add_socket(number, sockets.descriptors())
        self.driver.pump()

    async def stop(self) -> None:
        """Close what is ours but the host's network and the TUN. Clients find out and come back."""
        self.driver.stop()
        if hasattr(self, "plane"):  # the start may have failed before it
            await self.plane.close()
        for sockets in self._sockets.values():
            sockets.close()

    # --- the data plane's observer ---

    def packet_received(self, socket_id: int, remote: tuple[str, int], data: bytes) -> None:
        self.core.packet_received(now_ms(), Origin(socket_id, remote), data)
        self.driver.pump()

    def heard_from_elsewhere(self, index: int, socket_id: int, remote: tuple[str, int]) -> None:
        self.core.heard_from_elsewhere(now_ms(), index, Origin(socket_id, remote))
        self.driver.pump()

    def socket_failed(self, socket_id: int, errno: int) -> None:
        _log.debug("listening socket %d: %s", socket_id, os.strerror(errno))

    def send_failed(self, slot: int, errno: int) -> None:
        """Counted by the worker; the session's own health decides."""

    def worker_died(self, name: str) -> None:
        """All keys are gone: ask every client for a new epoch."""
        _log.error("the %s worker died and was started again", name)
        for session_id, slot in self.slots.items():
            self.plane.set_routes(slot, self._inner[session_id])
        self.core.keys_lost(now_ms())
        self.driver.pump()

    # --- effects ---

    def _send(self, effect: Send) -> None:
        assert isinstance(effect.to, Origin)
        sockets = self._sockets[effect.to.socket_id]
        try:
            sockets.send(effect.data, effect.to.remote)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                _log.debug("cannot send to %s: %s", effect.to, error)

    def _bind_send(self, effect: BindSend) -> None:
        assert isinstance(effect.to, Origin)
        slot = self.slots[effect.session_id]
        to = effect.to
        self.plane.bind_send(
            slot, effect.index, effect.suite, effect.key, to.socket_id, to.remote
        )

    def _bind_receive(self, effect: BindReceive) -> None:
        assert isinstance(effect.to, Origin)
        slot, sources = self.slots[effect.session_id], self._inner[effect.session_id]
        to = effect.to
        self.plane.bind_receive(
            slot, effect.index, effect.suite, effect.key, sources, to.socket_id, to.remote
        )

    def _release_send(self, effect: ReleaseSend) -> None:
        slot = self.slots.get(effect.session_id)
        if slot is not None:
            self.plane.release_send(slot)

    def _session_up(self, effect: SessionUp) -> None:
        slot = self._free.pop()
        hosts = tuple(str(ipaddress.ip_interface(a).ip) for a in effect.addresses)
        self.slots[effect.session_id] = slot
        self._inner[effect.session_id] = (*hosts, *effect.networks)
        self.plane.set_routes(slot, self._inner[effect.session_id])

    def _session_down(self, effect: SessionDown) -> None:
        slot = self.slots.pop(effect.session_id, None)
        self._inner.pop(effect.session_id, None)
        if slot is not None:
            self.plane.set_routes(slot, ())
            self._free.append(slot)

    def _swap(self, effect: Swap) -> None:
        key = effect.session_id.hex()
        outcome = self._table.swap(key, effect.expected, effect.record)
        if effect.record["state"] == State.TERMINATED:
            self._table.expire(key)
        self.core.store_result(now_ms(), effect.token, outcome)

    def _sample(self, now: float) -> None:
        tx_bytes = rx_bytes = 0
        for session_id, slot in self.slots.items():
            counters = self.plane.slot_counters(slot)
            self.core.data_heard(now, session_id, counters.last_rx_ms, counters.last_rx_index)
            tx_bytes, rx_bytes = tx_bytes + counters.tx_bytes, rx_bytes + counters.rx_bytes
        self.rates.sample(now, tx_bytes, rx_bytes)
        if self._backlog.sample(now, tx_bytes):
            for sockets in self._sockets.values():
                sockets.limit_unsent(self._backlog.limit)


def _open_listen(number: int, endpoint: Endpoint, lanes: int) -> SocketGroup:
    """The sockets of one [[listen]]; ListenError names which."""
    try:
        return open_listener(endpoint.address, endpoint.port, lanes)
    except ListenError as error:
        raise ListenError(error.errno, f"listen[{number}]: {error}") from error


def _entry(client: Client, own: tuple[str, ...]) -> ClientEntry:
    """A client's addresses with the prefix length of the gateway's network that they are in."""
    networks = [ipaddress.ip_interface(address).network for address in own]
    addresses = []
    for text in client.address:
        host = ipaddress.ip_interface(text).ip
        prefix = next((n.prefixlen for n in networks if host in n), host.max_prefixlen)
        addresses.append(f"{host}/{prefix}")
    return ClientEntry(
        client.name, client.public_key, tuple(addresses), client.networks, client.preshared_key
    )

