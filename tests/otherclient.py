"""Another implementation of a client of JVP/1, written from docs/protocol.md alone: the primitives
are those of `cryptography`, `hashlib` and libsodium, and nothing here is of jvpnd.

It is no VPN: it says what it is told to say, and reads what comes back.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from dataclasses import dataclass, field

import nacl.bindings as sodium
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

NOBODY = bytes(16)


def public(secret: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def agreed(secret: bytes, point: bytes) -> bytes:
    key = X25519PrivateKey.from_private_bytes(secret)
    return key.exchange(X25519PublicKey.from_public_bytes(point))


def derived(key: bytes, label: str, *context: bytes | int) -> bytes:
    text = b""
    for part in (b"jvp1 " + label.encode(), *context):
        raw = part.to_bytes(8, "little") if isinstance(part, int) else part
        text += len(raw).to_bytes(2, "little") + raw
    return hashlib.blake2b(text, key=key, digest_size=32).digest()


def mac(key: bytes, text: bytes) -> bytes:
    return hashlib.blake2b(text, key=key, digest_size=16).digest()


def xsealed(key: bytes, nonce: bytes, body: bytes, clear: bytes) -> bytes:
    boxed = sodium.crypto_aead_xchacha20poly1305_ietf_encrypt(body, clear, nonce, key)
    return nonce + bytes(boxed)


def xopened(key: bytes, sealed: bytes, clear: bytes) -> bytes:
    nonce, boxed = sealed[:24], sealed[24:]
    return bytes(sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(boxed, clear, nonce, key))


def hkdf(key: bytes, material: bytes, outputs: int) -> list[bytes]:
    temporary, block, found = hmac.digest(key, material, "blake2s"), b"", []
    for number in range(1, outputs + 1):
        block = hmac.digest(temporary, block + bytes([number]), "blake2s")
        found.append(block)
    return found


class Noise:
    """The symmetric state, with a trace of what it was."""

    def __init__(self, gateway_public: bytes) -> None:
        self.h = self.ck = hashlib.blake2s(b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s").digest()
        self.k, self.n = bytes(32), 0
        self.trace: list[tuple[bytes, bytes, bytes]] = []
        self.mix_hash(b"JVP/1")
        self.mix_hash(gateway_public)

    def mix_hash(self, data: bytes) -> None:
        self.h = hashlib.blake2s(self.h + data).digest()
        self.trace.append((self.h, self.ck, self.k))

    def mix_key(self, material: bytes) -> None:
        self.ck, self.k = hkdf(self.ck, material, 2)
        self.n = 0
        self.trace.append((self.h, self.ck, self.k))

    def mix_ephemeral(self, point: bytes) -> None:
        self.mix_hash(point)
        self.mix_key(point)

    def mix_psk(self, psk: bytes) -> None:
        self.ck, more, self.k = hkdf(self.ck, psk, 3)
        self.n = 0
        self.mix_hash(more)

    def _next(self) -> bytes:
        self.n += 1
        return bytes(4) + (self.n - 1).to_bytes(8, "little")

    def seal(self, text: bytes) -> bytes:
        sealed = ChaCha20Poly1305(self.k).encrypt(self._next(), text, self.h)
        self.mix_hash(sealed)
        return sealed

    def open(self, sealed: bytes) -> bytes:
        text = ChaCha20Poly1305(self.k).decrypt(self._next(), sealed, self.h)
        self.mix_hash(sealed)
        return text


@dataclass
class Epoch:
    """One binding: keys and counters of both ends."""

    root: bytes = field(repr=False)
    number: int
    client_nonce: bytes
    gateway_nonce: bytes
    client_index: int
    gateway_index: int
    sent: int = 0  # CONTROL packets

    def key(self, what: str, way: str) -> bytes:
        nonces = [self.client_nonce] + [self.gateway_nonce] * (way == "g2c")
        return derived(self.root, f"{what} {way}", self.number, *nonces)

    def control(self, body: bytes) -> bytes:
        header = bytes([7, 0, 0, 0]) + struct.pack("<IQ", self.gateway_index, self.sent)
        nonce = bytes(4) + self.sent.to_bytes(8, "little")
        self.sent += 1
        return header + ChaCha20Poly1305(self.key("control", "c2g")).encrypt(nonce, body, header)

    def opened(self, packet: bytes) -> bytes:
        """The body of a CONTROL packet of the gateway's."""
        kind, lane, parts, index, counter = struct.unpack_from("<BBHIQ", packet)
        assert (kind, lane, parts, index) == (7, 0, 0, self.client_index)
        cipher = ChaCha20Poly1305(self.key("control", "g2c"))
        return cipher.decrypt(struct.pack("<IQ", 0, counter), packet[16:], packet[:16])

    def data(self, plain: bytes, suite: int, counter: int) -> bytes:
        header = bytes([8, 0, 0, 0]) + struct.pack("<IQ", self.gateway_index, counter)
        cipher = (AESGCM if suite == 2 else ChaCha20Poly1305)(self.key("data", "c2g"))
        return header + cipher.encrypt(struct.pack("<IQ", 0, counter), plain, header)

    def notice(self, packet: bytes) -> bytes:
        """The body of a NOTICE."""
        assert packet[:8] == bytes([9, 0, 0, 0]) + struct.pack("<I", self.client_index)
        return xopened(derived(self.root, "notice", self.number), packet[8:], packet[:8])


class OtherClient:
    """One client with one session at a time."""

    def __init__(self, secret: bytes, gateway_public: bytes, psk: bytes = bytes(32)) -> None:
        self._secret, self._gateway, self._psk = secret, gateway_public, psk
        self.attempt = 0
        self.session_id = NOBODY
        self.cookie = bytes(16)

    # --- handshake ---

    def init(self, timestamp_us: int, aes: bool = False) -> bytes:
        """A birth, or a REKEY where there is a session."""
        self.attempt += 1
        self._kem = MLKEM768PrivateKey.generate()
        self._ephemeral, self._index = os.urandom(32), os.urandom(4)
        self._noise = noise = Noise(self._gateway)
        noise.mix_ephemeral(public(self._ephemeral))
        noise.mix_key(agreed(self._ephemeral, self._gateway))
        message = public(self._ephemeral) + noise.seal(public(self._secret))
        noise.mix_key(agreed(self._secret, self._gateway))
        payload = struct.pack("<BBBBQ", 1, aes, 0, 1, timestamp_us) + self.session_id + NOBODY
        payload += struct.pack("<Q", self.attempt) + self._kem.public_key().public_bytes_raw()
        front = bytes([1, 0, 0, 0]) + self._index + message + noise.seal(payload)
        return front + mac(derived(self._gateway, "stealth"), front) + self.cookie

    def retry(self, packet: bytes) -> None:
        assert packet[:8] == bytes([3, 0, 0, 0]) + self._index
        self.cookie = packet[8:]

    def response(self, packet: bytes) -> None:
        assert packet[:8] == bytes([2, 0, 0, 0]) + self._index
        noise, point = self._noise, packet[8:40]
        noise.mix_ephemeral(point)
        noise.mix_key(agreed(self._ephemeral, point))
        noise.mix_key(agreed(self._secret, point))
        noise.mix_psk(self._psk)
        body = noise.open(packet[40:])
        self.session_id, self.suite = body[:16], body[16]
        index, self.state_version = struct.unpack_from("<IQ", body, 20)
        self.ticket, (self.next_index,) = body[32:104], struct.unpack_from("<I", body, 104)
        self.reset_key, ciphertext = body[108:140], body[140:1228]
        self.bounds = struct.unpack_from("<11I", body, 1228)
        self.rest = body[1272:]  # addresses and endpoints
        first, second = hkdf(noise.ck, b"", 2)
        self.root = derived(first + second, "root", self._kem.decapsulate(ciphertext), noise.h)
        ours = int.from_bytes(self._index, "little")
        self.epoch = Epoch(self.root, self.attempt, noise.h, noise.h, ours, index)

    # --- moves ---

    def request(self, sent_ms: int, cause: int = 1, attempt: int | None = None) -> bytes:
        """A REATTACH_REQUEST, with the next attempt or the given one."""
        self.attempt = attempt or self.attempt + 1
        self._nonce, self._index = os.urandom(32), os.urandom(4)
        clear = bytes([4, 0, 0, 0]) + self.ticket
        body = struct.pack("<Q", self.attempt) + self._nonce
        body += struct.pack("<QQQ", self.epoch.number, self.state_version, sent_ms) + self._index
        body += bytes([0, 1, cause, 0])
        self._request = clear + xsealed(derived(self.root, "proof"), os.urandom(24), body, clear)
        return self._request

    def ack(self, packet: bytes) -> None:
        assert packet[:8] == bytes([5, 0, 0, 0]) + self._index
        key = derived(self.root, "ack", self.attempt, self._nonce)
        body = xopened(key, packet[8:], packet[:8])
        attempt, gateway_nonce, self.state_version = struct.unpack_from("<Q32sQ", body)
        assert attempt == self.attempt
        ours, theirs = int.from_bytes(self._index, "little"), self.next_index
        self.ticket, (self.next_index,) = body[48:120], struct.unpack_from("<I", body, 120)
        self.epoch = Epoch(self.root, attempt, self._nonce, gateway_nonce, ours, theirs)

    def reject(self, packet: bytes) -> int | None:
        """The reason, None if it is not proven."""
        tag = hashlib.blake2b(self._request, digest_size=8).digest()
        assert (len(packet), packet[0], packet[2:4]) == (32, 6, b"\0\0")
        proven = mac(self.reset_key, b"reject" + tag + packet[1:2] + packet[12:16])
        return packet[1] if packet[4:12] == tag and packet[16:] == proven else None
