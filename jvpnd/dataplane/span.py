"""Records that span several datagrams: one AEAD call and one header check for up to 64 KiB.

Every part carries the record's 16-byte header with its own part number. A whole record mostly
arrives in one batch, in order; what does not is put together here, within narrow bounds, since
nothing about a part is authentic before the whole is.
"""

from __future__ import annotations

import struct
from array import array
from collections import OrderedDict
from typing import Final

from jvpnd.core.wire import HEADER_LEN, MAX_PARTS, TAG_LEN
from jvpnd.dataplane.counters import Drop

MAX_BODY: Final = 65536 + 64
"""Bytes of cipher text that a record can have."""
MAX_UNFINISHED: Final = 64  # records being put together, 4 MiB at worst
FEW: Final = 8  # of them for one receiver index

HALVES: Final = struct.Struct("<QQ")
"""A header as two words: all of it but the counter, the counter."""
ONE_PART: Final = 0xFFFFFFFF_0000FFFF
"""Mask of a header's first half that leaves out part and parts."""
NO_PART: Final = 0xFFFFFFFF_FF00FFFF
"""Mask that leaves out the part: the header of part 0, which is the associated data."""

_PART: Final = 1 << 16
_PARTS_AT: Final = 24


def is_part(first_half: int, body_len: int) -> bool:
    """Whether part and parts make sense, and the record they announce is not too long."""
    part, last = first_half >> 16 & 0xFF, first_half >> _PARTS_AT & 0xFF
    return part <= last < MAX_PARTS and last > 0 and last * body_len <= MAX_BODY


class SpanBuffers:
    """Where a worker seals records that span datagrams: cipher text in one piece, headers beside
    it, and the views of both by turns that one sendmsg takes. Sealing the next reuses all of it."""

    def __init__(self) -> None:
        self.body = memoryview(bytearray(MAX_BODY))
        self._headers = array("Q", bytes(MAX_PARTS * HEADER_LEN))
        self._first_half = 0  # what the headers are for
        self._piece = 0
        self._views: list[memoryview] = []  # for bodies of `_piece` bytes

    def lay_out(self, first_half: int, counter: int, length: int, size: int) -> list[memoryview]:
        """Write the headers for `length` bytes of cipher text, in datagrams of at most `size`.

        `first_half` is that of a header without parts. Returns header and body by turns; all
        bodies have the length of the first but the last, which may be shorter.
        """
        piece = size - HEADER_LEN
        parts = -(-length // piece)
        if 0 < length % piece < TAG_LEN:  # too short for a DATA packet: make all a bit shorter
            piece = -(-length // parts)
        if piece != self._piece:
            self._make_views(piece)
        first_half |= (parts - 1) << _PARTS_AT
        words = self._headers
        if first_half != self._first_half:
            self._first_half = first_half
            last = first_half + parts * _PART
            words[: 2 * parts : 2] = array("Q", range(first_half, last, _PART))
        words[1 : 2 * parts : 2] = array("Q", (counter,)) * parts
        views = self._views[: 2 * parts]
        views[-1] = self.body[(parts - 1) * piece : length]
        return views

    def _make_views(self, piece: int) -> None:
        self._piece = piece
        self._views = []
        headers = memoryview(self._headers).cast("B")
        for part in range(MAX_PARTS):
            at, body = part * HEADER_LEN, part * piece
            self._views.append(headers[at : at + HEADER_LEN])
            self._views.append(self.body[body : body + piece])


class Assembly:
    """Puts records together from their parts, for all sessions of a worker.

    Records of which parts have yet to come are bounded in number (the oldest gives way) and in
    time (`sweep`); those given up are counted.
    """

    def __init__(self) -> None:
        self._records: OrderedDict[tuple[int, int], dict[int, bytes]] = OrderedDict()
        self._of_index: dict[int, int] = {}
        self._seen: set[tuple[int, int]] = set()  # at the last sweep
        self._batch: tuple[object, int, int] | None = None  # whose bodies `_bodies` are views of
        self._bodies: list[memoryview] = []

    def whole(self, batch: memoryview, at: int, stride: int) -> tuple[bytes, int] | None:
        """The joined bodies of all parts of the record at `at`, and where it ends.

        `batch` begins where its memory does. None if it does not seem to hold it all, in order.
        Only the first and the last header are looked at: the tag judges what lies between.
        """
        first_half, counter = HALVES.unpack_from(batch, at)
        more = first_half >> _PARTS_AT & 0xFF
        last = at + more * stride
        if first_half & 0xFF0000 or last + HEADER_LEN > len(batch):
            return None
        if HALVES.unpack_from(batch, last) != (first_half | more << 16, counter):
            return None
        end = min(last + stride, len(batch))
        bodies = self._views(batch, at, stride)[:more]
        bodies.append(batch[last + HEADER_LEN : end])
        return b"".join(bodies), end

    def _views(self, batch: memoryview, at: int, stride: int) -> list[memoryview]:
        """Views of the bodies from `at` on. A worker receives into the same memory every time,
        mostly datagrams of one size: they are made once."""
        wanted = batch.obj, at, stride
        if wanted != self._batch:
            self._batch = wanted
            memory = memoryview(batch.obj)
            last = min(len(memory), at + MAX_PARTS * stride)
            heads = range(at, last, stride)
            self._bodies = [memory[head + HEADER_LEN : head + stride] for head in heads]
        return self._bodies

    @property
    def unfinished(self) -> int:
        """Records of which parts are kept."""
        return len(self._records)

    def add(
        self, first_half: int, counter: int, body: bytes, drops: memoryview
    ) -> bytes | None:
        """Keep one part's body; the whole cipher text if none is missing any more."""
        key = first_half & NO_PART, counter
        parts = self._records.get(key)
        if parts is None:
            self._make_room(first_half >> 32, drops)
            parts = self._records[key] = {}
        parts.setdefault(first_half >> 16 & 0xFF, body)
        if len(parts) <= first_half >> _PARTS_AT & 0xFF:
            return None
        self._forget(key)
        return b"".join(parts[number] for number in range(len(parts)))

    def sweep(self, drops: memoryview) -> None:
        """Give up the records that were unfinished at the last sweep and still are."""
        for key in self._seen & self._records.keys():
            self._give_up(key, drops)
        self._seen = set(self._records)

    def _make_room(self, index: int, drops: memoryview) -> None:
        if self._of_index.get(index, 0) >= FEW:
            oldest = next(key for key in self._records if key[0] >> 32 == index)
        elif len(self._records) >= MAX_UNFINISHED:
            oldest = next(iter(self._records))
        else:
            oldest = None
        if oldest is not None:
            self._give_up(oldest, drops)
        self._of_index[index] = self._of_index.get(index, 0) + 1

    def _give_up(self, key: tuple[int, int], drops: memoryview) -> None:
        drops[Drop.INCOMPLETE] += len(self._records[key])
        self._forget(key)

    def _forget(self, key: tuple[int, int]) -> None:
        del self._records[key]
        index = key[0] >> 32
        left = self._of_index.pop(index) - 1
        if left:
            self._of_index[index] = left
