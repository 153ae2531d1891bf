"""ICMP errors of sockets that are not connected: ip(7) IP_RECVERR, linux/errqueue.h."""

from __future__ import annotations

import socket
import struct
from typing import Final

from jvpnd.dataplane.messages import Remote, remote_of

MAX_READ: Final = 64  # errors a look; what is left shows again

_RECVERR: Final = ((socket.IPPROTO_IP, 11), (socket.IPPROTO_IPV6, 25))
_EXTENDED_ERROR = struct.Struct("=IB")  # ee_errno, ee_origin, and more
_ORIGIN_LOCAL: Final = 1  # the sender was told by its own call


def errors_from(sock: socket.socket, peer: Remote) -> list[int]:
    """Take what waits in the error queue; the errnos that the network sent about `peer`.

    Errors about other addresses are forged: nothing was sent there.
    """
    found = []
    for _ in range(MAX_READ):
        try:
            _data, ancillary, _flags, address = sock.recvmsg(0, 512, socket.MSG_ERRQUEUE)
        except OSError:  # it is empty
            break
        for level, kind, value in ancillary:
            if (level, kind) in _RECVERR and len(value) >= _EXTENDED_ERROR.size:
                number, origin = _EXTENDED_ERROR.unpack_from(value)
                if origin != _ORIGIN_LOCAL and remote_of(address) == peer:
                    found.append(number)
    return found
