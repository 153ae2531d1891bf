"""What Linux makes of a frame with a virtio_net_hdr: the packets that leave a device without any
offload. A model written from the rules, knowing nothing of the project, to judge it by.

The rules: virtio 1.2 section 5.1.6 (the header), RFC 791, 8200, 768, 9293, and what segmentation
offload promises (Documentation/networking/segmentation-offloads.rst). test_kernelmodel.py holds the
model against the running kernel.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

VNET: Final = struct.Struct("=BBHHHH")
"""flags, gso_type, hdr_len, gso_size, csum_start, csum_offset."""
NEEDS_CSUM, DATA_VALID = 1, 2
TCPV4, TCPV6, UDP_L4 = 1, 4, 5
ECN: Final = 0x80

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
FIN, PSH, CWR = 0x01, 0x08, 0x80
_FIELD: Final = {TCP: 16, UDP: 6}  # where the checksum stands in its header
_KINDS: Final = {TCPV4: (4, TCP), TCPV6: (6, TCP), UDP_L4: (None, UDP)}


class RefusedError(Exception):
    """The kernel would not take this, or drop it before any receiver saw it."""


def fold(total: int) -> int:
    """A sum in ones' complement, in 16 bits."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ones_sum(data: bytes | bytearray) -> int:
    """The ones' complement sum of big-endian words, an odd byte padded with a zero (RFC 1071)."""
    if len(data) % 2:
        data = bytes(data) + b"\0"
    return fold(sum(struct.unpack(f"!{len(data) // 2}H", data)))


@dataclass(frozen=True)
class Layout:
    """Where the transport header begins; `end` is behind it, None where there is no whole one."""

    version: int
    protocol: int
    start: int
    end: int | None
    fragment: bool

    @property
    def field(self) -> int:
        """Offset of the checksum in the packet."""
        return self.start + _FIELD[self.protocol]


def layout(packet: bytes | bytearray) -> Layout:
    """The headers of an IP packet whose length is what it says; RefusedError for anything else."""
    version = packet[0] >> 4 if packet else 0
    if version == 4:
        return _layout_v4(packet)
    if version == 6:
        return _layout_v6(packet)
    raise RefusedError(f"IP version {version}")


def _layout_v4(packet: bytes | bytearray) -> Layout:
    start = 4 * (packet[0] & 15)
    if len(packet) < 20 or not 20 <= start <= len(packet):
        raise RefusedError("IPv4 header does not fit")
    if int.from_bytes(packet[2:4], "big") != len(packet):
        raise RefusedError("IPv4 total length is not the length")
    fragment = int.from_bytes(packet[6:8], "big") & 0x3FFF != 0
    return Layout(4, packet[9], start, _transport_end(packet, packet[9], start), fragment)


def _layout_v6(packet: bytes | bytearray) -> Layout:
    if len(packet) < 40:
        raise RefusedError("IPv6 header does not fit")
    if int.from_bytes(packet[4:6], "big") != len(packet) - 40:
        raise RefusedError("IPv6 payload length is not the length")
    protocol, start, fragment = packet[6], 40, False
    while protocol in (HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION):
        if start + 8 > len(packet):
            return Layout(6, protocol, start, None, fragment)
        size = 8 if protocol == FRAGMENT else 8 * (packet[start + 1] + 1)
        fragment |= protocol == FRAGMENT
        protocol, start = packet[start], start + size
    return Layout(6, protocol, start, _transport_end(packet, protocol, start), fragment)


def _transport_end(packet: bytes | bytearray, protocol: int, start: int) -> int | None:
    size = 8
    if protocol == TCP and start + 20 <= len(packet):
        size = 4 * (packet[start + 12] >> 4)
        if size < 20:
            return None
    elif protocol != UDP:
        return None
    return start + size if start + size <= len(packet) else None


def pseudo_sum(packet: bytes | bytearray, at: Layout) -> int:
    """The pseudo-header's sum over the addresses in the IP header (RFC 9293, 8200 section 8.1)."""
    addresses = packet[12:20] if at.version == 4 else packet[8:40]
    return fold(ones_sum(addresses) + at.protocol + len(packet) - at.start)


def check(packet: bytes) -> None:
    """RefusedError unless a careful receiver would take the packet: lengths and every checksum."""
    at = layout(packet)
    if at.version == 4 and ones_sum(packet[: 4 * (packet[0] & 15)]) != 0xFFFF:
        raise RefusedError("IPv4 header checksum")
    if at.fragment or at.protocol not in _FIELD:
        return
    if at.end is None:
        raise RefusedError("transport header does not fit")
    if at.protocol == UDP:
        if int.from_bytes(packet[at.start + 4 : at.start + 6], "big") != len(packet) - at.start:
            raise RefusedError("UDP length is not the length")
        if at.version == 4 and not any(packet[at.field : at.field + 2]):
            return  # sent without a checksum
        if not any(packet[at.field : at.field + 2]):
            raise RefusedError("UDP over IPv6 without a checksum")
    if fold(pseudo_sum(packet, at) + ones_sum(packet[at.start :])) != 0xFFFF:
        raise RefusedError("transport checksum")


def on_the_wire(frame: bytes) -> list[bytes]:
    """The packets that a frame stands for, in order; RefusedError where the kernel makes none."""
    if len(frame) < VNET.size:
        raise RefusedError("no virtio_net_hdr")
    flags, gso_type, hdr_len, gso_size, start, offset = VNET.unpack_from(frame)
    packet = frame[VNET.size :]
    at = layout(packet)
    if flags & ~(NEEDS_CSUM | DATA_VALID):
        raise RefusedError(f"flags {flags}")
    if hdr_len > len(packet):
        raise RefusedError("hdr_len beyond the packet")
    if not flags & NEEDS_CSUM:
        if gso_type:
            raise RefusedError("segmentation without a checksum")
        return [packet]
    if start + offset + 2 > len(packet):
        raise RefusedError("checksum beyond the packet")
    if gso_type:
        return _segments(packet, at, gso_type, gso_size, start, offset)
    return [_summed(bytearray(packet), start, start + offset)]


def _summed(packet: bytearray, start: int, field: int) -> bytes:
    """The field holds the sum of what is not in the packet; here comes the rest."""
    # Linux writes 0xFFFF for 0 also where both mean the same (all but UDP), if it cuts nothing.
    struct.pack_into("!H", packet, field, ~ones_sum(packet[start:]) & 0xFFFF or 0xFFFF)
    return bytes(packet)


def _segments(
    packet: bytes, at: Layout, gso_type: int, gso_size: int, start: int, offset: int
) -> list[bytes]:
    version, protocol = _KINDS.get(gso_type & ~ECN, (None, None))
    if protocol is None or protocol != at.protocol or version not in (None, at.version):
        raise RefusedError(f"gso_type {gso_type} for IPv{at.version} protocol {at.protocol}")
    if at.end is None or at.fragment:
        raise RefusedError("nothing to segment")
    if (start, start + offset) != (at.start, at.field):
        raise RefusedError("checksum elsewhere than in the transport header")
    if not 0 < gso_size < 0xFFFF or len(packet) - at.end <= gso_size:
        raise RefusedError(f"gso_size {gso_size} for {len(packet) - at.end} bytes")
    if protocol == UDP and gso_type & ECN:
        raise RefusedError("ECN for UDP")
    udp_len = int.from_bytes(packet[start + 4 : start + 6], "big")
    if protocol == UDP and udp_len != len(packet) - start:
        raise RefusedError("UDP length is not the length")
    if version == 4 and ones_sum(packet[: 4 * (packet[0] & 15)]) != 0xFFFF:
        raise RefusedError("IPv4 header checksum")
    payloads = range(at.end, len(packet), gso_size)
    return [
        _segment(packet, at, number, payload, gso_size, payload == payloads[-1])
        for number, payload in enumerate(payloads)
    ]


def _segment(
    packet: bytes, at: Layout, number: int, payload: int, gso_size: int, last: bool
) -> bytes:
    """Segment `number`, whose payload begins at packet[payload]."""
    segment = bytearray(packet[: at.end] + packet[payload : payload + gso_size])
    start, field = at.start, at.field
    before, after = len(packet) - start, len(segment) - start
    if at.version == 4:
        identification = int.from_bytes(packet[4:6], "big") + number
        struct.pack_into("!HH", segment, 2, len(segment), identification & 0xFFFF)
        segment[10:12] = b"\0\0"
        struct.pack_into("!H", segment, 10, ~ones_sum(segment[: 4 * (segment[0] & 15)]) & 0xFFFF)
    else:
        struct.pack_into("!H", segment, 4, len(segment) - 40)
    if at.protocol == UDP:
        struct.pack_into("!H", segment, start + 4, after)
    else:
        sequence = int.from_bytes(packet[start + 4 : start + 8], "big") + number * gso_size
        struct.pack_into("!I", segment, start + 4, sequence & 0xFFFFFFFF)
        if not last:
            segment[start + 13] &= ~(FIN | PSH)
        if number:
            segment[start + 13] &= ~CWR
    # Of the pseudo-header only the length changes: what is wrong in the partial sum stays wrong.
    partial = int.from_bytes(packet[field : field + 2], "big")
    struct.pack_into("!H", segment, field, fold(partial + (~before & 0xFFFF) + after))
    return _summed(segment, start, field)
