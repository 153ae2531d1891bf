"""The client's shell: sockets for paths, the data plane and the host's network around the agent."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path as FilePath
from typing import cast

from jvpnd.config import Config, GatewayPeer
from jvpnd.core.client import ClientAgent
from jvpnd.core.constants import IDLE_CHECK_MS
from jvpnd.core.effects import (
    BindReceive,
    BindSend,
    Expect,
    Keep,
    Learned,
    PauseTun,
    ReleaseReceive,
    ReleaseSend,
    SaveTimestamp,
    Seek,
    Send,
    SessionDown,
    SessionUp,
    Unexpect,
)
from jvpnd.core.halves import Halves, in_halves
from jvpnd.core.handshake import ClientHandshake
from jvpnd.core.path import Path
from jvpnd.core.policy import Policy
from jvpnd.core.states import State
from jvpnd.core.watch import Traffic
from jvpnd.core.wire import PacketType, datagram_len
from jvpnd.dataplane.plane import DataPlane
from jvpnd.entropy import SystemEntropy
from jvpnd.host import has_aes, now_ms, wall_ms
from jvpnd.net.changes import Serializer
from jvpnd.net.dns import HostDns
from jvpnd.net.links import LinkWatcher
from jvpnd.net.routes import HostNetwork, Mode
from jvpnd.net.tun import Tun
from jvpnd.observe.log import EventLog
from jvpnd.observe.samples import PathSamples, Sample
from jvpnd.paths import ClientPaths, OpenPath
from jvpnd.pathsizes import PathSizes
from jvpnd.rates import RateMeter
from jvpnd.recording.recorder import RecordedAgent, RecordedEntropy, RecordedHandshake
from jvpnd.recording.tape import Tape
from jvpnd.shell import CoreDriver
from jvpnd.store.sqlite import SqliteTable
from jvpnd.transport.backlog import Backlog

_log = logging.getLogger("jvpnd")

BUSY_MS = 1000  # traffic so lately makes a path worth more frequent looks at its size
SLOT = 0  # a client has one session at a time
ANYWHERE = ("0.0.0.0/0", "::/0")
# The host itself cannot send: certain. Everything else may be one router's mood: a suspicion.
_CERTAIN = {errno.ENETDOWN, errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL, errno.ENETUNREACH}
_BUSY = {errno.EAGAIN, errno.ENOBUFS, errno.EMSGSIZE}


class ClientShell:
    """Runs one ClientAgent, `agent`, which is told everything through `core`, its recorder.

    Implements the data plane's observer, and uses the paths.
    """

    def __init__(
        self,
        config: Config,
        tun: Tun,
        plane: DataPlane,
        network: HostNetwork,
        events: EventLog,
        table: SqliteTable,
        runtime: FilePath,
    ) -> None:
        """`plane`: launched, with the TUN left unread. `table` keeps the session over a restart."""
        assert config.gateway is not None
        self.config = config
        self._tun = tun
        self.plane = plane
        self._network = network
        self._table = table
        self._timestamp_file = runtime / "handshake.json"
        now = now_ms()
        self.tape = Tape(config.node)
        entropy = RecordedEntropy(SystemEntropy(), self.tape)
        handshake = RecordedHandshake(_handshake(config, config.gateway), self.tape)
        self.agent = ClientAgent(
            config.node,
            handshake,
            config.policy,
            entropy,
            wall_ms() - now,
            self._load_timestamp(),
            has_aes(config.disabled),
        )
        self.core = RecordedAgent(self.agent, self.tape, entropy, handshake)
        self.driver = CoreDriver(
            self.core,
            events,
            {
                Send: self._send,
                BindSend: self._bind_send,
                BindReceive: self._bind_receive,
                ReleaseSend: lambda _: self.plane.release_send(SLOT),
                ReleaseReceive: lambda e: self.plane.release_receive(e.index),
                Expect: lambda e: self.plane.expect(e.index),
                Unexpect: lambda e: self.plane.unexpect(e.index),
                PauseTun: lambda e: self.plane.pause(e.paused),
                SessionUp: self._session_up,
                SessionDown: lambda _: None,  # addresses and routes stay: nothing leaks
                SaveTimestamp: self._save_timestamp,
                Keep: lambda e: self._table.keep(e.row),
                Learned: lambda e: self.paths.learn(e.endpoints),
                Seek: lambda e: self.paths.seek(e.wanted),
            },
            self._sample,
            IDLE_CHECK_MS,
        )
        self.slot = SLOT
        self.rates = RateMeter()
        self.samples = PathSamples()
        self._backlog = Backlog()
        self.sizes = PathSizes(
            config.gateway.public_key,
            datagram_len(config.interface.mtu),
            lambda path: path.info.id == self.bound_path() and self._is_busy(),
            plane.set_limit,
        )
        self._halves = Halves()
        self._missing = 0  # records of the data plane, both ways, at the last look
        self.paths = ClientPaths(config.gateway, network.fwmark, plane.lanes, self)
        self._watcher = LinkWatcher(config.uplinks, {tun.name}, self.paths.uplinks_changed)
        self.dns = HostDns(tun.name, runtime, config.dns.servers, config.dns.domains)
        self._changes = Serializer()

    async def start(self) -> None:
        """Bring up the data plane, then watch the uplinks; the session follows by itself, or goes
        on."""
        await self.plane.ready(self)
        self.plane.set_routes(SLOT, ANYWHERE)
        await self.dns.resume(self._network.is_left)
        if not self._take_up_session():
            await self._network.configure((), self.config.interface.mtu)
            await self._network.route("none")
        await self._watcher.start()
        self.paths.start(self._watcher.uplinks())
        self.driver.pump()

    async def apply_config(self, config: Config) -> None:
        """Of what can change while all goes on a client has the policy only: which paths it allows
        is looked at again."""
        self.paths.refresh()

    async def stop(self) -> None:
        """Close everything that is ours but the host's network and the TUN. The session stays: the
        next start goes on with it, if that comes before the gateway's patience is over."""
        self.driver.stop()
        self.sizes.close()
        self.paths.freeze()
        await self._watcher.close()
        await self._changes.close()
        await self.dns.restore()
        await self.plane.close()
        await self.paths.close()

    def _take_up_session(self) -> bool:
        """Whether there is one from before a restart."""
        for row in self._table.rows():
            if not self.agent.restore(now_ms(), row):
                _log.warning("the session of before cannot be taken up: its row makes no sense")
        session = self.agent.session
        return session is not None and session.state is not State.TERMINATED

    # --- paths ---

    @property
    def policy(self) -> Policy:
        return self.agent.policy

    @property
    def is_resting(self) -> bool:
        return self.agent.is_resting

    def bound_path(self) -> str | None:
        return self.agent.bound.id if self.agent.bound is not None else None

    def path_opened(self, path: OpenPath) -> None:
        path.transport.hand_to(self.plane, path.socket_id)
        self.sizes.opened(path)
        self.core.path_added(now_ms(), path.info)

    def path_closed(self, path: OpenPath, why: str) -> None:
        self.sizes.closed(path)
        self.core.path_removed(now_ms(), path.info.id, why)
        self.plane.remove_socket(path.socket_id)
        path.transport.close()

    def paths_changed(self) -> None:
        self.driver.pump()

    @property
    def dropped(self) -> dict[str, int]:
        """Packets that came for control and were dropped, by cause."""
        causes = {"bad size reply": self.sizes.bad, "half a handshake": self._halves.dropped}
        return {**self.agent.dropped, **{cause: count for cause, count in causes.items() if count}}

    # --- the data plane's observer ---

    def packet_received(self, socket_id: int, remote: tuple[str, int], data: bytes) -> None:
        path = self.paths.by_socket(socket_id)
        if path is None:
            return
        kind, whole = data[0] if data else 0, data
        if kind == PacketType.SIZE_REPLY:
            self.sizes.answered(path, data)
            return
        if kind == PacketType.HALF:
            joined = self._halves.add(socket_id, data)
            if joined is None:
                return
            whole = joined
        self.core.packet_received(now_ms(), path.info.id, whole)
        self.driver.pump()

    def heard_from_elsewhere(self, index: int, socket_id: int, remote: tuple[str, int]) -> None:
        """DATA of the session over a path that is not bound: it drains, nothing to do."""

    def socket_failed(self, socket_id: int, errno: int) -> None:
        path = self.paths.by_socket(socket_id)
        if path is not None:
            self._failed(path, errno)
            self.driver.pump()

    def send_failed(self, slot: int, errno: int) -> None:
        path = self.paths.get(self.bound_path() or "")
        if path is not None and errno not in _BUSY:
            self._failed(path, errno)
            self.driver.pump()

    def worker_died(self, name: str, why: str) -> None:
        """Its keys are gone: a new epoch, explicitly."""
        self.driver.worker_restarted(name, why)
        self.plane.set_routes(SLOT, ANYWHERE)
        self.core.keys_lost(now_ms(), f"{name} worker died")
        self.driver.pump()

    def _failed(self, path: OpenPath, code: int) -> None:
        if code == errno.EMSGSIZE:  # a router on the way told of its MTU
            self.sizes.doubt(path)
            return
        if path.info.transport != "udp":  # a connection has no moods
            self.paths.lost(path, code)
            return
        why = f"{errno.errorcode.get(code, code)}: {os.strerror(code)}"
        self.core.path_failed(now_ms(), path.info.id, why, code in _CERTAIN)

    # --- effects ---

    def _send(self, effect: Send) -> None:
        path = self.paths.get(str(effect.to))
        if path is None:
            return
        data = effect.data
        long = data[0] == PacketType.HANDSHAKE_INIT
        halves = long and self.sizes.needs_halves(path, len(data))
        for packet in in_halves(data) if halves else (data,):
            try:
                path.transport.send(packet)
            except OSError as error:
                if error.errno not in _BUSY:
                    self._failed(path, error.errno or errno.EIO)

    def _bind_send(self, effect: BindSend) -> None:
        path = self.paths.get(str(effect.to))
        if path is not None:
            self.plane.bind_send(
                SLOT, effect.index, effect.suite, effect.key, path.socket_id, path.transport.peer
            )
            self.sizes.doubt(path)
            self.paths.moved(self.agent.policy.drain_ms)

    def _bind_receive(self, effect: BindReceive) -> None:
        path = self.paths.get(str(effect.to))
        if path is not None:
            self.plane.bind_receive(
                SLOT, effect.index, effect.suite, effect.key, ANYWHERE, path.socket_id, None
            )

    def _session_up(self, effect: SessionUp) -> None:
        routes = self.config.routes
        mode = cast(Mode, routes.mode)

        async def configure() -> None:
            await self._network.configure(effect.addresses, self.config.interface.mtu)
            await self._network.route(mode, routes.networks, routes.exclude)
            await self.dns.apply()

        self._changes.submit(configure)

    def _sample(self, now: float) -> None:
        counters = self.plane.slot_counters(SLOT)
        self.rates.sample(now, counters.tx_bytes, counters.rx_bytes)
        missing = counters.rx_missing + counters.peer_missing
        if missing > self._missing and (bound := self.paths.get(self.bound_path() or "")):
            self.sizes.doubt(bound)
        self._missing = missing
        self.samples.sample(now, lambda: self._path_samples(now))
        if self._backlog.sample(now, counters.tx_bytes):
            for path in self.paths:
                path.transport.limit_unsent(self._backlog.limit)
        self.core.traffic(
            now,
            Traffic(
                counters.tx_packets,
                counters.last_tx_ms,
                counters.rx_packets,
                counters.last_rx_ms,
                counters.last_rx_index,
                counters.rx_records,
                counters.rx_missing,
                counters.peer_records,
                counters.peer_missing,
                counters.tx_unsent,
                counters.peer_unsent,
            ),
        )

    def _path_samples(self, now: float) -> dict[str, Sample]:
        wall = wall_ms()
        return {path.id: _sample_of(path, now, wall) for path in self.agent.paths.values()}

    def _is_busy(self) -> bool:
        counters = self.plane.slot_counters(SLOT)
        return now_ms() - max(counters.last_tx_ms, counters.last_rx_ms) < BUSY_MS

    def _load_timestamp(self) -> int:
        try:
            value = json.loads(self._timestamp_file.read_text())["timestamp"]
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return value if isinstance(value, int) else 0

    def _save_timestamp(self, effect: SaveTimestamp) -> None:
        fresh = self._timestamp_file.with_suffix(".new")
        fresh.write_text(json.dumps({"timestamp": effect.value}))
        fresh.replace(self._timestamp_file)


def _sample_of(path: Path, now: float, wall: int) -> Sample:
    def rounded(value: float | None, digits: int) -> float | None:
        return None if value is None else round(value, digits)

    return Sample(
        wall,
        rounded(path.rtt.srtt_ms, 2),
        round(path.jitter.jitter_ms, 2),
        rounded(path.up.rate(now), 4),
        rounded(path.down.rate(now), 4),
        round(path.loss_ratio(now), 4),
    )


def _handshake(config: Config, peer: GatewayPeer) -> ClientHandshake:
    secret, psk = config.private_key, peer.preshared_key
    return ClientHandshake(secret, peer.public_key, psk, SystemEntropy())
