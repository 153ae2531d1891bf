"""Starts helper processes. Imports little: the daemon starts its workers first of all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from jvpnd.core.dataclass import dataclass

_HELPER: Final = str(Path(__file__).with_name("helper.py"))
_PACKAGE_ROOT: Final = str(Path(__file__).resolve().parent.parent)


@dataclass(frozen=True, slots=True)
class Spawned:
    """A process that has been started, and our end of its channel: a SOCK_SEQPACKET pair."""

    process: subprocess.Popen[bytes]
    channel: socket.socket


def spawn(module: str, arguments: Sequence[str] = (), fds: Sequence[int] = ()) -> Spawned:
    """Start `main` of a module of this very package, with ARGUMENTS... DESCRIPTORS... PARENT_PID:
    the channel is the first descriptor, then come `fds`, which are inherited.

    It is isolated: nothing from the environment, the working directory or the user's own packages;
    and to look through site-packages again would take as long as all that it imports.
    """
    channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        inherited = (theirs.fileno(), *fds)
        numbers = [str(number) for number in (*inherited, os.getpid())]
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", _HELPER, module, *arguments, *numbers],
            stdin=subprocess.DEVNULL,
            pass_fds=inherited,
            env={"JVPN_PATH": os.pathsep.join([_PACKAGE_ROOT, *_installed()])},  # and no secret
        )
    return Spawned(process, channel)


def _installed() -> list[str]:
    """Where modules are found, but the working directory, which `python -m` adds."""
    return [path for path in sys.path if path not in ("", os.getcwd())]
