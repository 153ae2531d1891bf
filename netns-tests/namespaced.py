"""Runs a test body in a child process with a network namespace of its own.

The namespace has no name: it goes with the processes in it, however the test ends.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import signal
import struct
import subprocess
import traceback
from collections.abc import Callable

from jvpnd import seccomp

_CLONE_NEWNET = 0x40000000
_CLONE_NEWNS = 0x00020000
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def new_namespace() -> None:
    """Moves this process into a fresh network namespace with loopback up."""
    if _LIBC.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
    run("ip link set lo up")


def private_mounts() -> None:
    """Moves this process into a mount namespace whose changes nobody else sees."""
    if _LIBC.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNS)")
    run("mount --make-rprivate /")


def forbid_filters() -> None:
    """From here on neither this process nor what it starts can filter its system calls."""
    prctl, set_seccomp = {"x86_64": 157, "aarch64": 167}[os.uname().machine], 22
    refuse, allow = 0x00050000 | errno.EPERM, 0x7FFF0000
    load, equal, leave = 0x20, 0x15, 0x06
    code = (
        (load, 0, 0, 0),  # the call's number
        (equal, 0, 3, prctl),
        (load, 0, 0, 16),  # its first argument
        (equal, 0, 1, set_seccomp),
        (leave, 0, 0, refuse),
        (leave, 0, 0, allow),
    )
    seccomp.install(b"".join(struct.pack("=HBBI", *line) for line in code))


def run(command: str) -> str:
    """The standard output of a command (split at spaces); it must succeed."""
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def spawn(body: Callable[[], None]) -> tuple[int, int]:
    """Forks a child that runs `body` and dies with us: its pid, and a pipe with its traceback."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(reader)
        status = 0
        try:
            body()
        except BaseException:
            os.write(writer, traceback.format_exc().encode()[-60000:])
            status = 1
        os._exit(status)
    os.close(writer)
    return pid, reader


def in_namespace(test: Callable[[], None]) -> Callable[[], None]:
    """Decorator: the test runs in a child, in a namespace of its own."""

    def body() -> None:
        new_namespace()
        test()

    @functools.wraps(test)
    def wrapper() -> None:
        pid, reader = spawn(body)
        with os.fdopen(reader) as pipe:
            failure = pipe.read()
        _, status = os.waitpid(pid, 0)
        assert not failure, failure
        assert status == 0, f"child ended with status {status}"

    return wrapper
