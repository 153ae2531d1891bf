"""What several commands of jvpnctl have in common: the daemon to ask, JSON or text, and filters."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, TypeVar

import click

from jvpnd.cli import text
from jvpnd.control.client import ControlClient
from jvpnd.core.dataclass import dataclass
from jvpnd.enrol.files import CONFIG_FILE

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(slots=True)
class Options:
    """What was said before the command."""

    socket: Path
    as_json: bool

    def ask(self, command: str, **args: Any) -> Any:
        """The daemon's answer to one command."""
        with ControlClient(self.socket) as client:
            return client.ask(command, **args)

    def show(self, answer: Any, text: Callable[[Any], str]) -> None:
        """Print an answer as it came, or as text."""
        click.echo(json.dumps(answer, indent=2) if self.as_json else text(answer))


def _also_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Options).as_json = True


# `jvpnctl --json status` and `jvpnctl status --json` are the same.
json_option = click.option(
    "--json", is_flag=True, expose_value=False, callback=_also_json, help="Print JSON."
)


def _ago(_ctx: click.Context, _: click.Parameter, value: str | None) -> int | None:
    """An age as a time of the wall clock, in ms."""
    if value is None:
        return None
    try:
        return time.time_ns() // 1_000_000 - text.age_ms(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


session_option = click.option(
    "--session", metavar="ID", help="Only of this session (or how its id begins)."
)
client_option = click.option("--client", metavar="NAME", help="Only of this client.")
since_option = click.option(
    "--since", "since_ms", metavar="AGE", callback=_ago,
    help="Only what is no older: 90s, 15m, 2h, 1d.",
)


def _listed(_ctx: click.Context, _: click.Parameter, values: tuple[str, ...]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def list_option(name: str, text: str, metavar: str = "CIDR,...") -> Callable[[F], F]:
    """Networks, or what `metavar` says, several times or with commas between them."""
    return click.option(name, metavar=metavar, multiple=True, callback=_listed, help=text)


networks_option = list_option("--networks", "Networks that the client sends into the tunnel.")
kill_switch_option = click.option(
    "--kill-switch", is_flag=True, help="With --full: nothing leaves the client past the tunnel."
)
config_option = click.option(
    "--config", "config_file", metavar="FILE", type=click.Path(path_type=Path, readable=False),
    default=CONFIG_FILE, show_default=True, help="The configuration file.",
)


def is_open_to_others(stream: TextIO) -> bool:
    """Whether it is a file that others than its owner and group may read or write."""
    out = os.fstat(stream.fileno())
    return stat.S_ISREG(out.st_mode) and bool(out.st_mode & stat.S_IRWXO)
