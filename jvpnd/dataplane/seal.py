"""The seam between the loops and the cipher: seal a run of packets, open a run of packets.

Only these two classes hold keys and call the AEAD, once a datagram and without copying; a
compiled kernel could take their place without a change elsewhere. Layouts: core/wire.py.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from jvpnd.core.replay import ReplayWindow
from jvpnd.core.wire import (
    FLAG_LAST,
    FLAG_SEGMENT,
    HEADER,
    HEADER_LEN,
    MAX_COUNTER,
    MIN_SEALED_LEN,
    NONCE,
    SEGMENT,
    TAG_LEN,
    PacketType,
    Suite,
)
from jvpnd.dataplane.counters import Drop

FLAGS_LEN: Final = 1
SEGMENT_PREFIX_LEN: Final = FLAGS_LEN + SEGMENT.size
OVERHEAD: Final = HEADER_LEN + TAG_LEN
"""Bytes that sealing adds to a plain text."""
MAX_LANES: Final = 16

_HALVES = struct.Struct("<QQ")  # a header as two words: all of it but the counter, the counter
_DATA: Final = int(PacketType.DATA)


def cipher(suite: Suite, key: bytes) -> AESGCM | ChaCha20Poly1305:
    """The AEAD of a suite; `key` is 32 bytes."""
    return AESGCM(key) if suite == Suite.AES_256_GCM else ChaCha20Poly1305(key)


@dataclass(slots=True)
class Cut:
    """How the super-packet at frame[at:end] is cut: `count` slices of `gso_size` bytes behind
    `header`, its first bytes; the last slice may be shorter."""

    at: int
    end: int
    header: bytes
    gso_size: int
    count: int


class Sealer:
    """Seals for one receiver under one key. Counters rise by one from 0 and never repeat."""

    __slots__ = ("_encrypt", "counter", "index", "lane")

    def __init__(self, suite: Suite, key: bytes, index: int, lane: int) -> None:
        self._encrypt = cipher(suite, key).encrypt_into
        self.index = index
        self.lane = lane
        self.counter = 0

    def seal(self, plain: memoryview, out: memoryview, at: int) -> int:
        """Seal one plain text (flags byte first) to out[at:]; returns where the datagram ends."""
        counter = self.counter
        self.counter = counter + 1
        end = at + OVERHEAD + len(plain)
        body = at + HEADER_LEN
        HEADER.pack_into(out, at, _DATA, self.lane, 0, self.index, counter)
        self._encrypt(NONCE.pack(self.lane, counter), plain, out[at:body], out[body:end])
        return end

    def seal_segments(
        self, frame: memoryview, cut: Cut, first: int, stop: int, out: memoryview, at: int
    ) -> int:
        """Seal the slices first .. stop - 1 of a super-packet to out[at:], one datagram each.

        Each slice's prefix and header are written over the end of the slice before it, which is
        sealed by then: the frame is spoilt up to the last slice sealed, and nothing is copied.
        There must be SEGMENT_PREFIX_LEN spare bytes in front of frame[cut.at]. Returns the end.
        """
        encrypt, nonce, pack_header = self._encrypt, NONCE.pack, HEADER.pack_into
        lane, index, counter = self.lane, self.index, self.counter
        header, gso_size, count = cut.header, cut.gso_size, cut.count
        prefix_len = SEGMENT_PREFIX_LEN + len(header)
        start = cut.at + len(header) + first * gso_size
        for number in range(first, stop):
            if number == count - 1:
                flags, slice_end = FLAG_SEGMENT | FLAG_LAST, cut.end
            else:
                flags, slice_end = FLAG_SEGMENT, start + gso_size
            plain = start - prefix_len
            frame[plain] = flags
            SEGMENT.pack_into(frame, plain + 1, number, gso_size)
            frame[plain + SEGMENT_PREFIX_LEN : start] = header
            body = at + HEADER_LEN
            end = body + slice_end - plain + TAG_LEN
            pack_header(out, at, _DATA, lane, 0, index, counter)
            encrypt(nonce(lane, counter), frame[plain:slice_end], out[at:body], out[body:end])
            counter += 1
            at = end
            start = slice_end
        self.counter = counter
        return at


class Opener:
    """Opens what one sender sealed for `index`, each counter once."""

    __slots__ = ("_decrypt", "_lanes", "index")

    def __init__(self, suite: Suite, key: bytes, index: int) -> None:
        self._decrypt = cipher(suite, key).decrypt_into
        # by the first half of the header, so that one look-up settles all of its fields
        self._lanes: dict[int, tuple[int, ReplayWindow]] = {}
        self.index = index

    def open_run(
        self,
        batch: memoryview,
        at: int,
        stride: int,
        out: memoryview,
        at_out: int,
        drops: memoryview,
    ) -> tuple[list[tuple[int, int]], int, int]:
        """Open datagrams from batch[at:] as long as they are DATA for this index.

        `stride` is the size of each datagram but the last. The first one must be for this index
        and at least MIN_SEALED_LEN long. Plain texts go to out[at_out:], one behind the other.
        Returns the (offset, length) of each good one, and where the run ended in `batch` and
        in `out`.
        """
        decrypt, nonce, unpack, lanes = self._decrypt, NONCE.pack, _HALVES.unpack_from, self._lanes
        opened: list[tuple[int, int]] = []
        size = len(batch)
        while at < size:
            end = at + stride
            if end > size:
                end = size
            if end - at < MIN_SEALED_LEN:
                break
            first_half, counter = unpack(batch, at)
            known = lanes.get(first_half) or self._open_lane(first_half)
            body = at + HEADER_LEN
            out_end = at_out + end - body - TAG_LEN
            if known is None or counter >= MAX_COUNTER:
                if first_half >> 32 != self.index or first_half & 0xFF != _DATA:
                    break
                drops[Drop.MALFORMED] += 1
            else:
                lane, window = known
                try:
                    decrypt(
                        nonce(lane, counter), batch[body:end], batch[at:body], out[at_out:out_end]
                    )
                except InvalidTag:
                    drops[Drop.BAD_TAG] += 1
                else:
                    if window.check_and_set(counter):
                        opened.append((at_out, out_end - at_out))
                        at_out = out_end
                    else:
                        drops[Drop.REPLAYED] += 1
            at = end
        return opened, at, at_out


    def _open_lane(self, first_half: int) -> tuple[int, ReplayWindow] | None:
        """A window for a lane not heard of before, if the header's first half is a good one."""
        lane = first_half >> 8 & 0xFF
        if lane >= MAX_LANES or first_half != self.index << 32 | lane << 8 | _DATA:
            return None
        self._lanes[first_half] = lane, ReplayWindow()
        return self._lanes[first_half]
