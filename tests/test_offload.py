"""Correctness under offload, from the TUN of one end to the TUN of the other.

Whole workers stand between two models of a kernel. Whatever super-packets go in, and whatever
the network does to the datagrams, the packets that come out, once the receiving kernel has cut
them, are those that the sending kernel would have put on a wire, less the lost ones.
"""

from __future__ import annotations

import os
import random
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import kernelmodel as kernel
import pytest
import superpackets as stack
from hypothesis import given, settings
from hypothesis import strategies as st
from kernelmodel import VNET

from jvpnd.core.offloads import Offloads
from jvpnd.core.wire import HEADER, Suite

from .workers import (
    FULL,
    Pairing,
    Session,
    buffers_are_large,
    new_session,
    receiver,
    relay_pair,
    sender,
    stream_pair,
    udp_pair,
)

ALLOWED = tuple(stack.SOURCES.values())
LARGE_BUFFERS = buffers_are_large()
MAX_TURN = 120_000  # bytes on the TUN at once, and
MAX_SEGMENTS = 200  # packets: what the socket buffers of every system hold


@pytest.fixture(autouse=True, scope="module")
def _one_cpu() -> Iterator[None]:
    """Datagrams on loopback overtake each other where their sender moves to another CPU."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


# --- what goes in, what is to come out -----------------------------------------------------------


def turn(frames: Sequence[bytes]) -> list[bytes]:
    """As many of the frames as fit into one turn."""
    octets = packets = 0
    for number, frame in enumerate(frames):
        octets += len(frame)
        packets += len(kernel.on_the_wire(frame))
        if number and (octets > MAX_TURN or packets > MAX_SEGMENTS):
            return list(frames[:number])
    return list(frames)


def offered(frame: bytes, offloads: Offloads) -> list[bytes]:
    """What the kernel hands to a TUN with these offloads instead of the frame."""
    if not offloads.vnet:
        return kernel.on_the_wire(frame)
    wanted = offloads.uso if frame[1] == kernel.UDP_L4 else offloads.tso
    if frame[1] == 0 or wanted:
        return [frame]
    return [VNET.pack(0, 0, 0, 0, 0, 0) + packet for packet in kernel.on_the_wire(frame)]


def flow_of(packet: bytes) -> bytes:
    return packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]


def by_flow(packets: Sequence[bytes]) -> dict[bytes, list[bytes]]:
    flows: dict[bytes, list[bytes]] = {}
    for packet in packets:
        flows.setdefault(flow_of(packet), []).append(packet)
    return flows


def received(frames: Sequence[bytes], offloads: Offloads) -> list[bytes]:
    """The packets that the receiving kernel makes of the frames written to it."""
    for frame in frames:
        kind = frame[1] & ~kernel.ECN
        if kind in (kernel.TCPV4, kernel.TCPV6):
            (start,) = struct.unpack_from("=H", frame, 6)
            assert bool(frame[1] & kernel.ECN) == bool(frame[10 + start + 13] & kernel.CWR)
        assert kind in (0, kernel.UDP_L4) if not offloads.tso else True
        assert kind != kernel.UDP_L4 if not offloads.uso else True
        assert not any(frame[:10]) if not offloads.vnet else True
    return [packet for frame in frames for packet in kernel.on_the_wire(frame)]


# --- the network between -------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """What happens to the datagrams; numbers count from whichever there are, around the end."""

    lost: tuple[int, ...] = ()
    moved: tuple[tuple[int, int], ...] = ()  # the datagram at .. goes to ..
    doubled: tuple[tuple[int, int], ...] = ()  # a copy of the datagram at .. comes at ..
    mixed: int | None = None  # seed: half are lost, some come twice, all in any order
    bursts: tuple[int, ...] = (1000,)  # so many are there when the receiver looks

    def arrivals(self, count: int) -> list[int]:
        """Numbers of the datagrams as they come in."""
        if self.mixed is not None:
            rest = random.Random(self.mixed)
            kept = rest.sample(range(count), count - count // 2)
            return kept + rest.choices(kept, k=len(kept) // 4) if kept else []
        gone = {number % count for number in self.lost} if count else set()
        line = [number for number in range(count) if number not in gone]
        for at, to in self.moved if line else ():
            line.insert(to % len(line), line.pop(at % len(line)))
        for at, to in self.doubled if line else ():
            line.insert(to % len(line), line[at % len(line)])
        return line

    def split(self, line: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
        at, turn = 0, 0
        while at < len(line):
            size = self.bursts[turn % len(self.bursts)]
            yield line[at : at + size]
            at, turn = at + size, turn + 1


_place = st.integers(0, 255)
_places = st.lists(_place, max_size=12).map(tuple)
_pairs = st.lists(st.tuples(_place, _place), max_size=12).map(tuple)
_bursts = st.just((1000,)) | st.lists(st.integers(1, 80), min_size=1, max_size=4).map(tuple)
in_order = st.builds(Network, bursts=_bursts)
lossy = st.builds(Network, lost=_places, bursts=_bursts)
hostile = st.builds(Network, _places, _pairs, _pairs, bursts=_bursts) | st.builds(
    Network, mixed=st.integers(0, 2**32), bursts=_bursts
)


# --- properties ----------------------------------------------------------------------------------


@given(st.one_of(stack.super_frames(), stack.single_frames()))
@settings(max_examples=60, deadline=None)
def test_model_makes_packets_that_a_careful_receiver_takes(frame: bytes) -> None:
    for packet in kernel.on_the_wire(frame):
        kernel.check(packet)


def records_of(datagrams: Sequence[bytes]) -> list[tuple[int, ...]]:
    """Which record each datagram belongs to: lane, receiver index, counter."""
    heads = [HEADER.unpack_from(datagram) for datagram in datagrams]
    return [(lane, index, counter) for _, lane, _, index, counter in heads]


def contents(
    datagrams: Sequence[bytes], ways: Ways
) -> tuple[dict[tuple[int, ...], list[bytes]], list[bytes]]:
    """The packets in each record, told by delivering one at a time; and all of them in order."""
    by_record: dict[tuple[int, ...], list[bytes]] = {}
    for record, datagram in zip(records_of(datagrams), datagrams, strict=True):
        by_record.setdefault(record, []).append(datagram)
    with receiver(*ways.sessions, offloads=ways.down, pair=ways.pair, few=ways.few) as to:
        packets = {
            record: received(to.take([parts]), ways.down) for record, parts in by_record.items()
        }
        assert to.drops() == {}
    return packets, [packet for part in packets.values() for packet in part]


def sent(frames: Sequence[bytes], ways: Ways) -> tuple[list[bytes], list[bytes]]:
    """The datagrams of all lanes, one lane's behind the other's, and the packets they stand for."""
    datagrams: list[bytes] = []
    expected: list[bytes] = []
    for lane in range(ways.lanes):
        limit = ways.limits[0] if ways.limits else None
        more: dict[str, Any] = {"offloads": ways.up, "lane": lane, "few": ways.few}
        with sender(*ways.sessions, pair=ways.pair, limit=limit, **more) as out:
            mine = [frame for frame in frames if flow_of(frame[10:])[-1] % ways.lanes == lane]
            packets = [packet for frame in mine for packet in kernel.on_the_wire(frame)]
            out.set_mtu(ways.mtu)
            handed = [part for frame in mine for part in offered(frame, ways.up)]
            if ways.clean:
                out.hear_of_no_loss(0)
                datagrams += out.send(handed[:1])
                del handed[:1]
            if ways.few:  # one after the other: what a full stream does not take is lost
                datagrams += [part for frame in handed for part in out.send([frame])]
            elif ways.limits:
                for number, limit in enumerate(ways.limits):
                    out.set_limit(limit)
                    some = out.send(handed[number :: len(ways.limits)])
                    assert max(map(len, some), default=0) <= limit
                    datagrams += some
            else:
                datagrams += out.send(handed)
            assert out.drops() == {}
            assert (out.packets(), out.octets()) == (len(packets), sum(map(len, packets)))
            expected += packets
    return datagrams, expected


def carry(frames: Sequence[bytes], network: Network, ways: Ways) -> None:
    """Frames from end to end; all that must hold, holds."""
    datagrams, expected = sent(frames, ways)
    packets, in_order = contents(datagrams, ways)
    assert by_flow(in_order) == by_flow(expected)

    line = network.arrivals(len(datagrams))
    once = list(dict.fromkeys(line))
    needed = Counter(records_of(datagrams))
    here = Counter(records_of([datagrams[number] for number in once]))
    wanted = [p for record in here if here[record] == needed[record] for p in packets[record]]
    with receiver(*ways.sessions, offloads=ways.down, pair=ways.pair) as to:
        got = received(
            to.take(network.split([datagrams[number] for number in line])), ways.down
        )
        assert Counter(got) == Counter(wanted)
        if once == sorted(once):
            assert by_flow(got) == by_flow(wanted)
        if not ways.clean:
            doubles = len(line) - len(once)
            assert to.drops() == ({"replayed": doubles} if doubles else {})
        elif line == sorted(once):
            assert to.drops().keys() <= {"incomplete"}
        assert (to.packets(), to.octets()) == (len(got), sum(map(len, got)))


@dataclass(frozen=True)
class Ways:
    """How the two ends are set up."""

    sessions: tuple[Session, ...]
    up: Offloads = FULL
    down: Offloads = FULL
    lanes: int = 1
    pair: Pairing = udp_pair
    mtu: int = stack.MTU
    clean: bool = False  # the peer has told of no loss: records may span datagrams
    few: int = 0  # the stream takes, and brings, so many bytes at a time
    limits: tuple[int, ...] = ()  # what the relay carries, one after the other


def one_client(**more: Any) -> Ways:
    """A client's end: all goes to one session, which may use the client's addresses only."""
    return Ways((new_session(0, networks=ALLOWED),), **more)


def two_sessions(**more: Any) -> Ways:
    """A gateway's end: half of the flows go to one session, half to another."""
    halves = (
        ("10.90.0.0/30", "fd90::/126"),
        ("10.90.0.3/32", "10.90.0.4/30", "fd90::3/128", "fd90::4/126"),
    )
    sessions = [new_session(slot, routes=routes) for slot, routes in enumerate(halves)]
    return Ways(tuple(sessions), **more)


_frames = st.lists(stack.frames(), min_size=1, max_size=6).map(turn)
_offloads = st.sampled_from(
    [
        FULL,
        replace(FULL, uso=False),
        replace(FULL, tso=False, uso=False),
        replace(FULL, udp_gso=False, udp_gro=False),
        replace(FULL, vnet=False, tso=False, uso=False),
    ]
)


@given(_frames, in_order)
@settings(max_examples=60, deadline=None)
def test_undisturbed_all_packets_arrive_in_order(
    frames: list[bytes], network: Network
) -> None:
    carry(frames, network, one_client())


@given(_frames, lossy)
@settings(max_examples=60, deadline=None)
def test_what_is_not_lost_arrives_in_order(frames: list[bytes], network: Network) -> None:
    carry(frames, network, one_client())


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [kernel.TCP, kernel.UDP])
def test_what_follows_a_super_packet_cut_off_stays_behind_it(version: int, protocol: int) -> None:
    path = stack.Path(stack.SOURCES[version], stack.destination(version, 0))
    header = stack.tcp_header() if protocol == kernel.TCP else stack.udp_header(3000)
    large = stack.super_frame(path, protocol, header, bytes(3000), 1000)
    small = stack.ip_packet(path, kernel.UDP, stack.udp_header(1) + b"x")
    frames = [large, stack.plain_frame(small, partial=True), large]
    for lost in range(7):
        carry(frames, Network(lost=(lost,)), one_client())


@given(_frames, hostile)
@settings(max_examples=80, deadline=None)
def test_lost_moved_and_doubled_datagrams_leave_exactly_the_others(
    frames: list[bytes], network: Network
) -> None:
    carry(frames, network, one_client())


@given(_frames, hostile, _offloads, _offloads)
@settings(max_examples=60, deadline=None)
def test_ends_without_some_offloads_make_the_same_packets(
    frames: list[bytes], network: Network, up: Offloads, down: Offloads
) -> None:
    carry(frames, network, one_client(up=up, down=down))


@given(_frames, hostile, st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_sessions_and_lanes_keep_apart(
    frames: list[bytes], network: Network, lanes: int
) -> None:
    carry(frames, network, two_sessions(lanes=lanes))


_small = st.lists(stack.frames(mtu=1400), min_size=2, max_size=6).map(turn)


@given(_small, in_order | lossy)
@settings(max_examples=40, deadline=None)
def test_records_that_span_datagrams_arrive_whole_or_not_at_all(
    frames: list[bytes], network: Network
) -> None:
    carry(frames, network, one_client(mtu=1400, clean=True))


@given(_small, hostile)
@settings(max_examples=60, deadline=None)
def test_records_that_span_datagrams_may_come_in_any_order(
    frames: list[bytes], network: Network
) -> None:
    carry(frames, network, one_client(mtu=1400, clean=True))


def test_super_packets_that_cannot_be_cut_are_counted() -> None:
    """Behind a routing header the checksum has another destination; long chains end the walk."""
    routing = ((kernel.ROUTING, bytes([4, 0, 0, 0, 0, 0]) + bytes(16)),)
    chain = ((kernel.DESTINATION, b"\x01\x04" + bytes(4)),) * 9
    ways = one_client()
    for extensions in (routing, chain):
        path = stack.Path(stack.SOURCES[6], stack.destination(6, 0), extensions=extensions)
        frame = stack.super_frame(path, kernel.TCP, stack.tcp_header(), bytes(6000), 1300)
        with sender(*ways.sessions) as out:
            assert out.send([frame]) == []
            assert out.drops() == {"unsupported": 1}


def test_records_of_any_length_span_whole_datagrams() -> None:
    """Also where the last part would be shorter than any packet may be."""
    path = stack.Path(stack.SOURCES[4], stack.destination(4, 0))
    lengths = [length for number in (2, 20) for length in range(1421 * number - 80, 1421 * number)]
    frames = [
        stack.super_frame(path, kernel.TCP, stack.tcp_header(), bytes(length), 1360)
        for length in [2000, *lengths]
    ]
    spans = 0
    for at in range(0, len(frames), 4):
        some, ways = frames[at : at + 4], one_client(mtu=1400, clean=True)
        datagrams, expected = sent(some, ways)
        with receiver(*ways.sessions) as to:
            assert received(to.take([datagrams]), FULL) == expected
        with receiver(*ways.sessions) as to:
            got = received(to.take([datagrams[::-1]]), FULL)
            assert Counter(got) == Counter(expected)
        spans += sum(parts > 0 for _, _, _, parts in (d[:4] for d in datagrams))
    assert spans > 1000


@given(_frames)
@settings(max_examples=20, deadline=None)
def test_all_packets_arrive_in_order_through_a_relay(frames: list[bytes]) -> None:
    carry(frames, Network(), one_client(pair=relay_pair))


@given(_frames, st.just(0) | st.integers(1000, 20_000))
@settings(max_examples=30, deadline=None)
def test_all_packets_arrive_in_order_over_a_stream(frames: list[bytes], few: int) -> None:
    """However few bytes it takes at a time."""
    carry(frames, Network(), one_client(pair=stream_pair, few=few))


@given(_frames, _offloads, _offloads)
@settings(max_examples=20, deadline=None)
def test_ends_without_some_offloads_make_the_same_packets_over_a_stream(
    frames: list[bytes], up: Offloads, down: Offloads
) -> None:
    carry(frames, Network(), two_sessions(pair=stream_pair, up=up, down=down))


_limits = st.sampled_from([1024, 1170, 1250, 1442, 9000])


@given(_small, st.lists(_limits, min_size=1, max_size=3).map(tuple))
@settings(max_examples=60, deadline=None)
def test_a_relay_that_carries_little_is_sent_nothing_longer(
    frames: list[bytes], limits: tuple[int, ...]
) -> None:
    """Also when it carries another size from now on."""
    ordered = [frame for n in range(len(limits)) for frame in frames[n :: len(limits)]]
    ways = one_client(pair=relay_pair, mtu=1400, limits=limits)
    datagrams, _expected = sent(frames, ways)
    _by_record, came = contents(datagrams, ways)
    packets = [packet for frame in ordered for packet in kernel.on_the_wire(frame)]
    assert by_flow(came) == by_flow(packets)


# Not in any order: eight records of which parts are missing are kept, and here each has two parts.
@given(_small, in_order | lossy)
@settings(max_examples=40, deadline=None)
def test_a_relay_that_carries_little_may_lose(frames: list[bytes], network: Network) -> None:
    carry(frames, network, one_client(pair=relay_pair, mtu=1400, limits=(1170,), clean=True))


@given(_frames)
@settings(max_examples=10, deadline=None)
def test_suites_carry_the_same(frames: list[bytes]) -> None:
    for suite in Suite:
        carry(frames, Network(), Ways((new_session(0, suite=suite),)))


@given(stack.super_frames(max_segments=2000 if LARGE_BUFFERS else MAX_SEGMENTS))
@settings(max_examples=20, deadline=None)
def test_super_packets_of_very_many_segments_arrive_whole(frame: bytes) -> None:
    datagrams, expected = sent([frame], ways := one_client())
    with receiver(*ways.sessions) as to:
        bursts = [datagrams[at : at + 100] for at in range(0, len(datagrams), 100)]
        assert received(to.take(bursts), FULL) == expected


@pytest.mark.parametrize("pair", [relay_pair, stream_pair])
def test_a_transport_that_does_not_read_costs_packets_and_nothing_else(pair: Pairing) -> None:
    ends = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 1400, 0, 0, 64, 1, 0, *ends)
    frame = bytes(10) + header + bytes(1380)
    with sender(new_session(0), pair=pair) as end:
        end.narrow()
        for _ in range(30):
            end.offer([frame])
        refused = end.drops()["send_buffer"]
        assert 0 < refused < 30
        assert end.packets() == 30 - refused
        while end.readable():  # it wakes up
            end.wire.recv(1 << 17)
        end.offer([frame])
        assert end.packets() == 31 - refused
        assert end.drops() == {"send_buffer": refused}
        assert end.reports == [], "control would give the path up"
