"""Sealing and opening: round trip, tampering, replay, and what does not belong."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.core.wire import HEADER, MAX_COUNTER, MIN_SEALED_LEN, PacketType, Suite, data_nonce
from jvpnd.dataplane.counters import Drop
from jvpnd.dataplane.seal import ALL_LANES, MAX_LANES, Opener, Sealer, cipher
from jvpnd.dataplane.span import Assembly

KEY = bytes(range(32))
SUITES = pytest.mark.parametrize("suite", list(Suite))


def seal(sealer: Sealer, *plains: bytes) -> list[bytes]:
    sealed = []
    for plain in plains:
        out = memoryview(bytearray(len(plain) + 100))
        sealed.append(bytes(out[: sealer.seal(memoryview(plain), out, 0)]))
    return sealed


class Counted(Opener):
    """An opener with counters and memory of its own."""

    def __init__(
        self, suite: Suite = Suite.AES_256_GCM, index: int = 9, own: range = ALL_LANES
    ) -> None:
        super().__init__(suite, KEY, index, Assembly(), own)
        self.drops = memoryview(bytearray(256)).cast("Q")

    def open(self, batch: bytes, stride: int = 0) -> tuple[list[bytes], int]:
        out = memoryview(bytearray(len(batch) + 1))
        opened, at, _ = self.open_run(
            memoryview(batch), 0, stride or len(batch), out, 0, self.drops
        )
        return [bytes(out[start : start + length]) for start, length in opened], at

    @property
    def dropped(self) -> dict[str, int]:
        return {cause.name: self.drops[cause] for cause in Drop if self.drops[cause]}


@SUITES
@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5))
def test_round_trip(suite: Suite, plains: list[bytes]) -> None:
    opener, sealer = Counted(suite), Sealer(suite, KEY, 9, 0)
    assert [opener.open(packet)[0][0] for packet in seal(sealer, *plains)] == plains
    assert not opener.dropped


@SUITES
def test_packet_is_laid_out_as_the_protocol_says(suite: Suite) -> None:
    sealer = Sealer(suite, KEY, 9, 3)
    seal(sealer, b"first")
    (packet,) = seal(sealer, b"second")
    header = struct.pack("<BBHIQ", 8, 3, 0, 9, 1)
    assert packet[:16] == header
    assert cipher(suite, KEY).decrypt(data_nonce(3, 1), packet[16:], header) == b"second"


@given(st.data())
def test_any_changed_bit_is_noticed(data: st.DataObject) -> None:
    packet = bytearray(seal(Sealer(Suite.AES_256_GCM, KEY, 9, 0), b"plain text")[0])
    # the type and the index decide who opens it: they are not the opener's to judge
    at = data.draw(st.sampled_from([1, 2, 3, *range(8, len(packet))]))
    packet[at] ^= 1 << data.draw(st.integers(0, 7))
    opener = Counted()
    assert opener.open(bytes(packet)) == ([], len(packet))
    if at != 3:  # with another number of parts it waits for the others
        assert sum(opener.dropped.values()) == 1
    assert set(opener.dropped) <= {"BAD_TAG", "MALFORMED"}


def test_forged_counter_does_not_move_the_window() -> None:
    packets = seal(Sealer(Suite.AES_256_GCM, KEY, 9, 0), b"a", b"b")
    forged = bytearray(packets[1])
    struct.pack_into("<Q", forged, 8, 2**62)
    opener = Counted()
    opener.open(bytes(forged))
    assert [opener.open(packet)[0] for packet in packets] == [[b"a"], [b"b"]]
    assert opener.dropped == {"BAD_TAG": 1}


def test_replay_is_refused_in_each_lane_by_itself() -> None:
    opener = Counted()
    lanes = [seal(Sealer(Suite.AES_256_GCM, KEY, 9, lane), b"x")[0] for lane in (0, 1)]
    assert [len(opener.open(packet)[0]) for packet in (*lanes, *lanes)] == [1, 1, 0, 0]
    assert opener.dropped == {"REPLAYED": 2}


def test_lanes_are_bounded() -> None:
    opener = Counted()
    packet = seal(Sealer(Suite.AES_256_GCM, KEY, 9, MAX_LANES), b"x")[0]
    assert opener.open(packet)[0] == []
    assert opener.dropped == {"MALFORMED": 1}


def test_lanes_of_another_worker_are_refused_and_counted() -> None:
    """Its window would not know what was seen here."""
    opener = Counted(own=range(1, MAX_LANES, 3))
    packets = [seal(Sealer(Suite.AES_256_GCM, KEY, 9, n), b"x")[0] for n in range(MAX_LANES)]
    taken = [lane for lane, packet in enumerate(packets) if opener.open(packet)[0]]
    assert taken == [1, 4, 7, 10, 13]
    assert opener.dropped == {"WRONG_LANE": 11}
    packet = bytearray(packets[2])
    packet[3] = 5  # nor are parts of its records kept here
    assert opener.open(bytes(packet))[0] == []
    assert opener.dropped == {"WRONG_LANE": 12}


def test_wrong_lane_in_a_batch_costs_only_itself() -> None:
    opener = Counted(own=range(0, MAX_LANES, 2))
    batch = [seal(Sealer(Suite.AES_256_GCM, KEY, 9, lane), b"x")[0] for lane in (0, 1, 2, 3)]
    size, data, found = len(batch[0]), b"".join(batch), 0
    at = 0
    while at < len(data):  # as the worker does
        opened, end = opener.open(data[at:], size)
        found, at = found + len(opened), at + end
    assert found == 2
    assert opener.dropped == {"WRONG_LANE": 2}


def test_counter_beyond_the_limit_is_refused_however_well_sealed() -> None:
    sealer = Sealer(Suite.AES_256_GCM, KEY, 9, 0)
    sealer.counter = MAX_COUNTER
    opener = Counted()
    assert opener.open(seal(sealer, b"x")[0])[0] == []
    assert opener.dropped == {"MALFORMED": 1}


def test_run_ends_where_another_packet_begins() -> None:
    sealer = Sealer(Suite.AES_256_GCM, KEY, 9, 0)
    mine = seal(sealer, b"a" * 20, b"b" * 20)
    (others,) = seal(Sealer(Suite.AES_256_GCM, KEY, 10, 0), b"c" * 20)
    stride = len(others)
    opener = Counted()
    assert opener.open(b"".join(mine) + others, stride) == ([b"a" * 20, b"b" * 20], 2 * stride)
    control = bytes([PacketType.CONTROL]) + mine[0][1:]
    assert opener.open(seal(sealer, b"d" * 20)[0] + control, stride) == ([b"d" * 20], stride)
    stub = HEADER.pack(8, 0, 0, 9, 5) + bytes(MIN_SEALED_LEN - HEADER.size - 1)
    assert opener.open(seal(sealer, b"e" * 20)[0] + stub, stride) == ([b"e" * 20], stride)
    assert not opener.dropped


def test_bad_datagram_in_a_batch_costs_only_itself() -> None:
    packets = seal(Sealer(Suite.AES_256_GCM, KEY, 9, 0), b"aa", b"bb", b"cc")
    bad = bytearray(packets[1])
    bad[-1] ^= 1
    opener = Counted()
    batch = packets[0] + bytes(bad) + packets[2]
    assert opener.open(batch, len(bad)) == ([b"aa", b"cc"], len(batch))
    assert opener.dropped == {"BAD_TAG": 1}
