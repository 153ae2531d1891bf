"""Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s, one round trip, as in the Noise specification revision 34.

    -> e, es, s, ss        the initiator knows the responder's static key beforehand
    <- e, ee, se, psk

Sans-IO: every secret, the ephemeral ones too, comes in as an argument. A message from the network
that does not authenticate gives None. Own keys of a wrong size and calls out of order are bugs of
the caller and raise ValueError and NoiseStateError.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import struct

from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
    crypto_scalarmult,
    crypto_scalarmult_base,
)
from nacl.exceptions import CryptoError

PROTOCOL_NAME = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
KEY_LEN = 32
TAG_LEN = 16
ZERO = bytes(KEY_LEN)
MAX_MESSAGE = 65535  # section 3
INIT_OVERHEAD = KEY_LEN + KEY_LEN + TAG_LEN + TAG_LEN  # e, sealed s, tag of the payload
RESPONSE_OVERHEAD = KEY_LEN + TAG_LEN  # e, tag of the payload

_NONCE = struct.Struct("<xxxxQ")


class NoiseStateError(Exception):
    """A handshake method was called out of order, twice, or after a failure."""


class _RefusedError(Exception):
    """A low-order point or a failed tag; never leaves this module."""


def public_key(secret: bytes) -> bytes:
    """The X25519 public key (32 bytes) of a 32-byte secret; ValueError for any other length."""
    return crypto_scalarmult_base(_key("secret key", secret))


def _key(name: str, value: bytes) -> bytes:
    if len(value) != KEY_LEN:
        raise ValueError(f"{name}: {len(value)} bytes, must be {KEY_LEN}")
    return value


def _check_payload(payload: bytes, overhead: int) -> None:
    if len(payload) > MAX_MESSAGE - overhead:
        raise ValueError(f"payload: {len(payload)} bytes, at most {MAX_MESSAGE - overhead}")


def _hash(data: bytes) -> bytes:
    return hashlib.blake2s(data).digest()


def _hkdf(chaining_key: bytes, material: bytes, outputs: int) -> list[bytes]:
    """HKDF of section 4.3: `outputs` values of 32 bytes."""
    temp_key = hmac.digest(chaining_key, material, "blake2s")
    values, block = [], b""
    for number in range(1, outputs + 1):
        block = hmac.digest(temp_key, block + bytes([number]), "blake2s")
        values.append(block)
    return values


class _SymmetricState:
    """Section 5.2, together with the one CipherState (5.1) that it owns."""

    def __init__(self, prologue: bytes) -> None:
        self.hash = self._chaining_key = _hash(PROTOCOL_NAME)  # the name is longer than a hash
        self._cipher_key = ZERO  # never used: IK mixes a DH result before it seals anything
        self._counter = 0
        self.mix_hash(prologue)

    def mix_hash(self, data: bytes) -> None:
        self.hash = _hash(self.hash + data)

    def mix_key(self, material: bytes) -> None:
        self._chaining_key, self._cipher_key = _hkdf(self._chaining_key, material, 2)
        self._counter = 0

    def mix_ephemeral(self, public: bytes) -> None:
        """Token "e": in a psk pattern it goes into the chaining key too (section 9.2)."""
        self.mix_hash(public)
        self.mix_key(public)

    def mix_dh(self, secret: bytes, public: bytes) -> None:
        """Tokens ee, es, se, ss. A low-order point gives zeros whatever the secret: refused."""
        try:
            self.mix_key(crypto_scalarmult(secret, public))
        except CryptoError as error:  # libsodium refuses to return zeros
            raise _RefusedError from error

    def mix_psk(self, psk: bytes) -> None:
        self._chaining_key, temp_hash, self._cipher_key = _hkdf(self._chaining_key, psk, 3)
        self.mix_hash(temp_hash)
        self._counter = 0

    def seal(self, plaintext: bytes) -> bytes:
        """EncryptAndHash: plaintext length + TAG_LEN bytes."""
        sealed = crypto_aead_chacha20poly1305_ietf_encrypt(
            plaintext, self.hash, self._next_nonce(), self._cipher_key
        )
        self.mix_hash(sealed)
        return sealed

    def open(self, sealed: bytes) -> bytes:
        """DecryptAndHash."""
        try:
            plaintext = crypto_aead_chacha20poly1305_ietf_decrypt(
                sealed, self.hash, self._next_nonce(), self._cipher_key
            )
        except CryptoError as error:
            raise _RefusedError from error
        self.mix_hash(sealed)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        first, second = _hkdf(self._chaining_key, b"", 2)
        return first, second

    def _next_nonce(self) -> bytes:
        nonce = _NONCE.pack(self._counter)
        self._counter += 1
        return nonce


_FAILED, _FINISHED = -1, 2


class _Handshake:
    """What both ends share: the order of the two steps, and what a finished exchange gives."""

    def __init__(self, static_secret: bytes, responder_static: bytes, prologue: bytes) -> None:
        self._static_secret = _key("static secret", static_secret)
        self._state = _SymmetricState(prologue)
        self._state.mix_hash(responder_static)  # the pre-message "<- s"
        self._step = 0

    @property
    def handshake_hash(self) -> bytes:
        """Hash of the whole exchange (32 bytes), for channel binding."""
        self._require_step(_FINISHED)
        return self._state.hash

    def split(self) -> tuple[bytes, bytes]:
        """Two keys of 32 bytes: initiator to responder, responder to initiator."""
        self._require_step(_FINISHED)
        return self._state.split()

    def _require_step(self, step: int) -> None:
        if self._step != step:
            raise NoiseStateError(f"this needs handshake step {step}, it is at {self._step}")


class Initiator(_Handshake):
    """The client's end. `remote_static` is the responder's pinned public key."""

    def __init__(
        self,
        static_secret: bytes,
        remote_static: bytes,
        ephemeral_secret: bytes,
        psk: bytes = ZERO,
        prologue: bytes = b"",
    ) -> None:
        super().__init__(static_secret, _key("remote static key", remote_static), prologue)
        self._remote_static = remote_static
        self._ephemeral_secret = _key("ephemeral secret", ephemeral_secret)
        self._psk = _key("pre-shared key", psk)

    def write_message(self, payload: bytes) -> bytes:
        """Message 1: payload length + INIT_OVERHEAD bytes.

        ValueError if the payload is too long or the pinned key is a low-order point.
        """
        self._require_step(0)
        _check_payload(payload, INIT_OVERHEAD)
        self._step = _FAILED  # until it is through: a second try would seal under the same nonces
        state = self._state
        ephemeral = public_key(self._ephemeral_secret)
        state.mix_ephemeral(ephemeral)
        try:
            state.mix_dh(self._ephemeral_secret, self._remote_static)
            sealed_static = state.seal(public_key(self._static_secret))
            state.mix_dh(self._static_secret, self._remote_static)
        except _RefusedError:
            raise ValueError("remote static key: a low-order point, not a public key") from None
        message = ephemeral + sealed_static + state.seal(payload)
        self._step = 1
        return message

    def read_response(self, message: bytes) -> bytes | None:
        """The payload of message 2, or None.

        None changes nothing: anybody can send a forged answer, the true one may still come.
        """
        self._require_step(1)
        if not RESPONSE_OVERHEAD <= len(message) <= MAX_MESSAGE:
            return None
        state = copy.copy(self._state)
        ephemeral, sealed_payload = message[:KEY_LEN], message[KEY_LEN:]
        state.mix_ephemeral(ephemeral)
        try:
            state.mix_dh(self._ephemeral_secret, ephemeral)
            state.mix_dh(self._static_secret, ephemeral)
            state.mix_psk(self._psk)
            payload = state.open(sealed_payload)
        except _RefusedError:
            return None
        self._state, self._step = state, _FINISHED
        return payload


class Responder(_Handshake):
    """The gateway's end, one object for each message 1 that arrives."""

    remote_static: bytes  # the initiator's public key, set once message 1 has authenticated

    def __init__(self, static_secret: bytes, prologue: bytes = b"") -> None:
        super().__init__(static_secret, public_key(static_secret), prologue)

    def read_message(self, message: bytes) -> bytes | None:
        """The payload of message 1, or None, after which this object is of no further use.

        The sender owns `remote_static` and knows our key, but this message may be a replay.
        """
        self._require_step(0)
        self._step = _FAILED
        if not INIT_OVERHEAD <= len(message) <= MAX_MESSAGE:
            return None
        sealed_end = KEY_LEN + KEY_LEN + TAG_LEN
        ephemeral, sealed_static = message[:KEY_LEN], message[KEY_LEN:sealed_end]
        state = self._state
        state.mix_ephemeral(ephemeral)
        try:
            state.mix_dh(self._static_secret, ephemeral)
            remote_static = state.open(sealed_static)
            state.mix_dh(self._static_secret, remote_static)
            payload = state.open(message[sealed_end:])
        except _RefusedError:
            return None
        self._remote_ephemeral, self.remote_static = ephemeral, remote_static
        self._step = 1
        return payload

    def write_response(self, payload: bytes, ephemeral_secret: bytes, psk: bytes = ZERO) -> bytes:
        """Message 2: payload length + RESPONSE_OVERHEAD bytes; ValueError if that is too long."""
        self._require_step(1)
        _check_payload(payload, RESPONSE_OVERHEAD)
        ephemeral = public_key(_key("ephemeral secret", ephemeral_secret))
        _key("pre-shared key", psk)
        self._step = _FAILED  # until it is through, as above
        state = self._state
        state.mix_ephemeral(ephemeral)
        # Neither can be refused: message 1 has shown that both are no low-order points.
        state.mix_dh(ephemeral_secret, self._remote_ephemeral)
        state.mix_dh(ephemeral_secret, self.remote_static)
        state.mix_psk(psk)
        message = ephemeral + state.seal(payload)
        self._step = _FINISHED
        return message
