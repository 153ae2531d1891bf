"""CONTROL packets of one binding epoch: sealed one way, opened the other way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import nacl.bindings as sodium
import nacl.exceptions

from jvpnd.core.packets import XNONCE_LEN, encode_notice
from jvpnd.core.replay import ReplayWindow
from jvpnd.core.wire import HEADER_LEN, PacketType, SealedHeader, data_nonce

_WINDOW_WORDS = 8  # probes are few, and a gateway has thousands of channels


class ControlChannel:
    """ChaCha20-Poly1305 under the epoch's two control keys, with counter and replay window."""

    __slots__ = ("_counter", "_receive_key", "_send_key", "_window", "index", "send_index")

    def __init__(self, send_index: int, send_key: bytes, index: int, receive_key: bytes) -> None:
        self.send_index = send_index
        self.index = index
        self._send_key = send_key
        self._receive_key = receive_key
        self._counter = 0
        self._window = ReplayWindow(_WINDOW_WORDS)

    def seal(self, body: bytes) -> bytes:
        """A whole CONTROL packet."""
        header = SealedHeader(PacketType.CONTROL, 0, self.send_index, self._counter)
        clear, nonce = header.encode(), data_nonce(0, self._counter)
        self._counter += 1
        boxed: bytes = sodium.crypto_aead_chacha20poly1305_ietf_encrypt(
            body, clear, nonce, self._send_key
        )
        return clear + boxed

    def open(self, packet: bytes, header: SealedHeader) -> bytes | None:
        """The body, None if it is forged or replayed."""
        body = _open(packet, header, self._receive_key)
        if body is None or header.lane != 0:
            return None
        return body if self._window.check_and_set(header.counter) else None


class RestoredChannel:
    """An epoch of before a restart: the counters are lost, so nothing may be sealed under its keys.
    What has to be said goes as a NOTICE. What comes in may be a replay: believe it little."""

    __slots__ = ("_draw", "_notice_key", "_receive_key", "index", "send_index")

    def __init__(
        self,
        send_index: int,
        notice_key: bytes,
        index: int,
        receive_key: bytes,
        draw: Callable[[int], bytes],
    ) -> None:
        """`draw`: random bytes for nonces."""
        self.send_index = send_index
        self.index = index
        self._notice_key = notice_key
        self._receive_key = receive_key
        self._draw = draw

    def seal(self, body: bytes) -> bytes:
        """A whole NOTICE packet."""
        return encode_notice(self.send_index, self._notice_key, self._draw(XNONCE_LEN), body)

    def open(self, packet: bytes, header: SealedHeader) -> bytes | None:
        """The body of a CONTROL packet, None if it is forged."""
        return _open(packet, header, self._receive_key)


Channel: TypeAlias = ControlChannel | RestoredChannel


def _open(packet: bytes, header: SealedHeader, key: bytes) -> bytes | None:
    nonce = data_nonce(header.lane, header.counter)
    try:
        body: bytes = sodium.crypto_aead_chacha20poly1305_ietf_decrypt(
            packet[HEADER_LEN:], packet[:HEADER_LEN], nonce, key
        )
    except nacl.exceptions.CryptoError:
        return None
    return body
