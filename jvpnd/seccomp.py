"""Leaves a process what a loop over its descriptors needs of the kernel, for good: seccomp(2).

None of these calls takes a path, makes or connects a socket, starts a process or touches another
one, so that its uid is of no use to it: it opens no file, sends no signal, traces nobody. Any other
call fails with EPERM. Needs no capability, but no_new_privs.

A unix datagram socket would send to any path: whoever confines a process gives it none.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterable, Mapping
from typing import Final

CALLS: Final[Mapping[str, tuple[int | None, int | None]]] = {
    # what a packet takes, first
    "readv": (19, 65),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "read": (0, 63),
    "write": (1, 64),
    "writev": (20, 66),
    "sendmmsg": (307, 269),
    "recvmmsg": (299, 243),
    "clock_gettime": (228, 113),
    "gettimeofday": (96, 169),
    "futex": (202, 98),
    # descriptors that are there
    "close": (3, 57),
    "dup": (32, 23),
    "epoll_ctl": (233, 21),
    "poll": (7, None),
    "ppoll": (271, 73),
    "setsockopt": (54, 208),
    "getsockopt": (55, 209),
    "getsockname": (51, 204),
    "getpeername": (52, 205),
    "shutdown": (48, 210),
    # memory, signals to itself by its own timer, time, chance, the end
    "brk": (12, 214),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "alarm": (37, None),
    "setitimer": (38, 103),
    "clock_nanosleep": (230, 115),
    "sched_yield": (24, 124),
    "getpid": (39, 172),
    "getrandom": (318, 278),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
"""Names, and numbers of x86_64 and aarch64: asm/unistd_64.h, asm-generic/unistd.h."""

NARROWED: Final[Mapping[str, tuple[int | None, int | None]]] = {
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "mmap": (9, 222),
    "mprotect": (10, 226),
}
"""Allowed with some arguments only."""

_MACHINES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, AUDIT_ARCH_*
_FIONBIO: Final = 0x5421
_FCNTL: Final = (  # not F_SETOWN and F_SETSIG, which send signals
    *(fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC),
    *(fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL),
)

_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_KILL_PROCESS: Final = 0x80000000
_ALLOW: Final = 0x7FFF0000
_REFUSE: Final = 0x00050000 | errno.EPERM
_INSTRUCTION: Final = struct.Struct("=HBBI")  # linux/filter.h: sock_filter
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16  # of seccomp_data; low halves, little endian

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def confine() -> None:
    """From here on only what is said above. Raises OSError where that cannot be had."""
    install(program(os.uname().machine))


def program(machine: str) -> bytes:
    """The filter in classic BPF; OSError for a machine whose calls are not known here."""
    if machine not in _MACHINES:
        raise OSError(errno.ENOSYS, f"no filter of system calls for {machine}")
    column, arch = _MACHINES[machine]
    allow = _return(_ALLOW)
    parts = [_load(_ARCH_AT), _unless(_EQUAL, arch, _return(_KILL_PROCESS)), _load(_NUMBER_AT)]
    for numbers in CALLS.values():
        if (number := numbers[column]) is not None:
            parts.append(_if(_EQUAL, number, allow))
    narrowed = {
        "fcntl": _one_of(1, _FCNTL),
        "ioctl": _one_of(1, (_FIONBIO,)),
        "mmap": _load_argument(2) + _unless(_ANY_BIT, mmap.PROT_EXEC, allow),
        "mprotect": _load_argument(2) + _unless(_ANY_BIT, mmap.PROT_EXEC, allow),
    }
    for name, numbers in NARROWED.items():
        if (number := numbers[column]) is not None:
            parts.append(_if(_EQUAL, number, narrowed[name] + _return(_REFUSE)))
    return b"".join([*parts, _return(_REFUSE)])


def install(filter_: bytes) -> None:
    """Have all system calls of this process, and of what it starts, pass a filter."""
    argument = _Program(len(filter_) // _INSTRUCTION.size, filter_)
    if _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(argument)):
        number = ctypes.get_errno()
        raise OSError(number, f"cannot filter system calls: {os.strerror(number)}")


def _one_of(argument: int, allowed: Iterable[int]) -> bytes:
    tests = (_if(_EQUAL, value, _return(_ALLOW)) for value in allowed)
    return _load_argument(argument) + b"".join(tests)


def _load_argument(index: int) -> bytes:
    return _load(_ARGUMENTS_AT + 8 * index)


def _load(at: int) -> bytes:
    return _INSTRUCTION.pack(_LOAD, 0, 0, at)


def _return(what: int) -> bytes:
    return _INSTRUCTION.pack(_RETURN, 0, 0, what)


def _if(test: int, value: int, then: bytes) -> bytes:
    return _INSTRUCTION.pack(test, 0, len(then) // _INSTRUCTION.size, value) + then


def _unless(test: int, value: int, then: bytes) -> bytes:
    return _INSTRUCTION.pack(test, len(then) // _INSTRUCTION.size, 0, value) + then
