"""Cut the kernel's super-packets as its own segmentation would (net/ipv4/tcp_offload.c,
udp_offload.c and af_inet.c): where, and what the headers of the pieces say. No IO."""

from __future__ import annotations

import struct
from typing import Final

from jvpnd.core.wire import FLAG_NEEDS_CHECKSUM
from jvpnd.dataplane import vnet
from jvpnd.dataplane.inner import (
    TCP,
    UDP,
    Inner,
    checksum,
    checksum_offset,
    complete_checksum,
    parse,
    pseudo_sum,
)
from jvpnd.dataplane.seal import Cut

_FIN_PSH: Final = 0x09
_CWR: Final = 0x80
_V4_PROTOCOL = struct.Struct("!B5xHxB")
_CHECKSUM_AT: Final = {TCP: checksum_offset(TCP), UDP: checksum_offset(UDP)}
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")
_GSO_PROTOCOLS: Final = {
    vnet.GSO_TCPV4: (4, TCP),
    vnet.GSO_TCPV6: (6, TCP),
    vnet.GSO_UDP_L4: (0, UDP),
}


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
    if csum_start == 20 and len(packet) >= 40:  # nearly all: IPv4 without options, no fragment
        first, fragment, protocol = _V4_PROTOCOL.unpack_from(packet)
        if first == 0x45 and not fragment & 0x3FFF and _CHECKSUM_AT.get(protocol) == csum_offset:
            return FLAG_NEEDS_CHECKSUM
    inner = parse(packet)
    if (
        inner is not None
        and inner.end
        and inner.transport == csum_start
        and csum_offset == checksum_offset(inner.protocol)
    ):
        return FLAG_NEEDS_CHECKSUM
    return 0 if complete_checksum(packet, csum_start, csum_offset) else None


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


def settle_super(packet: memoryview, inner: Inner) -> None:
    """Write a whole super-packet's length and checksum fields, whatever they were."""
    transport = inner.transport
    segment_len = len(packet) - transport
    if inner.version == 4:
        _U16.pack_into(packet, 10, 0)
        _U16.pack_into(packet, 10, checksum(packet[:transport]))
    if inner.protocol == UDP:
        _U16.pack_into(packet, transport + 4, segment_len)
    partial = pseudo_sum(inner.source, inner.destination, inner.protocol, segment_len)
    _U16.pack_into(packet, transport + checksum_offset(inner.protocol), partial)


def gso_prefix(header: bytes | bytearray | memoryview, inner: Inner, gso_size: int) -> bytes:
    """The virtio_net_hdr in front of `header`, which has a partial checksum; `gso_size` is 0 for
    a packet that needs no cutting."""
    gso_type = 0
    if gso_size:
        if inner.protocol == UDP:
            gso_type = vnet.GSO_UDP_L4
        else:
            gso_type = vnet.GSO_TCPV4 if inner.version == 4 else vnet.GSO_TCPV6
            if header[inner.transport + 13] & _CWR:
                gso_type |= vnet.GSO_ECN
    offset = checksum_offset(inner.protocol)
    return vnet.HEADER.pack(
        vnet.NEEDS_CSUM, gso_type, inner.end, gso_size, inner.transport, offset
    )
