"""Cut the kernel's super-packets into slices and join slices into super-packets. No IO.

What comes out of a joined run is what the kernel's own segmentation would have sent
(net/ipv4/tcp_offload.c, udp_offload.c and af_inet.c), once the receiving kernel cuts it again.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

from jvpnd.core.wire import FLAG_LAST, FLAG_NEEDS_CHECKSUM, FLAG_SEGMENT, SEGMENT
from jvpnd.dataplane import vnet
from jvpnd.dataplane.counters import Drop
from jvpnd.dataplane.inner import (
    TCP,
    UDP,
    Inner,
    checksum,
    checksum_offset,
    complete_checksum,
    parse,
    pseudo_sum,
    source_of,
)
from jvpnd.dataplane.networks import PrefixTable
from jvpnd.dataplane.seal import FLAGS_LEN, SEGMENT_PREFIX_LEN, Cut

MAX_RUN: Final = 512  # slices written at once; the kernel takes at most 1024 vectors

_FIN_PSH: Final = 0x09
_CWR: Final = 0x80
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")
_GSO_PROTOCOLS: Final = {
    vnet.GSO_TCPV4: (4, TCP),
    vnet.GSO_TCPV6: (6, TCP),
    vnet.GSO_UDP_L4: (0, UDP),
}

Frame = Sequence[bytes | bytearray | memoryview]
"""What one writev to the TUN takes."""


def plan_cut(
    frame: memoryview, at: int, gso_type: int, gso_size: int, csum_start: int
) -> Cut | None:
    """How to cut the super-packet frame[at:], None if it is of a kind that was never offered."""
    packet = frame[at:]
    inner = parse(packet)
    version, protocol = _GSO_PROTOCOLS.get(gso_type & ~vnet.GSO_ECN, (0, 0))
    if (
        inner is None
        or not inner.end
        or inner.protocol != protocol
        or version not in (0, inner.version)
        or inner.transport != csum_start
        or inner.total_len != len(packet)
        or not gso_size
    ):
        return None
    payload = len(packet) - inner.end
    if not payload:
        return None
    return Cut(at, len(frame), bytes(packet[: inner.end]), gso_size, -(-payload // gso_size))


def settle_checksum(packet: memoryview, csum_start: int, csum_offset: int) -> int | None:
    """The flags for a packet with a partial checksum.

    A plain TCP or UDP checksum is left to the receiver; one that stands anywhere else (inside a
    tunnel in the tunnel, say) is completed here. None if the field lies outside the packet.
    """
    inner = parse(packet)
    if (
        inner is not None
        and inner.end
        and inner.transport == csum_start
        and csum_offset == checksum_offset(inner.protocol)
    ):
        return FLAG_NEEDS_CHECKSUM
    return 0 if complete_checksum(packet, csum_start, csum_offset) else None


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
        self.full_len = SEGMENT_PREFIX_LEN + len(header) + gso_size  # of a plain text
        self.last_len = payload - (self.number - 1) * gso_size
        self.slices: list[memoryview] = []

    def ends_with(self, index: int, length: int) -> bool:
        """Whether the super-packet's last slice is number `index`, and that long."""
        return index == self.number - 1 and length == self.last_len


class Joiner:
    """Turns plain texts of DATA packets into frames for the TUN.

    Frames go to `emit` in the order the packets came in. `packets` and `octets` count the inner
    packets that were good, as they would have been on a wire. Slices are not copied: the memory
    given to `feed` must stay untouched until the frame is emitted, at the latest by `flush`.
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
        self._sources: PrefixTable[bool] | None = None
        self.packets = 0
        self.octets = 0

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
        unpack, starts_with = SEGMENT.unpack_from, memory.startswith
        for start, length in opened:
            flags = memory[start] if length else -1
            run = self._run
            if run is not None and flags == FLAG_SEGMENT and length == run.full_len:
                # The way of nearly all: one more full slice of the run that is open.
                index, gso_size = unpack(memory, start + FLAGS_LEN)
                if (
                    index == run.next
                    and gso_size == run.gso_size
                    and index < run.number - 1
                    and len(run.slices) < MAX_RUN
                    and starts_with(run.header, start + SEGMENT_PREFIX_LEN)
                ):
                    run.next = index + 1
                    run.slices.append(view[start + length - gso_size : start + length])
                    self.packets += 1
                    self.octets += length - SEGMENT_PREFIX_LEN
                    continue
            plain = view[start : start + length]
            if flags in (FLAG_SEGMENT, FLAG_SEGMENT | FLAG_LAST):
                self._take_slice(plain, flags != FLAG_SEGMENT)
            else:
                self._take_packet(flags, plain[FLAGS_LEN:])

    def flush(self) -> None:
        """Emit the run that waits for more, if any."""
        run = self._run
        self._run = None
        if run is not None:
            self._emit(self._frame_of(run))

    def _take_packet(self, flags: int, packet: memoryview) -> None:
        self.flush()
        source = source_of(packet) if flags in (0, FLAG_NEEDS_CHECKSUM) else None
        if source is None or self._sources is None:
            self._drops[Drop.MALFORMED] += 1
            return
        if not self._sources.everything and not self._sources.lookup(source):
            self._drops[Drop.BAD_SOURCE] += 1
            return
        prefix = vnet.PLAIN
        if flags:
            inner = parse(packet)
            if inner is None or not inner.end:
                self._drops[Drop.MALFORMED] += 1
                return
            start, offset = inner.transport, checksum_offset(inner.protocol)
            if self._has_vnet:
                prefix = vnet.HEADER.pack(vnet.NEEDS_CSUM, 0, inner.end, 0, start, offset)
            else:
                complete_checksum(packet, start, offset)
        self.packets += 1
        self.octets += len(packet)
        self._emit((prefix, packet) if self._has_vnet else (packet,))

    def _take_slice(self, plain: memoryview, last: bool) -> None:
        if len(plain) <= SEGMENT_PREFIX_LEN:
            self._drops[Drop.MALFORMED] += 1
            return
        index, gso_size = SEGMENT.unpack_from(plain, FLAGS_LEN)
        packet = plain[SEGMENT_PREFIX_LEN:]
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
        if inner is None or not inner.end or not gso_size or self._sources is None:
            self._drops[Drop.MALFORMED] += 1
            return None
        if not self._sources.everything and not self._sources.lookup(inner.source):
            self._drops[Drop.BAD_SOURCE] += 1
            return None
        return _Run(bytes(packet[: inner.end]), inner, gso_size, first)

    def _frame_of(self, run: _Run) -> Frame:
        inner = run.inner
        last = run.next == run.number
        length = len(run.slices) * run.gso_size
        if last:
            length += run.last_len - run.gso_size
        header = patch_header(run.header, inner, run.first, run.gso_size, length, last)
        offset = checksum_offset(inner.protocol)
        if not self._has_vnet:
            packet = header + b"".join(run.slices)
            complete_checksum(packet, inner.transport, offset)
            return (packet,)
        gso_type = gso_size = 0
        if len(run.slices) > 1:
            gso_size = run.gso_size
            if inner.protocol == UDP:
                gso_type = vnet.GSO_UDP_L4
            else:
                gso_type = vnet.GSO_TCPV4 if inner.version == 4 else vnet.GSO_TCPV6
                if header[inner.transport + 13] & _CWR:
                    gso_type |= vnet.GSO_ECN
        prefix = vnet.HEADER.pack(
            vnet.NEEDS_CSUM, gso_type, inner.end, gso_size, inner.transport, offset
        )
        return (prefix, header, *run.slices)


def patch_header(
    header: bytes, inner: Inner, first: int, gso_size: int, payload: int, last: bool
) -> bytearray:
    """The header for `payload` bytes that begin at slice `first` of the super-packet.

    The transport checksum is left partial (the pseudo-header's sum).
    """
    patched = bytearray(header)
    length = len(header) + payload
    transport = inner.transport
    segment_len = length - transport
    if inner.version == 4:
        _U16.pack_into(patched, 2, length)
        identification = _U16.unpack_from(patched, 4)[0] + first
        _U16.pack_into(patched, 4, identification & 0xFFFF)
        _U16.pack_into(patched, 10, 0)
        _U16.pack_into(patched, 10, checksum(patched[:transport]))
    else:
        _U16.pack_into(patched, 4, length - 40)
    if inner.protocol == UDP:
        _U16.pack_into(patched, transport + 4, segment_len)
    else:
        sequence = _U32.unpack_from(patched, transport + 4)[0] + first * gso_size
        _U32.pack_into(patched, transport + 4, sequence & 0xFFFFFFFF)
        if not last:
            patched[transport + 13] &= ~_FIN_PSH
        if first:
            patched[transport + 13] &= ~_CWR
    partial = pseudo_sum(inner.source, inner.destination, inner.protocol, segment_len)
    _U16.pack_into(patched, transport + checksum_offset(inner.protocol), partial)
    return patched
