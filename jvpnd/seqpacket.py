"""Messages and descriptors over a SOCK_SEQPACKET pair, as control and its children send them.

Without asyncio, which takes a child half as long to import as all the rest.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence
from typing import Final

MAX_FDS: Final = 2  # beside one message


def send_message(channel: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send without blocking; BlockingIOError if the channel is full."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    channel.sendmsg([data], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def receive_message(channel: socket.socket, most: int) -> tuple[bytes, list[int]]:
    """The next message, cut at `most` bytes, and its descriptors; (b"", []) at the end."""
    data, fds, _flags, _address = socket.recv_fds(channel, most, MAX_FDS)
    return data, fds


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
