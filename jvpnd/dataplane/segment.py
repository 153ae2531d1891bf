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
    """Consecutive slices of one super-packet, all but its last one `gso_size` bytes long."""

    __slots__ = ("first", "gso_size", "header", "inner", "last", "length", "next", "slices")

    def __init__(self, header: bytes, inner: Inner, gso_size: int, first: int) -> None:
        self.header = header
        self.inner = inner
        self.gso_size = gso_size
        self.first = first
        self.next = first
        self.slices: list[memoryview] = []
        self.length = 0
        self.last = False

    def fits(self, index: int, length: int, last: bool) -> bool:
        """Whether a slice of that length stands at that index, as the super-packet's header has
        it: it ends exactly where the packet ends if it is the last one, before if not."""
        payload = self.inner.total_len - self.inner.end
        end = index * self.gso_size + length
        if last:
            return 0 < length <= self.gso_size and end == payload
        return length == self.gso_size and end < payload

    def add(self, piece: memoryview, last: bool) -> None:
        self.slices.append(piece)
        self.length += len(piece)
        self.next += 1
        self.last = last


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
        unpack = SEGMENT.unpack_from
        for start, length in opened:
            flags = memory[start] if length > FLAGS_LEN else -1
            if not flags & FLAG_SEGMENT or flags < 0:
                self._take_packet(flags, view[start + FLAGS_LEN : start + length])
                continue
            if length <= SEGMENT_PREFIX_LEN or flags & ~(FLAG_SEGMENT | FLAG_LAST):
                self._drops[Drop.MALFORMED] += 1
                continue
            index, gso_size = unpack(memory, start + FLAGS_LEN)
            packet = start + SEGMENT_PREFIX_LEN
            last = flags & FLAG_LAST != 0
            run = self._run
            if (
                run is None
                or index != run.next
                or gso_size != run.gso_size
                or not memory.startswith(run.header, packet)
            ):
                self.flush()
                run = self._open_run(view[packet : start + length], gso_size, index)
                if run is None:
                    continue
            piece = packet + len(run.header)
            end = start + length
            if not run.fits(index, end - piece, last):
                self._drops[Drop.MALFORMED] += 1
                continue
            run.add(view[piece:end], last)
            self.packets += 1
            self.octets += end - packet
            if last or len(run.slices) == MAX_RUN or not self._joinable[run.inner.protocol]:
                self.flush()

    def flush(self) -> None:
        """Emit the run that waits for more, if any."""
        run = self._run
        self._run = None
        if run is not None and run.slices:
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

    def _open_run(self, packet: memoryview, gso_size: int, first: int) -> _Run | None:
        inner = parse(packet)
        if inner is None or not inner.end or not gso_size or self._sources is None:
            self._drops[Drop.MALFORMED] += 1
            return None
        if not self._sources.everything and not self._sources.lookup(inner.source):
            self._drops[Drop.BAD_SOURCE] += 1
            return None
        self._run = _Run(bytes(packet[: inner.end]), inner, gso_size, first)
        return self._run

    def _frame_of(self, run: _Run) -> Frame:
        header = patch_header(run.header, run.inner, run.first, run.gso_size, run.length, run.last)
        inner = run.inner
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
