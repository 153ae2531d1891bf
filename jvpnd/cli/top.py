"""`jvpnctl top`: one look as text, or a screen that follows. rich is loaded for the screen only."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from jvpnd.cli import text
from jvpnd.cli.render import paths as render_paths
from jvpnd.control.client import TIMEOUT_S, ControlClient, NotRunning
from jvpnd.control.protocol import Refused

Json = Mapping[str, Any]

ROWS: Final = 20  # where nobody says how many, and there is no screen to be filled
RETRY_S: Final = 1.0
_FRAME: Final = 8  # lines of a screen that are no rows: titles, headers, blanks between


def once(socket: Path, interval_ms: int, rows: int | None) -> Json:
    """The second look: the first has no rates yet."""
    with _connect(socket, interval_ms) as client:
        looks = _looks(client, interval_ms, rows or ROWS)
        next(looks)
        return next(looks)


def live(socket: Path, interval_ms: int, rows: int | None) -> None:
    """Until interrupted. NotRunning where no daemon runs at first; one that is restarted meanwhile
    is waited for."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    fitting = max(1, shutil.get_terminal_size().lines - _FRAME)
    client = _connect(socket, interval_ms)
    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as screen:

        def show(words: str) -> None:
            page = Text.from_ansi(words, no_wrap=True, overflow="crop")
            screen.update(page, refresh=True)

        try:
            while True:
                try:
                    with client:
                        for look in _looks(client, interval_ms, rows or fitting):
                            show(render(look))
                except (NotRunning, Refused) as error:
                    if isinstance(error, Refused) and error.reason != "STARTING":
                        raise
                    show(f"{error}\n\nwaiting for it; Ctrl-C ends this")
                client = _again(socket, interval_ms)
        except KeyboardInterrupt:
            pass


def _connect(socket: Path, interval_ms: int) -> ControlClient:
    return ControlClient(socket, TIMEOUT_S + interval_ms / 1000)


def _again(socket: Path, interval_ms: int) -> ControlClient:
    """A new connection, once a daemon is there."""
    while True:
        time.sleep(RETRY_S)
        try:
            return _connect(socket, interval_ms)
        except NotRunning:
            continue


def _looks(client: ControlClient, interval_ms: int, rows: int) -> Iterator[Json]:
    return client.stream("top", False, interval_ms=interval_ms, rows=rows)


def render(look: Json) -> str:
    """Who it is and how much in all, the busiest sessions, and a client's paths."""
    is_gateway = look["role"] == "gateway"
    in_all = sum(look["states"].values())
    states = ", ".join(
        f"{count:,} {text.paint(text.clean(state))}"
        for state, count in sorted(look["states"].items())
    )
    rates = look["rates"]
    packets = rates["tx_packets_per_s"] + rates["rx_packets_per_s"]
    head = (
        f"{look['role']} {text.bold(text.clean(look['node']))}: {states or 'no session'}   "
        f"sent {text.rate(rates['tx_bytes_per_s'])}, "
        f"received {text.rate(rates['rx_bytes_per_s'])}, {packets:,} packets/s"
    )
    parts = [head]
    if look["sessions"]:
        header = ["SESSION", "STATE", "SENT", "RECEIVED", "ATTACHED", "SWITCHES", "BOUND TO"]
        header = ["CLIENT", *header] if is_gateway else header
        parts.append(text.table(header, [_row(row, is_gateway) for row in look["sessions"]]))
    if in_all > len(look["sessions"]):
        parts.append(f"and {in_all - len(look['sessions']):,} more that are less busy")
    if look["paths"]:
        parts.append(render_paths(look["paths"]))
    if look["paths_in_all"] > len(look["paths"]):
        parts.append(f"and {look['paths_in_all'] - len(look['paths'])} more")
    return "\n\n".join(parts)


def _row(row: Json, is_gateway: bool) -> list[object]:
    binding, rates = row.get("binding") or {}, row["rates"]
    cells: list[object] = [
        (row["id"] or text.NONE)[:8],
        row["state"],
        text.rate(rates["tx_bytes_per_s"]),
        text.rate(rates["rx_bytes_per_s"]),
        text.duration(row.get("attached_since_ms")),
        row["switches"],
        binding.get("path"),
    ]
    return [row["client"], *cells] if is_gateway else cells
