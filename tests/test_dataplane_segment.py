"""Cutting and joining: whatever is lost, doubled or reordered on the way, the kernel behind the
TUN gets exactly the packets that the sender's kernel would have put on a wire.

The reference below is an independent reading of the kernel's segmentation (tcp_offload.c,
udp_offload.c, af_inet.c), with every checksum written out the slow way.
"""

from __future__ import annotations

import ipaddress
import os
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jvpnd.core.wire import (
    FLAG_LAST,
    FLAG_NEEDS_CHECKSUM,
    FLAG_REPORT,
    FLAG_SLICE,
    FRAME,
    MAX_SUPER_SLICES,
    REPORT,
    Suite,
)
from jvpnd.dataplane import vnet
from jvpnd.dataplane.counters import Drop
from jvpnd.dataplane.join import Joiner
from jvpnd.dataplane.networks import PrefixTable
from jvpnd.dataplane.seal import Opener, Sealer
from jvpnd.dataplane.segment import plan_cut, settle_checksum
from jvpnd.dataplane.span import Assembly

KEY = bytes(range(32))
FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80
ANY = ("0.0.0.0/0", "::/0")


# --- the reference -------------------------------------------------------------------------


def slow_checksum(data: bytes) -> int:
    total = 0
    for at in range(0, len(data), 2):
        total += data[at] << 8 | (data[at + 1] if at + 1 < len(data) else 0)
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo_header(packet: bytes, transport: int, protocol: int) -> bytes:
    addresses = packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]
    return addresses + struct.pack("!IHBB", len(packet) - transport, 0, 0, protocol)


def completed(packet: bytes, transport: int, protocol: int) -> bytes:
    """The packet with right lengths and checksums all over."""
    fixed = bytearray(packet)
    if packet[0] >> 4 == 4:
        struct.pack_into("!H", fixed, 2, len(fixed))
        struct.pack_into("!H", fixed, 10, 0)
        struct.pack_into("!H", fixed, 10, slow_checksum(fixed[:transport]))
    else:
        struct.pack_into("!H", fixed, 4, len(fixed) - 40)
    if protocol == 17:
        struct.pack_into("!H", fixed, transport + 4, len(fixed) - transport)
    field = transport + (16 if protocol == 6 else 6)
    struct.pack_into("!H", fixed, field, 0)
    whole = pseudo_header(fixed, transport, protocol) + fixed[transport:]
    value = slow_checksum(whole)
    if protocol == 17 and value == 0:
        value = 0xFFFF
    struct.pack_into("!H", fixed, field, value)
    return bytes(fixed)


def reference_segments(
    packet: bytes, transport: int, end: int, protocol: int, gso_size: int
) -> list[bytes]:
    """The packets that the kernel's GSO makes of a super-packet."""
    payload = packet[end:]
    pieces = [payload[at : at + gso_size] for at in range(0, len(payload), gso_size)]
    segments = []
    for number, piece in enumerate(pieces):
        header = bytearray(packet[:end])
        if packet[0] >> 4 == 4:
            (identification,) = struct.unpack_from("!H", packet, 4)
            struct.pack_into("!H", header, 4, (identification + number) % 2**16)
        if protocol == 6:
            (sequence,) = struct.unpack_from("!I", packet, transport + 4)
            struct.pack_into("!I", header, transport + 4, (sequence + number * gso_size) % 2**32)
            if number < len(pieces) - 1:
                header[transport + 13] &= 0xFF ^ (FIN | PSH)
            if number > 0:
                header[transport + 13] &= 0xFF ^ CWR
        segments.append(completed(bytes(header) + piece, transport, protocol))
    return segments


def on_the_wire(frame: bytes) -> list[bytes]:
    """What the kernel makes of a frame written to the TUN, having checked its IP header."""
    flags, gso_type, hdr_len, gso_size, start, offset = struct.unpack_from("=BBHHHH", frame)
    packet = frame[10:]
    version = packet[0] >> 4
    if version == 4:
        assert slow_checksum(packet[: (packet[0] & 15) * 4]) == 0
        assert struct.unpack_from("!H", packet, 2)[0] == len(packet)
    else:
        assert struct.unpack_from("!H", packet, 4)[0] == len(packet) - 40
    if not flags:
        assert gso_type == 0
        return [packet]
    assert flags == 1
    protocol = {16: 6, 6: 17}[offset]
    if protocol == 17:
        assert struct.unpack_from("!H", packet, start + 4)[0] == len(packet) - start
    (partial,) = struct.unpack_from("!H", packet, start + offset)
    assert partial == slow_checksum(pseudo_header(packet, start, protocol)) ^ 0xFFFF
    if gso_type == 0:
        return [completed(packet, start, protocol)]
    assert gso_type & 0x7F == {(4, 6): 1, (6, 6): 4}.get((version, protocol), 5)
    assert (gso_type & 0x80 != 0) == (protocol == 6 and packet[start + 13] & CWR != 0)
    assert len(packet) - hdr_len > gso_size > 0
    return reference_segments(packet, start, hdr_len, protocol, gso_size)


# --- building super-packets ----------------------------------------------------------------


@dataclass(frozen=True)
class Super:
    packet: bytes
    transport: int
    end: int
    protocol: int
    gso_size: int
    gso_type: int

    @property
    def segments(self) -> list[bytes]:
        return reference_segments(
            self.packet, self.transport, self.end, self.protocol, self.gso_size
        )


def build(
    *,
    version: int = 4,
    protocol: int = 6,
    options: int = 0,
    extension: bool = False,
    flags: int = ACK,
    identification: int = 7,
    sequence: int = 1000,
    payload: bytes = b"x" * 3000,
    gso_size: int = 1000,
    source: str = "",
) -> Super:
    if protocol == 6:
        doff = 5 + options
        head = struct.pack(
            "!HHIIBBHHH", 1000, 2000, sequence, 99, doff << 4, flags, 512, 0, 0
        ) + bytes(range(4 * options))
    else:
        head = struct.pack("!HHHH", 1000, 2000, 8 + len(payload), 0)
    if version == 4:
        addresses = ipaddress.ip_address(source or "10.77.0.2").packed + bytes([10, 77, 0, 1])
        transport = 28 if extension else 20
        total = transport + len(head) + len(payload)
        ip = struct.pack(
            "!BBHHHBBH", 0x40 | transport // 4, 0, total, identification, 0x4000, 64, protocol, 0
        )
        ip += addresses + (b"\x01" * 8 if extension else b"")
    else:
        addresses = ipaddress.ip_address(source or "fd77::2").packed
        addresses += ipaddress.ip_address("fd77::1").packed
        extra = bytes([protocol, 0, 1, 4, 0, 0, 0, 0]) if extension else b""
        length = len(extra) + len(head) + len(payload)
        ip = struct.pack("!IHBB", 6 << 28, length, 60 if extension else protocol, 64)
        ip += addresses + extra
        transport = len(ip)
    gso_type = 5 if protocol == 17 else (1 if version == 4 else 4)
    packet = bytearray(ip + head + payload)
    if version == 4:
        struct.pack_into("!H", packet, 10, slow_checksum(packet[:transport]))
    field = transport + (16 if protocol == 6 else 6)
    partial = slow_checksum(pseudo_header(packet, transport, protocol)) ^ 0xFFFF
    struct.pack_into("!H", packet, field, partial)
    return Super(bytes(packet), transport, len(ip + head), protocol, gso_size, gso_type)


@st.composite
def supers(draw: st.DrawFn) -> Super:
    gso_size = draw(st.integers(1, 1400))
    count = draw(st.integers(1, 40))
    length = max(1, gso_size * count - draw(st.integers(0, gso_size - 1)))
    return build(
        version=draw(st.sampled_from([4, 6])),
        protocol=draw(st.sampled_from([6, 17])),
        options=draw(st.integers(0, 10)),
        extension=draw(st.booleans()),
        flags=draw(st.integers(0, 255)),
        identification=draw(st.integers(0, 65535)),
        sequence=draw(st.integers(0, 2**32 - 1)),
        payload=random.Random(draw(st.integers(0, 2**32))).randbytes(length),
        gso_size=gso_size,
    )


# --- the two ends --------------------------------------------------------------------------


def sealed(sealer: Sealer, item: Super) -> list[bytes]:
    frame = bytearray(16) + item.packet
    view = memoryview(frame)
    cut = plan_cut(view, 16, item.gso_type, item.gso_size, item.transport)
    assert cut is not None
    out = memoryview(bytearray(2 * len(frame) + 200 * cut.count))
    end = sealer.seal_slices(view, cut, 0, cut.count, out, 0)
    stride = len(cut.header) + item.gso_size + 37
    return [bytes(out[at : min(at + stride, end)]) for at in range(0, end, stride)]


class Receiver:
    """An opener and a joiner whose frames are kept as bytes."""

    def __init__(self, *, has_vnet: bool = True, tso: bool = True, uso: bool = True) -> None:
        self.frames: list[bytes] = []
        self.drops = memoryview(bytearray(256)).cast("Q")
        self.opener = Opener(Suite.CHACHA20_POLY1305, KEY, 5, Assembly())
        self.joiner = Joiner(
            has_vnet=has_vnet,
            tso=tso,
            uso=uso,
            emit=lambda frame: self.frames.append(b"".join(frame)),
            drops=self.drops,
        )
        self.sources: PrefixTable[bool] = PrefixTable()
        self.sources.set(True, ANY)

    def take(self, datagrams: Sequence[bytes]) -> None:
        memory = bytearray(70000)
        view = memoryview(memory)
        for datagram in datagrams:
            opened, _, _ = self.opener.open_run(
                memoryview(datagram), 0, len(datagram), view, 0, self.drops
            )
            # the joiner may keep views: give each datagram memory of its own
            own = bytearray(memory[: opened[0][1]]) if opened else bytearray()
            self.joiner.feed(self.sources, own, memoryview(own), opened)
        self.joiner.flush()

    def plain(self, *plains: bytes) -> None:
        memory = bytearray(b"".join(plains))
        opened, at = [], 0
        for plain in plains:
            opened.append((at, len(plain)))
            at += len(plain)
        self.joiner.feed(self.sources, memory, memoryview(memory), opened)
        self.joiner.flush()

    @property
    def dropped(self) -> dict[str, int]:
        return {cause.name: self.drops[cause] for cause in Drop if self.drops[cause]}


def framed(packet: bytes, flags: int = 0, gso_size: int = 0) -> bytes:
    return FRAME.pack(flags, len(packet), gso_size) + packet


def new_sealer() -> Sealer:
    return Sealer(Suite.CHACHA20_POLY1305, KEY, 5, 0)


# --- properties ----------------------------------------------------------------------------


@given(supers())
@settings(max_examples=150, deadline=None)
def test_whole_super_packet_arrives_as_the_kernel_would_have_cut_it(item: Super) -> None:
    receiver = Receiver()
    receiver.take(sealed(new_sealer(), item))
    assert [p for frame in receiver.frames for p in on_the_wire(frame)] == item.segments
    assert len(receiver.frames) == 1
    assert receiver.joiner.packets == len(item.segments)
    assert receiver.joiner.octets == sum(map(len, item.segments))
    assert not receiver.dropped


@given(st.lists(supers(), min_size=1, max_size=3), st.data())
@settings(max_examples=100, deadline=None)
def test_lost_doubled_and_reordered_datagrams_leave_the_right_packets(
    items: list[Super], data: st.DataObject
) -> None:
    sealer = new_sealer()
    datagrams = [d for item in items for d in sealed(sealer, item)]
    expected = [p for item in items for p in item.segments]
    arrivals = data.draw(st.lists(st.integers(0, len(datagrams) - 1), max_size=80))
    receiver = Receiver()
    receiver.take([datagrams[number] for number in arrivals])
    once = list(dict.fromkeys(arrivals))
    got = [p for frame in receiver.frames for p in on_the_wire(frame)]
    assert got == [expected[number] for number in once]
    assert receiver.dropped.get("REPLAYED", 0) == len(arrivals) - len(once)


@given(supers(), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_without_offloads_every_packet_is_written_singly(
    item: Super, has_vnet: bool, tso: bool
) -> None:
    receiver = Receiver(has_vnet=has_vnet, tso=tso and item.protocol == 17, uso=False)
    receiver.take(sealed(new_sealer(), item))
    if has_vnet:
        assert all(frame[1] == 0 for frame in receiver.frames)
        assert [p for frame in receiver.frames for p in on_the_wire(frame)] == item.segments
    else:
        assert receiver.frames == item.segments


@given(supers(), st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1))
@settings(max_examples=100, deadline=None)
def test_slices_that_contradict_their_header_never_reach_the_kernel(
    item: Super, index: int, gso_size: int
) -> None:
    """An authenticated peer may lie; what is written is still well formed."""
    prefix = FRAME.pack(FLAG_SLICE, index, gso_size)
    receiver = Receiver()
    receiver.plain(prefix + item.packet)
    payload = len(item.packet) - item.end
    for frame in receiver.frames:
        assert on_the_wire(frame)
        assert gso_size == payload
        assert index == 0
    assert len(receiver.frames) + receiver.dropped.get("MALFORMED", 0) == 1


@given(st.binary(max_size=200), st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_arbitrary_plain_text_is_dropped_and_counted(body: bytes, flags: int) -> None:
    receiver = Receiver()
    receiver.plain(bytes([flags]) + body)
    for frame in receiver.frames:
        assert on_the_wire(frame)
    assert receiver.frames or receiver.dropped or receiver.joiner.report


@given(st.lists(supers(), min_size=1, max_size=4), st.booleans(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_super_packets_in_one_record_arrive_as_the_kernel_would_have_cut_them(
    items: list[Super], tso: bool, uso: bool
) -> None:
    few = [item for item in items if len(item.segments) <= MAX_SUPER_SLICES]
    receiver = Receiver(tso=tso, uso=uso)
    receiver.plain(b"".join(framed(item.packet, 0, item.gso_size) for item in few))
    assert [p for frame in receiver.frames for p in on_the_wire(frame)] == [
        segment for item in few for segment in item.segments
    ]
    assert receiver.joiner.packets == sum(len(item.segments) for item in few)
    assert receiver.joiner.octets == sum(len(p) for item in few for p in item.segments)


@given(supers(), st.integers(1, 2**16 - 1), st.binary(max_size=60), st.integers(0, 120))
@settings(max_examples=200, deadline=None)
def test_super_packets_that_contradict_themselves_never_reach_the_kernel(
    item: Super, gso_size: int, noise: bytes, at: int
) -> None:
    packet = bytearray(item.packet)
    packet[at : at + len(noise)] = noise[: max(0, len(packet) - at)]
    receiver = Receiver()
    receiver.plain(framed(bytes(packet), 0, gso_size))
    for frame in receiver.frames:
        assert 1 <= len(on_the_wire(frame)) <= MAX_SUPER_SLICES
    assert receiver.frames or sum(receiver.dropped.values()) == 1


# --- single cases --------------------------------------------------------------------------


def plain_segments(item: Super) -> list[bytes]:
    header, payload = item.packet[: item.end], item.packet[item.end :]
    pieces = [
        payload[at : at + item.gso_size] for at in range(0, len(payload), item.gso_size)
    ]
    return [
        FRAME.pack(
            FLAG_SLICE | (FLAG_LAST if number == len(pieces) - 1 else 0), number, item.gso_size
        )
        + header
        + piece
        for number, piece in enumerate(pieces)
    ]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda p: p[:5], id="nothing behind the prefix"),
        pytest.param(lambda p: p[:1], id="flags only"),
        pytest.param(lambda p: p[:-1], id="short slice that is not the last"),
        pytest.param(lambda p: p + b"!", id="long slice"),
        pytest.param(lambda p: p[:3] + b"\0\0" + p[5:], id="gso size 0"),
        pytest.param(lambda p: p[:1] + b"\xff\xff" + p[3:], id="index beyond the end"),
        pytest.param(lambda p: bytes([p[0] | FLAG_NEEDS_CHECKSUM]) + p[1:], id="segment + csum"),
        pytest.param(lambda p: bytes([p[0] | 0x80]) + p[1:], id="unknown flag"),
        pytest.param(lambda p: bytes([p[0] | FLAG_LAST]) + p[1:], id="last, but not at the end"),
        pytest.param(lambda p: p[:5] + b"\x55" + p[6:], id="no IP version"),
        pytest.param(lambda p: p[:5] + b"\x4f" + p[6:], id="IP header longer than it was"),
        pytest.param(lambda p: p[:11] + b"\x20\x00" + p[13:], id="fragment"),
        pytest.param(lambda p: p[:14] + b"\x2f" + p[15:], id="GRE"),
        pytest.param(lambda p: p[:37] + b"\x10" + p[38:], id="TCP header of 4 bytes"),
        pytest.param(lambda p: p[:37] + b"\xf0" + p[38:], id="TCP header longer than it was"),
    ],
)
def test_malformed_slice_is_dropped(spoil) -> None:  # type: ignore[no-untyped-def]
    good = plain_segments(build())
    receiver = Receiver()
    receiver.plain(spoil(good[0]))
    assert receiver.frames == []
    assert receiver.dropped == {"MALFORMED": 1}


def test_full_slices_at_or_beyond_the_end_are_dropped_without_the_last_flag() -> None:
    first, second, third = plain_segments(build())  # three full slices
    third = bytes([FLAG_SLICE]) + third[1:]
    fourth = third[:1] + b"\x03\x00" + third[3:]
    receiver = Receiver()
    receiver.plain(first, second, third, fourth)
    assert [len(on_the_wire(frame)) for frame in receiver.frames] == [2]
    assert receiver.dropped == {"MALFORMED": 2}


def test_header_that_differs_in_one_byte_starts_a_run_of_its_own() -> None:
    good = plain_segments(build())
    other = bytearray(good[1])
    other[5 + 1] ^= 4  # the type of service
    receiver = Receiver()
    receiver.plain(good[0], bytes(other), good[2])
    assert len(receiver.frames) == 3


def test_runs_of_two_sessions_are_never_joined() -> None:
    good = plain_segments(build())
    receiver = Receiver()
    memory = bytearray(good[0])
    receiver.joiner.feed(receiver.sources, memory, memoryview(memory), [(0, len(memory))])
    second: PrefixTable[bool] = PrefixTable()
    second.set(True, ANY)
    memory = bytearray(good[1])
    receiver.joiner.feed(second, memory, memoryview(memory), [(0, len(memory))])
    receiver.joiner.flush()
    assert len(receiver.frames) == 2


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("segmented", [True, False])
def test_source_outside_the_session_is_dropped(version: int, segmented: bool) -> None:
    source = "10.77.0.3" if version == 4 else "fd77::3"
    item = build(version=version, source=source)
    receiver = Receiver()
    receiver.sources.set(True, ["10.77.0.2/32", "fd77::2/128"])
    receiver.plain(plain_segments(item)[0] if segmented else framed(item.packet))
    assert receiver.frames == []
    assert receiver.dropped == {"BAD_SOURCE": 1}


def test_checksum_flag_on_a_fragment_is_refused() -> None:
    packet = bytearray(build().packet)
    packet[6] |= 0x20
    receiver = Receiver()
    receiver.plain(framed(bytes(packet), FLAG_NEEDS_CHECKSUM))
    assert receiver.frames == []
    assert receiver.dropped == {"MALFORMED": 1}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("has_vnet", [True, False])
def test_partial_checksum_is_completed(version: int, protocol: int, has_vnet: bool) -> None:
    item = build(version=version, protocol=protocol, payload=b"seventeen bytes!!")
    receiver = Receiver(has_vnet=has_vnet)
    receiver.plain(framed(item.packet, FLAG_NEEDS_CHECKSUM))
    wanted = completed(item.packet, item.transport, item.protocol)
    (frame,) = receiver.frames
    assert (on_the_wire(frame) if has_vnet else [frame]) == [wanted]


def test_partial_checksum_of_a_tunnel_in_the_tunnel_is_completed_by_the_sender() -> None:
    inside = build(protocol=17, payload=b"abc" * 5)
    outside = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(inside.packet), 1, 0, 64, 4, 0)
    packet = bytearray(outside + bytes(8) + inside.packet)
    flags = settle_checksum(memoryview(packet), 20 + inside.transport, 6)
    assert flags == 0
    assert packet[20:] == completed(inside.packet, inside.transport, 17)


def test_partial_checksum_outside_the_packet_is_refused() -> None:
    packet = memoryview(bytearray(build(payload=b"").packet))
    assert settle_checksum(packet, len(packet), 16) is None


@pytest.mark.parametrize(
    ("gso_type", "gso_size", "csum_start"),
    [
        pytest.param(vnet.GSO_TCPV4, 0, 20, id="gso size 0"),
        pytest.param(vnet.GSO_TCPV6, 1000, 20, id="another IP version"),
        pytest.param(vnet.GSO_UDP_L4, 1000, 20, id="another protocol"),
        pytest.param(3, 1000, 20, id="UFO"),
        pytest.param(vnet.GSO_TCPV4, 1000, 40, id="checksum of a packet inside"),
    ],
)
def test_super_packet_of_an_unknown_kind_is_not_cut(
    gso_type: int, gso_size: int, csum_start: int
) -> None:
    frame = memoryview(bytearray(16) + build().packet)
    assert plan_cut(frame, 16, gso_type, gso_size, csum_start) is None


def test_frames_of_a_record_come_out_in_their_order() -> None:
    first, second = build(payload=b"one"), build(payload=b"two", protocol=17)
    slices = plain_segments(build())
    receiver = Receiver()
    both = framed(first.packet, FLAG_NEEDS_CHECKSUM) + framed(second.packet, FLAG_NEEDS_CHECKSUM)
    receiver.plain(slices[0], both)
    assert [len(on_the_wire(frame)) for frame in receiver.frames] == [1, 1, 1]
    assert b"one" in receiver.frames[1]
    assert b"two" in receiver.frames[2]


def test_a_report_is_taken_and_not_counted_as_a_packet() -> None:
    receiver = Receiver()
    receiver.plain(FRAME.pack(FLAG_REPORT, REPORT.size, 0) + REPORT.pack(7, 2, 1, 1252))
    assert receiver.joiner.report == (7, 2, 1, 1252)
    assert receiver.joiner.packets == 0
    assert receiver.frames == []
    assert not receiver.dropped


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(FRAME.pack(0, 40, 0)[:3], id="half a frame header"),
        pytest.param(FRAME.pack(0, 40, 0) + bytes(39), id="frame longer than the record"),
        pytest.param(framed(b""), id="empty packet"),
        pytest.param(FRAME.pack(FLAG_REPORT, 8, 0) + bytes(8), id="short report"),
        pytest.param(framed(build().packet, 16), id="unknown flag"),
        pytest.param(framed(build(payload=b"").packet, 0, 100), id="nothing to cut"),
        pytest.param(framed(build(payload=bytes(200)).packet, 0, 1), id="cut into too many"),
        pytest.param(framed(build().packet + b"!", 0, 1000), id="more than its header says"),
    ],
)
def test_malformed_frame_is_dropped(record: bytes) -> None:
    receiver = Receiver()
    receiver.plain(record)
    assert receiver.frames == []
    assert receiver.dropped == {"MALFORMED": 1}


def test_long_runs_are_written_in_parts_that_the_kernel_takes() -> None:
    item = build(payload=os.urandom(3000), gso_size=1)
    receiver = Receiver()
    receiver.take(sealed(new_sealer(), item))
    assert [p for frame in receiver.frames for p in on_the_wire(frame)] == item.segments
    assert len(receiver.frames) > 1
