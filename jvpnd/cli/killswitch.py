"""jvpnctl kill-switch: the kill switch without the daemon. docs/routing.md."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import click

from jvpnd.cli.options import Options, json_option
from jvpnd.configfile import ConfigError
from jvpnd.configroutes import HostRoutes, host_routes
from jvpnd.net import killswitch, nft

config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, readable=False),
    default=Path("/etc/jvpn/jvpnd.toml"),
    show_default=True,
    help="The configuration file.",
)


@click.group("kill-switch")
def kill_switch() -> None:
    """The kill switch, whether or not the daemon runs. Needs root."""


@kill_switch.command()
@config_option
@click.option("--boot", is_flag=True, help="Do nothing where none is configured.")
def on(config_file: Path, boot: bool) -> None:
    """Put on what the configuration says, in place of what is on."""
    if boot and not config_file.exists():
        return
    found = host_routes(config_file)
    if not found.routes.kill_switch:
        if boot:
            return
        problem, allowed = "is not on in this configuration", "true, with mode = 'full'"
        raise ConfigError(config_file, "routes.kill_switch", problem, allowed)
    _load(killswitch.ruleset(found.interface, found.routes.exclude), "on")
    click.echo(f"kill switch of {found.interface}: on")


@kill_switch.command()
def off() -> None:
    """Take it off, until the daemon starts or the host boots. Needs no configuration."""
    tables = _switched_on()
    _load(killswitch.off(tables), "off")
    click.echo("kill switch: off, until jvpnd starts" if tables else "kill switch: was off")


@kill_switch.command()
@config_option
@json_option
@click.pass_obj
def status(options: Options, config_file: Path) -> None:
    """Whether it is on, and whether the configuration wants it."""
    tables = _switched_on()
    found = _configured(config_file)
    answer = {
        "on": bool(tables),
        "tables": sorted(tables),
        "interface": found.interface if found else None,
        "configured": found.routes.kill_switch if found else None,
    }
    options.show(answer, lambda _: _told(tables, found))


def _told(tables: set[str], found: HostRoutes | None) -> str:
    if found is None:
        wanted = "the configuration cannot be read"
    else:
        wanted = f"{'' if found.routes.kill_switch else 'not '}configured for {found.interface}"
    lines = [f"kill switch: {'on' if tables else 'off'} ({wanted})"]
    ours = killswitch.table_of(found.interface) if found else ""
    return "\n".join(lines + [f"  of another interface: {t}" for t in sorted(tables - {ours})])


def _configured(file: Path) -> HostRoutes | None:
    """Whoever is locked out has to be told the state even with a broken file."""
    try:
        return host_routes(file)
    except ConfigError:
        return None


def _switched_on() -> set[str]:
    try:
        return killswitch.switched_on()
    except OSError as error:
        _fail(f"cannot be seen: {error.strerror}; run it as root")


def _load(ruleset: str, what: str) -> None:
    problem = nft.load_now(ruleset)
    if problem is not None:
        _fail(f"cannot be put {what}: {problem}")


def _fail(problem: str) -> NoReturn:
    click.echo(f"jvpnctl: the kill switch {problem}", err=True)
    sys.exit(1)
