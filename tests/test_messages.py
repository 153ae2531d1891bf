"""Packets and bodies decode to what was encoded; everything else is None, never an exception."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.core import messages as m
from jvpnd.core import packets as p
from jvpnd.core.effects import Endpoint
from jvpnd.core.ticket import TICKET_LEN
from jvpnd.core.wire import (
    HEADER_LEN,
    MAX_ADDRESSES,
    MAX_CONTROL_LEN,
    TRANSPORTS,
    PacketType,
    SealedHeader,
    Suite,
    decode_sealed_header,
)

KEY, OTHER = b"k" * 32, b"o" * 32
u8, u32 = st.integers(0, 255), st.integers(0, 2**32 - 1)
u62 = st.integers(0, 2**62 - 1)
transports = st.sampled_from(TRANSPORTS)


def blob(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


inits = st.builds(
    m.InitPayload, u8, transports, u8, u62, blob(16), blob(16), u62, blob(m.KEM_PUBLIC_LEN)
)
requests = st.builds(
    m.ReattachRequest, u62, blob(32), u62, u62, u62, u32, transports, u8, st.sampled_from(m.Cause)
)
acks = st.builds(m.ReattachAck, u62, blob(32), u62, blob(TICKET_LEN), u32)
addresses = st.sampled_from(["10.77.0.2/24", "192.168.0.1/32", "fd77::2/64", "::1/128"])
endpoints = st.builds(
    Endpoint,
    transports,
    st.sampled_from(["", "203.0.113.7", "0.0.0.1", "2001:db8::7", "fd77::"]),
    st.integers(1, 65535),
)
welcomes = st.builds(
    m.Welcome,
    blob(16),
    st.sampled_from(Suite),
    u32,
    u62,
    blob(TICKET_LEN),
    u32,
    blob(32),
    blob(m.KEM_CIPHERTEXT_LEN),
    st.builds(m.PolicyBounds, *[u32] * 11),
    st.lists(addresses, max_size=MAX_ADDRESSES).map(tuple),
    st.lists(endpoints, max_size=m.MAX_ENDPOINTS).map(tuple),
)
replies = st.builds(m.ProbeReply, u8, u8, u32, u32, u32, u32)


@given(inits, requests, acks, welcomes)
def test_bodies_decode_to_what_was_encoded(
    init: m.InitPayload, request: m.ReattachRequest, ack: m.ReattachAck, welcome: m.Welcome
) -> None:
    assert m.decode_init(init.encode()) == init
    assert m.decode_request(request.encode()) == request
    assert m.decode_ack(ack.encode()) == ack
    assert m.decode_welcome(welcome.encode()) == welcome


@given(replies)
def test_a_probe_reply_decodes_to_what_was_encoded(reply: m.ProbeReply) -> None:
    assert m.decode_probe_reply(reply.encode()) == reply
    assert m.decode_probe_reply(reply.encode()[:-1]) is None
    assert m.decode_probe_reply(reply.encode() + b"\0") is None


@given(inits, requests, acks, welcomes, st.data())
def test_truncated_or_padded_bodies_are_none(
    init: m.InitPayload,
    request: m.ReattachRequest,
    ack: m.ReattachAck,
    welcome: m.Welcome,
    data: st.DataObject,
) -> None:
    for body, decode in (
        (init.encode(), m.decode_init),
        (request.encode(), m.decode_request),
        (ack.encode(), m.decode_ack),
        (welcome.encode(), m.decode_welcome),
    ):
        cut = data.draw(st.integers(0, len(body) - 1))
        assert decode(body[:cut]) is None
        assert decode(body + b"\0") is None


@given(welcomes, st.binary(max_size=200))
def test_random_endpoints_are_some_or_none_and_never_an_exception(
    welcome: m.Welcome, junk: bytes
) -> None:
    head = replace(welcome, endpoints=()).encode()[:-1]
    decoded = m.decode_welcome(head + junk)
    if decoded is not None:
        assert decoded.encode() == head + junk
        assert len(decoded.endpoints) <= m.MAX_ENDPOINTS


@given(welcomes)
def test_a_welcome_is_short_enough_for_control(welcome: m.Welcome) -> None:
    room = MAX_CONTROL_LEN - 200  # what the handshake puts around it
    assert len(welcome.encode()) < room


@pytest.mark.parametrize(
    "raw",
    [
        b"",  # not even a number
        b"\x01",
        b"\x01\x00\x14\x1e",
        b"\x01\x00\x14\x1e\x00\x00\x00\x00\x04\xcb\x00\x71",  # 3 bytes of an IPv4 address
        b"\x01\x00\x14\x1e\x00\x00\x00\x00\x05\xcb\x00\x71\x07\x00",  # an address of 5 bytes
        b"\x01\x04\x14\x1e\x00\x00\x00\x00\x00",  # an unknown transport
        b"\x01\x00\x00\x00\x00\x00\x00\x00\x00",  # port 0
        b"\x00\x00",  # more than announced
        b"\x02\x00\x14\x1e\x00\x00\x00\x00\x00",  # less
        b"\x09" + b"\x00\x14\x1e\x00\x00\x00\x00\x00" * 9,  # too many
    ],
)
def test_endpoints_that_are_malformed_or_too_many_spoil_a_welcome(raw: bytes) -> None:
    assert m._decode_endpoints(raw) is None
    good = b"\x02\x00\x14\x1e\x00\x00\x00\x00\x00"
    good += b"\x03\xbb\x01\x09\x00\x00\x00\x04\xcb\x00\x71\x07"
    assert m._decode_endpoints(good) == (
        Endpoint("udp", "", 7700),
        Endpoint("quic", "203.0.113.7", 443, 9),
    )


@given(st.binary(max_size=3000))
def test_random_bytes_never_raise(junk: bytes) -> None:
    m.decode_init(junk)
    m.decode_welcome(junk)
    m.decode_request(junk)
    m.decode_ack(junk)
    m.decode_probe(junk)
    m.decode_probe_reply(junk)
    p.decode_init(junk, KEY)
    p.decode_response(junk)
    p.decode_retry(junk)
    p.decode_reject(junk)
    p.request_ticket(junk)
    p.open_request(junk, KEY)
    decode_sealed_header(junk)


@given(u32, st.binary(max_size=1500), blob(16))
def test_an_init_is_for_one_gateway_and_cannot_be_altered(
    index: int, noise: bytes, cookie: bytes
) -> None:
    packet = p.Init(index, noise, cookie).encode(KEY)
    assert p.decode_init(packet, KEY) == p.Init(index, noise, cookie)
    assert p.decode_init(packet, OTHER) is None
    spoilt = bytearray(packet)
    spoilt[len(packet) // 2] ^= 1
    assert p.decode_init(bytes(spoilt), KEY) is None or noise == b""


def test_a_request_opens_with_the_proof_key_only_and_covers_its_ticket() -> None:
    packet = p.encode_request(b"t" * TICKET_LEN, KEY, b"n" * 24, b"body")
    assert p.request_ticket(packet) == b"t" * TICKET_LEN
    assert p.open_request(packet, KEY) == b"body"
    assert p.open_request(packet, OTHER) is None
    for at in range(len(packet)):
        spoilt = bytearray(packet)
        spoilt[at] ^= 1
        assert p.open_request(bytes(spoilt), KEY) is None


def test_a_reject_is_proven_for_exactly_one_request_and_reason() -> None:
    tag = p.request_tag(b"a request")
    reject = p.decode_reject(p.encode_reject(tag, 3, KEY, node=7))
    assert reject is not None
    assert (reject.tag, reject.code, reject.node) == (tag, 3, 7)
    assert reject.is_proven(KEY)
    assert not replace(reject, code=4).is_proven(KEY)
    assert not replace(reject, node=8).is_proven(KEY)
    assert not replace(reject, tag=p.request_tag(b"another")).is_proven(KEY)
    assert not reject.is_proven(OTHER)


def test_reasons_travel_as_one_byte() -> None:
    for word in ("SUPERSEDED", "SESSION_NOT_FOUND", "RATE_LIMITED"):
        assert m.reason_from_wire(m.reason_to_wire(word)) == word
    assert m.reason_from_wire(0) is None
    assert m.reason_from_wire(255) is None


def test_a_sealed_header_refuses_reserved_bits_and_absurd_counters() -> None:
    body = bytes(16)
    good = SealedHeader(PacketType.DATA, 1, 2, 3)
    assert decode_sealed_header(good.encode() + body) == good
    assert len(good.encode()) == HEADER_LEN
    assert decode_sealed_header(good.encode() + body[1:]) is None
    assert decode_sealed_header(b"\x08\0\1\0" + good.encode()[4:] + body) is None
    huge = SealedHeader(PacketType.DATA, 0, 2, 2**63)
    assert decode_sealed_header(huge.encode() + body) is None
