"""Records that span datagrams: whole, in parts, out of order, incomplete, forged."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jvpnd.core.wire import HEADER, HEADER_LEN, MAX_PARTS, MIN_SEALED_LEN, Suite
from jvpnd.dataplane.counters import Drop
from jvpnd.dataplane.seal import MAX_RECORD, Opener, Sealer
from jvpnd.dataplane.span import FEW, MAX_UNFINISHED, Assembly, SpanBuffers

KEY = bytes(range(32))
SIZE = 200  # of a datagram


def new_sealer(lane: int = 0) -> Sealer:
    return Sealer(Suite.AES_256_GCM, KEY, 9, lane)


def span(sealer: Sealer, plain: bytes, size: int = SIZE) -> list[bytes]:
    pieces = sealer.seal_span(memoryview(plain), size, SpanBuffers())
    return [bytes(pieces[at]) + bytes(pieces[at + 1]) for at in range(0, len(pieces), 2)]


class Receiver:
    def __init__(self, index: int = 9, assembly: Assembly | None = None) -> None:
        self.assembly = assembly or Assembly()
        self.opener = Opener(Suite.AES_256_GCM, KEY, index, self.assembly)
        self.drops = memoryview(bytearray(256)).cast("Q")

    def take(self, batch: bytes, stride: int = SIZE) -> list[bytes]:
        """A batch as the kernel joined it: all datagrams `stride` long but the last."""
        out = memoryview(bytearray(len(batch) + MAX_RECORD))
        found, at = [], 0
        while at < len(batch):
            opened, after, _ = self.opener.open_run(
                memoryview(batch), at, stride, out, 0, self.drops
            )
            assert after > at
            found += [bytes(out[start : start + length]) for start, length in opened]
            at = after
        return found

    @property
    def dropped(self) -> dict[str, int]:
        return {cause.name: self.drops[cause] for cause in Drop if self.drops[cause]}


PLAINS = st.binary(min_size=SIZE, max_size=MAX_PARTS * (SIZE - HEADER_LEN) - 16)


@given(PLAINS, st.binary(max_size=100))
@settings(max_examples=60, deadline=None)
def test_a_whole_record_in_one_batch_comes_out_with_what_is_around_it(
    plain: bytes, small: bytes
) -> None:
    sealer, receiver = new_sealer(), Receiver()
    out = memoryview(bytearray(200))
    before = bytes(out[: sealer.seal(memoryview(small), out, 0)])
    parts = span(sealer, plain)
    stride = len(parts[0])
    assert {len(part) for part in parts[:-1]} == {stride}
    assert MIN_SEALED_LEN <= len(parts[-1]) <= stride <= SIZE
    assert receiver.take(before, len(before)) == [small]
    assert receiver.take(b"".join(parts), stride) == [plain]
    assert receiver.opener.records == 2
    assert receiver.opener.missing == 0
    assert not receiver.dropped


@given(PLAINS, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_parts_in_any_order_and_doubled_make_the_record_once(
    plain: bytes, chance: random.Random
) -> None:
    parts = span(new_sealer(), plain)
    parts += chance.choices(parts, k=2)
    chance.shuffle(parts)
    receiver = Receiver()
    assert [p for part in parts for p in receiver.take(part, len(part))] == [plain]


def test_parts_of_two_records_that_are_mixed_up_make_both() -> None:
    sealer, receiver = new_sealer(), Receiver()
    one, two = span(sealer, bytes(1000)), span(sealer, b"1" * 1000)
    mixed = [part for pair in zip(one[:-1], two[:-1], strict=True) for part in pair]
    assert receiver.take(b"".join(mixed)) == []
    assert receiver.take(two[-1], len(two[-1])) == [b"1" * 1000]
    assert receiver.opener.missing == 1
    assert receiver.take(one[-1], len(one[-1])) == [bytes(1000)]
    assert receiver.opener.missing == 0


def test_a_swap_inside_a_batch_is_put_right() -> None:
    parts = span(new_sealer(), random.Random(1).randbytes(1500))
    parts[1], parts[2] = parts[2], parts[1]
    receiver = Receiver()
    assert receiver.take(b"".join(parts)) == [random.Random(1).randbytes(1500)]
    assert not receiver.dropped


def test_a_lost_part_loses_the_record_and_shows_as_one_missing() -> None:
    sealer, receiver = new_sealer(), Receiver()
    parts = span(sealer, bytes(1000))
    assert receiver.take(b"".join(parts[:2] + parts[3:])) == []
    assert receiver.take(b"".join(span(sealer, b"x" * 500))) == [b"x" * 500]
    assert receiver.opener.missing == 1


def test_a_record_is_accepted_once() -> None:
    receiver = Receiver()
    batch = b"".join(span(new_sealer(), bytes(1000)))
    assert len(receiver.take(batch)) == 1
    assert receiver.take(batch) == []
    assert receiver.dropped == {"REPLAYED": 1}


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_any_changed_bit_loses_the_record_and_nothing_else(data: st.DataObject) -> None:
    parts = span(new_sealer(), bytes(900))
    number = data.draw(st.integers(0, len(parts) - 1))
    first = 8 if number == 0 else HEADER_LEN  # the headers between only say what goes where
    at = data.draw(st.integers(first, len(parts[number]) - 1))
    spoilt = bytearray(parts[number])
    spoilt[at] ^= 1 << data.draw(st.integers(0, 7))
    receiver = Receiver()
    assert receiver.take(b"".join([*parts[:number], bytes(spoilt), *parts[number + 1 :]])) == []
    assert receiver.opener.records == 0


@pytest.mark.parametrize(
    ("part", "last", "size"),
    [
        pytest.param(3, 2, SIZE, id="part beyond the last"),
        pytest.param(1, 0, SIZE, id="second of one"),
        pytest.param(0, MAX_PARTS, SIZE, id="too many parts"),
        pytest.param(0, MAX_PARTS - 1, 2000, id="record too long"),
    ],
)
def test_parts_that_make_no_sense_are_not_kept(part: int, last: int, size: int) -> None:
    receiver = Receiver()
    forged = HEADER.pack(8, 0, part | last << 8, 9, 7) + bytes(size - HEADER_LEN)
    assert receiver.take(forged, size) == []
    assert receiver.dropped == {"MALFORMED": 1}


def test_forged_parts_are_bounded_for_a_session_and_for_all() -> None:
    assembly = Assembly()
    for index in range(2 * MAX_UNFINISHED):
        receiver = Receiver(index, assembly)
        for counter in range(2 * FEW):
            forged = HEADER.pack(8, 0, 0 | 5 << 8, index, counter) + bytes(MIN_SEALED_LEN)
            assert receiver.take(forged, len(forged)) == []
        assert receiver.dropped["INCOMPLETE"] >= FEW
    assert assembly.unfinished == MAX_UNFINISHED


def test_forged_parts_of_one_session_do_not_push_out_those_of_another() -> None:
    assembly = Assembly()
    good, bad = Receiver(9, assembly), Receiver(10, assembly)
    parts = span(new_sealer(), bytes(1000))
    assert good.take(b"".join(parts[:3])) == []
    for counter in range(4 * MAX_UNFINISHED):
        forged = HEADER.pack(8, 0, 0 | 5 << 8, 10, counter) + bytes(MIN_SEALED_LEN)
        bad.take(forged, len(forged))
    assert good.take(b"".join(parts[3:])) == [bytes(1000)]


def test_parts_of_a_record_that_never_becomes_whole_are_given_up_in_time() -> None:
    receiver = Receiver()
    parts = span(new_sealer(), bytes(1000))
    assert receiver.take(b"".join(parts[:3])) == []
    receiver.assembly.sweep(receiver.drops)
    assert receiver.assembly.unfinished == 1
    receiver.assembly.sweep(receiver.drops)
    assert receiver.assembly.unfinished == 0
    assert receiver.dropped == {"INCOMPLETE": 3}


def test_a_record_that_becomes_whole_between_two_sweeps_is_not_given_up() -> None:
    receiver = Receiver()
    parts = span(new_sealer(), bytes(1000))
    assert receiver.take(b"".join(parts[:3])) == []
    receiver.assembly.sweep(receiver.drops)
    assert receiver.take(b"".join(parts[3:])) == [bytes(1000)]
    receiver.assembly.sweep(receiver.drops)
    assert not receiver.dropped
