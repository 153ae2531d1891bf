"""Turn opened records into frames for the TUN: check, join slices, fill in headers. No IO.

Nothing of what goes to the kernel beside a packet is the peer's word: lengths, offsets and
offload fields are computed from what is parsed here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

from jvpnd.core.wire import (
    FLAG_LAST,
    FLAG_NEEDS_CHECKSUM,
    FLAG_REPORT,
    FLAG_SLICE,
    FRAME,
    FRAME_LEN,
    MAX_SUPER_SLICES,
    REPORT,
)
from jvpnd.dataplane import vnet
from jvpnd.dataplane.counters import Drop
from jvpnd.dataplane.inner import (
    TCP,
    UDP,
    Inner,
    checksum_offset,
    complete_checksum,
    parse,
    source_of,
)
from jvpnd.dataplane.networks import PrefixTable
from jvpnd.dataplane.segment import gso_prefix, patch_header, settle_super

MAX_RUN: Final = 512  # slices written at once; the kernel takes at most 1024 vectors

_V4 = struct.Struct("!BxHxxHxBxx4s")  # first byte, total length, fragment, protocol, source
_NO_OPTIONS: Final = 0x45
_FRAGMENT_BITS: Final = 0x3FFF
_PARTIAL_V4: Final = {  # behind an IPv4 header without options: prefix, shortest packet
    TCP: (vnet.HEADER.pack(vnet.NEEDS_CSUM, 0, 40, 0, 20, checksum_offset(TCP)), 40),
    UDP: (vnet.HEADER.pack(vnet.NEEDS_CSUM, 0, 28, 0, 20, checksum_offset(UDP)), 28),
}

Frame = Sequence[bytes | bytearray | memoryview]
"""What one writev to the TUN takes."""


class _Run:
    """Consecutive slices of one super-packet: `number` slices of `gso_size` bytes, the last of
    which has `last_len`, say the lengths in its header."""

    __slots__ = (
        "first", "full_len", "gso_size", "header", "inner", "last_len", "next", "number", "slices"
    )  # fmt: skip

    def __init__(self, header: bytes, inner: Inner, gso_size: int, first: int) -> None:
        payload = inner.total_len - inner.end
        self.header = header
        self.inner = inner
        self.gso_size = gso_size
        self.first = first
        self.next = first
        self.number = -(-payload // gso_size)
        self.full_len = FRAME_LEN + len(header) + gso_size  # of a plain text
        self.last_len = payload - (self.number - 1) * gso_size
        self.slices: list[memoryview] = []

    def ends_with(self, index: int, length: int) -> bool:
        """Whether the super-packet's last slice is number `index`, and that long."""
        return index == self.number - 1 and length == self.last_len


class Joiner:
    """Turns plain texts of DATA records into frames for the TUN.

    Frames go to `emit` in the order the packets came in. `packets` and `octets` count the inner
    packets that were good, as they would have been on a wire; `report` is the peer's newest
    report. Slices are not copied: the memory given to `feed` must stay untouched until the frame
    is emitted, at the latest by `flush`.
    """

    def __init__(
        self,
        *,
        has_vnet: bool,
        tso: bool,
        uso: bool,
        emit: Callable[[Frame], None],
        drops: memoryview,
    ) -> None:
        self._has_vnet = has_vnet
        self._joinable = {TCP: has_vnet and tso, UDP: has_vnet and uso}
        self._emit = emit
        self._drops = drops
        self._run: _Run | None = None
        self._sources: PrefixTable[bool] = PrefixTable()
        self.packets = 0
        self.octets = 0
        self.report: tuple[int, int, int, int] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing waits for more slices."""
        return self._run is None

    def feed(
        self,
        sources: PrefixTable[bool],
        memory: bytearray,
        view: memoryview,
        opened: Sequence[tuple[int, int]],
    ) -> None:
        """Take the plain texts at memory[offset:offset+length], all from one session.

        `view` is a view of `memory`; `sources` are the inner addresses the session may use.
        """
        if sources is not self._sources:
            self.flush()
            self._sources = sources
        unpack, starts_with = FRAME.unpack_from, memory.startswith
        for start, length in opened:
            if length < FRAME_LEN:
                self._drops[Drop.MALFORMED] += 1
                continue
            flags, index, gso_size = unpack(memory, start)
            if not flags & FLAG_SLICE:
                self._take_frames(memory, view, start, start + length)
                continue
            run = self._run
            if (  # the way of nearly all slices: one more full one of the run that is open
                run is not None
                and flags == FLAG_SLICE
                and length == run.full_len
                and index == run.next
                and gso_size == run.gso_size
                and index < run.number - 1
                and len(run.slices) < MAX_RUN
                and starts_with(run.header, start + FRAME_LEN)
            ):
                run.next = index + 1
                run.slices.append(view[start + length - gso_size : start + length])
                self.packets += 1
                self.octets += length - FRAME_LEN
            else:
                packet = view[start + FRAME_LEN : start + length]
                self._take_slice(flags, index, gso_size, packet)

    def flush(self) -> None:
        """Emit the run that waits for more, if any."""
        run = self._run
        self._run = None
        if run is not None:
            last = run.next == run.number
            length = len(run.slices) * run.gso_size
            if last:
                length += run.last_len - run.gso_size
            header, inner, first, gso_size = run.header, run.inner, run.first, run.gso_size
            self._emit_part(header, inner, first, gso_size, run.slices, length, last)

    def _take_frames(self, memory: bytearray, view: memoryview, at: int, end: int) -> None:
        self.flush()
        unpack = FRAME.unpack_from
        while at < end:
            begin = at + FRAME_LEN
            if begin > end:
                self._drops[Drop.MALFORMED] += 1
                return
            flags, length, gso_size = unpack(memory, at)
            at = begin + length
            if at > end:
                self._drops[Drop.MALFORMED] += 1
                return
            if flags > FLAG_NEEDS_CHECKSUM:
                if flags == FLAG_REPORT and length == REPORT.size:
                    self.report = REPORT.unpack_from(memory, begin)
                else:
                    self._drops[Drop.MALFORMED] += 1
            elif gso_size:
                self._take_super(view[begin:at], gso_size)
            else:
                self._take_packet(flags, view[begin:at])

    def _take_packet(self, flags: int, packet: memoryview) -> None:
        size = len(packet)
        prefix, source = vnet.PLAIN, None
        if size >= 20:
            first, total, fragment, protocol, source = _V4.unpack_from(packet)
            if first != _NO_OPTIONS or total != size:
                source = source_of(packet)
        if source is None:
            self._drops[Drop.MALFORMED] += 1
            return
        if not self._sources.everything and not self._sources.lookup(source):
            self._drops[Drop.BAD_SOURCE] += 1
            return
        if flags:
            known = _PARTIAL_V4.get(protocol)
            if first == _NO_OPTIONS and known and self._has_vnet and size >= known[1]:
                prefix = known[0]
                if fragment & _FRAGMENT_BITS:
                    self._drops[Drop.MALFORMED] += 1
                    return
            else:
                inner = parse(packet)
                if inner is None or not inner.end:
                    self._drops[Drop.MALFORMED] += 1
                    return
                if self._has_vnet:
                    prefix = gso_prefix(b"", inner, 0)
                else:
                    offset = checksum_offset(inner.protocol)
                    complete_checksum(packet, inner.transport, offset)
        self.packets += 1
        self.octets += size
        self._emit((prefix, packet) if self._has_vnet else (packet,))

    def _take_super(self, packet: memoryview, gso_size: int) -> None:
        inner = parse(packet)
        if inner is None or not inner.end or inner.total_len != len(packet):
            self._drops[Drop.MALFORMED] += 1
            return
        payload = len(packet) - inner.end
        count = -(-payload // gso_size)
        if not 0 < count <= MAX_SUPER_SLICES:
            self._drops[Drop.MALFORMED] += 1
            return
        if not self._allowed(inner):
            return
        self.packets += count
        self.octets += payload + count * inner.end
        if self._joinable[inner.protocol]:
            settle_super(packet, inner)
            self._emit((gso_prefix(packet, inner, gso_size if count > 1 else 0), packet))
            return
        header, body = bytes(packet[: inner.end]), packet[inner.end :]
        for number in range(count):
            piece = body[number * gso_size : (number + 1) * gso_size]
            last = number == count - 1
            self._emit_part(header, inner, number, gso_size, (piece,), len(piece), last)

    def _take_slice(self, flags: int, index: int, gso_size: int, packet: memoryview) -> None:
        if flags not in (FLAG_SLICE, FLAG_SLICE | FLAG_LAST):
            self._drops[Drop.MALFORMED] += 1
            return
        run = self._run
        if (
            run is None
            or index != run.next
            or gso_size != run.gso_size
            or len(run.slices) == MAX_RUN
            or packet[: len(run.header)] != run.header
        ):
            self.flush()
            run = self._open_run(packet, gso_size, index)
            if run is None:
                return
        last = flags != FLAG_SLICE
        piece = packet[len(run.header) :]
        whole = len(piece) == gso_size and index < run.number - 1
        if not (run.ends_with(index, len(piece)) if last else whole):
            self._drops[Drop.MALFORMED] += 1
            return
        run.slices.append(piece)
        run.next = index + 1
        self._run = run
        self.packets += 1
        self.octets += len(packet)
        if last or not self._joinable[run.inner.protocol]:
            self.flush()

    def _open_run(self, packet: memoryview, gso_size: int, first: int) -> _Run | None:
        inner = parse(packet)
        if inner is None or not inner.end or not gso_size:
            self._drops[Drop.MALFORMED] += 1
            return None
        if not self._allowed(inner):
            return None
        return _Run(bytes(packet[: inner.end]), inner, gso_size, first)

    def _allowed(self, inner: Inner) -> bool:
        if self._sources.everything or self._sources.lookup(inner.source):
            return True
        self._drops[Drop.BAD_SOURCE] += 1
        return False

    def _emit_part(
        self,
        header: bytes,
        inner: Inner,
        first: int,
        gso_size: int,
        pieces: Sequence[memoryview],
        length: int,
        last: bool,
    ) -> None:
        """Emit the `length` bytes that begin at slice `first` of a super-packet."""
        patched = patch_header(header, inner, first, gso_size, length, last)
        if self._has_vnet:
            prefix = gso_prefix(patched, inner, gso_size if length > gso_size else 0)
            self._emit((prefix, patched, *pieces))
        else:
            packet = patched + b"".join(pieces)
            complete_checksum(packet, inner.transport, checksum_offset(inner.protocol))
            self._emit((packet,))
