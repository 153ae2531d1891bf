"""How large the UDP payloads are that the path carries. No IO: its owner probes, and tells.

A round is up to three tries, a second apart, with a probe of each size from the present one up.
The largest that is answered is the size. A round follows the handshake, then one every 30 s, or at
once when large packets get lost. If none of it is answered though the other end is heard, the path
has become narrower: back to what every path carries, and another round from there.
"""

from __future__ import annotations

from typing import Final

BASE: Final = 1200  # RFC 9000, section 14: every path of QUIC carries it
# least of IPv6, many tunnels, a big cloud, PPPoE, Ethernet
_MTUS: Final = (1280, 1400, 1460, 1492, 1500)
SIZES_4: Final = tuple(mtu - 20 - 8 for mtu in _MTUS)
SIZES_6: Final = tuple(mtu - 40 - 8 for mtu in _MTUS)

TRIES: Final = 3
TRY_S: Final = 1.0
REST_S: Final = 30.0


class SizeSearch:
    """`size` is the largest UDP payload known to arrive."""

    def __init__(
        self,
        sizes: tuple[int, ...],
        base: int = BASE,
        try_s: float = TRY_S,
        rest_s: float = REST_S,
    ) -> None:
        """`sizes`: those worth a try, from small to large, all above `base`, which is taken for
        granted."""
        self._sizes, self._base = sizes, base
        self._try_s, self.rest_s = try_s, rest_s
        self.size = base
        self._begin()

    def _begin(self) -> None:
        self._tries = TRIES
        self._answered = 0
        self._heard = False

    def heard(self) -> None:
        """Something, of whatever size, came from the other end."""
        self._heard = True

    def answered(self, size: int) -> None:
        """A probe of this size arrived."""
        if size in self._sizes:
            self._answered = max(self._answered, size)
            self.size = max(self.size, size)

    def tick(self) -> tuple[tuple[int, ...], float]:
        """The sizes to probe now, largest first, and in how many seconds to ask again."""
        if self._tries == 0 or self._answered == self._sizes[-1]:
            narrower = self._heard and self._answered < self.size > self._base
            self._begin()
            if not narrower:
                return (), self.rest_s
            self.size = self._base
        self._tries -= 1
        least = max(self.size, self._answered)
        return tuple(size for size in reversed(self._sizes) if size >= least), self._try_s
