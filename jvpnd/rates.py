"""Traffic rates for people: bytes a second over the last few seconds."""

from __future__ import annotations

from collections import deque

SAMPLE_MS = 1_000
SAMPLES = 5


class RateMeter:
    """Feed it totals now and then; it keeps one sample a second for five seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int]] = deque(maxlen=SAMPLES + 1)

    def sample(self, now_ms: float, tx_bytes: int, rx_bytes: int) -> None:
        """Totals may fall (a session ended): then counting starts anew."""
        if self._samples:
            last_ms, last_tx, last_rx = self._samples[-1]
            if tx_bytes < last_tx or rx_bytes < last_rx:
                self._samples.clear()
            elif now_ms - last_ms < SAMPLE_MS:
                return
        self._samples.append((now_ms, tx_bytes, rx_bytes))

    def bytes_per_s(self) -> tuple[float, float]:
        """(sent, received); 0 until there are two samples."""
        if len(self._samples) < 2:
            return 0.0, 0.0
        (start_ms, tx_then, rx_then), (end_ms, tx, rx) = self._samples[0], self._samples[-1]
        seconds = (end_ms - start_ms) / 1000
        return (tx - tx_then) / seconds, (rx - rx_then) / seconds
