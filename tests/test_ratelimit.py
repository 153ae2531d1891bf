"""Buckets against a fluid model, cookies against every other source and time."""

from __future__ import annotations

import ipaddress
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.core.ratelimit import (
    COOKIE_LEN,
    COOKIE_SLOT_MS,
    CookieJar,
    TokenBuckets,
    source_key,
)

SECRET = bytes(range(32))
ADDRESSES = st.ip_addresses().map(str)
PORTS = st.integers(0, 65535)
TIMES_MS = st.integers(0, 2**45)


def test_an_ipv4_address_is_a_source_of_its_own() -> None:
    assert source_key("192.0.2.1") == bytes([192, 0, 2, 1])
    assert source_key("192.0.2.1") != source_key("192.0.2.2")


def test_an_ipv6_network_of_64_bits_is_one_source() -> None:
    assert source_key("2001:db8:0:1::1") == source_key("2001:db8:0:1:ffff:ffff:ffff:ffff")
    assert source_key("2001:db8:0:1::1") != source_key("2001:db8:0:2::1")
    assert source_key("fe80::1%eth0") == source_key("fe80::2")


def test_a_mapped_address_is_its_ipv4_address() -> None:
    assert source_key("::ffff:192.0.2.1") == source_key("192.0.2.1")
    assert source_key("::ffff:192.0.2.1") != source_key("::ffff:192.0.2.2")


@pytest.mark.parametrize("host", ["", "example.net", "192.0.2.256", "1.2.3"])
def test_what_is_no_address_raises(host: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        source_key(host)


@given(
    rate=st.integers(1, 200),
    burst=st.integers(1, 50),
    gaps_ms=st.lists(st.integers(0, 400), min_size=1, max_size=300),
)
def test_never_more_than_burst_plus_rate_times_time(
    rate: int, burst: int, gaps_ms: list[int]
) -> None:
    """In every interval, not only from the start; and never less than the fluid model grants."""
    buckets, now_ms, allowed_ms = TokenBuckets(rate, burst, 8), 1000, []
    tokens = Fraction(burst)
    for gap_ms in gaps_ms:
        now_ms += gap_ms
        tokens = min(Fraction(burst), tokens + Fraction(gap_ms * rate, 1000))
        allowed = buckets.allow(b"source", now_ms)
        assert allowed == (tokens >= 1)
        if allowed:
            tokens -= 1
            allowed_ms.append(now_ms)
    for first, start_ms in enumerate(allowed_ms):
        for last in range(first, len(allowed_ms)):
            seconds = Fraction(allowed_ms[last] - start_ms, 1000)
            assert last - first + 1 <= burst + rate * seconds


def test_sources_do_not_share_tokens() -> None:
    buckets = TokenBuckets(1, 2, 8)
    assert [buckets.allow(b"a", 0) for _ in range(3)] == [True, True, False]
    assert [buckets.allow(b"b", 0) for _ in range(3)] == [True, True, False]


def test_refused_uses_cost_nothing() -> None:
    buckets = TokenBuckets(1, 1, 8)
    assert buckets.allow(b"a", 0)
    assert not any(buckets.allow(b"a", now_ms) for now_ms in range(1, 1000))
    assert buckets.allow(b"a", 1000)


def test_going_back_in_time_earns_nothing() -> None:
    buckets = TokenBuckets(1, 1, 8)
    assert buckets.allow(b"a", 10_000)
    assert not buckets.allow(b"a", 0)
    assert not buckets.allow(b"a", 10_999)
    assert buckets.allow(b"a", 11_000)


def test_the_table_is_bounded_and_forgets_the_longest_unused_key() -> None:
    buckets = TokenBuckets(1, 1, 3)
    for key in (b"a", b"b", b"c"):
        assert buckets.allow(key, 0)
    assert not buckets.allow(b"a", 1)  # refused, and yet a use: b is the oldest now
    assert buckets.allow(b"d", 2)
    assert len(buckets) == 3
    assert not buckets.allow(b"a", 3)
    assert buckets.allow(b"b", 4)  # forgotten, so it starts full; c had to go
    assert not buckets.allow(b"d", 5)
    assert buckets.allow(b"c", 6)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 500)), max_size=200))
def test_the_same_uses_give_the_same_answers(uses: list[tuple[int, int]]) -> None:
    def run() -> list[bool]:
        buckets, now_ms, answers = TokenBuckets(5, 3, 10), 0, []
        for key, gap_ms in uses:
            now_ms += gap_ms
            answers.append(buckets.allow(bytes([key]), now_ms))
            assert len(buckets) <= 10
        return answers

    assert run() == run()


@pytest.mark.parametrize("bad", [(0, 1, 1), (1, 0.5, 1), (1, 1, 0), (-1, 1, 1)])
def test_limits_that_could_never_allow_anything_are_bugs(bad: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        TokenBuckets(*bad)


@given(ADDRESSES, PORTS, TIMES_MS)
def test_a_cookie_lasts_to_the_end_of_the_next_slot(host: str, port: int, now_ms: int) -> None:
    jar = CookieJar(SECRET)
    cookie = jar.make(host, port, now_ms)
    assert len(cookie) == COOKIE_LEN
    slot_start_ms = now_ms - now_ms % COOKIE_SLOT_MS
    last_ms = slot_start_ms + 2 * COOKIE_SLOT_MS - 1
    assert jar.verify(cookie, host, port, now_ms)
    assert jar.verify(cookie, host, port, last_ms)
    assert not jar.verify(cookie, host, port, last_ms + 1)
    assert not jar.verify(cookie, host, port, slot_start_ms - 1)  # none from the future


def plain(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IPv4 address that a socket for both families shows as an IPv6 one is the same source."""
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if address.version == 6 else None
    return mapped or address


@given(ADDRESSES, PORTS, ADDRESSES, PORTS)
def test_a_cookie_is_good_for_its_own_source_only(
    host: str, port: int, other_host: str, other_port: int
) -> None:
    jar = CookieJar(SECRET)
    cookie = jar.make(host, port, 0)
    same = (plain(host), port) == (plain(other_host), other_port)
    assert jar.verify(cookie, other_host, other_port, 0) == same
    assert not jar.verify(cookie, host, port ^ 1, 0)
    assert not CookieJar(SECRET[::-1]).verify(cookie, host, port, 0)


@given(st.integers(0, 8 * COOKIE_LEN - 1))
def test_any_changed_bit_spoils_a_cookie(bit: int) -> None:
    jar = CookieJar(SECRET)
    cookie = bytearray(jar.make("2001:db8::1", 7700, 0))
    cookie[bit // 8] ^= 1 << bit % 8
    assert not jar.verify(bytes(cookie), "2001:db8::1", 7700, 0)


@given(st.binary(max_size=40))
def test_a_made_up_cookie_of_any_length_is_refused(cookie: bytes) -> None:
    assert not CookieJar(SECRET).verify(cookie, "192.0.2.1", 7700, 10 * COOKIE_SLOT_MS)


def test_two_addresses_of_one_prefix_have_different_cookies() -> None:
    """A bucket is per prefix, a cookie proves one address."""
    jar = CookieJar(SECRET)
    assert not jar.verify(jar.make("2001:db8::1", 1, 0), "2001:db8::2", 1, 0)


def test_the_secret_must_have_its_full_size() -> None:
    with pytest.raises(ValueError, match="must be 32"):
        CookieJar(b"short")
