"""Early data: what a client sends under a new key before this end has been told of it."""

from __future__ import annotations

from collections import deque
from typing import Final

from jvpnd.core.dataclass import dataclass
from jvpnd.dataplane.counters import Drop
from jvpnd.dataplane.messages import Remote

MAX_HELD: Final = 128
MAX_HELD_BYTES: Final = 256 * 1024
MAX_EXPECTED: Final = 32_768  # one for each session and each half-open handshake that may be
HOLD_MS: Final = 1000


@dataclass(slots=True)
class Held:
    """A datagram of early data, waiting for its keys."""

    index: int
    data: bytes
    socket_id: int
    remote: Remote
    until_ms: int


class EarlyData:
    """Datagrams that came before the keys for them, bounded in number, bytes and time."""

    def __init__(self, drops: memoryview) -> None:
        self._drops = drops
        self._expected: set[int] = set()
        self._held: deque[Held] = deque()
        self._octets = 0

    def expect(self, index: int) -> None:
        if len(self._expected) < MAX_EXPECTED:
            self._expected.add(index)

    def unexpect(self, index: int) -> None:
        self._expected.discard(index)
        kept = [held for held in self._held if held.index != index]
        self._drops[Drop.EARLY_EXPIRED] += len(self._held) - len(kept)
        self._keep(kept)

    def expects(self, index: int) -> bool:
        return index in self._expected

    def offer(self, held: Held) -> Drop | None:
        """Hold a datagram; why not, if it is not."""
        if held.index not in self._expected:
            return Drop.UNKNOWN_INDEX
        if len(self._held) >= MAX_HELD or self._octets + len(held.data) > MAX_HELD_BYTES:
            return Drop.EARLY_OVERFLOW
        self._held.append(held)
        self._octets += len(held.data)
        return None

    def take(self, index: int) -> list[Held]:
        """The datagrams held for an index, which is expected no longer."""
        self._expected.discard(index)
        taken = [held for held in self._held if held.index == index]
        self._keep([held for held in self._held if held.index != index])
        return taken

    def expire(self, now_ms: int) -> None:
        while self._held and self._held[0].until_ms <= now_ms:
            self._octets -= len(self._held.popleft().data)
            self._drops[Drop.EARLY_EXPIRED] += 1

    @property
    def holding(self) -> bool:
        return bool(self._held)

    def _keep(self, kept: list[Held]) -> None:
        self._held = deque(kept)
        self._octets = sum(len(held.data) for held in kept)
