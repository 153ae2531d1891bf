"""What the configuration says of the cluster that a gateway belongs to."""

from __future__ import annotations

import importlib.util
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from jvpnd.configendpoint import ip_of, once
from jvpnd.configfile import Table
from jvpnd.configroutes import check_interface_name
from jvpnd.core.policy import shown
from jvpnd.keyfile import key_list_file, secret_text_file

STORES: Final = ("etcd", "none")
_ETCD_KEYS: Final = (
    *("endpoints", "key_file", "ca_file", "certificate_file", "certificate_key_file"),
    *("username", "password_file", "prefix", "node_ttl_s", "address", "announce", "hook"),
)
CLUSTER_KEYS: Final = ("store", *_ETCD_KEYS)
MAX_ENDPOINTS: Final = 9  # etcd advises at most 7 members
MIN_TTL_S, MAX_TTL_S, DEFAULT_TTL_S = 3, 600, 10
DEFAULT_PREFIX: Final = "/jvpn/"
_URL_TEXT: Final = 'URLs like ["https://10.0.0.1:2379"], without a path'
_PEM_TEXT: Final = "a PEM file that can be read"


@dataclass(frozen=True, slots=True)
class EtcdAccess:
    """How etcd is reached. `endpoints`: (scheme, host, port) of members. `certificate`: the files
    of the certificate and of its key."""

    endpoints: tuple[tuple[str, str, int], ...]
    ca_file: Path | None = None
    certificate: tuple[Path, Path] | None = None
    username: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """The cluster. `etcd` None: sessions stay with the node that made them. `keys`: rows are sealed
    under the first, and opened under any. `address`: where the other nodes reach this one."""

    etcd: EtcdAccess | None = None
    keys: tuple[bytes, ...] = field(default=(), repr=False)
    prefix: str = DEFAULT_PREFIX
    node_ttl_s: int = DEFAULT_TTL_S
    address: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    hook: Path | None = None


def cluster_of(top: Table, own: str) -> ClusterSettings | None:
    """The table [cluster], None without one. `own`: the tunnel's interface."""
    if "cluster" not in top:
        return None
    table = top.table("cluster", CLUSTER_KEYS)
    if table.choice("store", STORES) == "none":
        for key in _ETCD_KEYS:
            if key in table:
                raise table.error(key, "has no meaning with store = 'none'", "store = 'etcd'")
        return ClusterSettings()
    if importlib.util.find_spec("etcd3gw") is None:
        problem = "etcd needs etcd3gw, which is not installed: pip install 'jvpn[cluster]'"
        raise table.error("store", problem, "none, or etcd with that library")
    return ClusterSettings(
        _access(table),
        key_list_file(table, "key_file"),
        _prefix(table),
        table.number("node_ttl_s", MIN_TTL_S, MAX_TTL_S, DEFAULT_TTL_S),
        _addresses(table),
        _announce(table, own),
        _hook(table) if "hook" in table else None,
    )


def _access(table: Table) -> EtcdAccess:
    texts = table.texts("endpoints", _URL_TEXT)
    if len(texts) > MAX_ENDPOINTS:
        raise table.error("endpoints", f"{len(texts)} of them", f"at most {MAX_ENDPOINTS}")
    endpoints = tuple(_endpoint(table, text) for text in texts)
    once(table, "endpoints", (f"{scheme}://{host}:{port}" for scheme, host, port in endpoints))
    ca = _pem(table, "ca_file") if "ca_file" in table else None
    certificate = None
    if _both(table, "certificate_file", "certificate_key_file"):
        certificate = (_pem(table, "certificate_file"), _private_pem(table))
    if all(scheme == "http" for scheme, _, _ in endpoints):
        for key in ("ca_file", "certificate_file"):
            if key in table:
                raise table.error(key, "has no meaning with http://", "endpoints with https://")
    username = password = ""
    if _both(table, "username", "password_file"):
        allowed = "1 to 256 printable characters"
        username = table.text("username", allowed)
        if not (username.isprintable() and 1 <= len(username) <= 256):
            raise table.error("username", f"{shown(username)} is not a name", allowed)
        password = secret_text_file(table, "password_file")
    return EtcdAccess(endpoints, ca, certificate, username, password)


def _endpoint(table: Table, text: str) -> tuple[str, str, int]:
    wrong = table.error("endpoints", f"{shown(text)} is not an endpoint of etcd", _URL_TEXT)
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        raise wrong from None
    if url.scheme not in ("http", "https") or not host or "@" in url.netloc:
        raise wrong
    if url.path not in ("", "/") or url.query or url.fragment or not text.isascii():
        raise wrong
    if ip_of(host) is None and not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", host):
        raise wrong
    return url.scheme, host, 2379 if port is None else port


def _both(table: Table, first: str, second: str) -> bool:
    """Whether both are there; one without the other is a fault."""
    for key, other in ((first, second), (second, first)):
        if key in table and other not in table:
            raise table.error(key, f"has no {other}", "both or neither")
    return first in table


def _pem(table: Table, key: str) -> Path:
    file = table.file.parent / table.text(key, _PEM_TEXT)
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError) as error:
        raise table.error(key, f"{file}: {_words(error)}", _PEM_TEXT) from None
    if not stat.S_ISREG(mode) or not os.access(file, os.R_OK):
        raise table.error(key, f"{file} is not a file that can be read", _PEM_TEXT)
    return file


def _private_pem(table: Table) -> Path:
    key = "certificate_key_file"
    file = _pem(table, key)
    mode = file.stat().st_mode
    if mode & 0o077:
        problem = f"{file} is open to others (mode {mode & 0o777:04o})"
        raise table.error(key, problem, f"chmod 600 {file}")
    return file


def _prefix(table: Table) -> str:
    allowed = "2 to 64 letters, digits, '.', '_', '-' or '/', with a '/' at both ends"
    text = table.text("prefix", allowed, DEFAULT_PREFIX)
    if not re.fullmatch(r"/[A-Za-z0-9._/-]{0,62}/", text):
        raise table.error("prefix", f"{shown(text)} is not a prefix", allowed)
    return text


def _addresses(table: Table) -> tuple[str, ...]:
    allowed = "at most one IPv4 and one IPv6 address of this host"
    texts = table.texts("address", allowed, ())
    addresses = [ip_of(text) for text in texts]
    families = [each.version for each in addresses if each is not None]
    for text, each in zip(texts, addresses, strict=True):
        if each is None or each.is_multicast or each.is_unspecified or each.is_loopback:
            raise table.error("address", f"{shown(text)} is not a host's address", allowed)
    if len(set(families)) < len(families):
        raise table.error("address", "has two of one family", allowed)
    return tuple(map(str, addresses))


def _announce(table: Table, own: str) -> tuple[str, ...]:
    names = table.texts("announce", 'interfaces like ["eth1"]', ())
    for name in names:
        check_interface_name(table, "announce", name)
        if name == own:
            raise table.error("announce", f"{name} is the tunnel itself", "other interfaces")
    once(table, "announce", names)
    return tuple(names)


def _hook(table: Table) -> Path:
    """A program that is run as root: nobody but its owner may be able to change it."""
    allowed = "the absolute name of a program that only its owner may write to"
    file = Path(table.text("hook", allowed))
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError) as error:
        raise table.error("hook", f"{shown(str(file))}: {_words(error)}", allowed) from None
    if not file.is_absolute() or not stat.S_ISREG(mode) or not os.access(file, os.X_OK):
        raise table.error("hook", f"{file} is not a program with its absolute name", allowed)
    if mode & 0o022:
        raise table.error("hook", f"{file} can be written by others", f"chmod go-w {file}")
    return file


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
