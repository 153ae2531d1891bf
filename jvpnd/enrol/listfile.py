"""Changes the [[client]] tables of a configuration file's text, and not one other byte of it.

TOML is not parsed here but to see that the change is the one that was meant: where a file is
written so that it would not be, it is refused.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any, Final

from jvpnd.enrol.errors import EnrolError

_CLIENT: Final = re.compile(r"[ \t]*\[\[[ \t]*client[ \t]*\]\][ \t]*(#.*)?\r?\n?")
_HEADER: Final = re.compile(r"[ \t]*\[")
_REST: Final = re.compile(r"[ \t]*(#.*)?\r?\n?")  # a comment, or nothing


def with_block(text: str, block: str) -> str:
    """One more client, at the end. Raises EnrolError."""
    before = tomllib.loads(text)
    clients = [*before.get("client", []), *tomllib.loads(block)["client"]]
    gap = "" if not text or text.endswith("\n") else "\n"
    return _checked(f"{text}{gap}\n{block}", {**before, "client": clients})


def without(text: str, number: int) -> str:
    """Without the client of this number, from 0. Raises EnrolError."""
    before = tomllib.loads(text)
    clients = [row for at, row in enumerate(before["client"]) if at != number]
    lines = text.splitlines(keepends=True)
    start, end = _span(lines, number)
    if start and not lines[start - 1].strip():
        start -= 1  # the empty line above goes with it
    after = {**before, "client": clients} if clients else _without_key(before, "client")
    return _checked("".join(lines[:start] + lines[end:]), after)


def with_values(text: str, number: int, values: Mapping[str, str]) -> str:
    """With other values, as TOML strings, of keys that the client of this number has. Raises
    EnrolError."""
    before = tomllib.loads(text)
    clients = list(before["client"])
    clients[number] = {**clients[number], **values}
    lines = text.splitlines(keepends=True)
    start, end = _span(lines, number)
    for at in range(start, end):
        for key, value in values.items():
            found = re.match(rf"([ \t]*{key}[ \t]*=[ \t]*)(?:\"[^\"]*\"|'[^']*')", lines[at])
            if found:
                lines[at] = f'{found[1]}"{value}"{lines[at][found.end() :]}'
    return _checked("".join(lines), {**before, "client": clients})


def _span(lines: list[str], number: int) -> tuple[int, int]:
    """The first line of a client's table and the one behind its last; comments that stand above
    the next table are not its own."""
    starts = [at for at, line in enumerate(lines) if _CLIENT.fullmatch(line)]
    if number >= len(starts):
        raise _by_hand()
    start = starts[number]
    headers = (at for at in range(start + 1, len(lines)) if _HEADER.match(lines[at]))
    end = next(headers, len(lines))
    while _REST.fullmatch(lines[end - 1]):
        end -= 1
    return start, end


def _without_key(table: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name != key}


def _checked(text: str, meant: dict[str, Any]) -> str:
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise _by_hand() from None
    if found != meant:
        raise _by_hand()
    return text


def _by_hand() -> EnrolError:
    return EnrolError(
        "its clients are not written as [[client]] tables one below the other: change it by hand"
    )
