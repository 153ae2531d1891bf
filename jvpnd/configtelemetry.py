"""What the configuration says of telemetry: the audit file, and where events and metrics go."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from jvpnd.configendpoint import address_of, ip_of
from jvpnd.configfile import Table
from jvpnd.core.dataclass import dataclass
from jvpnd.core.policy import shown
from jvpnd.observe.exporters import prometheus
from jvpnd.observe.exporters.journald import SOCKET

MIN_BYTES, MAX_BYTES, DEFAULT_BYTES = 65536, 1 << 40, 16 << 20
MAX_KEEP = 1000
_MAX_UNIX: Final = 107  # bytes of a socket's name, unix(7)
_LISTEN_TEXT: Final = '"127.0.0.1:PORT", "[::1]:PORT", or the absolute name of a unix socket'


@dataclass(frozen=True, slots=True)
class Audit:
    """The audit file; `keep` old ones of at most `max_bytes` stay beside it."""

    file: Path
    max_bytes: int = DEFAULT_BYTES
    keep: int = 8


@dataclass(frozen=True, slots=True)
class Collector:
    """A syslog collector. `transport` is udp or tcp."""

    transport: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """What is on; None is off. `journald` is a socket's name, `prometheus` where to listen."""

    audit: Audit | None = None
    journald: str | None = None
    syslog: Collector | None = None
    prometheus: str | None = None


def telemetry_of(top: Table) -> TelemetrySettings:
    """The tables [audit] and [export.*]."""
    export = top.table("export", ("journald", "syslog", "prometheus"))
    return TelemetrySettings(
        _audit(top.table("audit", ("file", "max_bytes", "keep"))) if "audit" in top else None,
        _journald(export.table("journald", ("socket",))) if "journald" in export else None,
        _syslog(export) if "syslog" in export else None,
        _prometheus(export) if "prometheus" in export else None,
    )


def _audit(table: Table) -> Audit:
    allowed = 'a file like "/var/log/jvpn/audit.jsonl"'
    file = table.file.parent / table.text("file", allowed)
    if not file.name or file.is_dir():
        raise table.error("file", f"{file} is a directory", allowed)
    return Audit(
        file,
        table.number("max_bytes", MIN_BYTES, MAX_BYTES, DEFAULT_BYTES),
        table.number("keep", 1, MAX_KEEP, 8),
    )


def _journald(table: Table) -> str:
    return _unix(table, "socket", table.text("socket", "the name of a socket", SOCKET))


def _syslog(export: Table) -> Collector:
    table = export.table("syslog", ("transport", "address", "port"))
    transport = table.choice("transport", ("udp", "tcp"), "udp")
    address = address_of(table, "address", "an IP address or a host name", names=True)
    return Collector(transport, address, table.number("port", 1, 65535, 514))


def _prometheus(export: Table) -> str:
    table = export.table("prometheus", ("listen",))
    listen = table.text("listen", _LISTEN_TEXT)
    if problem := prometheus.missing():
        raise table.error("listen", problem, "no [export.prometheus], or that library")
    if "/" in listen:
        return _unix(table, "listen", listen)
    found = re.fullmatch(r"(?:\[(?P<six>[^]]+)\]|(?P<four>[^:]+)):(?P<port>[0-9]{1,5})", listen)
    address = ip_of(found["six"] or found["four"]) if found else None
    if found is None or address is None or (address.version == 6) != bool(found["six"]):
        raise table.error("listen", f"{shown(listen)} is not an address", _LISTEN_TEXT)
    if not address.is_loopback:
        raise table.error("listen", f"{address} is not a loopback address", _LISTEN_TEXT)
    if not 1 <= int(found["port"]) <= 65535:
        raise table.error("listen", f"port {found['port']} is out of range", "1 to 65535")
    return listen


def _unix(table: Table, key: str, name: str) -> str:
    allowed = f"an absolute name of at most {_MAX_UNIX} bytes"
    if not name.startswith("/") or len(name.encode()) > _MAX_UNIX or "\0" in name:
        raise table.error(key, f"{shown(name)} is no socket's name", allowed)
    return name
