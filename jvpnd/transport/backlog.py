"""How much may wait unsent in a transport socket, and how control's packets get past a full one.

What the socket has taken and the device has not yet sent delays every probe behind it: 4 MiB are
seven seconds on a line of 5 Mbit/s, long enough to take the path for dead. So the socket takes what
the line sends in a short time, and the rest waits in the TUN's queue, where no probe is.
"""

from __future__ import annotations

import socket
from typing import Final

WORTH_MS: Final = 50
MIN_BYTES: Final = 128 * 1024  # two of the longest sends: with less a fast line would run dry
MAX_BYTES: Final = 1024 * 1024
SAMPLE_MS: Final = 50

_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h; ignores the sysctl maximum


class Backlog:
    """The bound for the sockets of one data plane, from what it sends."""

    def __init__(self) -> None:
        self.limit = MIN_BYTES
        self._last: tuple[float, int] | None = None

    def sample(self, now_ms: float, tx_bytes: int) -> bool:
        """Feed it the total sent so far, as often as you like; whether `limit` has changed.

        A line that is held up by the limit alone sends more as soon as the limit rises, as long as
        it needs less than WORTH_MS to send a packet: so the limit finds the line's own rate.
        """
        last, current = self._last, (now_ms, tx_bytes)
        if last is None or tx_bytes < last[1]:
            self._last = current
            return False
        elapsed_ms = now_ms - last[0]
        if elapsed_ms < SAMPLE_MS:
            return False
        self._last = current
        worth = int((tx_bytes - last[1]) / elapsed_ms * WORTH_MS)
        before = self.limit
        self.limit = min(max(worth, MIN_BYTES), MAX_BYTES)
        return self.limit != before


def limit_unsent(sock: socket.socket, limit: int) -> None:
    """Let so many bytes, counted as the kernel does, wait unsent in `sock`."""
    _set_send_buffer(sock, limit // 2)  # the kernel doubles what it is told


def send_ahead(sock: socket.socket, data: bytes, remote: tuple[str, int] | None = None) -> None:
    """Send one of control's packets even where bulk fills the socket, `remote` unless connected.

    Raises OSError; BlockingIOError only if the socket is full twice over.
    """
    try:
        _send(sock, data, remote)
    except BlockingIOError:
        full = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        _set_send_buffer(sock, full)
        try:
            _send(sock, data, remote)
        finally:
            _set_send_buffer(sock, full // 2)


def _send(sock: socket.socket, data: bytes, remote: tuple[str, int] | None) -> None:
    if remote is None:
        sock.send(data)
    else:
        sock.sendto(data, remote)


def _set_send_buffer(sock: socket.socket, size: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
    except PermissionError:  # no CAP_NET_ADMIN: as much as the sysctl allows
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
