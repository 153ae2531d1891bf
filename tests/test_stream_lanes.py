"""Several lanes over one stream: one worker reads it, and nothing that was taken is taken again,
whatever transport brings it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import superpackets as stack
from hypothesis import given, settings
from hypothesis import strategies as st

from jvpnd.core.wire import HEADER, Suite
from jvpnd.dataplane.counters import Counters
from jvpnd.dataplane.launch import Launched
from jvpnd.dataplane.messages import ReportKind
from jvpnd.dataplane.plane import DataPlane

from .workers import (
    FULL,
    Session,
    new_session,
    receiver,
    relay_pair,
    sender,
    stream_pair,
    udp_pair,
)

LANES = 2  # here; the peer has more
PEER_LANES = 4
PER_LANE = 3


def packets_of(session: Session) -> list[bytes]:
    """What a peer sends in its lanes, each a record with one small packet."""
    found = []
    for lane in range(PEER_LANES):
        with sender(session, lane=lane, pair=relay_pair) as out:
            for number in range(PER_LANE):
                packet, *_report = out.send([small_frame(lane, number)])
                found.append(packet)
    return found


def small_frame(lane: int, number: int) -> bytes:
    path = stack.Path(stack.SOURCES[4], stack.destination(4, lane))
    packet = stack.ip_packet(path, 17, stack.udp_header(2) + bytes([lane, number]))
    return stack.plain_frame(packet, partial=False)


def lane_of(packet: bytes) -> int:
    return int(HEADER.unpack_from(packet)[1])


class Workers:
    """The downlinks of a plane with several lanes: each has its own UDP socket, number 1, and lane
    0 has a stream, number 2."""

    def __init__(self, stack: ExitStack) -> None:
        self.ends = [
            stack.enter_context(receiver(pair=udp_pair, lane=lane, lanes=LANES))
            for lane in range(LANES)
        ]
        self._wires = [end.wire for end in self.ends]
        self._stream, near = stream_pair()
        stack.callback(self._stream.close)
        self.ends[0].command("add_stream", fds=[near.detach()], socket_id=2)

    def bind(self, session: Session, over_stream: bool) -> None:
        """As a plane does."""
        if over_stream:
            self.ends[1].command("release_receive", index=session.index)
            self.ends[0].bind(session, all_lanes=True)
            return
        for end in self.ends:
            end.bind(session)

    def give(self, packet: bytes, over_stream: bool) -> list[bytes]:
        """What a worker writes to its TUN when this comes."""
        if not over_stream:
            return self.ends[lane_of(packet) % LANES].take([[packet]])
        end = self.ends[0]
        end.wire, end.is_stream = self._stream, True
        try:
            return end.take([[packet]])
        finally:
            end.wire, end.is_stream = self._wires[0], False

    def drops(self) -> dict[str, int]:
        return dict(sum((Counter(end.drops()) for end in self.ends), Counter()))


@pytest.fixture
def session() -> Session:
    return new_session(0)


@pytest.fixture
def workers() -> Iterator[Workers]:
    with ExitStack() as stack:
        yield Workers(stack)


def test_the_packets_of_every_lane_are_taken_from_a_stream(
    session: Session, workers: Workers
) -> None:
    workers.bind(session, over_stream=True)
    for packet in packets_of(session):
        assert len(workers.give(packet, over_stream=True)) == 1
    assert workers.drops() == {}


def test_what_was_taken_from_a_stream_is_taken_from_no_transport_again(
    session: Session, workers: Workers
) -> None:
    workers.bind(session, over_stream=True)
    packets = packets_of(session)
    for packet in packets:
        workers.give(packet, over_stream=True)
    for packet in packets:
        assert workers.give(packet, over_stream=True) == []
        assert workers.give(packet, over_stream=False) == []
    others = sum(lane_of(packet) % LANES != 0 for packet in packets)
    replayed = 2 * len(packets) - others
    assert workers.drops() == {"replayed": replayed, "unknown_index": others}


def test_what_was_taken_over_udp_cannot_be_played_again_over_a_stream(
    session: Session, workers: Workers
) -> None:
    """The lanes of other workers have their windows there: here they are nobody's, even if the same
    key should be bound to the stream."""
    workers.bind(session, over_stream=False)
    packets = packets_of(session)
    for packet in packets:
        assert len(workers.give(packet, over_stream=False)) == 1
    for again in range(2):
        for packet in packets:
            assert workers.give(packet, over_stream=True) == []
        half = (again + 1) * len(packets) // 2
        assert workers.drops() == {"replayed": half, "wrong_lane": half}
        workers.bind(session, over_stream=True)


def test_a_worker_takes_the_lanes_that_are_its_own_also_from_a_stream(
    session: Session, workers: Workers
) -> None:
    """While a session moves, packets may be under way on the old transport."""
    workers.bind(session, over_stream=False)
    told = set()
    for packet in packets_of(session):
        assert bool(workers.give(packet, over_stream=True)) == (lane_of(packet) % LANES == 0)
        told |= {(report.kind, report.number, report.other) for report in workers.ends[0].reports}
    assert (ReportKind.FROM_ELSEWHERE, session.index, 2) in told


_ways = st.lists(st.tuples(st.integers(0, PEER_LANES * PER_LANE - 1), st.booleans()), max_size=40)


@given(st.booleans(), _ways, st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_no_packet_is_taken_twice(
    first_over_stream: bool, ways: list[tuple[int, bool]], rebound_at: int
) -> None:
    """In whatever order they come, by whichever way; also if the key is bound to a stream later."""
    session = new_session(0)
    packets, taken = packets_of(session), Counter[int]()
    with ExitStack() as stack:
        workers = Workers(stack)
        workers.bind(session, first_over_stream)
        for at, (number, over_stream) in enumerate(ways):
            if at == rebound_at:
                workers.bind(session, over_stream=True)
            taken[number] += len(workers.give(packets[number], over_stream))
    assert max(taken.values(), default=0) <= 1


# --- who is told what ------------------------------------------------------------------------


class Told:
    """A worker that only notes what it is told."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, dict[str, Any]]] = []

    def send(self, name: str, fds: Sequence[int] = (), **arguments: Any) -> None:
        self.commands.append((name, {**arguments, "fds": len(fds)}))

    def names(self) -> list[str]:
        found, self.commands = self.commands, []
        return [name for name, _ in found]


def test_one_worker_reads_a_stream_one_writes_it_and_only_one_has_its_keys() -> None:
    async def body() -> None:
        tuns = [os.memfd_create("tun"), os.memfd_create("tun")]
        counters, fd = Counters.create(2)
        plane = DataPlane(Launched([counters, Counters(fd, 1)], fd, {}), tuns, FULL, 1400)
        told = {(role, lane): Told() for role in ("uplink", "downlink") for lane in range(2)}
        plane._workers.update(told)  # type: ignore[arg-type]

        def names() -> list[list[str]]:
            return [told[which].names() for which in sorted(told)]

        stream, (feed, intake) = socket.socket(), socket.socketpair()
        with stream, feed, intake:
            plane.add_stream(7, stream.fileno(), feed.fileno(), intake.fileno())
            assert [told[which].commands for which in sorted(told)] == [
                [("add_stream", {"socket_id": 7, "fds": 1})],  # lane 0 reads
                [],
                [("add_stream", {"socket_id": 7, "fds": 2})],  # and writes
                [("add_socket", {"socket_id": 7, "fds": 1})],  # the others feed
            ]
            names()
            plane.bind_receive(0, 5, Suite.AES_256_GCM, bytes(32), [], 7, None)
            assert names() == [["bind_receive"], ["release_receive"], [], []]
            plane.add_relay(8, feed.fileno(), 1170)
            sockets = ["add_socket", "set_limit"]
            assert names() == [["add_socket"], [], sockets, sockets]
            plane.bind_receive(0, 5, Suite.AES_256_GCM, b"x" * 32, [], 8, None)
            assert names() == [["bind_receive"], ["release_receive"], [], []]
            plane.add_socket(9, [stream.fileno(), stream.fileno()])
            names()
            plane.bind_receive(0, 5, Suite.AES_256_GCM, b"y" * 32, [], 9, None)
            assert names() == [["bind_receive"], ["bind_receive"], [], []]
        plane._workers.clear()
        await plane.close()
        for fd in tuns:
            os.close(fd)

    asyncio.run(body())
