"""Words, columns and colours for people. Colours fall away where the output is no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

import click

NONE: Final = "-"
_COLOURS: Final = {
    "ATTACHED": "green",
    "LISTENING": "green",
    "bound": "green",
    "TRANSPORT_SWITCH_OK": "green",
    "VOLATILE": "yellow",
    "BIRTH": "yellow",
    "RECOVERING": "magenta",
    "DEGRADED": "red",
    "TERMINATED": "red",
    "down": "red",
    "SECURITY_EVENT": "red",
    "TRANSPORT_SWITCH_DENIED": "red",
    "EVENTS_DROPPED": "red",
}
_AGES_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB")


def clean(value: object) -> str:
    """Text as it may go to a terminal: nothing in it can move the cursor or change a colour."""
    text = NONE if value is None else str(value)
    return "".join(char if char.isprintable() else "?" for char in text)


def paint(text: str) -> str:
    """A word in the colour of its meaning, if it has one; blanks around it stay."""
    colour = _COLOURS.get(text.strip())
    return click.style(text, fg=colour) if colour else text


def bold(text: str) -> str:
    return click.style(text, bold=True)


def duration(ms: float | None) -> str:
    """`42 ms`, `4.2 s`, `3m 12s`, `2h 5m`, `3d 4h`."""
    if ms is None:
        return NONE
    if ms < 1000:
        return f"{ms:.3g} ms" if ms < 100 else f"{ms:.0f} ms"
    seconds = int(ms // 1000)
    if seconds < 60:
        return f"{int(ms // 100) / 10:.1f} s"
    minutes, hours = seconds // 60, seconds // 3600
    if hours < 1:
        return f"{minutes}m {seconds % 60}s"
    if hours < 24:
        return f"{hours}h {minutes % 60}m"
    return f"{hours // 24}d {hours % 24}h"


def age_ms(words: str) -> int:
    """`90s`, `15m`, `2h`, `1d` as ms; ValueError for anything else."""
    number, unit = words[:-1], words[-1:]
    if unit not in _AGES_MS or not number.isdecimal() or len(number) > 6:
        raise ValueError(f"{words!r} is no age: a whole number and s, m, h or d, as in 15m")
    return int(number) * _AGES_MS[unit]


def ago(ms: float | None) -> str:
    """An age in words."""
    return "never" if ms is None else f"{duration(ms)} ago"


def size(count: int | None) -> str:
    """Bytes: `512 B`, `1.2 GiB`."""
    if count is None:
        return NONE
    if count < 1024:
        return f"{count} B"
    value, power = count / 1024, 0
    while value >= 1023.95 and power < len(_UNITS) - 1:
        value, power = value / 1024, power + 1
    return f"{value:.1f} {_UNITS[power]}"


def rate(bytes_per_s: float) -> str:
    """Bits a second as network engineers say it: "1.2 Gbit/s", "idle" for none."""
    bits = bytes_per_s * 8
    if bits < 1:
        return "idle"
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if bits < 1000:
            return f"{bits:.3g} {unit}"
        bits /= 1000
    return f"{bits:.3g} Gbit/s"


def plural(count: int, word: str) -> str:
    """`1 switch`, `3 switches`."""
    ending = "" if count == 1 else "es" if word.endswith("ch") else "s"
    return f"{count:,} {word}{ending}"


def moment(ts_ms: int) -> str:
    """A wall-clock time in the local zone, to the millisecond."""
    at = datetime.fromtimestamp(ts_ms / 1000)
    return f"{at:%Y-%m-%d %H:%M:%S}.{ts_ms % 1000:03d}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]], indent: str = "") -> str:
    """Aligned columns under a bold header; cells are cleaned and painted."""
    cells = [list(header), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for number, row in enumerate(cells):
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        padded[-1] = row[-1]
        line = "  ".join(map(bold if number == 0 else paint, padded))
        lines.append(f"{indent}{line}".rstrip())
    return "\n".join(lines)


def fields(pairs: Iterable[tuple[str, object]], indent: str = "  ") -> str:
    """One `name  value` a line; values None are left out."""
    kept = [(name, clean(value)) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in kept), default=0)
    return "\n".join(f"{indent}{name.ljust(width)}  {value}" for name, value in kept)


def details(values: dict[str, Any]) -> str:
    """`key=value` for each that has one."""
    return " ".join(f"{clean(k)}={clean(v)}" for k, v in values.items() if v is not None)
