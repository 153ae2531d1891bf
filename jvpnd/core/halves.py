"""Handshakes in two datagrams, for paths that do not carry them in one.

Each half names the whole by its hash, so that no half of another makes it up. Nothing about a half
is authentic before the whole is: what is kept of them is bounded in number and length, the oldest
gives way. Layout: type u8, number u8 (0 or 1), two zero bytes, name 8 bytes, the half.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

from jvpnd.core.wire import PacketType

MAX_WAITING: Final = 256  # halves, 320 KiB at worst
MAX_HALF: Final = 1280
_NAME_LEN: Final = 8
_HEAD: Final = struct.Struct(f"<BBxx{_NAME_LEN}s")


def _name(whole: bytes) -> bytes:
    return hashlib.blake2b(whole, digest_size=_NAME_LEN).digest()


def in_halves(whole: bytes) -> tuple[bytes, bytes]:
    """The two packets that bring this one."""
    name, middle = _name(whole), (len(whole) + 1) // 2
    first, second = whole[:middle], whole[middle:]
    return (
        _HEAD.pack(PacketType.HALF, 0, name) + first,
        _HEAD.pack(PacketType.HALF, 1, name) + second,
    )


class Halves:
    """Halves that wait for the other one, by who sent them."""

    def __init__(self) -> None:
        self.dropped = 0  # halves that came to nothing
        self._waiting: OrderedDict[tuple[Hashable, bytes], tuple[int, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, source: Hashable, packet: bytes) -> bytes | None:
        """The whole packet, once both halves have come from the same source."""
        if not _HEAD.size < len(packet) <= _HEAD.size + MAX_HALF or packet[1] > 1:
            self.dropped += 1
            return None
        _, number, name = _HEAD.unpack_from(packet)
        half, key = packet[_HEAD.size :], (source, name)
        other = self._waiting.pop(key, None)
        if other is None or other[0] == number:
            self._waiting[key] = number, half
            if len(self._waiting) > MAX_WAITING:
                self._waiting.popitem(last=False)
                self.dropped += 1
            return None
        whole = half + other[1] if number == 0 else other[1] + half
        if whole[0] == PacketType.HALF or _name(whole) != name:  # of a half: no end of it
            self.dropped += 2
            return None
        return whole
