"""The small parts of the data plane: networks, checksums, reports, counters, early data."""

from __future__ import annotations

import ipaddress
import os
import struct
from array import array
from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.core.wire import MAX_CONTROL_LEN
from jvpnd.dataplane.counters import (
    SLOTS,
    TX_BYTES,
    Counters,
    Drop,
    SlotCounters,
    octets_and_packets,
    slot_base,
    total_drops,
    total_of,
)
from jvpnd.dataplane.early import MAX_EXPECTED, MAX_HELD, MAX_HELD_BYTES, EarlyData, Held
from jvpnd.dataplane.inner import checksum, complete_checksum, parse, source_of
from jvpnd.dataplane.messages import (
    MAX_REPORT,
    Report,
    ReportKind,
    address_of,
    canonical,
    decode_report,
    encode_command,
    encode_report,
    remote_of,
)
from jvpnd.dataplane.networks import PrefixTable

V4 = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)
V6 = st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address)


@st.composite
def networks(draw: st.DrawFn) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    address = draw(st.one_of(V4, V6))
    length = draw(st.integers(0, address.max_prefixlen))
    return ipaddress.ip_network(f"{address}/{length}", strict=False)


# --- networks ------------------------------------------------------------------------------


@given(st.lists(networks(), max_size=12, unique=True), st.one_of(V4, V6), st.data())
def test_longest_prefix_wins(wanted: list, address: object, data: st.DataObject) -> None:  # type: ignore[type-arg]
    if wanted and data.draw(st.booleans()):
        inside = data.draw(st.sampled_from(wanted))
        address = inside[data.draw(st.integers(0, inside.num_addresses - 1))]
    table: PrefixTable[int] = PrefixTable()
    for slot, network in enumerate(wanted):
        table.set(slot, [str(network)])
    holding = [
        (network.prefixlen, slot)
        for slot, network in enumerate(wanted)
        if network.version == address.version and address in network  # type: ignore[attr-defined]
    ]
    expected = max(holding)[1] if holding else None
    assert table.lookup(address.packed) == expected  # type: ignore[attr-defined]


def test_network_belongs_to_the_last_that_set_it_and_goes_with_it() -> None:
    table: PrefixTable[int] = PrefixTable()
    address = ipaddress.ip_address("10.0.0.1").packed
    table.set(0, ["10.0.0.1/32", "10.0.0.0/8"])
    table.set(1, ["10.0.0.1/32"])
    assert table.lookup(address) == 1
    table.set(0, ["10.0.0.0/8"])
    assert table.lookup(address) == 1
    table.set(1, [])
    assert table.lookup(address) == 0


def test_everything_needs_one_value_and_both_families() -> None:
    table: PrefixTable[int] = PrefixTable()
    table.set(3, ["0.0.0.0/0"])
    assert table.everything is None
    table.set(3, ["0.0.0.0/0", "::/0"])
    assert table.everything == 3
    table.set(4, ["10.0.0.0/8"])
    assert table.everything is None


@pytest.mark.parametrize("text", ["10.0.0.1/8", "nonsense", "10.0.0.0/33", ""])
def test_bad_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not appear to be|host bits"):
        PrefixTable[int]().set(0, [text])


_few = st.sampled_from(
    ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "::/0", "fd00::/8", "fd00::1/128"]
)


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(_few, max_size=4)), max_size=20))
def test_a_table_that_has_changed_is_as_one_made_anew(changes: list[tuple[int, list[str]]]) -> None:
    table: PrefixTable[int] = PrefixTable()
    owners: dict[str, int] = {}
    for value, networks in changes:
        table.set(value, networks)
        owners = {each: owner for each, owner in owners.items() if owner != value}
        owners |= dict.fromkeys(networks, value)
    fresh: PrefixTable[int] = PrefixTable()
    for value in set(owners.values()):
        fresh.set(value, [each for each, owner in owners.items() if owner == value])
    assert table.everything == fresh.everything
    for text in ("10.1.2.3", "10.1.9.9", "10.9.9.9", "192.0.2.1", "fd00::1", "fd99::9", "2001::1"):
        address = ipaddress.ip_address(text).packed
        assert table.lookup(address) == fresh.lookup(address), text


# --- checksums and headers -----------------------------------------------------------------


@given(st.binary(max_size=200))
def test_checksum_is_that_of_rfc_1071(data: bytes) -> None:
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert checksum(data) == 0xFFFF - total


def test_completed_checksum_of_zero_is_sent_as_all_ones() -> None:
    packet = bytearray(b"\xff\xfe\x00\x00\x00\x01")
    assert complete_checksum(packet, 0, 2)
    assert packet[2:4] == b"\xff\xff"


@given(st.binary(max_size=120))
def test_any_bytes_can_be_parsed_without_an_exception(data: bytes) -> None:
    inner = parse(memoryview(data))
    if inner is not None and inner.end:
        assert inner.transport < inner.end <= len(data)
    source_of(memoryview(data))


def test_ipv6_routing_header_is_not_looked_behind() -> None:
    fixed = struct.pack("!IHBB", 6 << 28, 32, 43, 64) + bytes(32)
    inner = parse(memoryview(fixed + bytes([6, 0, 0, 0, 0, 0, 0, 0]) + bytes(24)))
    assert inner is not None
    assert inner.end == 0


def test_length_must_be_what_the_header_says() -> None:
    packet = struct.pack("!BBHHHBBH", 0x45, 0, 24, 1, 0, 64, 1, 0) + bytes(12)
    assert source_of(memoryview(packet)) == bytes(4)
    assert source_of(memoryview(packet + b"x")) is None
    assert source_of(memoryview(packet[:-1])) is None


# --- messages ------------------------------------------------------------------------------


@given(
    st.sampled_from(ReportKind),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.one_of(V4.map(str), V6.map(str), st.just("fe80::1%3"), st.just("")),
    st.integers(0, 65535),
    st.binary(max_size=MAX_CONTROL_LEN),
)
def test_report_round_trip(
    kind: ReportKind, number: int, other: int, host: str, port: int, payload: bytes
) -> None:
    remote = (host, port) if host else ("", 0)
    if host:
        remote = canonical(remote)  # type: ignore[assignment]
    report = Report(kind, number, other, remote, payload)
    assert decode_report(encode_report(report)) == report


@given(st.binary(max_size=MAX_REPORT + 10))
def test_any_bytes_from_a_worker_are_a_report_or_nothing(data: bytes) -> None:
    report = decode_report(data)
    assert report is None or len(report.payload) <= MAX_CONTROL_LEN


def test_overlong_or_unknown_reports_are_nothing() -> None:
    good = encode_report(Report(ReportKind.PACKET, 1))
    assert decode_report(good + bytes(MAX_CONTROL_LEN)) is not None
    assert decode_report(good + bytes(MAX_CONTROL_LEN + 1)) is None
    assert decode_report(good[:-1]) is None
    assert decode_report(b"\x63" + good[1:]) is None
    assert decode_report(good[:1] + b"\x05" + good[2:]) is None


def test_remotes_are_spelt_as_the_kernel_does() -> None:
    assert canonical(("FD00:0::0001", 5)) == ("fd00::1", 5)
    assert canonical(("fe80::1%lo", 5)) == ("fe80::1%1", 5)
    assert canonical(None) is None
    assert remote_of(("fe80::1%eth0", 5, 0, 3)) == ("fe80::1%3", 5)
    assert remote_of(("10.0.0.1", 5)) == ("10.0.0.1", 5)
    assert remote_of("") == ("", 0)
    assert address_of(("fe80::1%3", 5)) == ("fe80::1", 5, 0, 3)
    assert address_of(("10.0.0.1", 5)) == ("10.0.0.1", 5)
    for bad in ("example.org", "10.0.0", "fe80::1%no-such-link"):
        with pytest.raises(ValueError, match=r"^(remote|scope) "):
            canonical((bad, 1))


def test_overlong_command_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 65536"):
        encode_command("set_routes", {"networks": ["10.0.0.0/8"] * 10000})


# --- counters ------------------------------------------------------------------------------


def test_counters_are_shared_through_the_descriptor() -> None:
    mine, fd = Counters.create()
    theirs = Counters(fd)
    os.close(fd)
    for slot in (0, SLOTS - 1):
        theirs.words[slot_base(slot) + TX_BYTES] = 2**63 + slot
        assert mine.slot(slot).tx_bytes == 2**63 + slot
        assert mine.slot(slot).tx_packets == 0
    theirs.drops_of("uplink")[Drop.NO_ROUTE] += 2
    theirs.drops_of("downlink")[Drop.NO_ROUTE] += 3
    assert mine.drops() == {"no_route": 5}
    assert mine.slot(1).tx_bytes == 0


def test_counters_of_several_lanes_are_apart_and_add_up() -> None:
    first, fd = Counters.create(3)
    lanes = [first, Counters(fd, 1), Counters(fd, 2)]
    os.close(fd)
    rows = (
        SlotCounters(1, 100, 50, 2, 200, 40, 7, 3, 100, 10, 50, 5, 1, 2),
        SlotCounters(10, 1000, 60, 20, 2000, 45, 8, 5, 200, 20, 60, 6, 3, 4),
        SlotCounters(*bytes(14)),
    )
    at = slot_base(SLOTS - 1)
    for lane, row in zip(lanes, rows, strict=True):
        lane.words[at : at + 14] = memoryview(array("Q", astuple(row)))
        lane.drops_of("downlink")[Drop.REPLAYED] += row.tx_packets
    assert tuple(lane.slot(SLOTS - 1) for lane in lanes) == rows
    # What came under another index than the newest was of another epoch.
    total = SlotCounters(11, 1100, 60, 22, 2200, 45, 8, 8, 200, 20, 110, 11, 4, 6)
    assert total_of(lanes, SLOTS - 1) == total
    brief = total.tx_bytes, total.rx_bytes, total.tx_packets, total.rx_packets
    assert octets_and_packets(lanes, SLOTS - 1) == brief
    assert total_of(lanes, 0) == rows[2]
    assert total_drops(lanes) == {"replayed": 11}


def test_worker_cannot_shrink_the_counters() -> None:
    counters, fd = Counters.create()
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)
    counters.close()


@pytest.mark.parametrize("slot", [-1, SLOTS])
def test_slot_out_of_range_is_refused(slot: int) -> None:
    with pytest.raises(ValueError, match="0 to 16383"):
        slot_base(slot)


# --- early data ----------------------------------------------------------------------------


def held(index: int, size: int = 10, until_ms: int = 1000) -> Held:
    return Held(index, bytes(size), 0, ("", 0), until_ms)


def early() -> tuple[EarlyData, memoryview]:
    drops = memoryview(bytearray(256)).cast("Q")
    return EarlyData(drops), drops


def test_only_announced_indexes_are_held() -> None:
    data, _ = early()
    assert data.offer(held(1)) == Drop.UNKNOWN_INDEX
    data.expect(1)
    assert data.offer(held(1)) is None
    assert data.take(1) == [held(1)]
    assert data.offer(held(1)) == Drop.UNKNOWN_INDEX


def test_announced_indexes_are_bounded() -> None:
    data, _ = early()
    for index in range(MAX_EXPECTED + 1):
        data.expect(index)
    assert data.expects(MAX_EXPECTED - 1)
    assert not data.expects(MAX_EXPECTED)
    data.unexpect(0)
    data.expect(MAX_EXPECTED)
    assert data.expects(MAX_EXPECTED)


def test_early_data_is_bounded_in_number_and_bytes_newest_first_out() -> None:
    data, _ = early()
    data.expect(1)
    assert [data.offer(held(1)) for _ in range(MAX_HELD)] == [None] * MAX_HELD
    assert data.offer(held(1)) == Drop.EARLY_OVERFLOW
    data.take(1)
    data.expect(1)
    assert [data.offer(held(1, MAX_HELD_BYTES // 4)) for _ in range(4)] == [None] * 4
    assert data.offer(held(1, 1)) == Drop.EARLY_OVERFLOW


def test_early_data_is_forgotten_in_time_and_on_release() -> None:
    data, drops = early()
    data.expect(1)
    data.expect(2)
    data.offer(held(1, until_ms=1000))
    data.offer(held(2, until_ms=1500))
    data.offer(held(1, until_ms=2000))
    data.expire(1000)
    assert drops[Drop.EARLY_EXPIRED] == 1
    data.unexpect(2)
    assert drops[Drop.EARLY_EXPIRED] == 2
    assert len(data.take(1)) == 1
    assert not data.holding
