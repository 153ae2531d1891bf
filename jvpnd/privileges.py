"""Give up every privilege for good: prctl(2), capabilities(7), credentials(7).

Needs CAP_SETUID, CAP_SETGID and CAP_SETPCAP to begin with; each failure raises OSError, and a
worker that cannot drop its privileges must not run.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

NOBODY: Final = 65534
"""uid of nobody and gid of nogroup."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def drop_all() -> None:
    """Become nobody, with no capability in any set, no way to gain one and no core dumps."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last_cap = int(file.read())
    for capability in range(last_cap + 1):
        _prctl("drop a capability from the bounding set", _PR_CAPBSET_DROP, capability)
    _prctl("clear the ambient capabilities", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    _check("clear the capabilities", _libc.capset(ctypes.byref(header), (_CapData * 2)()))
    _prctl("forbid new privileges", _PR_SET_NO_NEW_PRIVS, 1)
    _prctl("forbid core dumps and tracing", _PR_SET_DUMPABLE, 0)


def die_with_parent(parent: int, grace_s: int = 0) -> None:
    """Be killed when `parent` (a pid) is gone: at once, or `grace_s` later, to say goodbye. A
    change of uid undoes it: call it after."""
    number = signal.SIGKILL
    if grace_s:
        number = signal.SIGUSR1
        signal.signal(number, lambda *_: signal.alarm(grace_s))
    _prctl("follow the parent", _PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it was gone before the call above
        os._exit(0)


def _prctl(what: str, option: int, argument: int) -> None:
    _check(what, _libc.prctl(option, ctypes.c_ulong(argument), *[ctypes.c_ulong(0)] * 3))


def _check(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot {what}: {os.strerror(number)}")
