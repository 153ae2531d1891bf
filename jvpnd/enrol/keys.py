"""New keys, as text."""

from __future__ import annotations

import base64
import os

from jvpnd.core.noise import public_key
from jvpnd.core.wire import KEY_LEN


def new_key() -> str:
    """A private key in base64, clamped as RFC 7748 section 5 has it."""
    key = bytearray(os.urandom(KEY_LEN))
    key[0] &= 248
    key[31] = key[31] & 127 | 64
    return key_text(bytes(key))


def key_text(key: bytes) -> str:
    """A key as files have it."""
    return base64.b64encode(key).decode()


def public_text(private: str) -> str:
    """The public key that goes with a private one, both in base64."""
    return key_text(public_key(base64.b64decode(private)))
