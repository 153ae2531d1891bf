"""What we tell the service manager, and what it keeps for us: sd_notify(3), sd_listen_fds(3).

It may keep descriptors over a restart, however the daemon ends (FileDescriptorStoreMax= in the
unit): the TUN stays as it is, and what comes for it waits in its queue.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from typing import Final

_log = logging.getLogger("jvpnd")
_FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
_MAX_FDS: Final = 64


def notify(state: str, fds: Sequence[int] = ()) -> bool:
    """Tell it, and hand it descriptors; False where there is none, or no longer: we go on."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier:
        try:
            notifier.connect(address)
            socket.send_fds(notifier, [state.encode()], list(fds))
        except OSError as error:
            _log.warning("cannot tell the service manager %s: %s", state, error)
            return False
    return True


def keeps_descriptors() -> bool:
    """Whether it has room for descriptors of ours (systemd says so since version 254; before, the
    unit has to: Environment=JVPN_FDSTORE=1)."""
    room = os.environ.get("FDSTORE", os.environ.get("JVPN_FDSTORE", "0"))
    return "NOTIFY_SOCKET" in os.environ and room.isdecimal() and int(room) > 0


def keep(name: str, fds: Sequence[int]) -> bool:
    """Have descriptors kept under a name, in place of those that it kept under it."""
    notify(f"FDSTOREREMOVE=1\nFDNAME={name}")
    return all(notify(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", [fd]) for fd in fds)


def kept(name: str) -> list[int]:
    """The descriptors that it kept under this name; others that it kept are closed."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    count = os.environ.get("LISTEN_FDS", "0")
    if not count.isdecimal() or not int(count) <= _MAX_FDS:
        return []
    found = []
    for fd, of in zip(range(_FIRST_FD, _FIRST_FD + int(count)), names, strict=False):
        os.set_inheritable(fd, False)
        if of == name:
            found.append(fd)
        else:
            os.close(fd)
    return found
