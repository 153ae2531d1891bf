"""Bodies of handshake, reattach and control packets (docs/protocol.md draws them).

Encoders return bytes; decoders return None for anything malformed or out of range.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from enum import IntEnum

from jvpnd.core.effects import Endpoint
from jvpnd.core.ticket import TICKET_LEN
from jvpnd.core.wire import MAX_ADDRESSES, TRANSPORTS, VERSION, Suite

KEM_PUBLIC_LEN = 1184
KEM_CIPHERTEXT_LEN = 1088
NO_SESSION = bytes(16)

CAPABILITY_AES = 1  # this end has AES instructions

_INIT = struct.Struct("<BBBBQ16s16sQ")
_WELCOME = struct.Struct(f"<16sB3xIQ{TICKET_LEN}sI32s")
_BOUNDS = struct.Struct("<11I")
_REQUEST = struct.Struct("<Q32sQQQIBBBx")
_ACK = struct.Struct(f"<Q32sQ{TICKET_LEN}sI")
_ENDPOINT = struct.Struct("<BHIB")
MAX_ENDPOINTS = 8


@dataclass(frozen=True, slots=True)
class InitPayload:
    """Inside Noise message 1. session_id is set for a REKEY, supersedes for a new session."""

    capabilities: int
    transport: str
    path_number: int
    timestamp: int
    session_id: bytes
    supersedes: bytes
    attempt: int
    kem_public: bytes

    def encode(self) -> bytes:
        return (
            _INIT.pack(
                VERSION,
                self.capabilities,
                TRANSPORTS.index(self.transport),
                self.path_number,
                self.timestamp,
                self.session_id,
                self.supersedes,
                self.attempt,
            )
            + self.kem_public
        )


def decode_init(body: bytes) -> InitPayload | None:
    if len(body) != _INIT.size + KEM_PUBLIC_LEN:
        return None
    version, capabilities, transport, number, timestamp, session, old, attempt = _INIT.unpack_from(
        body
    )
    if version != VERSION or transport >= len(TRANSPORTS) or attempt >= 2**62:
        return None
    return InitPayload(
        capabilities,
        TRANSPORTS[transport],
        number,
        timestamp,
        session,
        old,
        attempt,
        body[_INIT.size :],
    )


@dataclass(frozen=True, slots=True)
class PolicyBounds:
    """The gateway's policy snapshot: the bounds that it enforces, for the client to respect, and
    how often it has to hear of the client lest it counts as late."""

    version: int
    session_ttl_ms: int
    transport_loss_ttl_ms: int
    max_recovery_window_ms: int
    max_switches_per_minute: int
    switch_cooldown_ms: int
    proof_max_age_ms: int
    drain_ms: int
    rekey_after_ms: int
    heartbeat_active_ms: int
    heartbeat_idle_ms: int

    def encode(self) -> bytes:
        return _BOUNDS.pack(*(getattr(self, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Welcome:
    """Inside the second Noise message: everything a client needs to use the session."""

    session_id: bytes
    suite: Suite
    index: int
    state_version: int
    ticket: bytes
    next_index: int
    reset_key: bytes
    kem_ciphertext: bytes
    bounds: PolicyBounds
    addresses: tuple[str, ...]
    endpoints: tuple[Endpoint, ...] = ()

    def encode(self) -> bytes:
        packed = [ipaddress.ip_interface(address) for address in self.addresses]
        return b"".join(
            (
                _WELCOME.pack(
                    self.session_id,
                    self.suite,
                    self.index,
                    self.state_version,
                    self.ticket,
                    self.next_index,
                    self.reset_key,
                ),
                self.kem_ciphertext,
                self.bounds.encode(),
                bytes([len(packed)]),
                *(bytes([i.version, i.network.prefixlen]) + i.ip.packed for i in packed),
                bytes([len(self.endpoints)]),
                *map(_encode_endpoint, self.endpoints),
            )
        )


def decode_welcome(body: bytes) -> Welcome | None:
    fixed = _WELCOME.size + KEM_CIPHERTEXT_LEN + _BOUNDS.size
    if len(body) < fixed + 1:
        return None
    session, suite, index, version, ticket, next_index, reset = _WELCOME.unpack_from(body)
    bounds = PolicyBounds(*_BOUNDS.unpack_from(body, _WELCOME.size + KEM_CIPHERTEXT_LEN))
    addresses, rest = _decode_addresses(body[fixed:])
    endpoints = _decode_endpoints(rest)
    if addresses is None or endpoints is None or suite not in tuple(Suite):
        return None
    ciphertext = body[_WELCOME.size : _WELCOME.size + KEM_CIPHERTEXT_LEN]
    return Welcome(
        session,
        Suite(suite),
        index,
        version,
        ticket,
        next_index,
        reset,
        ciphertext,
        bounds,
        addresses,
        endpoints,
    )


def _encode_endpoint(endpoint: Endpoint) -> bytes:
    packed = ipaddress.ip_address(endpoint.address).packed if endpoint.address else b""
    kind = TRANSPORTS.index(endpoint.transport)
    return _ENDPOINT.pack(kind, endpoint.port, endpoint.node, len(packed)) + packed


def _decode_endpoints(raw: bytes) -> tuple[Endpoint, ...] | None:
    """All of `raw`: their number, then each."""
    if not raw or raw[0] > MAX_ENDPOINTS:
        return None
    found, at = [], 1
    for _ in range(raw[0]):
        if len(raw) < at + _ENDPOINT.size:
            return None
        transport, port, node, size = _ENDPOINT.unpack_from(raw, at)
        at += _ENDPOINT.size
        packed = raw[at : at + size]
        if transport >= len(TRANSPORTS) or not port or size not in (0, 4, 16):
            return None
        if len(packed) < size:
            return None
        address = str(ipaddress.ip_address(packed)) if packed else ""
        found.append(Endpoint(TRANSPORTS[transport], address, port, node))
        at += size
    return tuple(found) if at == len(raw) else None


def _decode_addresses(raw: bytes) -> tuple[tuple[str, ...] | None, bytes]:
    """The addresses, None if malformed, and what is behind them."""
    count, at = raw[0], 1
    if count > MAX_ADDRESSES:
        return None, b""
    found = []
    for _ in range(count):
        family = raw[at : at + 1]
        size = {b"\x04": 4, b"\x06": 16}.get(family)
        if size is None or len(raw) < at + 2 + size or raw[at + 1] > size * 8:
            return None, b""
        address = ipaddress.ip_address(raw[at + 2 : at + 2 + size])
        found.append(f"{address}/{raw[at + 1]}")
        at += 2 + size
    return tuple(found), raw[at:]


@dataclass(frozen=True, slots=True)
class ReattachRequest:
    """The sealed part of REATTACH_REQUEST. sent_ms counts from the root's INIT (proof age)."""

    attempt: int
    client_nonce: bytes
    last_epoch: int
    state_version: int
    sent_ms: int
    receive_index: int
    transport: str
    path_number: int
    cause: int

    def encode(self) -> bytes:
        return _REQUEST.pack(
            self.attempt,
            self.client_nonce,
            self.last_epoch,
            self.state_version,
            self.sent_ms,
            self.receive_index,
            TRANSPORTS.index(self.transport),
            self.path_number,
            self.cause,
        )


def decode_request(body: bytes) -> ReattachRequest | None:
    if len(body) != _REQUEST.size:
        return None
    attempt, nonce, epoch, version, sent, index, transport, number, cause = _REQUEST.unpack(body)
    if transport >= len(TRANSPORTS) or cause not in tuple(Cause) or attempt >= 2**62:
        return None
    return ReattachRequest(
        attempt, nonce, epoch, version, sent, index, TRANSPORTS[transport], number, cause
    )


class Cause(IntEnum):
    """Why the client reattaches: the gateway records it."""

    TRANSPORT_DEAD = 1
    SWITCH = 2
    NAT_REBIND = 3
    RETRY = 4


@dataclass(frozen=True, slots=True)
class ReattachAck:
    """The sealed part of REATTACH_ACK."""

    attempt: int
    gateway_nonce: bytes
    state_version: int
    ticket: bytes
    next_index: int

    def encode(self) -> bytes:
        return _ACK.pack(
            self.attempt, self.gateway_nonce, self.state_version, self.ticket, self.next_index
        )


def decode_ack(body: bytes) -> ReattachAck | None:
    return ReattachAck(*_ACK.unpack(body)) if len(body) == _ACK.size else None


class Control(IntEnum):
    """First byte inside a CONTROL packet."""

    PROBE = 1
    PROBE_REPLY = 2
    REBIND_HINT = 3
    CLOSE = 4
    MOVE = 5


_PROBE = struct.Struct("<BBBxI")
_REPLY = struct.Struct("<BBBxIIII")


@dataclass(frozen=True, slots=True)
class Probe:
    """A question over one path, and about one: another, where that seems to be in trouble. The
    sequence numbers of each path rise by one."""

    path_number: int
    about: int
    sequence: int

    def encode(self) -> bytes:
        return _PROBE.pack(Control.PROBE, self.path_number, self.about, self.sequence)


def decode_probe(body: bytes) -> Probe | None:
    """Longer bodies are padding (path MTU probes)."""
    if len(body) < _PROBE.size:
        return None
    return Probe(*_PROBE.unpack_from(body)[1:])


@dataclass(frozen=True, slots=True)
class ProbeReply:
    """The answer, over the path of the question, and which probes have come: bit i of `mask` stands
    for sequence - 1 - i. The same of the path asked about, so that whoever hears nothing over it
    learns which way the trouble is."""

    path_number: int
    about: int
    sequence: int
    mask: int
    about_newest: int
    about_mask: int

    def encode(self) -> bytes:
        fields = (getattr(self, name) for name in self.__slots__)
        return _REPLY.pack(Control.PROBE_REPLY, *fields)


def decode_probe_reply(body: bytes) -> ProbeReply | None:
    return ProbeReply(*_REPLY.unpack(body)[1:]) if len(body) == _REPLY.size else None


# Reason codes that travel as one byte (CLOSE and REATTACH_REJECT). Append only.
_WIRE_REASONS = (
    "OPERATOR_TERMINATION",
    "POLICY_TERMINATION",
    "SUPERSEDED",
    "TTL_SESSION_EXPIRED",
    "TTL_TRANSPORT_LOSS_EXPIRED",
    "FATAL_PROTOCOL_ERROR",
    "AUTH_FAIL",
    "FRESHNESS_INVALID",
    "REPLAY_DETECTED",
    "OWNERSHIP_CONFLICT",
    "SESSION_NOT_FOUND",
    "SESSION_EXPIRED",
    "POLICY_DENY",
    "RATE_LIMITED",
    "HANDSHAKE_FAIL",
    "STORE_UNAVAILABLE",
    "WRONG_NODE",
    "NODE_DRAINING",
)


def reason_to_wire(reason: str) -> int:
    return _WIRE_REASONS.index(reason) + 1


def reason_from_wire(code: int) -> str | None:
    return _WIRE_REASONS[code - 1] if 1 <= code <= len(_WIRE_REASONS) else None
