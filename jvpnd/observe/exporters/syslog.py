"""Events to a syslog collector: RFC 5424 over UDP (RFC 5426) or TCP (RFC 6587, octets counted)."""

from __future__ import annotations

import json
import os
import select
import socket
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from jvpnd.observe.log import Event
from jvpnd.observe.words import describe, severity

CONNECT_TIMEOUT_S: Final = 3.0
SEND_TIMEOUT_S: Final = 3.0
DEAD_AFTER_MS: Final = 10_000  # a connection whose data nobody acknowledges
SEND_BUFFER: Final = 65536  # what waits there is lost with the connection, uncounted
MAX_MESSAGE: Final = 8192  # bytes; RFC 5424 asks receivers for 2048, and most take this
FACILITY: Final = 3  # system daemons
# The enterprise number that RFC 5612 keeps for documentation: we have none.
SD_ID: Final = "jvpn@32473"
_BOM: Final = "\ufeff"
_PARAMS: Final = {
    "seq": "seq",
    "session": "session_id",
    "client": "client",
    "from": "from",
    "to": "to",
    "reason": "reason",
    "stateVersion": "state_version",
    "policyVersion": "policy_version",
}


class Syslog:
    """An Output."""

    def __init__(self, transport: str, address: str, port: int) -> None:
        """`transport`: "udp" or "tcp"; `address`: an IP address or a host name."""
        self._is_stream = transport == "tcp"
        self._where = (address, port)
        self._socket: socket.socket | None = None

    def write(self, pending: deque[Event]) -> None:
        try:
            channel = self._connected()
            while pending:
                message = encoded(pending[0])
                if self._is_stream:
                    channel.sendall(b"%d %s" % (len(message), message))
                else:
                    channel.send(message)
                pending.popleft()
        except OSError:
            self.close()  # half a message may have gone: only a new connection has a beginning
            raise

    def settle(self) -> float | None:
        return None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self) -> socket.socket:
        if self._socket is not None and self._is_stream and _has_ended(self._socket):
            self.close()
        if self._socket is None:
            self._socket = self._connect()
        return self._socket

    def _connect(self) -> socket.socket:
        if self._is_stream:
            channel = socket.create_connection(self._where, CONNECT_TIMEOUT_S)
            channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER_MS)
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        else:
            family, kind, number, _, where = socket.getaddrinfo(
                *self._where, type=socket.SOCK_DGRAM
            )[0]
            channel = socket.socket(family, kind, number)
            try:
                channel.connect(where)
            except OSError:
                channel.close()
                raise
        channel.settimeout(SEND_TIMEOUT_S)
        return channel


def _has_ended(channel: socket.socket) -> bool:
    """Whether the collector has closed: what is sent then vanishes without an error."""
    readable = select.poll()
    readable.register(channel, select.POLLIN)
    try:
        return bool(readable.poll(0)) and not channel.recv(4096)
    except OSError:
        return True


def encoded(event: Event) -> bytes:
    """The event as one message, of at most MAX_MESSAGE bytes."""
    details = json.dumps(event["details"], separators=(",", ":"), ensure_ascii=False)
    text = describe(event)
    whole = _message(event, details, text)
    if len(whole) <= MAX_MESSAGE:
        return whole
    return _message(event, None, text)[:MAX_MESSAGE].decode(errors="ignore").encode()


def _message(event: Event, details: str | None, text: str) -> bytes:
    at = datetime.fromtimestamp(event["ts_ms"] / 1000, UTC)
    head = (
        f"<{8 * FACILITY + severity(event)}>1",
        at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        event["node_id"],
        "jvpnd",
        str(os.getpid()),
        event["event_type"][:32],
    )
    # A text that is marked as UTF-8 begins with a BOM (section 6.4); ASCII needs no mark.
    mark = "" if text.isascii() else _BOM
    line = " ".join((*head, f"[{SD_ID}{''.join(_params(event, details))}]", mark + text))
    return line.replace("\n", " ").encode(errors="backslashreplace")


def _params(event: Event, details: str | None) -> Iterator[str]:
    for name, key in _PARAMS.items():
        if event[key] is not None:
            yield f' {name}="{_escaped(str(event[key]))}"'
    if details is not None:
        yield f' details="{_escaped(details)}"'


def _escaped(text: str) -> str:
    for special in '\\"]':
        text = text.replace(special, f"\\{special}")
    return text
