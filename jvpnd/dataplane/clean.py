"""When is a path clean enough for records that span datagrams? One lost part loses them whole.

The peer's reports say how many records came and how many are missing. A run of records without a
gap allows spans, one gap forbids them, and each time that spans met a gap the next run must be
twice as long: at 0.1 % loss they stay off, on a path without loss they begin within milliseconds.
"""

from __future__ import annotations

from typing import Final

MIN_RUN: Final = 4096
MAX_RUN: Final = MIN_RUN * 2**10
REPORT_EVERY_MS: Final = 20
SILENT_AFTER_MS: Final = 500


class CleanRun:
    """The state of one send binding; it begins without spans."""

    __slots__ = ("_missing", "_needed", "_records", "_run", "spans")

    def __init__(self) -> None:
        self.spans = False
        self._needed = MIN_RUN
        self._run = 0
        self._records = self._missing = 0

    def told(self, records: int, missing: int) -> None:
        """The peer's newest report: totals since the binding began."""
        got, lost = records - self._records, missing - self._missing
        self._records, self._missing = records, missing
        if got < 0:  # a report about the binding before this one
            self._run = 0
        elif lost > 0:
            if self.spans:
                self._needed = min(2 * self._needed, MAX_RUN)
            self.spans = False
            self._run = 0
        else:
            self._run += got
            if self._run >= self._needed:
                if self.spans:  # they do well: forgive
                    self._needed = max(self._needed // 2, MIN_RUN)
                self.spans = True
                self._run = 0

    def silent(self) -> None:
        """No report for SILENT_AFTER_MS: nothing is known."""
        self.spans = False
        self._run = 0
