"""Entry point of the daemon: `jvpnd --config FILE`."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import click

from jvpnd import __version__
from jvpnd.daemon import run


@click.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    default=Path("/etc/jvpn/jvpnd.toml"),
    show_default=True,
    help="The configuration file (docs/configuration.md).",
)
@click.option("--check", is_flag=True, help="Check the configuration, say so, and exit.")
@click.option(
    "--runtime-dir",
    type=click.Path(path_type=Path),
    default=Path("/run/jvpn"),
    show_default=True,
    help="Holds the control socket and what a restart needs.",
)
@click.option("--verbose", is_flag=True, help="Log details too.")
@click.version_option(__version__, prog_name="jvpnd")
def main(config_file: Path, check: bool, runtime_dir: Path, verbose: bool) -> None:
    """Run the Jumping VPN daemon in the foreground, as client or gateway.

    Exit status: 0 after SIGTERM, 2 for a bad configuration, 3 where a privilege or a kernel feature
    is missing.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(levelname).1s %(message)s", stream=sys.stderr
    )
    if verbose:  # ourselves, not the libraries
        logging.getLogger("jvpnd").setLevel(logging.DEBUG)
    status = run(config_file, runtime_dir, check)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)  # all is taken down; to tidy up modules takes time that a restart has to wait


if __name__ == "__main__":
    main()
