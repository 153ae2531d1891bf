"""A whole uplink and a whole downlink worker, with a kernel's end of each TUN and the wire between
them in the hands of the test.

The TUNs are datagram socket pairs, the transports are UDP on loopback (or the SOCK_SEQPACKET of a
relay, or a byte stream). Nothing is used but what the worker process uses: constructor, commands,
run.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from jvpnd.core.offloads import Offloads
from jvpnd.core.wire import Suite
from jvpnd.dataplane.counters import (
    PEER_RECORDS,
    PEER_TOLD_MS,
    Counters,
    clock_ms,
    slot_base,
)
from jvpnd.dataplane.downlink import Downlink
from jvpnd.dataplane.messages import Report
from jvpnd.dataplane.uplink import Uplink

FULL = Offloads(vnet=True, tso=True, uso=True, udp_gso=True, udp_gro=True)
ANY = ("0.0.0.0/0", "::/0")
PATIENCE_S = 5
UDP_SEGMENT = 103  # linux/udp.h
MAX_GSO_SEGMENTS = 64
MAX_DATAGRAMS = 65507  # bytes of one send
Pairing = Callable[[], tuple[socket.socket, socket.socket]]
_ENOUGH = 4 << 20
_FORCE = 25  # from SO_SNDBUF to SO_SNDBUFFORCE, and so for SO_RCVBUF (asm-generic/socket.h)
_MARK = b"\x07 the last one"  # passes for a packet of control's


# --- the two places that know how a worker is made and driven ----------------------------------


def make(
    kind: type[Uplink] | type[Downlink],
    tun: socket.socket,
    offloads: Offloads,
    lane: int,
    counters: Counters,
    report: Callable[[Report], None],
    lanes: int,
) -> Uplink | Downlink:
    if kind is Downlink:
        return Downlink(tun.fileno(), offloads, lane, counters, report, lanes)
    return Uplink(tun.fileno(), offloads, lane, counters, report)


def run_until(worker: Uplink | Downlink, finished: Callable[[], bool], what: str) -> None:
    """Let a worker do turns, as its process does, until `finished` says so between two of them."""
    deadline = time.monotonic() + PATIENCE_S

    def take_commands() -> bool:
        assert time.monotonic() < deadline, f"still not: {what}"
        return not finished()

    waking, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with waking, channel:
        waking.send(b"x")  # never read: take_commands is asked every turn
        worker.run(channel, take_commands)


# ------------------------------------------------------------------------------------------------


def enlarge(end: socket.socket) -> None:
    """Buffers as large as we may make them."""
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        end.setsockopt(socket.SOL_SOCKET, option, _ENOUGH)
        with suppress(PermissionError):
            end.setsockopt(socket.SOL_SOCKET, option + _FORCE, _ENOUGH)


def buffers_are_large() -> bool:
    """Whether a socket takes some thousand small datagrams: not with the default rmem_max, if we
    are not root."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        enlarge(probe)
        return probe.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > _ENOUGH


@dataclass(frozen=True)
class Session:
    """One session as both ends know it. `networks` are the inner addresses of its client."""

    slot: int
    index: int
    routes: Sequence[str] = ANY
    networks: Sequence[str] = ANY
    suite: Suite = Suite.AES_256_GCM
    key: bytes = b""


def new_session(slot: int, **more: Any) -> Session:
    return Session(slot, 1000 + slot, key=secrets.token_bytes(32), **more)


class _End:
    """A worker, the kernel's end of its TUN, and the far end of its transport."""

    kind: type[Uplink] | type[Downlink]

    def __init__(
        self,
        offloads: Offloads,
        lane: int,
        pair: tuple[socket.socket, socket.socket],
        few: int = 0,
        lanes: int = 1,
    ) -> None:
        """`few`: a stream takes, or brings, so many bytes at a time."""
        self.offloads = offloads
        self.few = few
        self.counters, fd = Counters.create()
        os.close(fd)
        self.reports: list[Report] = []
        self.kernel, self._tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.wire, own = pair
        for end in (self.kernel, self._tun, self.wire, own):
            end.setblocking(False)
            enlarge(end)
        if few:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, few)
        self._own = own.dup()
        self.is_stream = own.type == socket.SOCK_STREAM
        self.worker = make(
            self.kind, self._tun, offloads, lane, self.counters, self.reports.append, lanes
        )
        name = "add_stream" if self.is_stream else "add_socket"
        self.command(name, fds=[own.detach(), *self._more_fds()], socket_id=1)

    def _more_fds(self) -> list[int]:
        return []

    def command(self, name: str, **arguments: object) -> None:
        self.worker.commands[name](**arguments)

    def drops(self) -> dict[str, int]:
        return self.counters.drops()

    def close(self) -> None:
        self.command("remove_socket", socket_id=1)
        for end in (self.kernel, self._tun, self.wire, self._own):
            end.close()


class Sender(_End):
    """An uplink: frames in, datagrams out."""

    kind = Uplink
    _feed: socket.socket | None = None

    def _more_fds(self) -> list[int]:
        if not self.is_stream:
            return []
        self._feed, intake = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return [intake.detach()]

    def close(self) -> None:
        super().close()
        if self._feed is not None:
            self._feed.close()

    def set_limit(self, limit: int) -> None:
        self.command("set_limit", socket_id=1, limit=limit)

    def set_mtu(self, mtu: int) -> None:
        self.command("set_mtu", mtu=mtu)

    def hear_of_no_loss(self, slot: int) -> None:
        """As if the peer had reported that all of a long run arrived."""
        row = slot_base(slot)
        self.counters.words[row + PEER_RECORDS] += 1 << 20
        self.counters.words[row + PEER_TOLD_MS] = clock_ms()

    def bind(self, session: Session) -> None:
        self.command("set_routes", slot=session.slot, networks=list(session.routes))
        self.command(
            "bind_send",
            slot=session.slot,
            index=session.index,
            suite=int(session.suite),
            key=session.key.hex(),
            socket_id=1,
            remote=None,
        )

    def narrow(self) -> None:
        """Leave room for some ten packets in the transport."""
        self._own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)

    def offer(self, frames: Iterable[bytes]) -> None:
        """Let the worker work off these frames in one go."""
        for frame in frames:
            self.kernel.send(frame)
        run_until(self.worker, lambda: not _readable(self._tun), "the TUN is read")

    def readable(self) -> bool:
        """Whether something has come out of the transport."""
        return _readable(self.wire)

    def send(self, frames: Iterable[bytes]) -> list[bytes]:
        """The datagrams (packets of a stream) that the worker makes of these frames in one go."""
        self.offer(frames)
        if self._feed is not None:
            self._feed.send(_MARK)
            return self._off_the_stream()
        self._own.send(_MARK)  # comes behind all that the worker sent
        datagrams: list[bytes] = []
        while not datagrams or datagrams[-1] != _MARK:
            assert select.select([self.wire], [], [], PATIENCE_S)[0], "datagrams are missing"
            datagrams.append(self.wire.recv(1 << 17))
        return datagrams[:-1]

    def _off_the_stream(self) -> list[bytes]:
        """What the worker writes to it up to the mark, read a bit at a time."""
        came = bytearray()
        packets: list[bytes] = []

        def finished() -> bool:
            with suppress(BlockingIOError):
                came.extend(self.wire.recv(self.few or 1 << 20))
            while len(came) >= 4 and len(came) >= 4 + (size := int.from_bytes(came[:4], "little")):
                packets.append(bytes(came[4 : 4 + size]))
                del came[: 4 + size]
            return packets[-1:] == [_MARK]

        run_until(self.worker, finished, "all is written to the stream")
        return packets[:-1]

    def packets(self) -> int:
        """Inner packets sent so far."""
        return sum(self.counters.slot(slot).tx_packets for slot in range(8))

    def octets(self) -> int:
        return sum(self.counters.slot(slot).tx_bytes for slot in range(8))


class Receiver(_End):
    """A downlink: datagrams in, frames out."""

    kind = Downlink

    def bind(self, session: Session, **more: Any) -> None:
        self.command(
            "bind_receive",
            slot=session.slot,
            index=session.index,
            suite=int(session.suite),
            key=session.key.hex(),
            networks=list(session.networks),
            socket_id=1,
            remote=None,
            **more,
        )

    def packets(self) -> int:
        """Inner packets delivered so far."""
        return sum(self.counters.slot(slot).rx_packets for slot in range(8))

    def octets(self) -> int:
        return sum(self.counters.slot(slot).rx_bytes for slot in range(8))

    def take(self, bursts: Iterable[Sequence[bytes]]) -> list[bytes]:
        """The frames that the kernel gets; each burst is there before the worker looks at it.

        Datagrams of one size (the last may be shorter) come as the batches that GRO makes.
        """
        frames = []
        for burst in bursts:
            self.reports.clear()
            # The mark goes to control, behind all that came before it.
            if self.is_stream:
                self._put_on_stream([*burst, _MARK])
            else:
                for batch in batches(burst):
                    self._put(batch)
                self.wire.send(_MARK)
                run_until(self.worker, self._marked, "the burst is worked off")
            frames += self.written()
        return frames

    def _put_on_stream(self, packets: Sequence[bytes]) -> None:
        left = memoryview(b"".join(len(p).to_bytes(4, "little") + p for p in packets))

        def finished() -> bool:
            nonlocal left
            if left:
                with suppress(BlockingIOError):
                    left = left[self.wire.send(left[: self.few or len(left)]) :]
            return self._marked()

        run_until(self.worker, finished, "the stream is worked off")

    def _marked(self) -> bool:
        return any(report.payload == _MARK for report in self.reports)

    def _put(self, batch: Sequence[bytes]) -> None:
        if len(batch) == 1 or self.wire.type != socket.SOCK_DGRAM:
            for datagram in batch:
                self.wire.send(datagram)
        else:
            segment = (socket.SOL_UDP, UDP_SEGMENT, struct.pack("=H", len(batch[0])))
            self.wire.sendmsg([b"".join(batch)], [segment])

    def written(self) -> list[bytes]:
        """Frames that wait at the kernel's end; a bare packet gets an empty vnet header."""
        frames = []
        while _readable(self.kernel):
            frame = self.kernel.recv(1 << 17)
            frames.append(frame if self.offloads.vnet else bytes(10) + frame)
        return frames


def batches(burst: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Runs of datagrams that can be sent with UDP_SEGMENT."""
    batch: list[bytes] = []
    for datagram in burst:
        size = len(batch[0]) if batch else 0
        whole = batch and len(batch[-1]) == size >= len(datagram) > 0
        room = len(batch) < MAX_GSO_SEGMENTS and (len(batch) + 1) * size <= MAX_DATAGRAMS
        if batch and not (whole and room):
            yield batch
            batch = []
        batch.append(datagram)
    if batch:
        yield batch


def udp_pair() -> tuple[socket.socket, socket.socket]:
    one, two = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for end in (one, two):
        end.bind(("127.0.0.1", 0))
    one.connect(two.getsockname())
    two.connect(one.getsockname())
    return one, two


def relay_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def stream_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


@contextmanager
def sender(
    *sessions: Session,
    offloads: Offloads = FULL,
    lane: int = 0,
    pair: Pairing = udp_pair,
    few: int = 0,
    limit: int | None = None,
) -> Iterator[Sender]:
    """`limit`: what the relay carries."""
    end = Sender(offloads, lane, pair(), few)
    try:
        if limit is not None:
            end.set_limit(limit)
        for session in sessions:
            end.bind(session)
        yield end
    finally:
        end.close()


@contextmanager
def receiver(
    *sessions: Session,
    offloads: Offloads = FULL,
    pair: Pairing = udp_pair,
    few: int = 0,
    lane: int = 0,
    lanes: int = 1,
) -> Iterator[Receiver]:
    end = Receiver(offloads, lane, pair(), few, lanes)
    try:
        for session in sessions:
            end.bind(session)
        yield end
    finally:
        end.close()


def _readable(end: socket.socket) -> bool:
    return bool(select.select([end], [], [], 0)[0])
