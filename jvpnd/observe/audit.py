"""The audit file: every event in a chain of hashes, across rotation, restart and a crash.

Lines reach the kernel in batches as they come, and the disk within SYNC_S. What is wrong with the
disk is an OSError, and the sink comes again with the same events.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections import deque
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from jvpnd.observe.chain import BEGUN, FILE, GENESIS, OPENED, sealed, unsealed
from jvpnd.observe.log import SCHEMA, Event

SYNC_S: Final = 1.0
_BLOCK: Final = 65536
_TORN_SHOWN: Final = 4096  # bytes of a line that a crash cut off


class AuditFile:
    """An Output. `head` is the hash of the last line, None before the file was opened."""

    def __init__(
        self, file: Path, max_bytes: int, keep: int, node_id: str, clock_ms: Callable[[], int]
    ) -> None:
        """Files of at most `max_bytes` (or one event), of which `keep` old ones are kept."""
        self.file = file
        self._max_bytes = max_bytes
        self._keep = keep
        self._node_id = node_id
        self._clock_ms = clock_ms
        self.head: str | None = None
        self._is_told = False  # that this run has begun
        self._fd: int | None = None
        self._size = 0  # of whole lines
        self._begun_size = 0  # of the line that begins the file
        self._is_clean = True  # nothing behind the whole lines
        self._sync_at_s: float | None = None

    # --- the sink's thread ---

    def write(self, pending: deque[Event]) -> None:
        fd = self._ready()
        while pending:
            chunk, count, head = bytearray(), 0, self.head or GENESIS
            for event in pending:
                line, digest = sealed(event, head)
                is_full = self._size + len(chunk) + len(line) > self._max_bytes
                if is_full and (chunk or self._size > self._begun_size):
                    break
                chunk += line
                count, head = count + 1, digest
            if not chunk:
                fd = self._rotate(fd)
                continue
            self._append(fd, bytes(chunk), head)
            for _ in range(count):
                pending.popleft()

    def settle(self) -> float | None:
        if self._sync_at_s is None or self._fd is None:
            return None
        left_s = self._sync_at_s - time.monotonic()
        if left_s > 0:
            return left_s
        self._sync_at_s += SYNC_S  # if it fails, it is tried again
        os.fsync(self._fd)
        self._sync_at_s = None
        return None

    def close(self) -> None:
        if self._fd is not None:
            os.fsync(self._fd)
            self._leave()

    # --- lines ---

    def _append(self, fd: int, data: bytes, head: str) -> None:
        """All of it, or OSError: then what was written of it is cut off before the next line."""
        self._is_clean = False
        done = 0
        while done < len(data):
            done += os.write(fd, data[done:])
        self._is_clean = True
        self._size += len(data)
        self.head = head
        if self._sync_at_s is None:
            self._sync_at_s = time.monotonic() + SYNC_S

    def _tell(self, fd: int, what: str, **details: object) -> None:
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "ts_ms": self._clock_ms(),
            "seq": None,
            "node_id": self._node_id,
            "event_type": FILE,
            **dict.fromkeys(("session_id", "client", "from", "to", "reason")),
            **dict.fromkeys(("state_version", "policy_version")),
            "details": {"what": what, **details},
        }
        self._append(fd, *sealed(record, self.head or GENESIS))

    # --- files ---

    def _ready(self) -> int:
        """The file, open and without half a line at its end."""
        if self._fd is None:
            return self._open()
        if not self._is_in_place(self._fd):
            self._leave()
            raise OSError(errno.ENOENT, f"{self.file} was removed or replaced")
        if not self._is_clean:
            os.ftruncate(self._fd, self._size)
            self._is_clean = True
        return self._fd

    def _is_in_place(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.file), os.fstat(fd))
        except FileNotFoundError:
            return False

    def _leave(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._fd, self._sync_at_s, self._is_clean = None, None, True

    def _open(self) -> int:
        """Go on where the file ends, or begin one."""
        self.file.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._fd = fd = _open_file(self.file, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._continue(fd)
        except BlockingIOError:
            self._leave()
            raise OSError(errno.EBUSY, f"{self.file} is another process's") from None
        except OSError:
            self._leave()
            raise
        return self._fd

    def _continue(self, fd: int) -> None:
        end, last, torn = _tail(fd)
        if torn and _is_whole(torn):  # it lacks no more than its newline
            os.write(fd, b"\n")
            end, last, torn = end + len(torn) + 1, torn, b""
        os.ftruncate(fd, end)
        self._size = end
        found, is_damaged = _head_of(last)
        if not self._is_told:
            self.head = found if end else self._head_before()
        elif end and found != self.head:  # somebody put another one there
            self._rotate(fd)
            return
        if not end:
            self._begin(fd)
        if not self._is_told:
            text = torn[:_TORN_SHOWN].decode(errors="backslashreplace") if torn else None
            self._tell(fd, OPENED, torn=text, damaged=is_damaged)
            self._is_told = True

    def _begin(self, fd: int) -> None:
        self._tell(fd, BEGUN)
        self._begun_size = self._size

    def _head_before(self) -> str:
        """Of the file that was rotated last, if a daemon was killed before it began the next."""
        try:
            fd = _open_file(self._old(1), os.O_RDONLY)
        except FileNotFoundError:
            return GENESIS
        try:
            return _head_of(_tail(fd)[1])[0]
        finally:
            os.close(fd)

    def _rotate(self, fd: int) -> int:
        """`file` becomes `file.1`, that becomes `file.2` and so on; a new one goes on."""
        os.fsync(fd)
        for number in range(self._keep - 1, 0, -1):
            if self._old(number).exists():
                self._old(number).replace(self._old(number + 1))
        self.file.replace(self._old(1))
        self._leave()
        return self._open()

    def _old(self, number: int) -> Path:
        return self.file.with_name(f"{self.file.name}.{number}")


def _open_file(file: Path, flags: int) -> int:
    fd = os.open(file, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o640)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, f"{file} is not a regular file")
    return fd


def _tail(fd: int) -> tuple[int, bytes, bytes]:
    """(size of all whole lines, the last of them, what is behind it)."""
    at, tail = os.fstat(fd).st_size, b""
    while at and tail.count(b"\n") < 2:
        start = max(0, at - _BLOCK)
        tail, at = os.pread(fd, at - start, start) + tail, start
    whole, newline, torn = tail.rpartition(b"\n")
    return at + len(whole) + len(newline), whole.rpartition(b"\n")[2], torn


def _is_whole(raw: bytes) -> bool:
    try:
        unsealed(raw)
    except ValueError:
        return False
    return True


def _head_of(last: bytes) -> tuple[str, bool]:
    """(what the next line has to seal, whether the last one is damaged)."""
    try:
        return unsealed(last).hash, False
    except ValueError:
        return sha256(last).hexdigest(), bool(last)
