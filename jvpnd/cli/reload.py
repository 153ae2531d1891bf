"""jvpnctl reload."""

from __future__ import annotations

from typing import Any

import click

from jvpnd.cli.options import Options, json_option
from jvpnd.cli.text import clean
from jvpnd.control.client import ControlClient

Json = dict[str, Any]
TIMEOUT_S = 120.0  # ten thousand clients take seconds


def ask_to_reload(options: Options) -> Json:
    """The daemon's answer, once it has read its configuration again."""
    with ControlClient(options.socket, TIMEOUT_S) as client:
        answer: Json = client.ask("reload")
    return answer


@click.command()
@json_option
@click.pass_obj
def reload(options: Options) -> None:
    """Have the daemon read its configuration file again.

    The policy and a gateway's clients change at once, and no session ends but those of clients that
    are listed no more, or with other addresses or keys. What else has changed counts at the next
    start, and is named. Where the file has a fault nothing changes, and the exit status is 2.
    """
    options.show(ask_to_reload(options), reloaded)


def reloaded(answer: Json) -> str:
    """What a reload has changed, one line a kind."""
    version = answer["policy_version"]
    policy = f"in force as version {version}" if answer["policy_changed"] else "unchanged"
    lines = [f"{clean(answer['file'])}: reloaded", f"policy: {policy}"]
    if answer["clients"] is not None:
        told = [
            f"{what} {', '.join(map(clean, names))}"
            for what, names in answer["clients"].items()
            if names
        ]
        lines.append(f"clients: {'; '.join(told) or 'unchanged'}")
    if answer["needs_restart"]:
        lines.append(f"changed too, but needs a restart: {', '.join(answer['needs_restart'])}")
    return "\n".join(lines)
