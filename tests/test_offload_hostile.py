"""A peer that has the keys and lies: whatever it seals, the downlink never fails, writes nothing
that the kernel would refuse or that comes from a foreign address, and counts what it drops.

The records are sealed here, not by the project's own sealer.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address

import kernelmodel as kernel
import pytest
import superpackets as stack
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st
from kernelmodel import TCP, UDP, VNET

from .workers import FULL, Receiver, Session, new_session, receiver

NEEDS_CSUM, SLICE, LAST, REPORT = 1, 2, 4, 8  # docs/protocol.md
MAX_SLICES = 128  # of a super-packet sent whole
ALLOWED = tuple(stack.SOURCES.values())
FOREIGN = {4: "10.77.0.3", 6: "fd77::3"}


class Peer:
    """Seals what it likes for a session."""

    def __init__(self, session: Session, first: int = 0) -> None:
        self._session = session
        self._encrypt = AESGCM(session.key).encrypt
        self._counters = itertools.count(first)

    def seal(self, plain: bytes) -> bytes:
        return self.span(plain, len(plain) + 16)[0]

    def span(self, plain: bytes, size: int) -> list[bytes]:
        """One record over datagrams that carry `size` bytes of cipher text each."""
        counter = next(self._counters)
        parts = -(-(len(plain) + 16) // size)
        heads = [
            struct.pack("<BBBBIQ", 8, 0, number, parts - 1, self._session.index, counter)
            for number in range(parts)
        ]
        sealed = self._encrypt(struct.pack("<BxxxQ", 0, counter), plain, heads[0])
        return [head + sealed[n * size : (n + 1) * size] for n, head in enumerate(heads)]


def framed(packet: bytes, flags: int = 0, gso_size: int = 0, length: int | None = None) -> bytes:
    """A packet (or a super-packet) as a frame of a record."""
    return struct.pack("<BHH", flags, len(packet) if length is None else length, gso_size) + packet


def sliced(packet: bytes, gso_size: int) -> list[bytes]:
    """A super-packet as the plain texts of its slices."""
    end = kernel.layout(packet).end
    assert end is not None
    pieces = [packet[at : at + gso_size] for at in range(end, len(packet), gso_size)]
    return [
        struct.pack("<BHH", SLICE | (LAST if n == len(pieces) - 1 else 0), n, gso_size)
        + packet[:end]
        + piece
        for n, piece in enumerate(pieces)
    ]


def honest(
    version: int = 4, protocol: int = TCP, size: int = 3000, source: str = "", **path: object
) -> bytes:
    """A good super-packet, for a gso_size of 1000."""
    route = stack.Path(
        source or stack.SOURCES[version],
        stack.destination(version, 0),
        **path,  # type: ignore[arg-type]
    )
    header = stack.tcp_header() if protocol == TCP else stack.udp_header(size)
    return stack.super_frame(route, protocol, header, bytes(size), 1000)[VNET.size :]


def judge(to: Receiver, frames: Sequence[bytes]) -> list[bytes]:
    """The packets that the kernel makes of them; fails on any that must not have been written."""
    packets = [packet for frame in frames for packet in kernel.on_the_wire(frame)]
    for packet in packets:
        source = packet[12:16] if packet[0] >> 4 == 4 else packet[8:24]
        assert str(ip_address(source)) in ALLOWED
    assert (to.packets(), to.octets()) == (len(packets), sum(map(len, packets)))
    return packets


@pytest.fixture
def session() -> Session:
    return new_session(0, networks=ALLOWED)


@pytest.fixture
def target(session: Session) -> Iterator[Receiver]:
    with receiver(session) as to:
        yield to


# --- one lie at a time -----------------------------------------------------------------------


def put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def short_tcp(packet: bytes) -> bytes:
    """The packet with a TCP header of 16 bytes."""
    return put(packet[:36], 2, struct.pack("!H", len(packet) - 4))[:32] + b"\x40\x10\x02\x00" + (
        packet[40:]
    )


def sliced_behind(packet: bytes, end: int, gso_size: int) -> bytes:
    """The first slice, if the headers are `end` bytes long."""
    return struct.pack("<BHH", SLICE, 0, gso_size) + packet[: end + gso_size]


V4, V6 = honest(4), honest(6)
V4_SLICE, V6_SLICE = sliced(V4, 1000)[0], sliced(V6, 1000)[0]
V4_LAST = sliced(V4, 1000)[2]
V4_UDP = sliced(honest(4, UDP), 1000)[0]
CHAIN = tuple((kernel.DESTINATION, b"\x01\x04" + bytes(4)) for _ in range(9))
V6_CHAIN = sliced(honest(6, extensions=CHAIN[:1]), 1000)[0]
SMALL = stack.plain_frame(
    stack.ip_packet(stack.Path(ALLOWED[0], "10.90.0.1"), UDP, stack.udp_header(9) + bytes(9)),
    partial=True,
)[VNET.size :]
AT = 5  # where the packet begins in a plain text

LIES = {
    "nothing": b"",
    "half a prefix": b"\0\0\0\0",
    "flags unknown": put(framed(SMALL), 0, b"\x10"),
    "flags unknown, high": put(framed(SMALL), 0, b"\x80"),
    "last without slice": put(framed(SMALL), 0, b"\x04"),
    "slice with a partial checksum": put(V4_SLICE, 0, b"\x03"),
    "slice that is a report": put(V4_SLICE, 0, b"\x0a"),
    "report, too short": framed(bytes(15), REPORT),
    "report, too long": framed(bytes(17), REPORT),
    "frame longer than the record": framed(SMALL, length=len(SMALL) + 1),
    "frame that goes on in what lay there": framed(SMALL[:30], length=len(SMALL)),
    "frame of 65535": framed(SMALL, length=0xFFFF),
    "frame of nothing": framed(b""),
    "packet of a byte": framed(b"\x45"),
    "packet shorter than it says": framed(SMALL[:-1]),
    "packet longer than it says": framed(SMALL + b"!"),
    "partial checksum of ICMP": framed(put(SMALL, 9, b"\x01"), NEEDS_CSUM),
    "partial checksum of a fragment": framed(put(SMALL, 6, b"\x20\x00"), NEEDS_CSUM),
    "partial checksum of a later fragment": framed(put(SMALL, 6, b"\x00\x01"), NEEDS_CSUM),
    "partial checksum beyond the packet": framed(
        stack.ip_packet(stack.Path(ALLOWED[0], "10.90.0.1"), TCP, bytes(17)), NEEDS_CSUM
    ),
    "slice without a packet": V4_SLICE[:5],
    "slice of half a header": V4_SLICE[:30],
    "slice without content": V4_SLICE[:45],
    "slice a byte short": V4_SLICE[:-1],
    "slice a byte long": V4_SLICE + b"!",
    "gso_size 0": put(V4_SLICE, 3, b"\0\0"),
    "gso_size 65535": put(V4_SLICE, 3, b"\xff\xff"),
    "index behind the end": put(V4_SLICE, 1, b"\x03\x00"),
    "index of the end in the middle": put(V4_SLICE, 1, b"\x02\x00"),
    "index 65535": put(V4_SLICE, 1, b"\xff\xff"),
    "last in the middle": put(V4_SLICE, 0, bytes([SLICE | LAST])),
    "end without last": put(V4_LAST, 0, bytes([SLICE])),
    "end a byte short": V4_LAST[:-1],
    "end a byte long": V4_LAST + b"!",
    "IP version 0": put(V4_SLICE, AT, b"\x05"),
    "IP version 15": put(V4_SLICE, AT, b"\xf5"),
    "IPv6 said to be IPv4": put(V6_SLICE, AT, b"\x45"),
    "IPv4 header of 16 bytes": put(V4_SLICE, AT, b"\x44"),
    "IPv4 header of 60 bytes": put(V4_SLICE, AT, b"\x4f"),
    "IPv4 header longer than the total": put(V4_SLICE, AT + 2, b"\x00\x13"),
    "IPv4 total without content": put(V4_SLICE, AT + 2, b"\x00\x28"),
    "IPv6 length 0": put(V6_SLICE, AT + 4, b"\0\0"),
    "slice of a fragment": put(V4_SLICE, AT + 6, b"\x20\x00"),
    "slice of a later fragment": put(V4_SLICE, AT + 6, b"\x00\x01"),
    "slice of GRE": put(V4_SLICE, AT + 9, b"\x2f"),
    "slice of an IPv6 fragment": put(V6_SLICE, AT + 6, b"\x2c"),
    "slice behind a routing header": put(V6_CHAIN, AT + 6, b"\x2b"),
    "extension longer than the packet": put(V6_CHAIN, AT + 41, b"\xff"),
    "extensions without an end": put(V6_CHAIN, AT + 40, b"\x3c")[: AT + 48],
    "more extensions than are followed": sliced(honest(6, extensions=CHAIN), 1000)[0],
    "TCP header of 16 bytes": put(V4_SLICE, AT + 32, b"\x40"),
    "TCP header of 16 bytes, all else right": sliced_behind(short_tcp(V4), 36, 1000),
    "TCP header of 60 bytes": put(V4_SLICE, AT + 32, b"\xf0"),
    "UDP said to be TCP": put(V4_UDP, AT + 9, b"\x06"),
    "super-packet shorter than it says": framed(V4[:-1], 0, 1000),
    "super-packet longer than it says": framed(V4 + b"!", 0, 1000),
    "super-packet of too many slices": framed(V4, 0, 3000 // MAX_SLICES),
    "super-packet of one header": framed(put(V4[:40], 2, b"\x00\x28"), 0, 1000),
    "super-packet that is a fragment": framed(put(V4, 6, b"\x20\x00"), 0, 1000),
    "super-packet of ICMP": framed(put(V4, 9, b"\x01"), 0, 1000),
}


@pytest.mark.parametrize("plain", [pytest.param(plain, id=name) for name, plain in LIES.items()])
def test_a_lie_is_dropped_and_counted_once(
    plain: bytes, session: Session, target: Receiver
) -> None:
    peer = Peer(session)
    assert target.take([[peer.seal(plain)]]) == []
    assert target.drops() == {"malformed": 1}
    frames = target.take([[peer.seal(framed(SMALL, NEEDS_CSUM))]])
    assert len(judge(target, frames)) == 1  # and the session goes on


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("form", ["packet", "slice", "super-packet"])
def test_foreign_source_is_dropped_and_counted(
    version: int, form: str, session: Session, target: Receiver
) -> None:
    packet = honest(version, source=FOREIGN[version])
    plains = {
        "packet": framed(packet),
        "slice": sliced(packet, 1000)[0],
        "super-packet": framed(packet, 0, 1000),
    }
    assert target.take([[Peer(session).seal(plains[form])]]) == []
    assert target.drops() == {"bad_source": 1}


@pytest.mark.parametrize("version", [4, 6])
def test_sources_change_while_the_key_and_its_replay_window_stay(
    version: int, session: Session, target: Receiver
) -> None:
    peer = Peer(session)
    old, new = (framed(honest(version, source=each)) for each in ("", FOREIGN[version]))
    first = peer.seal(old)
    assert len(target.take([[first]])) == 1
    target.command("set_sources", slot=session.slot, networks=[FOREIGN[version]])
    assert target.take([[first], [peer.seal(old)]]) == []
    assert target.drops() == {"replayed": 1, "bad_source": 1}
    assert len(target.take([[peer.seal(new)]])) == 1
    target.command("set_sources", slot=session.slot + 1, networks=list(session.networks))
    assert len(target.take([[peer.seal(new)]])) == 1  # another slot is another's


def test_slices_beyond_65535_bytes_are_never_joined(session: Session, target: Receiver) -> None:
    """A header that promises the most there is, and slices that go on behind its end."""
    peer, packet = Peer(session), honest(size=65535 - 40)
    plains = [put(plain, 0, bytes([SLICE])) for plain in sliced(packet, 1000)]
    more = [put(plains[0], 1, struct.pack("<H", index)) for index in range(66, 80)]
    frames = target.take([[peer.seal(plain) for plain in plains + more]])
    assert len(judge(target, frames)) == 65  # the last one is no full slice
    assert target.drops() == {"malformed": 15}


@pytest.mark.parametrize(
    ("place", "new"),
    [(3, b"\xe7\x03"), (1, b"\x00\x00"), (1, b"\x02\x00"), (0, b"\x06"), (0, b"\x03")],
    ids=["gso_size", "index again", "index skipped", "last", "flag"],
)
def test_a_lie_in_the_middle_of_a_run_is_dropped(
    place: int, new: bytes, session: Session, target: Receiver
) -> None:
    first, second, third = sliced(honest(size=2500), 1000)
    peer, lie = Peer(session), put(second, place, new)
    frames = target.take([[peer.seal(plain) for plain in (first, lie, second, third)]])
    packets = judge(target, frames)
    again = place == 1 and new[0] == 0  # the first one's index: well-formed, if twice
    assert len(packets) == (4 if again else 3)
    assert target.drops() == ({} if again else {"malformed": 1})


def test_full_slices_at_and_beyond_the_end_are_not_joined(
    session: Session, target: Receiver
) -> None:
    peer, (first, second, third) = Peer(session), sliced(V4, 1000)
    beyond = [put(third, 0, bytes([SLICE, index, 0])) for index in (2, 3, 4)]
    frames = target.take([[peer.seal(plain) for plain in (first, second, *beyond)]])
    assert len(judge(target, frames)) == 2
    assert target.drops() == {"malformed": 3}


@pytest.mark.parametrize("place", [1, 4, 20, 27, 31, 33, 35])
def test_slices_of_twins_are_never_mixed(
    place: int, session: Session, target: Receiver
) -> None:
    """Two super-packets that differ in one byte of their headers; any of their slices are lost."""
    twin = put(V4, place, bytes([V4[place] ^ 4]))
    plains = sliced(V4, 1000) + sliced(twin, 1000)
    segments = [
        packet
        for each in (V4, twin)
        for packet in kernel.on_the_wire(
            VNET.pack(1, kernel.TCPV4, 40, 1000, 20, 16) + with_partial_sum(each)
        )
    ]
    peer = Peer(session)
    for chosen in itertools.product((False, True), repeat=6):
        burst = [peer.seal(plain) for plain, kept in zip(plains, chosen, strict=True) if kept]
        packets = [p for frame in target.take([burst]) for p in kernel.on_the_wire(frame)]
        assert packets == list(itertools.compress(segments, chosen))


def with_partial_sum(packet: bytes) -> bytes:
    """The packet with the checksums that a stack leaves in it."""
    packet = put(packet, 10, b"\0\0")
    packet = put(packet, 10, struct.pack("!H", ~kernel.ones_sum(packet[:20]) & 0xFFFF))
    return stack.with_partial_checksum(packet)[0]


def test_index_does_not_wrap(session: Session, target: Receiver) -> None:
    peer, packet = Peer(session), put(honest(size=2), 2, b"\xff\xff")
    first = struct.pack("<BHH", SLICE, 0, 1) + packet[:41]
    indexes = (65533, 65534, 65535, 0)
    plains = [put(first, 1, struct.pack("<H", index)) for index in indexes]
    frames = target.take([[peer.seal(plain) for plain in plains]])
    assert len(judge(target, frames)) == 1  # index 0 alone: it is well-formed
    assert target.drops() == {"malformed": 3}


@pytest.mark.parametrize("form", ["slice", "super-packet"])
def test_lengths_and_checksums_of_a_super_packet_are_computed_not_believed(
    form: str, session: Session, target: Receiver
) -> None:
    packet = put(honest(protocol=UDP), 24, b"\xff\xff\x12\x34")  # UDP length and checksum
    packet = put(packet, 10, b"\xab\xcd")  # IPv4 header checksum
    peer = Peer(session)
    plains = sliced(packet, 1000) if form == "slice" else [framed(packet, 0, 1000)]
    packets = judge(target, target.take([[peer.seal(plain) for plain in plains]]))
    assert len(packets) == 3
    for got in packets:
        kernel.check(got)
    assert target.drops() == {}


def test_a_run_is_not_continued_by_another_session(session: Session) -> None:
    """The second session seals what the first would send next, from the first one's address."""
    other = new_session(1, networks=[FOREIGN[4]])
    with receiver(session, other) as to:
        mine, theirs = Peer(session), Peer(other)
        first, second, third = sliced(V4, 1000)
        burst = [mine.seal(first), theirs.seal(second), mine.seal(second), theirs.seal(third)]
        packets = judge(to, to.take([burst]))
        assert len(packets) == 2
        assert to.drops() == {"bad_source": 2}
        assert to.counters.slot(1).rx_packets == 0


# --- any lie at all --------------------------------------------------------------------------

_place = st.integers(0, 80) | st.integers(0, 5)
_values = st.integers(0, 255) | st.sampled_from([0, 1, 2, 6, 17, 0x2B, 0x2C, 0x3C, 0xFF])
_changes = st.lists(st.tuples(_place, _values), max_size=4)
_lengths = st.none() | st.integers(0, 100) | st.integers(-3, -1)
_forms = st.sampled_from(["slices", "frames", "super-packet"])


def plain_texts(form: str, frames: Sequence[bytes]) -> list[bytes]:
    """Honest plain texts, one or more for each frame of the stack's."""
    plains = []
    for frame in frames:
        flags, gso_type, _, gso_size, _, _ = VNET.unpack_from(frame)
        packet = frame[VNET.size :]
        if gso_type and form == "slices":
            plains += sliced(packet, gso_size)
        else:
            whole = gso_size if form == "super-packet" else 0
            plains.append(framed(packet, 0 if whole else flags, whole))
    return [b"".join(plains)] if form == "frames" else plains


@given(
    form=_forms,
    frames=st.lists(
        st.one_of(stack.super_frames(8), stack.single_frames()), min_size=1, max_size=3
    ),
    changes=st.lists(st.tuples(_changes, _lengths), min_size=1, max_size=4),
    repeat=st.lists(st.integers(0, 20), max_size=6),
)
@settings(max_examples=150, deadline=None)
def test_changed_records_never_reach_the_kernel_malformed(
    form: str,
    frames: list[bytes],
    changes: list[tuple[list[tuple[int, int]], int | None]],
    repeat: list[int],
) -> None:
    session = new_session(0, networks=ALLOWED)
    plains = [p for p in plain_texts(form, frames) if len(p) < 60000]
    plains += [plains[number % len(plains)] for number in repeat if plains]
    for number, (bytes_changed, length) in enumerate(changes):
        if not plains:
            break
        at = number * 7 % len(plains)
        for place, value in bytes_changed:
            plains[at] = put(plains[at], place, bytes([value]))[: len(plains[at])]
        plains[at] = plains[at][:length]
    peer = Peer(session)
    with receiver(session) as to:
        packets = judge(to, to.take([[peer.seal(plain) for plain in plains]]))
        assert set(to.drops()) <= {"malformed", "bad_source"}
        # a changed length can turn one frame into several
        assert len(packets) + sum(to.drops().values()) >= len(plains)


@given(st.lists(st.binary(max_size=120), min_size=1, max_size=10), st.booleans())
@settings(max_examples=100, deadline=None)
def test_arbitrary_plain_text_is_dropped_and_counted(bodies: list[bytes], no_vnet: bool) -> None:
    session = new_session(0, networks=ALLOWED)
    peer = Peer(session)
    offloads = replace(FULL, vnet=False, tso=False, uso=False) if no_vnet else FULL
    with receiver(session, offloads=offloads) as to:
        assert judge(to, to.take([[peer.seal(body) for body in bodies]])) == []
        assert to.drops().keys() <= {"malformed", "bad_source"}
        assert sum(to.drops().values()) >= len([body for body in bodies if body[:1] != b"\x08"])


# --- records that span datagrams ---------------------------------------------------------------

LONG = framed(V4, 0, 1000)


def test_a_record_may_come_in_any_parts_and_any_order(session: Session, target: Receiver) -> None:
    peer, frames = Peer(session), []
    for size in (64, 100, 1000, 3000):
        for turned in range(3):
            parts = peer.span(LONG, size)
            orders = (parts[::-1], parts[1:] + parts[:1], parts[::2] + parts[1::2])
            frames += target.take([orders[turned]])
    assert len(frames) == 12
    assert len(judge(target, frames)) == 36


@pytest.mark.parametrize(
    ("place", "value"),
    [(2, 5), (3, 0), (3, 1), (3, 63), (3, 255), (2, 255), (1, 200)],
    ids=["another part", "no parts", "fewer", "more", "far more", "part 255", "another lane"],
)
def test_a_part_with_a_wrong_number_spoils_nothing_but_its_record(
    place: int, value: int, session: Session, target: Receiver
) -> None:
    """The tag is over the first part's header and all content: it decides."""
    peer, frames = Peer(session), []
    for wrong in range(3):
        parts = peer.span(LONG, 1100)
        parts[wrong] = put(parts[wrong], place, bytes([value]))
        frames += target.take([parts])
        frames += target.take([peer.span(LONG, 1100)])
    assert 3 <= len(frames) <= 4  # what stands in the middle one is not looked at
    assert {frame[VNET.size + 40 :] for frame in frames} == {V4[40:]}
    assert len(judge(target, frames)) == 3 * len(frames)


def test_parts_without_the_rest_displace_only_those_of_their_own_session(
    session: Session,
) -> None:
    other = new_session(1, networks=ALLOWED)
    with receiver(session, other) as to:
        begun, *rest = Peer(session).span(LONG, 1100)
        liar = Peer(other)
        flood = [liar.span(LONG, 1100)[0] for _ in range(500)]
        assert to.take([[begun]]) == []
        assert to.take([flood[at : at + 100] for at in range(0, 500, 100)]) == []
        assert len(judge(to, to.take([rest]))) == 3
        assert to.drops()["incomplete"] >= 500 - 64  # what is kept is bounded, the rest counted


@given(
    changes=st.lists(st.tuples(_place, st.integers(0, 15), _values), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
    size=st.integers(90, 2000),
)
@settings(max_examples=80, deadline=None)
def test_changed_parts_never_reach_the_kernel(
    changes: list[tuple[int, int, int]], order: random.Random, size: int
) -> None:
    session = new_session(0, networks=ALLOWED)
    peer = Peer(session)
    with receiver(session) as to:
        parts = peer.span(LONG, size) + peer.span(framed(V6, 0, 1000), size)
        for number, place, value in changes:
            at = number % len(parts)
            parts[at] = put(parts[at], place, bytes([value]))
        parts = [part for part in parts if part[0] == 8]  # no packets for control
        order.shuffle(parts)
        packets = judge(to, to.take([parts]))
        for packet in packets:
            kernel.check(packet)
        assert len(packets) in (0, 3, 6)
        assert len(to.take([[peer.seal(framed(SMALL, NEEDS_CSUM))]])) == 1
