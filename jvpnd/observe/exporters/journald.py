"""Events to journald: datagrams of fields (https://systemd.io/JOURNAL_NATIVE_PROTOCOL)."""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import socket
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from jvpnd.observe.words import describe, severity

if TYPE_CHECKING:  # whoever wants only the socket's name need not wait for asyncio
    from jvpnd.observe.log import Event

SOCKET: Final = "/run/systemd/journal/socket"
SEND_TIMEOUT_S: Final = 1.0
# Fields of the event's own, by the journal's names.
_FIELDS: Final = {
    "JVPN_EVENT": "event_type",
    "JVPN_SEQ": "seq",
    "JVPN_TS_MS": "ts_ms",
    "JVPN_NODE": "node_id",
    "JVPN_SESSION": "session_id",
    "JVPN_CLIENT": "client",
    "JVPN_FROM": "from",
    "JVPN_TO": "to",
    "JVPN_REASON": "reason",
    "JVPN_STATE_VERSION": "state_version",
    "JVPN_POLICY_VERSION": "policy_version",
}
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class Journald:
    """An Output."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def write(self, pending: deque[Event]) -> None:
        try:
            channel = self._connected()
            while pending:
                _send(channel, encoded(pending[0]))
                pending.popleft()
        except OSError:
            self.close()  # journald may have been restarted, with another socket
            raise

    def settle(self) -> float | None:
        return None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.settimeout(SEND_TIMEOUT_S)
            self._socket.connect(self._path)
        return self._socket


def encoded(event: Event) -> bytes:
    """The event as the journal's fields."""
    return b"".join(_field(name, value) for name, value in _fields(event))


def _fields(event: Event) -> Iterator[tuple[str, str]]:
    yield "MESSAGE", describe(event)
    yield "PRIORITY", str(severity(event))
    yield "SYSLOG_IDENTIFIER", "jvpnd"
    for name, key in _FIELDS.items():
        if event[key] is not None:
            yield name, str(event[key])
    yield "JVPN_DETAILS", json.dumps(event["details"], separators=(",", ":"))


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="backslashreplace")
    if b"\n" not in data:
        return b"%s=%s\n" % (name.encode(), data)
    return b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data)


def _send(channel: socket.socket, data: bytes) -> None:
    try:
        channel.send(data)
    except OSError as error:
        if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
            raise
        _send_as_file(channel, data)


def _send_as_file(channel: socket.socket, data: bytes) -> None:
    """What is too large for a datagram goes as a sealed memfd."""
    fd = os.memfd_create("jvpn-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(fd, "wb", buffering=0) as file:
        file.write(data)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
        channel.sendmsg([], [rights])
