"""Any packet that a host's stack might hand to a TUN, super-packets first of all (hypothesis).

A frame is a virtio_net_hdr and a packet. Sources are those of one client, destinations tell the
flows apart.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address

import kernelmodel as kernel
from hypothesis import strategies as st
from kernelmodel import CWR, ECN, NEEDS_CSUM, TCP, TCPV4, TCPV6, UDP, UDP_L4, VNET

SOURCES = {4: "10.77.0.2", 6: "fd77::2"}
FLOWS = 4
MAX_TOTAL = 65535
MTU = 33000  # of the TUN; the largest segment


def destination(version: int, flow: int) -> str:
    return f"10.90.0.{1 + flow}" if version == 4 else f"fd90::{1 + flow:x}"


@dataclass(frozen=True)
class Path:
    """Between whom, and what stands in the IP header besides."""

    source: str
    destination: str
    options: bytes = b""  # IPv4
    extensions: tuple[tuple[int, bytes], ...] = ()  # IPv6: type, body behind its first two bytes
    identification: int = 7
    traffic_class: int = 0
    fragment: int = 0x4000  # IPv4: flags and offset
    hops: int = 64

    @property
    def version(self) -> int:
        return ip_address(self.source).version


def ip_packet(path: Path, protocol: int, payload: bytes) -> bytes:
    """An IP packet with right lengths and, in IPv4, the right header checksum."""
    addresses = ip_address(path.source).packed + ip_address(path.destination).packed
    if path.version == 4:
        start = 20 + len(path.options)
        header = bytearray(
            struct.pack(
                *("!BBHHHBBH", 0x40 | start // 4, path.traffic_class, start + len(payload)),
                *(path.identification, path.fragment, path.hops, protocol, 0),
            )
        )
        header += addresses + path.options
        struct.pack_into("!H", header, 10, ~kernel.ones_sum(header) & 0xFFFF)
        return bytes(header) + payload
    chain, kind = b"", protocol
    for extension, body in reversed(path.extensions):
        chain = bytes([kind, (len(body) + 2) // 8 - 1]) + body + chain
        kind = extension
    first = 6 << 28 | path.traffic_class << 20 | path.identification
    length = len(chain) + len(payload)
    return struct.pack("!IHBB", first, length, kind, path.hops) + addresses + chain + payload


def tcp_header(
    flags: int = 0x10, options: bytes = b"", sequence: int = 1000, rest: random.Random | None = None
) -> bytes:
    """`flags`: the low 12 bits of the word (reserved bits, AE, CWR .. FIN)."""
    rest = rest or random.Random(0)
    ports, acknowledged = rest.getrandbits(32), rest.getrandbits(32)
    window, urgent = rest.getrandbits(16), rest.getrandbits(16)
    word = (5 + len(options) // 4) << 12 | flags
    return struct.pack("!IIIHHHH", ports, sequence, acknowledged, word, window, 0, urgent) + options


def udp_header(payload_len: int, ports: int = 0x10002000) -> bytes:
    return struct.pack("!IHH", ports, 8 + payload_len, 0)


def with_partial_checksum(packet: bytes) -> tuple[bytes, kernel.Layout]:
    """The checksum field as the stack leaves it to a device: the pseudo-header's sum."""
    at = kernel.layout(packet)
    filled = bytearray(packet)
    struct.pack_into("!H", filled, at.field, kernel.pseudo_sum(packet, at))
    return bytes(filled), at


def super_frame(
    path: Path, protocol: int, header: bytes, payload: bytes, gso_size: int, headlen: int = 0
) -> bytes:
    """The frame of a super-packet. `headlen`: the hint in hdr_len, which may be anything."""
    packet, at = with_partial_checksum(ip_packet(path, protocol, header + payload))
    gso_type = UDP_L4 if protocol == UDP else TCPV4 if at.version == 4 else TCPV6
    if protocol == TCP and packet[at.start + 13] & CWR:
        gso_type |= ECN
    start, offset = at.start, at.field - at.start
    return VNET.pack(NEEDS_CSUM, gso_type, headlen, gso_size, start, offset) + packet


def plain_frame(packet: bytes, *, partial: bool) -> bytes:
    """The frame of a single packet; `partial`: TCP or UDP, its checksum left to the device."""
    if not partial:
        return VNET.pack(0, 0, 0, 0, 0, 0) + packet
    packet, at = with_partial_checksum(packet)
    start, offset = at.start, at.field - at.start
    return VNET.pack(NEEDS_CSUM, 0, start + offset + 2, 0, start, offset) + packet


def whole_frame(packet: bytes) -> bytes:
    """The frame of a TCP or UDP packet that came with a complete checksum."""
    (complete,) = kernel.on_the_wire(plain_frame(packet, partial=True))
    return plain_frame(complete, partial=False)


# --- what hypothesis may choose --------------------------------------------------------------

_near_wrap = {16: st.integers(0, 0xFFFF) | st.integers(0xFFF0, 0xFFFF)}
_sequences = st.integers(0, 2**32 - 1) | st.integers(2**32 - 70000, 2**32 - 1)
_tcp_flags = st.integers(0, 0xFFF) | st.sampled_from([0x10, 0x11, 0x18, 0x19, 0x99, 0xD8, 0x30])
_v4_options = st.integers(0, 10).map(lambda n: (b"\x01" * (4 * n - 1) + b"\x00") if n else b"")


@st.composite
def _extensions(draw: st.DrawFn) -> tuple[tuple[int, bytes], ...]:
    """Hop-by-hop first if at all, then destination options; both padded with PadN."""
    chosen = draw(st.sampled_from(["", "h", "d", "hd", "dd"]))
    kinds = {"h": kernel.HOP_BY_HOP, "d": kernel.DESTINATION}
    return tuple((kinds[letter], b"\x01\x04" + bytes(4)) for letter in chosen)


@st.composite
def paths(draw: st.DrawFn, flow: int | None = None, version: int | None = None) -> Path:
    version = version or draw(st.sampled_from([4, 6]))
    flow = draw(st.integers(0, FLOWS - 1)) if flow is None else flow
    return Path(
        source=SOURCES[version],
        destination=destination(version, flow),
        options=draw(_v4_options) if version == 4 else b"",
        extensions=draw(_extensions()) if version == 6 else (),
        identification=draw(_near_wrap[16]),
        traffic_class=draw(st.integers(0, 255)),
        fragment=draw(st.sampled_from([0x4000, 0])),
        hops=draw(st.integers(2, 255)),
    )


@st.composite
def _tcp_headers(draw: st.DrawFn, rest: random.Random) -> bytes:
    options = rest.randbytes(4 * draw(st.integers(0, 10)))
    return tcp_header(draw(_tcp_flags), options, draw(_sequences), rest)


@st.composite
def super_frames(draw: st.DrawFn, max_segments: int = 64, mtu: int = MTU) -> bytes:
    """A super-packet of TCP or UDP, at least two segments, the last one odd or full."""
    rest = random.Random(draw(st.integers(0, 2**32)))
    path = draw(paths())
    protocol = draw(st.sampled_from([TCP, TCP, UDP]))
    header = draw(_tcp_headers(rest)) if protocol == TCP else b"12345678"
    headers = len(ip_packet(path, protocol, header))
    room, most = MAX_TOTAL - headers, mtu - headers
    gso_size = draw(st.integers(1, 100) | st.integers(500, min(1500, most)) | st.integers(1, most))
    count = draw(st.integers(2, max(2, min(max_segments, room // gso_size))))
    short = draw(st.integers(0, gso_size - 1) | st.sampled_from([0, gso_size - 1]))
    payload = rest.randbytes(min(room, gso_size * count - short))
    if len(payload) <= gso_size:
        payload = rest.randbytes(gso_size + 1)
    if protocol == UDP:
        header = udp_header(len(payload), rest.getrandbits(32))
    headlen = draw(st.integers(0, len(payload)))
    return super_frame(path, protocol, header, payload, gso_size, headlen)


@st.composite
def single_frames(draw: st.DrawFn, mtu: int = MTU) -> bytes:
    """One packet: TCP or UDP with a partial or a complete checksum."""
    rest = random.Random(draw(st.integers(0, 2**32)))
    path = draw(paths())
    protocol = draw(st.sampled_from([TCP, UDP]))
    header = draw(_tcp_headers(rest)) if protocol == TCP else b"12345678"
    most = min(1400, mtu - len(ip_packet(path, protocol, header)))
    payload = rest.randbytes(draw(st.integers(0, 100) | st.integers(0, most)))
    if protocol == UDP:
        header = udp_header(len(payload), rest.getrandbits(32))
    packet = ip_packet(path, protocol, header + payload)
    return plain_frame(packet, partial=True) if draw(st.booleans()) else whole_frame(packet)


@st.composite
def odd_frames(draw: st.DrawFn) -> bytes:
    """Packets that nothing may be done to: fragments, ICMP, other protocols, tunnels in the tunnel,
    UDP without a checksum."""
    rest = random.Random(draw(st.integers(0, 2**32)))
    path = draw(paths())
    body = rest.randbytes(draw(st.integers(8, 1200)))
    kind = draw(st.sampled_from(sorted(_ODD)))
    return _ODD[kind](path, body, rest)


def _fragment(path: Path, body: bytes, rest: random.Random) -> bytes:
    protocol, place = rest.choice([TCP, UDP]), rest.choice([0x2000, 0x2010, 0x0010])
    if path.version == 4:
        return plain_frame(ip_packet(replace(path, fragment=place), protocol, body), partial=False)
    head = struct.pack("!HI", (place & 0x1FFF) << 3 | place >> 13, rest.getrandbits(32))
    chain = (*path.extensions, (kernel.FRAGMENT, head))
    return plain_frame(ip_packet(replace(path, extensions=chain), protocol, body), partial=False)


def _other(path: Path, body: bytes, rest: random.Random) -> bytes:
    protocols = (kernel.ICMP if path.version == 4 else kernel.ICMPV6, 47, 50, 132)
    return plain_frame(ip_packet(path, rest.choice(protocols), body), partial=False)


def _tunnel(path: Path, body: bytes, rest: random.Random) -> bytes:
    """An IP packet in the packet, whose inner checksum is the one left to the device."""
    inside = Path(SOURCES[4], destination(4, 9))
    inner = plain_frame(ip_packet(inside, UDP, udp_header(len(body)) + body), partial=True)
    flags, _, _, _, start, offset = VNET.unpack_from(inner)
    outer = ip_packet(path, 4, inner[VNET.size :])
    start += len(outer) - len(inner) + VNET.size
    return VNET.pack(flags, 0, start + offset + 2, 0, start, offset) + outer


def _without_checksum(path: Path, body: bytes, rest: random.Random) -> bytes:
    return plain_frame(ip_packet(path, UDP, udp_header(len(body)) + body), partial=False)


_ODD: dict[str, Callable[[Path, bytes, random.Random], bytes]] = {
    "fragment": _fragment,
    "other protocol": _other,
    "tunnel": _tunnel,
    "UDP without a checksum": _without_checksum,
}


@st.composite
def frames(draw: st.DrawFn, mtu: int = MTU) -> bytes:
    """Any frame."""
    large = super_frames(mtu=mtu)
    return draw(st.one_of(large, large, single_frames(mtu=mtu), odd_frames()))
