"""Give up every privilege for good: prctl(2), capabilities(7), credentials(7).

Who may change its uid becomes nobody. Who may not, as under a unit that grants no CAP_SETUID,
keeps its uid, which opens and touches nothing any more: seccomp.py, landlock.py. Each failure
raises OSError, and a worker that cannot give up what it has must not run.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

from jvpnd.landlock import seclude
from jvpnd.seccomp import confine

NOBODY: Final = 65534
"""uid of nobody and gid of nogroup."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAP_SETUID: Final = 7
_CAP_SETPCAP: Final = 8
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


def give_up_all(parent: int, grace_s: int = 0) -> None:
    """Become nobody where that may be, with no capability, no way to gain one and no core dumps,
    and no more of the kernel than seccomp.py says: load and open before what is needed after.

    It is killed when `parent` (a pid) is gone: at once, or `grace_s` later, to say goodbye.
    """
    held = _effective()
    if held & 1 << _CAP_SETPCAP:
        with open("/proc/sys/kernel/cap_last_cap") as file:
            last_cap = int(file.read())
        for capability in range(last_cap + 1):
            _prctl("drop a capability from the bounding set", _PR_CAPBSET_DROP, capability)
    _prctl("clear the ambient capabilities", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    if held & 1 << _CAP_SETUID:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    _check("clear the capabilities", _libc.capset(ctypes.byref(header), (_CapData * 2)()))
    _prctl("forbid new privileges", _PR_SET_NO_NEW_PRIVS, 1)
    _prctl("forbid core dumps and tracing", _PR_SET_DUMPABLE, 0)
    _die_with_parent(parent, grace_s)  # a change of uid undoes it
    seclude()
    confine()


def _effective() -> int:
    """The capabilities that are in force; all that matter here are among the first 32."""
    header, data = _CapHeader(_CAPABILITY_VERSION_3, 0), (_CapData * 2)()
    _check("see the capabilities", _libc.capget(ctypes.byref(header), data))
    return int(data[0].effective)


def _die_with_parent(parent: int, grace_s: int) -> None:
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
