"""Takes every file, the way to other processes and TCP ports from a process, for good: landlock(7).

A second lock behind seccomp.py's, by another part of the kernel. Needs no capability, but
no_new_privs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final

# linux/landlock.h: rights to files and to TCP ports, and scopes, by the ABI that knows them first
_FILES: Final = ((1, (1 << 13) - 1), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15))
_PORTS: Final = ((4, 0b11),)  # bind, connect
_SCOPES: Final = ((6, 0b11),)  # sockets in the abstract name space, signals

_CREATE_RULESET: Final = 444  # the same number on all machines
_RESTRICT_SELF: Final = 446
_VERSION: Final = 1  # LANDLOCK_CREATE_RULESET_VERSION
# not built; not switched on at boot; withheld by the filter of a container
_ABSENT: Final = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
_ATTRIBUTES: Final = struct.Struct("=QQQ")

_libc = ctypes.CDLL(None, use_errno=True)


def seclude() -> bool:
    """No file can be opened from here on, and no process outside traced; since ABI 6 (Linux 6.12)
    none can be signalled. False where the kernel has no Landlock; OSError where it refuses."""
    try:
        abi = _call("ask for Landlock", _CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise
    kinds = (_FILES, _PORTS, _SCOPES)
    handled = (sum(bits for since, bits in kind if since <= abi) for kind in kinds)
    rules = _ATTRIBUTES.pack(*handled)
    known = len(rules) if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _call("make a ruleset", _CREATE_RULESET, rules, ctypes.c_size_t(known), 0)
    try:
        _call("shut itself in", _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return True


def _call(what: str, *arguments: object) -> int:
    result: int = _libc.syscall(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot {what}: {os.strerror(number)}")
    return result
