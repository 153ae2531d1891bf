"""Sliding window against replayed counters (RFC 6479: a ring of words, no shifting)."""

from __future__ import annotations

from array import array
from typing import Final

_WORD_BITS: Final = 64
_WORDS: Final = 128

WINDOW: Final = (_WORDS - 1) * _WORD_BITS  # one word is always being refilled
"""How far behind the highest counter a late packet may be (8128 packets)."""


class ReplayWindow:
    """Remembers which counters of one key were seen.

    Call it only for a packet that has been authenticated: a forged counter must not move the
    window. Counters are 0 .. 2**63 - 1.
    """

    __slots__ = ("_mask", "_top", "_words")

    def __init__(self, words: int = _WORDS) -> None:
        """`words` of 64 counters, a power of two; one of them is always being refilled."""
        self._words = array("Q", bytes(words * _WORD_BITS // 8))
        self._mask = words - 1
        self._top = 0  # the highest word number reached

    def check_and_set(self, counter: int) -> bool:
        """True the first time a counter within the window is seen, else False."""
        word = counter >> 6
        top, mask = self._top, self._mask
        words = self._words
        if word != top:
            if word < top:
                if top - word > mask:
                    return False
            else:
                self._advance(word)
        at = word & mask
        seen = words[at]
        bit = 1 << (counter & 63)
        if seen & bit:
            return False
        words[at] = seen | bit
        return True

    @property
    def highest(self) -> int:
        """The highest counter seen, -1 before the first."""
        return self._top * _WORD_BITS + self._words[self._top & self._mask].bit_length() - 1

    def _advance(self, word: int) -> None:
        mask = self._mask
        for stale in range(max(self._top + 1, word - mask), word + 1):
            self._words[stale & mask] = 0
        self._top = word
