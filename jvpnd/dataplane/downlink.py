"""Transports to TUN: receive, open, check, join, write. Control packets go to control."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Final

from jvpnd.core.dataclass import dataclass
from jvpnd.core.offloads import Offloads
from jvpnd.core.wire import HEADER, MAX_CONTROL_LEN, MAX_LANES, MIN_SEALED_LEN, PacketType, Suite
from jvpnd.dataplane.counters import (
    LAST_RX_INDEX,
    LAST_RX_MS,
    PEER_LIMIT,
    PEER_MISSING,
    PEER_RECORDS,
    PEER_TOLD_MS,
    PEER_UNSENT,
    RX_BYTES,
    RX_MISSING,
    RX_PACKETS,
    RX_RECORDS,
    TURNS,
    Counters,
    Drop,
    clock_ms,
    slot_base,
)
from jvpnd.dataplane.early import HOLD_MS, EarlyData, Held
from jvpnd.dataplane.errqueue import errors_from
from jvpnd.dataplane.join import Frame, Joiner
from jvpnd.dataplane.messages import Remote, Report, ReportKind, remote_of
from jvpnd.dataplane.networks import PrefixTable
from jvpnd.dataplane.pulse import BEAT_S
from jvpnd.dataplane.seal import MAX_RECORD, OVERHEAD, Opener
from jvpnd.dataplane.span import Assembly
from jvpnd.dataplane.stream import MAX_PACKET, READ_BYTES, StreamError, StreamReader

MAX_RECEIVES: Final = 16  # batches a socket and turn, so that no socket starves the others
WAITED_NS: Final = 10_000  # no work for so long: one batch has come, do not look for a second
MAX_BATCH: Final = MAX_RECORD + OVERHEAD  # a joined batch of datagrams is shorter than that
ELSEWHERE_EVERY_MS: Final = 20
ERROR_EVERY_MS: Final = 10

_UDP_GRO: Final = 104  # linux/udp.h
_DATA: Final = int(PacketType.DATA)
_CONTROL_TYPES: Final = frozenset(int(kind) for kind in PacketType if kind != PacketType.DATA)


@dataclass(slots=True, eq=False)
class _Binding:
    """Who may send under a receiver index, and from where it is expected."""

    slot: int
    counters_at: int
    key: bytes
    opener: Opener
    sources: PrefixTable[bool]
    socket_id: int
    remote: Remote | None
    next_elsewhere_ms: int = 0


@dataclass(slots=True, eq=False)
class _Inlet:
    """One transport socket."""

    socket_id: int
    socket: socket.socket
    datagrams: bool  # empty reads are datagrams, not the end of a stream
    peer: Remote | None = None  # nobody else is heard
    reader: StreamReader | None = None  # where it is a byte stream
    next_error_ms: int = 0


class Downlink:
    """The state of a downlink worker; its methods named after commands carry them out."""

    def __init__(
        self,
        tun_fd: int,
        offloads: Offloads,
        lane: int,
        counters: Counters,
        report: Callable[[Report], None],
        lanes: int = 1,
    ) -> None:
        self._lane = lane
        self._own_lanes = range(lane, MAX_LANES, lanes)  # of the peer, which may have more
        self._tun_fd = tun_fd
        self._offloads = offloads
        self._report = report
        self._words = counters.words
        self._drops = counters.drops_of("downlink")
        self._inlets: dict[int, _Inlet] = {}  # by socket_id
        self._by_fd: dict[int, _Inlet] = {}
        self._bindings: dict[int, _Binding] = {}  # by receiver index
        self._early = EarlyData(self._drops)
        self._batch = memoryview(bytearray(MAX_BATCH))
        self._stream = memoryview(bytearray(0))  # made for the first stream
        self._plain = bytearray(3 * MAX_BATCH)
        self._plain_view = memoryview(self._plain)
        self._plain_at = 0
        self._assembly = Assembly()
        self._next_sweep_ms = 0
        self._epoll = select.epoll()
        self._joiner = Joiner(
            has_vnet=offloads.vnet,
            tso=offloads.tso,
            uso=offloads.uso,
            emit=self._write,
            drops=self._drops,
        )
        self.commands: dict[str, Callable[..., None]] = {
            "add_socket": self.add_socket,
            "add_stream": self.add_stream,
            "remove_socket": self.remove_socket,
            "bind_receive": self.bind_receive,
            "set_sources": self.set_sources,
            "release_receive": self.release_receive,
            "expect": self._early.expect,
            "unexpect": self._early.unexpect,
        }

    def add_socket(self, fds: list[int], socket_id: int, peer: Remote | None = None) -> None:
        self.remove_socket(socket_id)
        inlet = socket.socket(fileno=fds.pop())
        datagrams = inlet.type == socket.SOCK_DGRAM
        if datagrams and inlet.family != socket.AF_UNIX and self._offloads.udp_gro:
            inlet.setsockopt(socket.SOL_UDP, _UDP_GRO, 1)
        self._add(_Inlet(socket_id, inlet, datagrams, peer and (peer[0], peer[1])))

    def add_stream(self, fds: list[int], socket_id: int) -> None:
        self.remove_socket(socket_id)
        if not self._stream:
            self._stream = memoryview(bytearray(MAX_PACKET + READ_BYTES))
        stream = socket.socket(fileno=fds.pop())
        reader = StreamReader(stream, self._is_awaited)
        self._add(_Inlet(socket_id, stream, datagrams=False, reader=reader))

    def _add(self, inlet: _Inlet) -> None:
        self._inlets[inlet.socket_id] = self._by_fd[inlet.socket.fileno()] = inlet
        self._epoll.register(inlet.socket, select.EPOLLIN)

    def _is_awaited(self, index: int) -> bool:
        return index in self._bindings or self._early.expects(index)

    def remove_socket(self, socket_id: int) -> None:
        gone = self._inlets.pop(socket_id, None)
        if gone is not None:
            self._close(gone)

    def bind_receive(
        self,
        slot: int,
        index: int,
        suite: int,
        key: str,
        networks: list[str],
        socket_id: int,
        remote: Remote | None,
        all_lanes: bool = False,
    ) -> None:
        """`all_lanes`: nobody but this worker reads that transport."""
        secret = bytes.fromhex(key)
        before = self._bindings.get(index)
        if before is not None and before.key == secret:
            opener = before.opener  # its replay window goes on
        else:
            lanes = range(MAX_LANES) if all_lanes else self._own_lanes
            opener = Opener(Suite(suite), secret, index, self._assembly, lanes)
        sources = _sources(networks)
        remote = None if remote is None else (remote[0], remote[1])
        self._bindings[index] = _Binding(
            slot, slot_base(slot), secret, opener, sources, socket_id, remote
        )
        for held in self._early.take(index):
            data = memoryview(held.data)
            self._take_batch(data, len(data), held.socket_id, held.remote, clock_ms())
        self._settle()

    def set_sources(self, slot: int, networks: list[str]) -> None:
        """What is bound for the slot goes on, with these inner sources."""
        sources = _sources(networks)
        for binding in self._bindings.values():
            if binding.slot == slot:
                binding.sources = sources

    def release_receive(self, index: int) -> None:
        self._bindings.pop(index, None)
        self._early.unexpect(index)

    def run(self, channel: socket.socket, take_commands: Callable[[], bool]) -> None:
        """Carry packets until control goes away (`take_commands` says so)."""
        channel_fd = channel.fileno()
        self._epoll.register(channel_fd, select.EPOLLIN)
        done_ns = 0
        while True:
            holding = self._early.holding or self._assembly.unfinished
            self._drops[TURNS] += 1
            ready = self._epoll.poll(HOLD_MS / 4000 if holding else BEAT_S)
            most = 1 if monotonic_ns() - done_ns > WAITED_NS else MAX_RECEIVES
            for fd, _events in ready:  # first: keys before packets
                if fd == channel_fd and not take_commands():
                    return
            for fd, events in ready:
                inlet = self._by_fd.get(fd)
                if inlet is not None:
                    self._drops[TURNS] += 1  # a turn over a thousand busy streams is a long one
                    if inlet.reader is not None:
                        self._drain_stream(inlet, inlet.reader, most)
                        continue
                    self.drain(inlet, most)
                    if events & select.EPOLLERR and inlet.peer is not None:
                        self._take_errors(inlet, inlet.peer)
            done_ns = monotonic_ns()
            if holding:
                self._expire(clock_ms())

    def _expire(self, now_ms: int) -> None:
        """Give up what waits for something that does not come."""
        self._early.expire(now_ms)
        if now_ms >= self._next_sweep_ms:
            self._next_sweep_ms = now_ms + HOLD_MS
            self._assembly.sweep(self._drops)

    def drain(self, inlet: _Inlet, most: int = MAX_RECEIVES) -> None:
        """Take what a socket has, at most so many batches, and write all of it."""
        into, receive = [self._batch], inlet.socket.recvmsg_into
        for _ in range(most):
            now_ms = clock_ms()
            try:
                size, ancillary, flags, address = receive(into, 64, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if not inlet.datagrams:
                    self._end_of(inlet)
                elif inlet.peer is None:  # else its error queue tells whom it is about
                    self._socket_error(inlet, error.errno or 0, now_ms)
                break
            if size == 0 and not inlet.datagrams:
                self._end_of(inlet)
                break
            if flags & socket.MSG_TRUNC:
                self._drops[Drop.MALFORMED] += 1
                continue
            stride = _gro_size(ancillary) or size
            remote = remote_of(address)
            if inlet.peer not in (None, remote):
                self._drops[Drop.FOREIGN] += 1
                continue
            self._take_batch(self._batch[:size], stride, inlet.socket_id, remote, now_ms)
        self._settle()

    def _drain_stream(self, inlet: _Inlet, reader: StreamReader, most: int) -> None:
        """The same of a byte stream."""
        left_out = reader.left_out
        try:
            for _ in range(most):
                now_ms = clock_ms()
                for packet in reader.read(self._stream):
                    self._take_batch(packet, len(packet), inlet.socket_id, ("", 0), now_ms)
        except BlockingIOError:
            pass
        except StreamError:
            self._drops[Drop.MALFORMED] += 1
            self._end_of(inlet, errno.EPROTO)
        except (EOFError, OSError):
            self._end_of(inlet)
        self._drops[Drop.UNKNOWN_INDEX] += reader.left_out - left_out
        self._settle()

    def _take_batch(
        self, batch: memoryview, stride: int, socket_id: int, remote: Remote, now_ms: int
    ) -> None:
        """Sort the datagrams of a batch: DATA is opened and joined, the rest goes to control."""
        size = len(batch)
        at = 0
        if not size:
            self._drops[Drop.MALFORMED] += 1
        while at < size:
            end = min(at + stride, size)
            kind = batch[at]
            if kind == _DATA and end - at >= MIN_SEALED_LEN:
                index = HEADER.unpack_from(batch, at)[3]
                binding = self._bindings.get(index)
                if binding is not None:
                    at = self._open(binding, batch, at, stride, socket_id, remote, now_ms)
                    continue
                held = Held(index, bytes(batch[at:end]), socket_id, remote, now_ms + HOLD_MS)
                reason = self._early.offer(held)
                if reason is not None:
                    self._drops[reason] += 1
            elif kind == _DATA:
                self._drops[Drop.MALFORMED] += 1
            elif kind in _CONTROL_TYPES and end - at <= MAX_CONTROL_LEN:
                payload = bytes(batch[at:end])
                self._report(Report(ReportKind.PACKET, socket_id, 0, remote, payload))
            else:
                self._drops[Drop.UNKNOWN_TYPE] += 1
            at = end

    def _open(
        self,
        binding: _Binding,
        batch: memoryview,
        at: int,
        stride: int,
        socket_id: int,
        remote: Remote,
        now_ms: int,
    ) -> int:
        """Open the run of datagrams at `at` and hand it to the joiner; returns where it ended."""
        joiner, opener, lane = self._joiner, binding.opener, batch[at + 1]
        if self._plain_at + len(batch) - at + MAX_RECORD > len(self._plain):
            self._settle()
        opened, at, self._plain_at = opener.open_run(
            batch, at, stride, self._plain_view, self._plain_at, self._drops
        )
        if not opened:
            return at
        words, row = self._words, binding.counters_at
        if words[row + LAST_RX_MS] != now_ms or words[row + LAST_RX_INDEX] != opener.index:
            words[row + LAST_RX_MS] = now_ms
            words[row + LAST_RX_INDEX] = opener.index
            words[row + RX_RECORDS] = opener.records
            words[row + RX_MISSING] = opener.missing
        packets, octets = joiner.packets, joiner.octets
        joiner.feed(binding.sources, self._plain, self._plain_view, opened)
        words[row + RX_PACKETS] += joiner.packets - packets
        words[row + RX_BYTES] += joiner.octets - octets
        if joiner.report is not None and lane == self._lane:  # about our uplink's records
            came, missing, unsent, limit = joiner.report
            words[row + PEER_RECORDS], words[row + PEER_MISSING] = came, missing
            words[row + PEER_LIMIT] = limit
            words[row + PEER_UNSENT] = unsent
            words[row + PEER_TOLD_MS] = now_ms
        joiner.report = None
        if joiner.idle:
            self._plain_at = 0
        self._compare_origin(binding, socket_id, remote, now_ms)
        return at

    def _compare_origin(
        self, binding: _Binding, socket_id: int, remote: Remote, now_ms: int
    ) -> None:
        at_home = socket_id == binding.socket_id and binding.remote in (None, remote)
        if not at_home and now_ms >= binding.next_elsewhere_ms:
            binding.next_elsewhere_ms = now_ms + ELSEWHERE_EVERY_MS
            index = binding.opener.index
            self._report(Report(ReportKind.FROM_ELSEWHERE, index, socket_id, remote))

    def _settle(self) -> None:
        """Write what still waits for more slices; the plain text memory is free again."""
        self._joiner.flush()
        self._plain_at = 0

    def _write(self, frame: Frame) -> None:
        try:
            os.writev(self._tun_fd, frame)
        except OSError:
            self._drops[Drop.TUN_WRITE] += 1

    def _socket_error(self, inlet: _Inlet, number: int, now_ms: int) -> None:
        if now_ms >= inlet.next_error_ms:
            inlet.next_error_ms = now_ms + ERROR_EVERY_MS
            self._report(Report(ReportKind.SOCKET_ERROR, inlet.socket_id, number))

    def _take_errors(self, inlet: _Inlet, peer: Remote) -> None:
        """What is known of a socket that is not connected, but for one peer."""
        for number in errors_from(inlet.socket, peer):
            self._socket_error(inlet, number, clock_ms())

    def _end_of(self, inlet: _Inlet, why: int = errno.ECONNRESET) -> None:
        """The other end is gone, or of no use: say so once, and do not look at it again."""
        if inlet.socket.fileno() >= 0:
            self._close(inlet)
            self._report(Report(ReportKind.SOCKET_ERROR, inlet.socket_id, why))

    def _close(self, inlet: _Inlet) -> None:
        if inlet.socket.fileno() >= 0:
            self._epoll.unregister(inlet.socket)
            del self._by_fd[inlet.socket.fileno()]
        inlet.socket.close()


def _sources(networks: list[str]) -> PrefixTable[bool]:
    table: PrefixTable[bool] = PrefixTable()
    table.set(True, networks)
    return table


def _gro_size(ancillary: list[Any]) -> int:
    """Size of each datagram in a batch that the kernel joined, 0 if it joined none."""
    for level, kind, data in ancillary:
        if level == socket.SOL_UDP and kind == _UDP_GRO:
            return int.from_bytes(data[:4], "little")
    return 0
