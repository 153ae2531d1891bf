"""Packet layouts of JVP/1, the one place that knows offsets (docs/protocol.md draws them).

Integers are little endian. Decoders return None for anything malformed: a bad packet is dropped
and counted by the caller, it is never an exception.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

VERSION = 1
TRANSPORTS = ("udp", "tcp", "tls", "quic")  # by their number in messages
MAX_ADDRESSES = 8  # of one client


class PacketType(IntEnum):
    """First byte of every packet."""

    HANDSHAKE_INIT = 1
    HANDSHAKE_RESPONSE = 2
    RETRY = 3
    REATTACH_REQUEST = 4
    REATTACH_ACK = 5
    REATTACH_REJECT = 6
    CONTROL = 7
    DATA = 8
    NOTICE = 9
    SIZE_PROBE = 10
    SIZE_REPLY = 11
    HALF = 12
    NODE_PROBE = 13
    NODE_REPLY = 14


class Suite(IntEnum):
    """AEAD of the DATA packets; the gateway picks it inside the handshake."""

    CHACHA20_POLY1305 = 1
    AES_256_GCM = 2


TAG_LEN = 16
MAX_LANES = 16  # of either end; the lane byte of a packet is below
KEY_LEN = 32

# DATA and CONTROL: type u8, lane u8, part u8, parts u8, receiver index u32, counter u64. These 16
# bytes are the associated data; the nonce is lane u8, three zero bytes, counter u64. `part` and
# `parts` are zero but where a DATA record spans datagrams: part 0 .. parts of parts + 1, and the
# header of part 0 is the associated data.
HEADER = struct.Struct("<BBHIQ")
HEADER_LEN = HEADER.size
NONCE = struct.Struct("<BxxxQ")
MIN_SEALED_LEN = HEADER_LEN + TAG_LEN
MAX_COUNTER = 2**63  # far below where any AEAD limit or wrap would matter

# Plain text of DATA: either one slice of a super-packet (flags, index, gso_size; then the
# super-packet's header verbatim and the slice), or frames one behind the other (flags, length,
# gso_size; then `length` bytes: a packet, a super-packet where gso_size is set, or a report).
FRAME = struct.Struct("<BHH")
FRAME_LEN = FRAME.size
FLAG_NEEDS_CHECKSUM = 1  # the transport checksum field holds only the pseudo-header sum
FLAG_SLICE = 2
FLAG_LAST = 4  # the slice ends its super-packet
FLAG_REPORT = 8  # how much of the other direction arrived
REPORT = struct.Struct("<QQQH")  # records that came, that are missing, that we did not send, limit
"""Good records under the receiver's newest index, and those missing below its highest counter; and
how long datagrams may be on this path, both ways, 0 if the sender does not know."""

MAX_SEND = 65507  # payload of the longest UDP datagram, so of one send that the kernel cuts
MAX_PARTS = 64  # UDP_MAX_SEGMENTS of every kernel that has UDP_SEGMENT
MAX_SUPER_SLICES = 128  # of a super-packet that is sent whole

MAX_CONTROL_LEN = 9100  # nothing but DATA is longer; size probes of jumbo frames are the longest
SAFE_DATAGRAM = 1280 - 40 - 8  # bytes that every path carries which has IPv6

# On a byte stream each packet stands behind its length in bytes.
STREAM_LENGTH = struct.Struct("<I")


def datagram_len(mtu: int) -> int:
    """Bytes of a datagram that holds one packet of `mtu` bytes."""
    return mtu + FRAME_LEN + HEADER_LEN + TAG_LEN


def datagrams_a_send(mtu: int) -> int:
    """How many of them go out in one send: the best number of slices for a super-packet."""
    return min(MAX_PARTS, MAX_SEND // datagram_len(mtu))


def data_nonce(lane: int, counter: int) -> bytes:
    """The 12-byte nonce of a DATA or CONTROL packet."""
    return NONCE.pack(lane, counter)


@dataclass(frozen=True, slots=True)
class SealedHeader:
    """The clear 16 bytes in front of a DATA or CONTROL packet."""

    type: int
    lane: int
    index: int
    counter: int

    def encode(self) -> bytes:
        return HEADER.pack(self.type, self.lane, 0, self.index, self.counter)


def decode_sealed_header(packet: bytes) -> SealedHeader | None:
    """The header of a CONTROL packet, None if short, out of range or in parts."""
    if len(packet) < MIN_SEALED_LEN:
        return None
    kind, lane, reserved, index, counter = HEADER.unpack_from(packet)
    if reserved or counter >= MAX_COUNTER:
        return None
    return SealedHeader(kind, lane, index, counter)
