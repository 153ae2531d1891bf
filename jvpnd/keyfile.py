"""Keys: their text, and the files that hold the secret ones."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

from nacl.bindings import crypto_scalarmult
from nacl.exceptions import CryptoError

from jvpnd.configfile import Table
from jvpnd.core.noise import public_key

_KEY_TEXT = "base64 of 32 bytes"
_KEY_FILE_TEXT = f"a file with {_KEY_TEXT}, as jvpnctl keygen prints"
_MAX_KEY_FILE_BYTES = 1024
MAX_KEYS = 8  # in a list, while one takes the place of another


def parse_key(text: str) -> bytes:
    """The 32 bytes of a key in base64. Raises ValueError, with what is wrong, not the text."""
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        raise ValueError("is not base64") from None
    if len(raw) != 32:
        raise ValueError(f"holds {len(raw)} bytes, not 32")
    if not any(raw):
        raise ValueError("is all zeros, not a key")
    return raw


def peer_key(table: Table, secret: bytes) -> bytes:
    """The other end's key: not our own, nor a low-order point, with which nothing can be agreed.

    `secret` is our private key. Raises ConfigError.
    """
    allowed = f"{_KEY_TEXT}, as jvpnctl pubkey prints"
    try:
        key = parse_key(table.text("public_key", allowed))
    except ValueError as error:
        raise table.error("public_key", str(error), allowed) from None
    if key == public_key(secret):
        problem = "belongs to this node's own private key"
        raise table.error("public_key", problem, "the other end's key")
    try:
        crypto_scalarmult(secret, key)
    except CryptoError:
        raise table.error("public_key", "is a low-order point, not a key", allowed) from None
    return key


def own_key(table: Table) -> bytes:
    """This node's private key. Raises ConfigError."""
    return _secret(table, "private_key", "/etc/jvpn/private.key")


def preshared_key(table: Table) -> bytes | None:
    """The key that this pair of ends shares besides, if there is one. Raises ConfigError."""
    here = "preshared_key" in table or "preshared_key_file" in table
    return _secret(table, "preshared_key") if here else None


def _secret(table: Table, key: str, default_file: str | None = None) -> bytes:
    """A secret that stands in the table itself, or in the file that it names."""
    named = f"{key}_file"
    if key not in table:
        return key_file(table, named, default_file)
    if named in table:
        raise table.error(key, f"is there besides {named}", "one of them")
    mode = table.file.stat().st_mode
    if mode & 0o077:
        problem = f"stands in a file that is open to others (mode {mode & 0o777:04o})"
        raise table.error(key, problem, f"chmod 600 {table.file}, or {named}")
    allowed = f"{_KEY_TEXT}, as jvpnctl keygen prints"
    try:
        return parse_key(table.text(key, allowed))
    except ValueError as error:
        raise table.error(key, str(error), allowed) from None


def key_file(table: Table, key: str, default: str | None = None) -> bytes:
    """A secret in a file of its own; a relative name is relative to the configuration file.

    Raises ConfigError, also where others than the owner may read or write it.
    """
    file, text = _secret_file(table, key, _KEY_FILE_TEXT, default)
    try:
        return parse_key(text)
    except ValueError as error:
        raise table.error(key, f"{file} {error}", _KEY_FILE_TEXT) from None


def key_list_file(table: Table, key: str) -> tuple[bytes, ...]:
    """Keys in a file of their own, one a line. Raises ConfigError, as `key_file`."""
    allowed = f"a file with 1 to {MAX_KEYS} different keys, one a line, as jvpnctl keygen prints"
    file, text = _secret_file(table, key, allowed)
    lines = text.split()
    keys = []
    for number, line in enumerate(lines, start=1):
        try:
            keys.append(parse_key(line))
        except ValueError as error:
            raise table.error(key, f"line {number} of {file} {error}", allowed) from None
    if not 1 <= len(keys) <= MAX_KEYS or len(set(keys)) < len(keys):
        raise table.error(key, f"{file} has {len(keys)}, or one of them twice", allowed)
    return tuple(keys)


def secret_text_file(table: Table, key: str) -> str:
    """A password in a file of its own. Raises ConfigError, as `key_file`."""
    allowed = "a file with one line of printable ASCII"
    file, text = _secret_file(table, key, allowed)
    if not text or not text.isascii() or not text.isprintable():
        raise table.error(key, f"{file} holds no such line", allowed)
    return text


def _secret_file(
    table: Table, key: str, allowed: str, default: str | None = None
) -> tuple[Path, str]:
    """The file that `key` names, with its text."""
    file = table.file.parent / table.text(key, allowed, default)
    try:
        mode, text = _read_small(file)
    except OSError as error:
        raise table.error(key, f"{file}: {error.strerror}", allowed) from None
    except ValueError as error:
        raise table.error(key, f"{file}: {error}", allowed) from None
    if mode & 0o077:
        problem = f"{file} is open to others (mode {mode & 0o777:04o})"
        raise table.error(key, problem, f"chmod 600 {file}")
    return file, text


def _read_small(file: Path) -> tuple[int, str]:
    """Mode and text of a regular file; it may be a FIFO or a device: never wait, never read on."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as opened:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError("is not a regular file")
        raw = opened.read(_MAX_KEY_FILE_BYTES)
    return mode, raw.decode("ascii", "replace").strip()
