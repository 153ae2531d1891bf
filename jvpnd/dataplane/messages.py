"""What control and its workers say to each other over a SOCK_SEQPACKET pair.

Commands (control to worker) are JSON, with descriptors beside them. Reports (worker to control)
have a fixed layout and are checked field by field: a worker that was taken over must not be able
to hurt control with them.
"""

from __future__ import annotations

import json
import socket
import struct
from enum import IntEnum
from typing import Any, Final

from jvpnd.core.dataclass import dataclass
from jvpnd.core.wire import MAX_CONTROL_LEN
from jvpnd.seqpacket import receive_message

MAX_COMMAND: Final = 65536

Remote = tuple[str, int]
"""Numeric host (IPv6 link-local with "%scope"), port; ("", 0) where a socket has no address."""


def encode_command(name: str, arguments: dict[str, Any]) -> bytes:
    """A command to a worker. Raises ValueError if it is too long to send."""
    encoded = json.dumps([name, arguments], separators=(",", ":")).encode()
    if len(encoded) > MAX_COMMAND:
        raise ValueError(f"{name}: {len(encoded)} bytes, at most {MAX_COMMAND} are allowed")
    return encoded


def receive_command(channel: socket.socket) -> tuple[str, dict[str, Any], list[int]] | None:
    """The next command and its descriptors, None at the end of the channel.

    Raises BlockingIOError if there is none now.
    """
    data, fds = receive_message(channel, MAX_COMMAND)
    if not data:
        return None
    name, arguments = json.loads(data)
    return name, arguments, fds


class ReportKind(IntEnum):
    READY = 1  # privileges are dropped, the loop runs
    PACKET = 2  # a packet for control: number = socket_id, remote, payload
    FROM_ELSEWHERE = 3  # good DATA from another address: number = index, other = socket_id, remote
    SOCKET_ERROR = 4  # number = socket_id, other = errno
    SEND_ERROR = 5  # number = slot, other = errno


@dataclass(frozen=True, slots=True)
class Report:
    """One message from a worker; which fields count is said at its kind."""

    kind: ReportKind
    number: int = 0
    other: int = 0
    remote: Remote = ("", 0)
    payload: bytes = b""


# kind u8, family u8 (0, 4, 6), port u16, number u32, other u32, scope u32, address 16 bytes
_REPORT = struct.Struct("<BBHIII16s")
MAX_REPORT: Final = _REPORT.size + MAX_CONTROL_LEN
_KINDS: Final = {int(kind): kind for kind in ReportKind}


def encode_report(report: Report) -> bytes:
    """A report for control."""
    host, port = report.remote
    host, _, scope = host.partition("%")
    family, address = 0, b""
    if host:
        family = 6 if ":" in host else 4
        address = socket.inet_pton(socket.AF_INET6 if family == 6 else socket.AF_INET, host)
    fixed = _REPORT.pack(
        report.kind, family, port, report.number, report.other, int(scope or 0), address
    )
    return fixed + report.payload


def decode_report(data: bytes) -> Report | None:
    """A worker's report, None if it is not one."""
    if not _REPORT.size <= len(data) <= MAX_REPORT:
        return None
    code, family, port, number, other, scope, address = _REPORT.unpack_from(data)
    kind = _KINDS.get(code)
    if kind is None:
        return None
    if family == 0:
        remote = ("", 0)
    elif family == 4:
        remote = (socket.inet_ntop(socket.AF_INET, address[:4]), port)
    elif family == 6:
        host = socket.inet_ntop(socket.AF_INET6, address)
        remote = (f"{host}%{scope}" if scope else host, port)
    else:
        return None
    return Report(kind, number, other, remote, data[_REPORT.size :])


def remote_of(address: Any) -> Remote:
    """A socket address as the kernel gives it, in the form used everywhere in the project."""
    if not isinstance(address, tuple):
        return ("", 0)
    host, port = address[:2]
    if len(address) == 4 and address[3]:
        host = f"{host.partition('%')[0]}%{address[3]}"
    return (host, port)


def address_of(remote: Remote) -> tuple[str, int] | tuple[str, int, int, int]:
    """A canonical remote in the form that sends fastest: its scope as a number of its own."""
    host, _, scope = remote[0].partition("%")
    return (host, remote[1], 0, int(scope)) if scope else (host, remote[1])


def canonical(remote: Remote | None) -> Remote | None:
    """`remote` as the kernel would spell it, so that equal addresses are equal strings.

    Raises ValueError if the host is not a numeric address.
    """
    if remote is None:
        return None
    host, _, scope = remote[0].partition("%")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        host = socket.inet_ntop(family, socket.inet_pton(family, host))
    except OSError:
        raise ValueError(f"remote {remote[0]!r}: must be a numeric address") from None
    return (f"{host}%{_scope_number(scope)}" if scope else host, remote[1])


def _scope_number(scope: str) -> int:
    if scope.isdecimal():
        return int(scope)
    try:
        return socket.if_nametoindex(scope)
    except OSError:
        raise ValueError(f"scope {scope!r}: no such interface") from None
