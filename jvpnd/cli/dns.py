"""jvpnctl dns: name servers that a daemon left. docs/routing.md."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.group()
def dns() -> None:
    """The host's name servers."""


@dns.command()
@click.option(
    "--runtime-dir",
    type=click.Path(path_type=Path),
    default=Path("/run/jvpn"),
    show_default=True,
    help="That of the daemon.",
)
def restore(runtime_dir: Path) -> None:
    """Put back what was there before a daemon that is gone. Needs root."""
    from jvpnd.net.dns import restore_left

    problem = restore_left(runtime_dir)
    if problem:
        click.echo(f"jvpnctl: {problem}", err=True)
        sys.exit(1)
