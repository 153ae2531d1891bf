"""Packets on a byte stream: what comes out is what went in, however it was cut on the way."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jvpnd.core.wire import MAX_CONTROL_LEN, PacketType
from jvpnd.dataplane.stream import (
    MAX_PACKET,
    READ_BYTES,
    StreamError,
    StreamReader,
    StreamWriter,
)

AWAITED, UNKNOWN = 7, 9  # receiver indexes
CONTROL, DATA = PacketType.CONTROL, PacketType.DATA
PATIENCE_S = 5
Pair = tuple[socket.socket, socket.socket]


def unix_pair() -> Pair:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def tcp_pair() -> Pair:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.connect(server.getsockname())
        return one, server.accept()[0]


def packet(kind: int, index: int, size: int) -> bytes:
    """As long as wanted, and in each place what belongs there."""
    head = struct.pack("<BBBBI", kind, 0, 0, 0, index)
    return (head + bytes(range(251)) * (size // 251 + 1))[:size]


def prefixed(packets: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(each)) + each for each in packets)


# --- the reader ------------------------------------------------------------------------------


class Reading:
    """A reader, and what it has read. All readers of a worker share their memory."""

    def __init__(self, awaited: Sequence[int] = (AWAITED,)) -> None:
        self.far, self._stream = unix_pair()
        self.far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.reader = StreamReader(self._stream, lambda index: index in awaited)
        self._memory = memoryview(bytearray(MAX_PACKET + READ_BYTES))
        self.found: list[bytes] = []

    def take(self, data: bytes) -> None:
        """This much comes, and is read."""
        sent = 0
        while sent < len(data):
            sent += self.far.send(data[sent:], socket.MSG_DONTWAIT)
            self.read()

    def read(self) -> None:
        try:
            while True:
                self.found += map(bytes, self.reader.read(self._memory))
                self._memory[:4096] = b"\xee" * 4096  # another stream was read
        except BlockingIOError:
            pass

    @property
    def kept(self) -> int:
        """Bytes that wait for more."""
        return len(self.reader._rest)

    def close(self) -> None:
        self.far.close()
        self._stream.close()


@contextmanager
def reading(awaited: Sequence[int] = (AWAITED,)) -> Iterator[Reading]:
    one = Reading(awaited)
    try:
        yield one
    finally:
        one.close()


_sizes = st.sampled_from(
    [
        *(1, 2, 7, 8, 15, 16, 17, 32, 100, 1400),
        *(MAX_CONTROL_LEN - 1, MAX_CONTROL_LEN, MAX_CONTROL_LEN + 1, 5000),
        *(MAX_PACKET - 1, MAX_PACKET),
    ]
)
_packets = st.lists(
    st.builds(packet, st.sampled_from([1, CONTROL, DATA]), st.sampled_from([7, 9]), _sizes),
    max_size=8,
)


def wanted(each: bytes) -> bool:
    if len(each) <= MAX_CONTROL_LEN:
        return True
    kind, index = struct.unpack_from("<BxxxI", each)
    return (kind, index) == (DATA, AWAITED)


@given(_packets, st.data())
@settings(max_examples=150, deadline=None)
def test_packets_cut_anywhere_come_out_as_they_went_in(
    packets: list[bytes], data: st.DataObject
) -> None:
    """But for long ones that nobody awaits, which are left out."""
    stream, ends = prefixed(packets), [0]
    for each in packets:
        ends.append(ends[-1] + 4 + len(each))
    near = st.builds(int.__add__, st.sampled_from(ends), st.integers(-25, 25))
    anywhere = st.integers(0, len(stream))
    cuts = sorted(cut for cut in data.draw(st.lists(near | anywhere)) if 0 < cut < len(stream))
    with reading() as one:
        for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            one.take(stream[begin:end])
        assert one.found == [each for each in packets if wanted(each)]
        assert one.reader.left_out == len(packets) - len(one.found)
        assert one.kept == 0


@given(st.binary(min_size=1, max_size=5000), st.lists(st.integers(1, 700), min_size=1))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_packets_or_an_error_and_little_is_kept(
    noise: bytes, cuts: list[int]
) -> None:
    at = turn = 0
    with reading(awaited=()) as one:
        while at < len(noise):
            size = cuts[turn % len(cuts)]
            try:
                one.take(noise[at : at + size])
            except StreamError:
                return
            assert one.kept <= 4 + MAX_CONTROL_LEN
            at, turn = at + size, turn + 1


@pytest.mark.parametrize("kind", [CONTROL, DATA])
def test_a_stranger_makes_nobody_keep_more_than_controls_longest_packet(kind: int) -> None:
    """However long a packet it announces, and in whatever pieces it sends it."""
    stream = prefixed([packet(kind, UNKNOWN, MAX_PACKET)])
    most = 0
    with reading() as one:
        for at in range(0, len(stream), 11):
            one.take(stream[at : at + 11])
            most = max(most, one.kept)
        assert (one.found, one.reader.left_out) == ([], 1)
        assert most < 4 + 16, "no more than its header was kept"
        longest = packet(CONTROL, UNKNOWN, MAX_CONTROL_LEN)
        one.take(prefixed([longest])[:-1])
        assert one.kept == 4 + MAX_CONTROL_LEN - 1
        one.take(longest[-1:])
        assert one.found == [longest], "what follows is read"


def test_data_that_is_awaited_from_now_on_is_no_longer_left_out() -> None:
    awaited: list[int] = []
    first, second = packet(DATA, AWAITED, 15_000), packet(DATA, AWAITED, 16_000)
    with reading(awaited) as one:
        one.take(prefixed([first]))
        awaited.append(AWAITED)
        one.take(prefixed([second]))
        assert (one.found, one.reader.left_out) == ([second], 1)


@pytest.mark.parametrize("length", [0, MAX_PACKET + 1, 2**31, 2**32 - 1])
def test_lengths_that_no_packet_has_are_an_error(length: int) -> None:
    good = packet(CONTROL, 1, 50)
    with reading() as one:
        with pytest.raises(StreamError):
            one.take(prefixed([good]) + struct.pack("<I", length) + bytes(100))
        assert one.found == [good], "what came before is given"


def test_the_end_of_a_stream_is_told_and_so_is_its_break() -> None:
    with reading() as one:
        one.take(prefixed([b"\x07 whole"]) + b"\x09\0\0\0 half")
        one.far.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError):
            one.read()
        assert one.found == [b"\x07 whole"]
    near, far = tcp_pair()
    with near, far:
        reader = StreamReader(near, lambda _: True)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        with pytest.raises(ConnectionResetError):
            list(reader.read(memoryview(bytearray(MAX_PACKET + READ_BYTES))))


# --- the writer ------------------------------------------------------------------------------


class Writing:
    """A writer with a stream that takes little, its feed, and whoever reads what comes out."""

    def __init__(self, pair: Callable[[], Pair] = unix_pair) -> None:
        stream, self.far = pair()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least there is
        self.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)
        self.feed, intake = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.poll = select.epoll()
        self.writer = StreamWriter(stream, intake, self.poll)
        self._came = b""

    def turn(self) -> bool:
        """One of the worker's; whether there was anything to do."""
        events = self.poll.poll(0)
        for fd, _ in events:
            assert fd in self.writer.descriptors()
            self.writer.ready()
        return bool(events)

    def send(self, data: bytes) -> bool:
        """Whether it was taken."""
        middle = len(data) // 2
        try:
            self.writer.send((memoryview(data[:middle]), memoryview(data[middle:])))
        except BlockingIOError as error:
            if error.errno != errno.EAGAIN:
                raise  # it would pass for a broken stream
            return False
        return True

    def fill(self, size: int = 700) -> list[bytes]:
        """Send until no more is taken; what was."""
        sent: list[bytes] = []
        while self.send(each := packet(DATA, len(sent), size)):
            sent.append(each)
        return sent

    def read(self, most: int = 1 << 20) -> int:
        try:
            data = self.far.recv(most, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        self._came += data
        return len(data)

    def drain(self, until: int) -> None:
        """Read, and let the writer work, until so many packets have come."""
        while len(self.packets()) < until:
            busy = self.turn()
            if not self.read() and not busy:
                # An acknowledgement may be what is missing: then it is the writer's turn.
                either = [self.far, self.poll]
                assert select.select(either, [], [], PATIENCE_S)[0], "packets are missing"

    def packets(self) -> list[bytes]:
        """All that have come whole."""
        found, at = [], 0
        while len(self._came) - at >= 4:
            end = at + 4 + int.from_bytes(self._came[at : at + 4], "little")
            if end > len(self._came):
                break
            found.append(self._came[at + 4 : end])
            at = end
        return found

    def close(self) -> None:
        self.writer.close()
        for each in (self.far, self.feed, self.poll):
            each.close()


@contextmanager
def writing(pair: Callable[[], Pair] = unix_pair) -> Iterator[Writing]:
    one = Writing(pair)
    try:
        yield one
    finally:
        one.close()


@pytest.fixture(params=[unix_pair, tcp_pair])
def out(request: pytest.FixtureRequest) -> Iterator[Writing]:
    with writing(request.param) as one:
        yield one


_lengths = st.integers(1, 300) | st.integers(300, 20_000)
_steps = st.lists(
    st.tuples(st.sampled_from(["send", "feed", "read", "turn"]), _lengths), max_size=60
)


@given(st.sampled_from([unix_pair, tcp_pair]), _steps)
@settings(max_examples=150, deadline=None)
def test_what_was_taken_comes_whole_once_and_in_order(
    pair: Callable[[], Pair], steps: list[tuple[str, int]]
) -> None:
    """Whatever the stream takes at a time; and all that the feed has taken comes."""
    with writing(pair) as out:
        sent: list[bytes] = []
        fed: list[bytes] = []
        for number, (what, size) in enumerate(steps):
            if what == "send":
                if out.send(each := packet(DATA, number, size + 8)):
                    sent.append(each)
            elif what == "feed":
                out.feed.send(each := packet(CONTROL, number, size + 8))
                fed.append(each)
            elif what == "read":
                out.read(size)
            else:
                out.turn()
        out.drain(len(sent) + len(fed))
        came = out.packets()
        assert [each for each in came if each[0] == DATA] == sent
        assert [each for each in came if each[0] == CONTROL] == fed
        assert not out.turn(), "nothing is left to do"


def test_what_the_feed_has_waits_for_a_full_stream_and_is_not_lost(out: Writing) -> None:
    """Whether a packet was sent in part, or the last one just fitted."""
    for size in (1, 8, 100, 700, 5000):
        sent = out.fill(size)
        out.feed.send(b"\x07 probe")
        for _ in range(3):
            out.turn()
        out.drain(len(sent) + 1)
        assert out.packets()[-1] == b"\x07 probe"
        out._came = b""


def test_what_the_feed_has_goes_before_data_that_comes_later(out: Writing) -> None:
    """Bulk that finds room in the stream before the worker looks again does not keep it out."""
    sent = out.fill(5000)
    out.feed.send(b"\x07 probe")
    out.turn()
    late = packet(DATA, 99, 100)
    while not out.send(late):
        if not out.read():
            select.select([out.far], [], [], PATIENCE_S)
    out.drain(len(sent) + 2)
    assert out.packets()[-2:] == [b"\x07 probe", late]


def test_a_stream_that_is_over_is_told_to_who_sends_and_to_nobody_else(out: Writing) -> None:
    out.fill(5000)
    out.far.close()
    for _ in range(3):
        out.feed.send(b"\x07 probe")
        out.turn()
    with suppress(ConnectionError):
        out.send(bytes(100))
    with pytest.raises(OSError, match="Broken pipe"):
        out.send(bytes(100))
    for _ in range(3):
        out.turn()


def test_a_feed_that_is_given_up_is_no_fault(out: Writing) -> None:
    out.feed.send(b"\x07 last")
    out.feed.close()
    out.turn()
    out.turn()
    assert out.send(b"\x08 data")
    out.drain(2)
    assert out.packets() == [b"\x07 last", b"\x08 data"]


def test_after_its_close_nothing_is_watched_and_both_descriptors_are_closed() -> None:
    with writing() as out:
        out.fill()
        fds = out.writer.descriptors()
        out.writer.close()
        assert out.writer.descriptors() == (-1, -1)
        for fd in fds:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)
        assert out.poll.poll(0) == []
        out.writer = StreamWriter(*unix_pair(), out.poll)  # to be closed below
