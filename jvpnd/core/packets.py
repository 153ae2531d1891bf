"""Whole packets of the control plane: clear framing around the sealed bodies of messages.py."""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass

import nacl.bindings as sodium
import nacl.exceptions

from jvpnd.core.keys import derive
from jvpnd.core.ticket import TICKET_LEN
from jvpnd.core.wire import TAG_LEN, PacketType

MAC_LEN = 16
COOKIE_LEN = 16
XNONCE_LEN = 24
REQUEST_TAG_LEN = 8

_CLEAR = struct.Struct("<BxxxI")
_MACS_LEN = MAC_LEN + COOKIE_LEN
_RETRY = struct.Struct(f"<BxxxI{COOKIE_LEN}s")
_REJECT = struct.Struct(f"<BBxx{REQUEST_TAG_LEN}sI{MAC_LEN}s")


def seal(key: bytes, nonce: bytes, body: bytes, clear: bytes) -> bytes:
    """XChaCha20-Poly1305 with a random 24-byte nonce in front; `clear` is authenticated too."""
    boxed: bytes = sodium.crypto_aead_xchacha20poly1305_ietf_encrypt(body, clear, nonce, key)
    return nonce + boxed


def unseal(key: bytes, sealed: bytes, clear: bytes) -> bytes | None:
    """The body, None if it was not sealed with this key over this clear text."""
    if len(sealed) < XNONCE_LEN + TAG_LEN:
        return None
    nonce, boxed = sealed[:XNONCE_LEN], sealed[XNONCE_LEN:]
    try:
        body: bytes = sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(boxed, clear, nonce, key)
    except nacl.exceptions.CryptoError:
        return None
    return body


def _mac(key: bytes, *parts: bytes) -> bytes:
    digest = hashlib.blake2b(key=key, digest_size=MAC_LEN)
    for part in parts:
        digest.update(part)
    return digest.digest()


def stealth_key(gateway_public: bytes) -> bytes:
    """Who does not know the gateway's public key gets no answer and costs it no key exchange."""
    return derive(gateway_public, "stealth")


@dataclass(frozen=True, slots=True)
class Init:
    """HANDSHAKE_INIT: sender index, Noise message 1, MAC for the gateway's key, cookie (or 0)."""

    index: int
    noise: bytes
    cookie: bytes

    def encode(self, key: bytes) -> bytes:
        front = _CLEAR.pack(PacketType.HANDSHAKE_INIT, self.index) + self.noise
        return front + _mac(key, front) + self.cookie


def decode_init(packet: bytes, key: bytes) -> Init | None:
    """None if it is too short or was not made for the gateway with this stealth key."""
    if len(packet) < _CLEAR.size + _MACS_LEN:
        return None
    front = packet[:-_MACS_LEN]
    if not hmac.compare_digest(_mac(key, front), packet[-_MACS_LEN:-COOKIE_LEN]):
        return None
    _, index = _CLEAR.unpack_from(packet)
    return Init(index, front[_CLEAR.size :], packet[-COOKIE_LEN:])


@dataclass(frozen=True, slots=True)
class Response:
    """HANDSHAKE_RESPONSE or REATTACH_ACK: the client's index, Noise message 2 or sealed ACK."""

    index: int
    body: bytes

    def encode(self, kind: PacketType) -> bytes:
        return _CLEAR.pack(kind, self.index) + self.body


def decode_response(packet: bytes) -> Response | None:
    if len(packet) < _CLEAR.size + TAG_LEN:
        return None
    return Response(_CLEAR.unpack_from(packet)[1], packet[_CLEAR.size :])


def clear_part(packet: bytes) -> bytes:
    """The clear bytes in front of a REATTACH_ACK's sealed body."""
    return packet[: _CLEAR.size]


def encode_retry(index: int, cookie: bytes) -> bytes:
    return _RETRY.pack(PacketType.RETRY, index, cookie)


def decode_retry(packet: bytes) -> tuple[int, bytes] | None:
    """(initiator's index, cookie)."""
    if len(packet) != _RETRY.size:
        return None
    _, index, cookie = _RETRY.unpack(packet)
    return index, cookie


def encode_notice(index: int, key: bytes, nonce: bytes, body: bytes) -> bytes:
    """NOTICE: a CONTROL body for receiver `index`, under a random nonce instead of a counter."""
    clear = _CLEAR.pack(PacketType.NOTICE, index)
    return clear + seal(key, nonce, body, clear)


def notice_index(packet: bytes) -> int | None:
    """The receiver index of a NOTICE, None if it is too short for one."""
    if len(packet) < _CLEAR.size + XNONCE_LEN + TAG_LEN:
        return None
    index: int = _CLEAR.unpack_from(packet)[1]
    return index


def open_notice(packet: bytes, key: bytes) -> bytes | None:
    """The body of a NOTICE, None if it is forged."""
    return unseal(key, packet[_CLEAR.size :], packet[: _CLEAR.size])


_REQUEST_CLEAR = struct.Struct(f"<Bxxx{TICKET_LEN}s")


def encode_request(ticket: bytes, key: bytes, nonce: bytes, body: bytes) -> bytes:
    clear = _REQUEST_CLEAR.pack(PacketType.REATTACH_REQUEST, ticket)
    return clear + seal(key, nonce, body, clear)


def request_ticket(packet: bytes) -> bytes | None:
    """The sealed ticket of a REATTACH_REQUEST."""
    if len(packet) < _REQUEST_CLEAR.size + XNONCE_LEN + TAG_LEN:
        return None
    ticket: bytes = _REQUEST_CLEAR.unpack_from(packet)[1]
    return ticket


def open_request(packet: bytes, key: bytes) -> bytes | None:
    """The body of a REATTACH_REQUEST: that it opens is the proof."""
    size = _REQUEST_CLEAR.size
    return unseal(key, packet[size:], packet[:size])


def request_tag(packet: bytes) -> bytes:
    """Names exactly these bytes in a reject, and in the memory of requests already seen."""
    return hashlib.blake2b(packet, digest_size=REQUEST_TAG_LEN).digest()


@dataclass(frozen=True, slots=True)
class Reject:
    """REATTACH_REJECT: which request is refused, why (its number on the wire), and the tag of the
    node to ask instead, 0 if there is none to name."""

    tag: bytes
    code: int
    node: int
    mac: bytes

    def is_proven(self, key: bytes) -> bool:
        """A reject that was not made with the session's reset key is only a hint."""
        return hmac.compare_digest(_reject_mac(key, self.tag, self.code, self.node), self.mac)


def encode_reject(tag: bytes, code: int, key: bytes, node: int = 0) -> bytes:
    mac = _reject_mac(key, tag, code, node)
    return _REJECT.pack(PacketType.REATTACH_REJECT, code, tag, node, mac)


def decode_reject(packet: bytes) -> Reject | None:
    if len(packet) != _REJECT.size:
        return None
    _, code, tag, node, mac = _REJECT.unpack(packet)
    return Reject(tag, code, node, mac)


def _reject_mac(key: bytes, tag: bytes, code: int, node: int) -> bytes:
    return _mac(key, b"reject", tag, struct.pack("<BI", code, node))
