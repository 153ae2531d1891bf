"""Handshakes in halves: what makes a whole, and what is kept of the rest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jvpnd.core.halves import MAX_HALF, MAX_WAITING, Halves, in_halves
from jvpnd.core.wire import SAFE_DATAGRAM, PacketType

WHOLE = bytes([PacketType.HANDSHAKE_INIT]) + bytes(range(251)) * 5


@given(st.binary(min_size=2, max_size=2 * MAX_HALF).map(lambda b: b"\x01" + b[1:]), st.booleans())
def test_both_halves_in_either_order_are_the_whole(whole: bytes, swapped: bool) -> None:
    halves, (first, second) = Halves(), in_halves(whole)
    if swapped:
        first, second = second, first
    assert halves.add("a", first) is None
    assert halves.add("a", second) == whole
    assert len(halves) == 0


def test_each_half_of_a_handshake_fits_every_path() -> None:
    assert max(map(len, in_halves(bytes(1500)))) <= SAFE_DATAGRAM


def test_halves_of_different_sources_or_packets_make_nothing() -> None:
    halves, (first, second) = Halves(), in_halves(WHOLE)
    assert halves.add("a", first) is None
    assert halves.add("b", second) is None
    assert halves.add("a", in_halves(WHOLE + b"!")[1]) is None
    assert halves.add("a", second) == WHOLE


def test_the_same_half_again_is_no_whole() -> None:
    halves, (first, second) = Halves(), in_halves(WHOLE)
    assert halves.add("a", first) is None
    assert halves.add("a", first) is None
    assert halves.add("a", second) == WHOLE


def test_a_half_that_was_changed_makes_nothing() -> None:
    first, second = in_halves(WHOLE)
    for at in (12, len(second) - 1):
        forged = bytearray(second)
        forged[at] ^= 1
        halves = Halves()
        halves.add("a", first)
        assert halves.add("a", bytes(forged)) is None
        assert halves.dropped + len(halves) == 2


def test_a_half_of_a_half_is_refused() -> None:
    halves, inner = Halves(), in_halves(WHOLE)[0]
    first, second = in_halves(inner)
    halves.add("a", first)
    assert halves.add("a", second) is None


def test_what_waits_is_bounded_and_the_oldest_gives_way() -> None:
    halves, (first, second) = Halves(), in_halves(WHOLE)
    halves.add("a", first)
    for number in range(MAX_WAITING):
        halves.add(number, first)
        assert len(halves) <= MAX_WAITING
    assert halves.dropped == 1
    assert halves.add("a", second) is None
    assert halves.add(MAX_WAITING - 1, second) == WHOLE


@given(st.lists(st.binary(max_size=1400), max_size=30))
def test_junk_makes_nothing_and_raises_nothing(packets: list[bytes]) -> None:
    halves = Halves()
    for junk in packets:
        assert halves.add("a", b"\x0c" + junk) is None
