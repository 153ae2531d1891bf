"""Read the IP packets inside the tunnel: where the headers are, and the Internet checksum.

Everything here works on untrusted bytes: what is malformed gives None, never an exception.
RFC 791 (IPv4), RFC 8200 (IPv6), RFC 9293 (TCP), RFC 768 (UDP), RFC 1071 (checksum).
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final, NamedTuple

TCP: Final = 6
UDP: Final = 17

_U16 = struct.Struct("!H")
_HOP_BY_HOP: Final = 0
_DESTINATION_OPTIONS: Final = 60
_MAX_EXTENSIONS: Final = 8
_V6_HEADER: Final = 40
_FRAGMENT_BITS: Final = 0x3FFF  # more fragments, and the offset


class Inner(NamedTuple):
    """Where the parts of one IP packet are; offsets in bytes from its first byte."""

    version: int
    protocol: int  # TCP or UDP when `end` is set, else whatever stands there
    source: bytes
    destination: bytes
    total_len: int  # as the IP header says
    transport: int  # offset of the transport header
    end: int  # where the TCP or UDP header ends; 0 if there is none to be worked on


def parse(packet: memoryview) -> Inner | None:
    """Find the headers of an IP packet, or None if they do not fit into it.

    Fragments and protocols other than plain TCP and UDP give `end` 0. The total length is not
    compared with the size of `packet`: the header of a super-packet is longer than its slice.
    """
    size = len(packet)
    if size < 20:
        return None
    version = packet[0] >> 4
    if version == 4:
        return _parse_v4(packet, size)
    if version == 6 and size >= _V6_HEADER:
        return _parse_v6(packet, size)
    return None


def _parse_v4(packet: memoryview, size: int) -> Inner | None:
    transport = (packet[0] & 15) * 4
    total_len = _U16.unpack_from(packet, 2)[0]
    if transport < 20 or transport > size or total_len < transport:
        return None
    fragment = _U16.unpack_from(packet, 6)[0] & _FRAGMENT_BITS
    protocol = packet[9]
    end = 0 if fragment else _transport_end(packet, protocol, transport, size)
    return Inner(
        4, protocol, bytes(packet[12:16]), bytes(packet[16:20]), total_len, transport, end
    )


def _parse_v6(packet: memoryview, size: int) -> Inner | None:
    protocol = packet[6]
    transport = _V6_HEADER
    # A routing header ends the walk too: behind it the checksum covers another destination.
    for _ in range(_MAX_EXTENSIONS):
        if protocol not in (_HOP_BY_HOP, _DESTINATION_OPTIONS):
            break
        if transport + 8 > size:
            return None
        protocol, words = packet[transport], packet[transport + 1]
        transport += 8 * (words + 1)
    if transport > size:
        return None
    total_len = _V6_HEADER + _U16.unpack_from(packet, 4)[0]
    end = _transport_end(packet, protocol, transport, size)
    return Inner(
        6, protocol, bytes(packet[8:24]), bytes(packet[24:40]), total_len, transport, end
    )


def _transport_end(packet: memoryview, protocol: int, transport: int, size: int) -> int:
    """Offset behind a whole TCP or UDP header, 0 if there is none."""
    if protocol == UDP:
        return transport + 8 if transport + 8 <= size else 0
    if protocol == TCP and transport + 20 <= size:
        header_len = (packet[transport + 12] >> 4) * 4
        if header_len >= 20 and transport + header_len <= size:
            return transport + header_len
    return 0


def source_of(packet: memoryview) -> bytes | None:
    """The source address of a packet whose length is what its header says, else None."""
    size = len(packet)
    if size >= 20:
        first = packet[0]
        if first >> 4 == 4:
            header_len = (first & 15) * 4
            if 20 <= header_len <= size and _U16.unpack_from(packet, 2)[0] == size:
                return bytes(packet[12:16])
        elif first >> 4 == 6 and _U16.unpack_from(packet, 4)[0] + _V6_HEADER == size:
            return bytes(packet[8:24])
    return None


def checksum_offset(protocol: int) -> int:
    """Where the checksum stands in a TCP or UDP header."""
    return 16 if protocol == TCP else 6


def folded_sum(data: bytes | bytearray | memoryview) -> int:
    """The ones' complement sum of big-endian 16-bit words, folded to 16 bits.

    2**16 is 1 modulo 0xFFFF, so the folded sum of a number's 16-bit digits is its remainder;
    one division of one big integer beats any loop over words in Python.
    """
    value = int.from_bytes(data, "big")
    if len(data) & 1:
        value <<= 8
    return (value % 0xFFFF or 0xFFFF) if value else 0


def checksum(data: bytes | bytearray | memoryview) -> int:
    """The Internet checksum of `data` (RFC 1071)."""
    return 0xFFFF - folded_sum(data)


@lru_cache(maxsize=1024)  # a flow's packets are mostly of a few lengths
def pseudo_sum(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """The folded sum of the pseudo-header, which a partial checksum field holds.

    `length` is that of the transport header and its payload, in bytes.
    """
    return folded_sum(source + destination + struct.pack("!II", length, protocol))


def complete_checksum(packet: bytearray | memoryview, start: int, offset: int) -> bool:
    """Finish a partial checksum in place: the sum over packet[start:] goes to start + offset.

    False if the field lies outside the packet.
    """
    at = start + offset
    if at + 2 > len(packet):
        return False
    # A zero would mean "no checksum" to UDP; to TCP both zeros are the same number.
    _U16.pack_into(packet, at, checksum(packet[start:]) or 0xFFFF)
    return True
