"""Trouble of an exporter: told when it begins and when it is over, and not in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from jvpnd.core.dataclass import dataclass

# So long without a fault before it is over. Doubled by each relapse: what is told is an event, too,
# and one that is the cause of the next fault must not become a flood.
FIRST_CALM_S: Final = 1.0
MAX_CALM_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Change:
    """`why` is "" when it is over, and `lost` how many events were lost meanwhile."""

    name: str
    why: str
    lost: int


class Trouble:
    """Of one exporter. The caller sees to it that one thread at a time is in here."""

    def __init__(
        self, name: str, tell: Callable[[Change], None], calm_s: float = FIRST_CALM_S
    ) -> None:
        self._name = name
        self._tell = tell
        self._first_calm_s = self._calm_s = calm_s
        self._fault_s = self._over_s = 0.0
        self._lost_before = 0
        self.why = ""  # "": there is none

    def fault(self, why: str, lost: int) -> None:
        """Something went wrong; `lost` is the total before."""
        self._fault_s = time.monotonic()
        if self.why:
            return
        if self._over_s:
            is_relapse = self._fault_s - self._over_s < MAX_CALM_S
            self._calm_s = min(2 * self._calm_s, MAX_CALM_S) if is_relapse else self._first_calm_s
        self.why, self._lost_before = why, lost
        self._tell(Change(self._name, why, 0))

    def over(self, lost: int) -> float | None:
        """All is well now; `lost` is the total. Returns how many seconds it still has to stay so,
        None if no more."""
        if not self.why:
            return None
        now = time.monotonic()
        left_s = self._fault_s + self._calm_s - now
        if left_s > 0:
            return left_s
        self.why, self._over_s = "", now
        self._tell(Change(self._name, "", lost - self._lost_before))
        return None


def words_of(error: OSError) -> str:
    """What the kernel says."""
    return error.strerror or str(error) or type(error).__name__
