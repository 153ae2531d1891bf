"""Tables of a TOML file, read with strict types. What is wrong is told in one line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, TypeVar

from jvpnd.core.policy import shown

MAX_FILE_BYTES: Final = 16 * 1024 * 1024  # far above what a gateway with every client needs
T = TypeVar("T")


class ConfigError(Exception):
    """One line, "FILE: KEY: what is wrong (allowed: ...)"; `key` is "" for the file as a whole."""

    def __init__(self, file: Path, key: str, problem: str, allowed: str) -> None:
        where = f"{file}: {key}" if key else str(file)
        line = f"{where}: {problem} (allowed: {allowed})"
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))
        self.file, self.key, self.problem, self.allowed = file, key, problem, allowed


def read(file: Path, known: Collection[str] | None = None) -> Table:
    """The top table of `file`, with these keys and no other (None: any). Raises ConfigError."""
    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_FILE_BYTES + 1)  # it may be a device without an end
    except OSError as error:
        raise ConfigError(file, "", error.strerror or str(error), "a readable file") from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(file, "", "is too large", f"at most {MAX_FILE_BYTES} bytes")
    try:
        values = tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(file, "", f"is not TOML: {error}", "TOML 1.0 in UTF-8") from None
    return Table(file, "", values, known)


class Table:
    """One table; a key that is not known is refused at once, so that a slip is named as such.

    Every reader raises ConfigError for the wrong type, and for a missing key without a default.
    """

    def __init__(
        self, file: Path, name: str, values: dict[str, Any], known: Collection[str] | None
    ) -> None:
        self.file, self.name, self._values = file, name, values
        for key in values:
            if known is not None and key not in known:
                raise self.error(key, "unknown key", ", ".join(known))

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def path(self, key: str) -> str:
        """The key as messages name it, like gateway.endpoint[2].port."""
        return f"{self.name}.{key}" if self.name else key

    def error(self, key: str, problem: str, allowed: str) -> ConfigError:
        """For the caller to raise."""
        return ConfigError(self.file, self.path(key), problem, allowed)

    def text(self, key: str, allowed: str, default: str | None = None) -> str:
        return self._take(key, str, allowed, default)

    def node_name(self, key: str) -> str:
        """The name of a node or a client."""
        allowed = "1 to 64 letters, digits, '.', '_' or '-'"
        text = self.text(key, allowed)
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text):
            raise self.error(key, f"{shown(text)} is not a name", allowed)
        return text

    def flag(self, key: str, default: bool) -> bool:
        return self._take(key, bool, "true or false", default)

    def number(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number within `low` and `high`."""
        allowed = f"a whole number from {low} to {high}"
        value = self._take(key, int, allowed, default)
        if not low <= value <= high:
            raise self.error(key, f"{shown(value)} is out of range", allowed)
        return value

    def choice(self, key: str, allowed: Collection[str], default: str | None = None) -> str:
        text = ", ".join(allowed)
        value = self._take(key, str, text, default)
        if value not in allowed:
            raise self.error(key, f"{shown(value)} is not supported", text)
        return value

    def texts(self, key: str, allowed: str, default: tuple[str, ...] | None = None) -> list[str]:
        """A list of strings; an empty one is as good as none only where that is the default."""
        values = self._take(key, list, allowed, None if default is None else list(default))
        if any(not isinstance(value, str) for value in values):
            raise self.error(key, f"{shown(values)} is of the wrong type", allowed)
        if not values and default is None:
            raise self.error(key, "is empty", allowed)
        return values

    def flag_or_texts(self, key: str, allowed: str, default: bool) -> bool | list[str]:
        """True or false, or a list of strings that is not empty."""
        if isinstance(self._values.get(key, default), bool):
            return self._take(key, bool, allowed, default)
        return self.texts(key, allowed)

    def table(
        self, key: str, known: Collection[str] | None = None, required: bool = False
    ) -> Table:
        values = self.raw_table(key, required)
        return Table(self.file, self.path(key), values, known)

    def raw_table(self, key: str, required: bool = False) -> dict[str, Any]:
        """A table whose keys somebody else knows."""
        return self._take(key, dict, f"a [{self.path(key)}] table", None if required else {})

    def tables(self, key: str, known: Collection[str], required: bool = False) -> list[Table]:
        allowed = f"one or more [[{self.path(key)}]] tables"
        rows = self._take(key, list, allowed, None if required else [])
        if (required and not rows) or any(not isinstance(row, dict) for row in rows):
            raise self.error(key, f"{shown(rows)} is not a list of tables", allowed)
        return [
            Table(self.file, f"{self.path(key)}[{number}]", row, known)
            for number, row in enumerate(rows, start=1)
        ]

    def _take(self, key: str, kind: type[T], allowed: str, default: T | None) -> T:
        if key not in self._values:
            if default is None:
                raise self.error(key, "is missing", allowed)
            return default
        value = self._values[key]
        # bool is a subclass of int, but true is no number
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(key, f"{shown(value)} is of the wrong type", allowed)
        return value
