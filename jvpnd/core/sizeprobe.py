"""Size probes: does a datagram of this length arrive, and one as long come back?

They belong to no session, so a path is known before it carries one. The gateway answers with
exactly as many bytes, and only where a client is that it has heard. A token of 8 random bytes
keeps those who are not on the path from answering in its place; who is on the path can as well
drop what he likes. Layout: type u8, three zero bytes, token 8 bytes, MAC 16 bytes, zeros.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Final

from jvpnd.core.wire import PacketType

TOKEN_LEN: Final = 8
_MAC_LEN: Final = 16
_HEAD: Final = struct.Struct(f"<Bxxx{TOKEN_LEN}s{_MAC_LEN}s")
SMALLEST: Final = _HEAD.size


def size_packet(kind: PacketType, token: bytes, length: int, key: bytes) -> bytes:
    """A SIZE_PROBE or SIZE_REPLY of `length` bytes; `key` is the gateway's stealth key."""
    return _HEAD.pack(kind, token, _mac(kind, token, length, key)).ljust(length, b"\0")


def size_token(packet: bytes, key: bytes) -> bytes | None:
    """The token of a good one, None if it is forged or was cut."""
    if len(packet) < _HEAD.size:
        return None
    kind, token, _ = _HEAD.unpack_from(packet)
    good = hmac.compare_digest(packet, size_packet(kind, token, len(packet), key))
    return bytes(token) if good else None


def _mac(kind: int, token: bytes, length: int, key: bytes) -> bytes:
    text = b"size" + bytes([kind]) + token + length.to_bytes(4, "little")
    return hashlib.blake2b(text, key=key, digest_size=_MAC_LEN).digest()
