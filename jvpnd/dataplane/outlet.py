"""Sealed records to transports: many datagrams in one send, and a report now and then."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
from collections.abc import Callable, Sequence
from time import monotonic_ns
from typing import Any, Final

from jvpnd.core.dataclass import dataclass, field
from jvpnd.core.wire import (
    FLAG_LAST,
    FLAG_REPORT,
    FLAG_SLICE,
    FRAME,
    FRAME_LEN,
    HEADER_LEN,
    MAX_PARTS,
    MAX_SEND,
    REPORT,
    SAFE_DATAGRAM,
)
from jvpnd.dataplane.clean import REPORT_EVERY_MS, SILENT_AFTER_MS, CleanRun
from jvpnd.dataplane.counters import (
    LAST_TX_MS,
    PEER_LIMIT,
    PEER_MISSING,
    PEER_RECORDS,
    PEER_TOLD_MS,
    RX_MISSING,
    RX_RECORDS,
    TURNS,
    TX_BYTES,
    TX_PACKETS,
    TX_SPANS,
    TX_UNSENT,
    Counters,
    Drop,
    clock_ms,
)
from jvpnd.dataplane.messages import Report, ReportKind
from jvpnd.dataplane.seal import MAX_RECORD, OVERHEAD, Cut, Sealer
from jvpnd.dataplane.span import SpanBuffers
from jvpnd.dataplane.stream import StreamWriter

MAX_MESSAGE: Final = MAX_RECORD + OVERHEAD  # a record on a transport that keeps messages whole
SEND_WAIT_MS: Final = 10
WAIT_EARNED_MS: Final = 1 / 640_000  # by each byte that a client's own transport has taken
ERROR_EVERY_MS: Final = 10

_UDP_SEGMENT: Final = 103  # linux/udp.h
_GSO_REFUSED: Final = (errno.EIO, errno.EINVAL, errno.EMSGSIZE)
_U16 = struct.Struct("=H")


@dataclass(slots=True, eq=False)
class Binding:
    """The one way out of a slot."""

    slot: int
    counters_at: int
    sealer: Sealer
    socket_id: int
    socket: socket.socket
    writer: StreamWriter | None  # where it is a byte stream
    address: Any  # None where the socket is connected
    datagrams: bool  # else records of any length stay whole
    gso: bool
    shared: bool  # with other slots: where it is full, the device is, and all wait
    most: int = 0  # bytes of a datagram that holds a packet as long as the TUN's MTU
    own_limit: int = 0  # what the transport carries, as far as we know; 0: any
    peer_limit: int = 0  # the same, as the peer knows it
    size: int = 0  # of a datagram, in bytes: the least of these
    clean: CleanRun = field(default_factory=CleanRun)
    next_look_ms: int = 0
    told_ms: int = 0
    limit_told_ms: int = 0
    next_error_ms: int = 0
    unsent: int = 0  # records that the socket did not take
    may_wait_ms: float = SEND_WAIT_MS

    def fit(self) -> None:
        """One of the limits has changed."""
        self.size = min(each for each in (self.most, self.own_limit, self.peer_limit) if each)

    @property
    def spans(self) -> bool:
        """Whether a record may span datagrams now."""
        return self.gso and self.clean.spans

    def send(self, data: Sequence[memoryview], ancillary: Sequence[Any] = ()) -> None:
        if self.writer is not None:
            self.writer.send(data)
        elif self.address is None:
            self.socket.sendmsg(data, ancillary)
        else:
            self.socket.sendmsg(data, ancillary, 0, self.address)


class _Batch:
    """Datagrams sealed for one binding that go out in one send, all `stride` bytes long but the
    last, which may be shorter. `packets` and `octets` are the inner ones in it."""

    __slots__ = ("binding", "count", "end", "memory", "octets", "packets", "stride")

    def __init__(self) -> None:
        self.memory = memoryview(bytearray(MAX_MESSAGE))
        self.binding: Binding | None = None
        self.clear()

    def clear(self) -> None:
        self.stride = self.count = self.end = self.packets = self.octets = 0

    def room(self, binding: Binding, size: int) -> int:
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


class Outlet:
    """Seals records and sends them. Datagrams wait in a batch for others of their size: `flush`
    sends what waits. `packets` and `octets` are the inner ones of a record, for the counters."""

    def __init__(
        self,
        counters: Counters,
        spans: bool,
        report: Callable[[Report], None],
        path_words: memoryview,
    ) -> None:
        """`path_words`: where the peer tells how long datagrams may be."""
        self._path_words = path_words
        self._words = counters.words
        self._drops = counters.drops_of("uplink")
        self._report = report
        self._may_span = spans
        self._batch = _Batch()
        self._span_buffers = SpanBuffers()
        self._report_memory = memoryview(bytearray(FRAME_LEN + REPORT.size + OVERHEAD))

    def send_record(
        self, binding: Binding, plain: memoryview, packets: int, octets: int
    ) -> None:
        """Seal one record, over several datagrams where it does not fit into one."""
        batch = self._batch
        length = len(plain) + OVERHEAD
        if binding.datagrams and length > binding.size:
            self.flush()
            pieces = binding.sealer.seal_span(plain, binding.size, self._span_buffers)
            self._words[binding.counters_at + TX_SPANS] += 1
            stride = HEADER_LEN + len(pieces[1])
            self._send(binding, pieces, stride, len(pieces) // 2, packets, octets)
            return
        if batch.room(binding, length) <= 0:
            self.flush()
            batch.room(binding, length)
        batch.end = binding.sealer.seal(plain, batch.memory, batch.end)
        batch.count += 1
        batch.packets += packets
        batch.octets += octets

    def send_slices(self, binding: Binding, frame: memoryview, cut: Cut) -> None:
        """Seal a super-packet slice by slice, a record and a datagram each."""
        batch = self._batch
        per_packet = FRAME_LEN + OVERHEAD
        size = len(cut.header) + cut.gso_size + per_packet
        if binding.datagrams and size > binding.size:
            self._send_long_slices(binding, frame, cut)
            return
        first = 0
        while first < cut.count:
            room = batch.room(binding, size)
            if room <= 0:
                if not batch.count:
                    self._drops[Drop.TOO_BIG] += cut.count - first
                    return
                self.flush()
                continue
            stop = min(first + room, cut.count)
            begin = batch.end
            batch.end = binding.sealer.seal_slices(
                frame, cut, first, stop, batch.memory, begin
            )
            batch.count += stop - first
            batch.packets += stop - first
            batch.octets += batch.end - begin - (stop - first) * per_packet
            first = stop

    def _send_long_slices(self, binding: Binding, frame: memoryview, cut: Cut) -> None:
        """The same where a slice is longer than a datagram: each is a record over two of them."""
        begin = cut.at + len(cut.header)
        for number in range(cut.count):
            last = FLAG_LAST if number == cut.count - 1 else 0
            at = begin + number * cut.gso_size
            body = frame[at : min(at + cut.gso_size, cut.end)]
            prefix = FRAME.pack(FLAG_SLICE | last, number, cut.gso_size)
            plain = memoryview(b"".join((prefix, cut.header, body)))
            self.send_record(binding, plain, 1, len(plain) - FRAME_LEN)

    def tell(self, binding: Binding) -> None:
        """Send a report now."""
        if binding.shared:
            self._exchange_reports(binding, clock_ms())

    def flush(self) -> None:
        """Send what waits."""
        batch = self._batch
        if not batch.count:
            return
        binding, data, stride = batch.binding, batch.memory[: batch.end], batch.stride
        count, packets, octets = batch.count, batch.packets, batch.octets
        batch.clear()
        assert binding is not None
        self._send(binding, (data,), stride, count, packets, octets)

    def _send(
        self,
        binding: Binding,
        data: Sequence[memoryview],
        stride: int,
        count: int,
        packets: int,
        octets: int,
    ) -> None:
        """Send `count` datagrams of `stride` bytes, the last one maybe shorter: in one go where the
        kernel cuts them, else one by one. `data` is all of them, or header and body by turns."""
        records = count if len(data) == 1 else 1
        if count == 1:
            self._account(binding, records, packets, octets, self._try_send(binding, data))
            return
        if binding.gso:
            segment = (socket.SOL_UDP, _UDP_SEGMENT, _U16.pack(stride))
            error = self._try_send(binding, data, (segment,))
            if error == errno.EMSGSIZE:  # maybe an earlier datagram's: a router told of its MTU
                error = self._try_send(binding, data, (segment,))
            if error not in _GSO_REFUSED:
                self._account(binding, records, packets, octets, error)
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
            share, records = (1, records - 1) if records else (0, 0)
            self._account(binding, share, some, more, self._try_send(binding, one))

    def _try_send(
        self, binding: Binding, data: Sequence[memoryview], ancillary: Sequence[Any] = ()
    ) -> int:
        """errno of the send, 0 if it went out. Waits once, and briefly, for a full socket."""
        try:
            try:
                binding.send(data, ancillary)
            except BlockingIOError:
                self._wait(binding)
                binding.send(data, ancillary)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _wait(self, binding: Binding) -> None:
        """Wait for a full socket. Where it is one client's own, all others wait for that client:
        so for no longer than its bytes would have taken on a fast line."""
        self._drops[TURNS] += 1  # many waits make a long turn, but it does not hang
        if binding.may_wait_ms < 1:
            return
        poll = select.poll()
        poll.register(binding.socket, select.POLLOUT)
        began_ns = monotonic_ns()
        poll.poll(binding.may_wait_ms)
        if not binding.shared:
            binding.may_wait_ms -= (monotonic_ns() - began_ns) / 1e6

    def _account(
        self, binding: Binding, records: int, packets: int, octets: int, error: int
    ) -> None:
        now_ms = clock_ms()
        words, at = self._words, binding.counters_at
        if error:
            binding.unsent += records
            words[at + TX_UNSENT] = binding.unsent
        if not error:
            words[at + TX_PACKETS] += packets
            words[at + TX_BYTES] += octets
            words[at + LAST_TX_MS] = now_ms
            if binding.may_wait_ms < SEND_WAIT_MS:
                binding.may_wait_ms += octets * WAIT_EARNED_MS
            if now_ms >= binding.next_look_ms:
                self._exchange_reports(binding, now_ms)
        elif error in (errno.EAGAIN, errno.ENOBUFS):
            self._drops[Drop.SEND_BUFFER] += packets
        else:
            self._drops[Drop.SEND_ERROR] += packets
            if now_ms >= binding.next_error_ms:
                binding.next_error_ms = now_ms + ERROR_EVERY_MS
                self._report(Report(ReportKind.SEND_ERROR, binding.slot, error))

    def _exchange_reports(self, binding: Binding, now_ms: int) -> None:
        """Tell the peer what came from it, and hear what it said of ours."""
        binding.next_look_ms = now_ms + REPORT_EVERY_MS
        words, at = self._words, binding.counters_at
        told_ms = words[at + PEER_TOLD_MS]
        if now_ms - told_ms > SILENT_AFTER_MS:
            binding.clean.silent()
        elif told_ms != binding.told_ms and self._may_span:
            binding.told_ms = told_ms
            binding.clean.told(words[at + PEER_RECORDS], words[at + PEER_MISSING])
        self._take_limit(binding)
        frame = FRAME.pack(FLAG_REPORT, REPORT.size, 0)
        words[at + TX_UNSENT] = binding.unsent
        limit = binding.own_limit if binding.shared else 0
        frame += REPORT.pack(
            words[at + RX_RECORDS], words[at + RX_MISSING], binding.unsent, limit
        )
        end = binding.sealer.seal(memoryview(frame), self._report_memory, 0)
        with contextlib.suppress(OSError):  # the next one says it all again
            binding.send((self._report_memory[:end],))

    def _take_limit(self, binding: Binding) -> None:
        """Hear what the peer says of the path; a tiny limit would only cost us."""
        words, at = self._path_words, binding.counters_at
        if binding.shared and words[at + PEER_TOLD_MS] != binding.limit_told_ms:
            binding.limit_told_ms = words[at + PEER_TOLD_MS]
            told = words[at + PEER_LIMIT]
            binding.peer_limit = max(told, SAFE_DATAGRAM) if told else 0
            binding.fit()
