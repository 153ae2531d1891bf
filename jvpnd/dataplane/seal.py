"""The seam between the loops and the cipher: seal records, open records.

Only these two classes hold keys and call the AEAD, once a record and without copying; a compiled
kernel could take their place without a change elsewhere. Layouts: core/wire.py.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from jvpnd.core.dataclass import dataclass
from jvpnd.core.replay import ReplayWindow
from jvpnd.core.wire import (
    FLAG_LAST,
    FLAG_SLICE,
    FRAME,
    FRAME_LEN,
    HEADER,
    HEADER_LEN,
    MAX_COUNTER,
    MAX_LANES,
    MIN_SEALED_LEN,
    NONCE,
    TAG_LEN,
    PacketType,
    Suite,
)
from jvpnd.dataplane.counters import Drop
from jvpnd.dataplane.span import (
    HALVES,
    NO_PART,
    ONE_PART,
    Assembly,
    SpanBuffers,
    is_part,
)

OVERHEAD: Final = HEADER_LEN + TAG_LEN
"""Bytes that sealing adds to a plain text."""
MAX_RECORD: Final = FRAME_LEN + 65535
"""Longest plain text: one IP packet behind its frame header."""

ALL_LANES: Final = range(MAX_LANES)

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
        """Seal one plain text to out[at:]; returns where the datagram ends."""
        counter = self.counter
        self.counter = counter + 1
        end = at + OVERHEAD + len(plain)
        body = at + HEADER_LEN
        HEADER.pack_into(out, at, _DATA, self.lane, 0, self.index, counter)
        self._encrypt(NONCE.pack(self.lane, counter), plain, out[at:body], out[body:end])
        return end

    def seal_span(self, plain: memoryview, size: int, buffers: SpanBuffers) -> list[memoryview]:
        """Seal one plain text for datagrams of at most `size` bytes.

        Returns header and body of each datagram by turns, in `buffers`; all are as long as the
        first but the last, which may be shorter.
        """
        counter = self.counter
        self.counter = counter + 1
        length = len(plain) + TAG_LEN
        pieces = buffers.lay_out(_DATA | self.lane << 8 | self.index << 32, counter, length, size)
        self._encrypt(
            NONCE.pack(self.lane, counter), plain, pieces[0], buffers.body[:length]
        )
        return pieces

    def seal_slices(
        self, frame: memoryview, cut: Cut, first: int, stop: int, out: memoryview, at: int
    ) -> int:
        """Seal the slices first .. stop - 1 of a super-packet to out[at:], one datagram each.

        Each slice's prefix and header are written over the end of the slice before it, which is
        sealed by then: the frame is spoilt up to the last slice sealed, and nothing is copied.
        There must be FRAME_LEN spare bytes in front of frame[cut.at]. Returns the end.
        """
        encrypt, nonce, pack_header = self._encrypt, NONCE.pack, HEADER.pack_into
        pack_prefix = FRAME.pack_into
        lane, index, counter = self.lane, self.index, self.counter
        header, gso_size, last = cut.header, cut.gso_size, cut.count - 1
        prefix_len = FRAME_LEN + len(header)
        start = cut.at + len(header) + first * gso_size
        for number in range(first, stop):
            if number == last:
                flags, slice_end = FLAG_SLICE | FLAG_LAST, cut.end
            else:
                flags, slice_end = FLAG_SLICE, start + gso_size
            plain = start - prefix_len
            frame[plain + FRAME_LEN : start] = header
            pack_prefix(frame, plain, flags, number, gso_size)
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
    """Opens what one sender sealed for `index` in the lanes `own`, each counter once."""

    __slots__ = ("_assembly", "_decrypt", "_lanes", "_own", "index", "records")

    def __init__(
        self, suite: Suite, key: bytes, index: int, assembly: Assembly, own: range = ALL_LANES
    ) -> None:
        self._own = own
        self._decrypt = cipher(suite, key).decrypt_into
        self._assembly = assembly
        # by the first half of the header, so that one look-up settles all of its fields
        self._lanes: dict[int, tuple[int, ReplayWindow]] = {}
        self.index = index
        self.records = 0

    @property
    def missing(self) -> int:
        """Records below the highest counters that have not come (yet)."""
        return sum(window.highest + 1 for _, window in self._lanes.values()) - self.records

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
        and at least MIN_SEALED_LEN long. Plain texts go to out[at_out:], one behind the other:
        there must be room for what is left of the batch and for MAX_RECORD.
        Returns the (offset, length) of each good one, and where the run ended in `batch` and
        in `out`.
        """
        decrypt, nonce, unpack, lanes = self._decrypt, NONCE.pack, HALVES.unpack_from, self._lanes
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
            if known is None or counter >= MAX_COUNTER:
                if first_half >> 32 != self.index or first_half & 0xFF != _DATA:
                    break
                length, at = self._open_span(batch, at, end, stride, out, at_out, drops)
                if length:
                    opened.append((at_out, length))
                    at_out += length
                break  # there may be less room than that record needed
            lane, window = known
            body = at + HEADER_LEN
            out_end = at_out + end - body - TAG_LEN
            try:
                decrypt(nonce(lane, counter), batch[body:end], batch[at:body], out[at_out:out_end])
            except InvalidTag:
                drops[Drop.BAD_TAG] += 1
            else:
                if window.check_and_set(counter):
                    opened.append((at_out, out_end - at_out))
                    at_out = out_end
                else:
                    drops[Drop.REPLAYED] += 1
            at = end
        self.records += len(opened)
        return opened, at, at_out

    def _open_span(
        self,
        batch: memoryview,
        at: int,
        end: int,
        stride: int,
        out: memoryview,
        at_out: int,
        drops: memoryview,
    ) -> tuple[int, int]:
        """Open the record that spans datagrams from `at` on, or keep the part in batch[at:end].

        Returns the plain text's length, 0 if there is none yet, and where the batch goes on.
        """
        first_half, counter = HALVES.unpack_from(batch, at)
        known = self._open_lane(first_half & ONE_PART)
        body_len = end - at - HEADER_LEN
        if known is None or not is_part(first_half, body_len) or counter >= MAX_COUNTER:
            drops[Drop.MALFORMED if self._is_own(first_half) else Drop.WRONG_LANE] += 1
            return 0, end
        whole = self._assembly.whole(batch, at, stride)
        if whole is not None and self._decrypts_span(first_half, counter, whole[0], out, at_out):
            body, end = whole
        else:  # parts are missing, out of order or forged
            part = bytes(batch[at + HEADER_LEN : end])
            joined = self._assembly.add(first_half, counter, part, drops)
            if joined is None:
                return 0, end
            if not self._decrypts_span(first_half, counter, joined, out, at_out):
                drops[Drop.BAD_TAG] += 1
                return 0, end
            body = joined
        if not known[1].check_and_set(counter):
            drops[Drop.REPLAYED] += 1
            return 0, end
        return len(body) - TAG_LEN, end

    def _decrypts_span(
        self, first_half: int, counter: int, body: bytes, out: memoryview, at_out: int
    ) -> bool:
        size = len(body) - TAG_LEN
        if not 0 <= size <= MAX_RECORD:
            return False
        lane = first_half >> 8 & 0xFF
        header = HALVES.pack(first_half & NO_PART, counter)
        try:
            self._decrypt(NONCE.pack(lane, counter), body, header, out[at_out : at_out + size])
        except InvalidTag:
            return False
        return True

    def _open_lane(self, first_half: int) -> tuple[int, ReplayWindow] | None:
        """The window of a lane, new if it was not heard of before; None for a bad header or a lane
        whose window is another worker's."""
        lane = first_half >> 8 & 0xFF
        if lane not in self._own or first_half != self.index << 32 | lane << 8 | _DATA:
            return None
        if first_half not in self._lanes:
            self._lanes[first_half] = lane, ReplayWindow()
        return self._lanes[first_half]

    def _is_own(self, first_half: int) -> bool:
        lane = first_half >> 8 & 0xFF
        return lane in self._own or lane not in ALL_LANES
