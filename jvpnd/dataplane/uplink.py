"""TUN to transports: read, gather or cut, seal, send."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic_ns
from typing import Any, Final

from jvpnd.core.offloads import Offloads
from jvpnd.core.wire import (
    FLAG_REPORT,
    FRAME,
    FRAME_LEN,
    HEADER_LEN,
    MAX_PARTS,
    MAX_SEND,
    MAX_SUPER_SLICES,
    REPORT,
    TAG_LEN,
    Suite,
    datagram_len,
    datagrams_a_send,
)
from jvpnd.dataplane import vnet
from jvpnd.dataplane.clean import REPORT_EVERY_MS, SILENT_AFTER_MS, CleanRun
from jvpnd.dataplane.counters import (
    LAST_TX_MS,
    PEER_MISSING,
    PEER_RECORDS,
    PEER_TOLD_MS,
    RX_MISSING,
    RX_RECORDS,
    TX_BYTES,
    TX_PACKETS,
    TX_SPANS,
    Counters,
    Drop,
    monotonic_ms,
    slot_base,
)
from jvpnd.dataplane.messages import Remote, Report, ReportKind, address_of
from jvpnd.dataplane.networks import PrefixTable
from jvpnd.dataplane.seal import MAX_RECORD, OVERHEAD, Cut, Sealer
from jvpnd.dataplane.segment import plan_cut, settle_checksum
from jvpnd.dataplane.span import SpanBuffers

MAX_READS: Final = 64  # frames a turn, before commands are looked at again
MAX_MESSAGE: Final = MAX_RECORD + OVERHEAD  # a record on a transport that keeps messages whole
WAITED_NS: Final = 10_000  # no work for so long: one packet has come, do not look for a second
DEFAULT_MTU: Final = 1280
SEND_WAIT_MS: Final = 10
ERROR_EVERY_MS: Final = 10

_UDP_SEGMENT: Final = 103  # linux/udp.h
_GSO_REFUSED: Final = (errno.EIO, errno.EINVAL, errno.EMSGSIZE)
_TUN_GONE: Final = (errno.EBADFD, errno.EIO, errno.EFAULT)
_U16 = struct.Struct("=H")
_V4_DESTINATION = struct.Struct("16x4s")
_V6_DESTINATION = struct.Struct("24x16s")


@dataclass(slots=True, eq=False)
class _Binding:
    """The one way out of a slot."""

    slot: int
    counters_at: int
    sealer: Sealer
    socket_id: int
    socket: socket.socket
    address: Any  # None where the socket is connected
    datagrams: bool  # else a relay that keeps records of any length whole
    gso: bool
    clean: CleanRun = field(default_factory=CleanRun)
    next_look_ms: int = 0
    told_ms: int = 0
    next_error_ms: int = 0

    def send(self, data: Sequence[memoryview], ancillary: Sequence[Any] = ()) -> None:
        if self.address is None:
            self.socket.sendmsg(data, ancillary)
        else:
            self.socket.sendmsg(data, ancillary, 0, self.address)


class _Batch:
    """Datagrams sealed for one binding that go out in one send, all `stride` bytes long but the
    last, which may be shorter. `packets` and `octets` are the inner ones in it."""

    __slots__ = ("binding", "count", "end", "memory", "octets", "packets", "stride")

    def __init__(self) -> None:
        self.memory = memoryview(bytearray(MAX_MESSAGE))
        self.binding: _Binding | None = None
        self.clear()

    def clear(self) -> None:
        self.stride = self.count = self.end = self.packets = self.octets = 0

    def room(self, binding: _Binding, size: int) -> int:
        """How many datagrams of `size` can be put behind those that are here."""
        if self.count == 0:
            self.binding = binding
            self.stride = size
            return min(MAX_PARTS, MAX_SEND // size) if binding.datagrams else 1
        if (
            binding is not self.binding
            or size > self.stride
            or self.end % self.stride
            or not binding.datagrams
        ):
            return 0
        full = min(MAX_PARTS - self.count, (MAX_SEND - self.end) // self.stride)
        return full if size == self.stride else min(full, 1)  # a shorter one is the last


class Uplink:
    """The state of an uplink worker; its methods named after commands carry them out.

    Packets are read one behind the other into `_plain`, each with room for its frame header in
    front. They stay there as one record of frames until it is full or the TUN is empty.
    """

    def __init__(
        self,
        tun_fd: int,
        offloads: Offloads,
        lane: int,
        counters: Counters,
        report: Callable[[Report], None],
    ) -> None:
        self._tun_fd = tun_fd
        self._offloads = offloads
        self._lane = lane
        self._report = report
        self._words = counters.words
        self._drops = counters.drops_of("uplink")
        self._head = memoryview(bytearray(vnet.HEADER_LEN if offloads.vnet else 0))
        self._plain = memoryview(bytearray(2 * MAX_RECORD))
        self._record: _Binding | None = None  # whom _plain[_begin:_end] is for
        self._begin = self._end = 0
        self._limit = 0  # the longest that it may become
        self._packets = self._octets = 0
        self._batch = _Batch()
        self._span_buffers = SpanBuffers()
        self._sockets: dict[int, socket.socket] = {}
        self._bindings: dict[int, _Binding] = {}
        self._routes: PrefixTable[int] = PrefixTable()
        self._paused = False
        self.set_mtu(DEFAULT_MTU)
        self.commands: dict[str, Callable[..., None]] = {
            "add_socket": self.add_socket,
            "remove_socket": self.remove_socket,
            "bind_send": self.bind_send,
            "release_send": self.release_send,
            "set_routes": self.set_routes,
            "pause": self.pause,
            "set_mtu": self.set_mtu,
        }

    def add_socket(self, fds: list[int], socket_id: int) -> None:
        self.remove_socket(socket_id)
        self._sockets[socket_id] = socket.socket(fileno=fds.pop())

    def remove_socket(self, socket_id: int) -> None:
        gone = self._sockets.pop(socket_id, None)
        if gone is not None:
            bound = [b.slot for b in self._bindings.values() if b.socket_id == socket_id]
            for slot in bound:
                del self._bindings[slot]
            gone.close()

    def bind_send(
        self, slot: int, index: int, suite: int, key: str, socket_id: int, remote: Remote | None
    ) -> None:
        out = self._sockets[socket_id]
        is_udp = out.family in (socket.AF_INET, socket.AF_INET6) and out.type == socket.SOCK_DGRAM
        self._bindings[slot] = _Binding(
            slot=slot,
            counters_at=slot_base(slot),
            sealer=Sealer(Suite(suite), bytes.fromhex(key), index, self._lane),
            socket_id=socket_id,
            socket=out,
            address=None if remote is None else address_of(remote),
            datagrams=is_udp,
            gso=is_udp and self._offloads.udp_gso,
        )

    def release_send(self, slot: int) -> None:
        self._bindings.pop(slot, None)

    def set_routes(self, slot: int, networks: list[str]) -> None:
        self._routes.set(slot, networks)

    def set_mtu(self, mtu: int) -> None:
        """The TUN's MTU in bytes: what fits into it, sealed, fits into one datagram."""
        size = self._datagram_len = datagram_len(mtu)
        self._one_limit = size - OVERHEAD
        self._span_limit = datagrams_a_send(mtu) * (size - HEADER_LEN) - TAG_LEN

    def pause(self, paused: bool) -> None:
        self._paused = paused

    def run(self, channel: socket.socket, take_commands: Callable[[], bool]) -> None:
        """Carry packets until control goes away (`take_commands` says so)."""
        poll, channel_fd, tun_fd = select.epoll(), channel.fileno(), self._tun_fd
        poll.register(channel_fd, select.EPOLLIN)
        reading = False
        done_ns = 0
        while True:
            if reading == self._paused:
                reading = not self._paused
                if reading:
                    poll.register(tun_fd, select.EPOLLIN)
                else:
                    poll.unregister(tun_fd)
            for fd, _events in poll.poll():
                if fd == tun_fd:
                    waited = monotonic_ns() - done_ns > WAITED_NS
                    self.drain(1 if waited else MAX_READS)
                    done_ns = monotonic_ns()
                elif not take_commands():
                    return

    def drain(self, most: int = MAX_READS) -> None:
        """Carry what the TUN has, at most so many frames, and leave nothing sealed unsent."""
        tun_fd, head, plain = self._tun_fd, self._head, self._plain
        carry, readv, vnet_len = self._carry, os.readv, len(head)
        at = 0
        for _ in range(most):
            try:
                size = readv(tun_fd, (head, plain[at + FRAME_LEN : at + MAX_RECORD]))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno not in _TUN_GONE:
                    raise
                self._paused = True  # control hears of it by netlink; do not spin until then
                break
            at = carry(at, at + FRAME_LEN + size - vnet_len)
        self._seal_record()
        if self._batch.count:
            self._flush()

    def _carry(self, at: int, end: int) -> int:
        """Take the packet behind _plain[at + FRAME_LEN] for the slot that its destination belongs
        to; returns where the next one may go."""
        slot = self._routes.everything
        if slot is None:
            slot = self._slot_for(at + FRAME_LEN, end)
            if slot is None:
                self._drops[Drop.NO_ROUTE] += 1
                return at
        binding = self._bindings.get(slot)
        if binding is None:
            self._drops[Drop.NO_BINDING] += 1
            return at
        flags = 0
        if self._head != vnet.PLAIN and self._offloads.vnet:
            state, gso_type, _, gso_size, csum_start, csum_offset = vnet.HEADER.unpack(self._head)
            if gso_type:
                cut = plan_cut(self._plain[:end], at + FRAME_LEN, gso_type, gso_size, csum_start)
                if cut is None:
                    self._drops[Drop.UNSUPPORTED] += 1
                    return at
                return self._take_super(binding, at, cut)
            if state & vnet.NEEDS_CSUM:
                settled = settle_checksum(
                    self._plain[at + FRAME_LEN : end], csum_start, csum_offset
                )
                if settled is None:
                    self._drops[Drop.MALFORMED] += 1
                    return at
                flags = settled
        return self._append(binding, at, end, flags, 0, 1)

    def _slot_for(self, at: int, end: int) -> int | None:
        version = self._plain[at] >> 4
        if version == 4 and end >= at + 20:
            return self._routes.lookup(_V4_DESTINATION.unpack_from(self._plain, at)[0])
        if version == 6 and end >= at + 40:
            return self._routes.lookup(_V6_DESTINATION.unpack_from(self._plain, at)[0])
        return None

    def _append(
        self,
        binding: _Binding,
        at: int,
        end: int,
        flags: int,
        gso_size: int,
        packets: int,
        header_len: int = 0,
    ) -> int:
        """Put what ends at `end` behind the record of frames, or begin another one with it.

        It counts as `packets`, all with a header of `header_len`. Returns as `_carry` does.
        """
        if binding is not self._record or end - self._begin > self._limit:
            self._seal_record()
            self._record, self._begin = binding, at
            if not binding.datagrams:
                self._limit = MAX_RECORD
            elif binding.clean.spans and binding.gso:
                self._limit = self._span_limit
            else:
                self._limit = self._one_limit
        FRAME.pack_into(self._plain, at, flags, end - at - FRAME_LEN, gso_size)
        self._end = end
        self._packets += packets
        self._octets += end - at - FRAME_LEN + (packets - 1) * header_len
        if end <= MAX_RECORD:
            return end
        self._seal_record()
        return 0

    def _take_super(self, binding: _Binding, at: int, cut: Cut) -> int:
        """Send a super-packet whole where a lost datagram is not to be feared, else in slices."""
        whole = not binding.datagrams or (
            binding.clean.spans and binding.gso and cut.end - at <= self._span_limit
        )
        if whole and cut.count <= MAX_SUPER_SLICES:
            return self._append(
                binding, at, cut.end, 0, cut.gso_size, cut.count, len(cut.header)
            )
        self._seal_record()
        self._send_cut(binding, cut)
        return 0

    def _seal_record(self) -> None:
        """Seal the record of frames, if there is one, into the batch or over several datagrams."""
        binding, self._record = self._record, None
        if binding is None:
            return
        plain = self._plain[self._begin : self._end]
        packets, octets = self._packets, self._octets
        self._packets = self._octets = 0
        size = len(plain) + OVERHEAD
        batch = self._batch
        if binding.datagrams and size > self._datagram_len:
            if batch.count:
                self._flush()
            pieces = binding.sealer.seal_span(plain, self._datagram_len, self._span_buffers)
            self._words[binding.counters_at + TX_SPANS] += 1
            stride = HEADER_LEN + len(pieces[1])
            self._send(binding, pieces, stride, len(pieces) // 2, packets, octets)
            return
        while batch.room(binding, size) <= 0:  # a flush may leave a report behind
            self._flush()
        batch.end = binding.sealer.seal(plain, batch.memory, batch.end)
        batch.count += 1
        batch.packets += packets
        batch.octets += octets

    def _send_cut(self, binding: _Binding, cut: Cut) -> None:
        batch = self._batch
        per_packet = FRAME_LEN + OVERHEAD
        size = len(cut.header) + cut.gso_size + per_packet
        first = 0
        while first < cut.count:
            room = batch.room(binding, size)
            if room <= 0:
                if not batch.count:
                    self._drops[Drop.TOO_BIG] += cut.count - first
                    return
                self._flush()
                continue
            stop = min(first + room, cut.count)
            begin = batch.end
            batch.end = binding.sealer.seal_slices(
                self._plain, cut, first, stop, batch.memory, begin
            )
            batch.count += stop - first
            batch.packets += stop - first
            batch.octets += batch.end - begin - (stop - first) * per_packet
            first = stop

    def _flush(self) -> None:
        """Send the batch."""
        batch = self._batch
        binding, data, stride = batch.binding, batch.memory[: batch.end], batch.stride
        count, packets, octets = batch.count, batch.packets, batch.octets
        batch.clear()
        assert binding is not None
        self._send(binding, (data,), stride, count, packets, octets)

    def _send(
        self,
        binding: _Binding,
        data: Sequence[memoryview],
        stride: int,
        count: int,
        packets: int,
        octets: int,
    ) -> None:
        """Send `count` datagrams of `stride` bytes, the last one maybe shorter: in one go where the
        kernel cuts them, else one by one. `data` is all of them, or header and body by turns."""
        if count == 1:
            self._account(binding, packets, octets, self._try_send(binding, data))
            return
        if binding.gso:
            segment = (socket.SOL_UDP, _UDP_SEGMENT, _U16.pack(stride))
            error = self._try_send(binding, data, (segment,))
            if error not in _GSO_REFUSED:
                self._account(binding, packets, octets, error)
                return
            binding.gso = False  # the path's MTU, or the device behind it, rules it out
        for left in range(count, 0, -1):
            if len(data) == 1:
                at = (count - left) * stride
                one: Sequence[memoryview] = (data[0][at : at + stride],)
            else:
                at = 2 * (count - left)
                one = data[at : at + 2]
            # shares that add up to what was sent
            some, more = -(-packets // left), -(-octets // left)
            packets, octets = packets - some, octets - more
            self._account(binding, some, more, self._try_send(binding, one))

    def _try_send(
        self, binding: _Binding, data: Sequence[memoryview], ancillary: Sequence[Any] = ()
    ) -> int:
        """errno of the send, 0 if it went out. Waits once, and briefly, for a full socket."""
        try:
            try:
                binding.send(data, ancillary)
            except BlockingIOError:
                poll = select.poll()
                poll.register(binding.socket, select.POLLOUT)
                poll.poll(SEND_WAIT_MS)
                binding.send(data, ancillary)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _account(self, binding: _Binding, packets: int, octets: int, error: int) -> None:
        now_ms = monotonic_ms()
        if not error:
            words, at = self._words, binding.counters_at
            words[at + TX_PACKETS] += packets
            words[at + TX_BYTES] += octets
            words[at + LAST_TX_MS] = now_ms
            if now_ms >= binding.next_look_ms:
                self._exchange_reports(binding, now_ms)
        elif error in (errno.EAGAIN, errno.ENOBUFS):
            self._drops[Drop.SEND_BUFFER] += packets
        else:
            self._drops[Drop.SEND_ERROR] += packets
            if now_ms >= binding.next_error_ms:
                binding.next_error_ms = now_ms + ERROR_EVERY_MS
                self._report(Report(ReportKind.SEND_ERROR, binding.slot, error))

    def _exchange_reports(self, binding: _Binding, now_ms: int) -> None:
        """Tell the peer what came from it, and hear what it said of ours."""
        binding.next_look_ms = now_ms + REPORT_EVERY_MS
        words, at = self._words, binding.counters_at
        told_ms = words[at + PEER_TOLD_MS]
        if now_ms - told_ms > SILENT_AFTER_MS:
            binding.clean.silent()
        elif told_ms != binding.told_ms and self._offloads.spans:
            binding.told_ms = told_ms
            binding.clean.told(words[at + PEER_RECORDS], words[at + PEER_MISSING])
        frame = memoryview(bytearray(FRAME_LEN + REPORT.size))
        FRAME.pack_into(frame, 0, FLAG_REPORT, REPORT.size, 0)
        REPORT.pack_into(frame, FRAME_LEN, words[at + RX_RECORDS], words[at + RX_MISSING])
        if self._batch.count:
            self._flush()
        self._batch.room(binding, len(frame) + OVERHEAD)
        self._batch.end = binding.sealer.seal(frame, self._batch.memory, 0)
        self._batch.count = 1
