"""jvpnctl client: a gateway's list of clients, changed while the gateway runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from jvpnd.cli import qr
from jvpnd.cli.endpoints import client_endpoints
from jvpnd.cli.options import (
    Options,
    config_option,
    is_open_to_others,
    json_option,
    kill_switch_option,
    list_option,
    networks_option,
)
from jvpnd.cli.reload import ask_to_reload
from jvpnd.cli.text import NONE, clean, table
from jvpnd.config import Client, Config, Interface, load
from jvpnd.control.client import NotRunning
from jvpnd.core.dataclass import dataclass, field
from jvpnd.core.noise import public_key as public_of
from jvpnd.core.policy import shown
from jvpnd.enrol import files, listfile
from jvpnd.enrol.addressing import next_addresses
from jvpnd.enrol.errors import EnrolError
from jvpnd.enrol.keys import key_text, new_key, public_text
from jvpnd.enrol.texts import ClientAnswers, client_block, client_text


@click.group()
def client() -> None:
    """A gateway's clients. What is changed is in force at once, without a restart."""


@dataclass(slots=True)
class _Handout:
    """How the client's own file is to be, and where it goes."""

    is_full: bool
    networks: list[str]
    kill_switch: bool
    dns: list[str]
    dns_domains: list[str]
    endpoint: str | None
    output: Path | None
    as_qr: bool
    warnings: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        """Before anything is changed: what cannot be done is said now."""
        if self.as_qr:
            qr.require()
        if self.output is not None and self.output.exists():
            raise EnrolError(f"{self.output}: is there already (allowed: a new file)")


def _handout(function: Any) -> Any:
    """The options of what makes a client's file."""
    for option in reversed((
        click.option("--full", "is_full", is_flag=True, help="The client sends everything."),
        networks_option,
        kill_switch_option,
        list_option("--dns", "Name servers that the client asks through the tunnel.", "IP,..."),
        list_option(
            "--dns-domains", "Only for names in these domains (default: all).", "DOMAIN,..."
        ),
        click.option(
            "--endpoint", metavar="HOST",
            help="Where this client reaches this gateway (default: what [[listen]] advertises).",
        ),
        click.option(
            "--output", "-o", metavar="FILE", type=click.Path(path_type=Path),
            help="Write the client's file to the new FILE, not to standard output.",
        ),
        click.option("--qr", "as_qr", is_flag=True, help="Draw the client's file as a QR code."),
    )):
        function = option(function)
    return function


@client.command("add")
@click.argument("name")
@click.option(
    "--public-key", metavar="KEY", help="The client made its keys itself, and this one is public."
)
@click.option(
    "--address", "addresses", metavar="IP", multiple=True,
    help="An address in the tunnel; several times: IPv4 and IPv6 (default: the next free ones).",
)
@list_option("--behind", "Networks behind this client, routed to it (site to site).")
@click.option("--psk", is_flag=True, help="Have a pre-shared key besides.")
@_handout
@config_option
@json_option
@click.pass_obj
def client_add(
    options: Options,
    /,
    name: str,
    public_key: str | None,
    addresses: tuple[str, ...],
    behind: list[str],
    psk: bool,
    config_file: Path,
    **handout: Any,
) -> None:
    """Add a client: new keys, the next free addresses, and its whole configuration file.

    The file holds the client's private key, which is kept nowhere else: take it to the client, as
    /etc/jvpn/jvpnd.toml, on a way that nobody else reads.
    """
    out = _Handout(**handout)
    out.prepare()
    private = None if public_key is not None else new_key()
    known = public_key if private is None else public_text(private)
    assert known is not None
    shared = new_key() if psk else None
    taken: list[str] = list(addresses)
    told: list[str] = []

    def change(text: str, config: Config) -> str:
        _require_gateway(config)
        if any(each.name == name for each in config.clients):
            raise EnrolError(f"client {shown(name)} is there already (jvpnctl client rotate)")
        if not taken:
            used = [address for each in config.clients for address in each.address]
            taken.extend(next_addresses(config.interface.address, used))
        told.extend(_texts(options, config, out, name, private, shared))
        return listfile.with_block(text, client_block(name, known, taken, behind, shared))

    files.edit(config_file, change)
    answer = {"name": name, "public_key": known, "addresses": taken}
    _hand_out(options, out, answer, told, config_file)


@client.command("rotate")
@click.argument("name")
@_handout
@config_option
@json_option
@click.pass_obj
def client_rotate(options: Options, /, name: str, config_file: Path, **handout: Any) -> None:
    """Give a client new keys: its old ones are worth nothing any more, and its session ends.

    Its addresses stay. The new file goes to the client as that of `client add` did.
    """
    out = _Handout(**handout)
    out.prepare()
    private = new_key()
    told: list[str] = []
    answer: dict[str, Any] = {"name": name, "public_key": public_text(private)}

    def change(text: str, config: Config) -> str:
        number, listed = _listed(config, name)
        shared = None if listed.preshared_key is None else key_text(listed.preshared_key)
        values = {"public_key": public_text(private)}
        if shared is not None and shared in text:  # it stands in the file, and is changed too
            shared = values["preshared_key"] = new_key()
        answer["addresses"] = list(listed.address)
        told.extend(_texts(options, config, out, name, private, shared))
        return listfile.with_values(text, number, values)

    files.edit(config_file, change)
    _hand_out(options, out, answer, told, config_file)


@client.command("remove")
@click.argument("name")
@config_option
@json_option
@click.pass_obj
def client_remove(options: Options, name: str, config_file: Path) -> None:
    """Remove a client. Its session ends at once, and it gets no other."""

    def change(text: str, config: Config) -> str:
        return listfile.without(text, _listed(config, name)[0])

    files.edit(config_file, change)
    note = _in_force(options, config_file)
    options.show({"name": name, "note": note}, lambda _: f"{clean(name)}: removed; {note}")


@client.command("list")
@config_option
@json_option
@click.pass_obj
def client_list(options: Options, config_file: Path) -> None:
    """The clients, and what their sessions do where the gateway runs."""
    config = load(config_file)
    _require_gateway(config)
    try:
        rows = options.ask("sessions")
    except NotRunning:
        rows = None
    states = {row["client"]: row["state"] for row in rows or ()}
    told = [
        {
            "name": each.name,
            "addresses": list(each.address),
            "networks": list(each.networks),
            "public_key": key_text(each.public_key),
            "connected": None if rows is None else each.name in states,
            "state": states.get(each.name),
        }
        for each in config.clients
    ]
    options.show(told, lambda _: _listing(told, rows is not None))


def _listing(rows: Sequence[dict[str, Any]], is_running: bool) -> str:
    header = ["CLIENT", "ADDRESSES", "NETWORKS", "SESSION"]
    cells = [
        (
            row["name"],
            " ".join(row["addresses"]),
            " ".join(row["networks"]) or NONE,
            (row["state"] or NONE) if is_running else "?",
        )
        for row in rows
    ]
    if not cells:
        return "no clients: jvpnctl client add NAME"
    end = "" if is_running else "\n? the daemon is not running"
    return table(header, cells) + end


def _require_gateway(config: Config) -> None:
    if config.role != "gateway":
        raise EnrolError(f"{config.node} is a client: clients are listed on their gateway")


def _listed(config: Config, name: str) -> tuple[int, Client]:
    _require_gateway(config)
    for number, each in enumerate(config.clients):
        if each.name == name:
            return number, each
    known = ", ".join(each.name for each in config.clients[:20])
    raise EnrolError(f"no client {shown(name)} (allowed: {known or 'there is none'})")


def _texts(
    options: Options,
    config: Config,
    out: _Handout,
    name: str,
    private: str | None,
    shared: str | None,
) -> list[str]:
    """The client's file, and the same without comments."""
    if out.is_full and out.networks:
        raise EnrolError("--full leaves nothing for --networks: give one of them")
    endpoints, out.warnings = client_endpoints(options, config, out.endpoint)
    mtu = config.interface.mtu
    answers = ClientAnswers(
        name,
        key_text(public_of(config.private_key)),
        endpoints,
        out.is_full,
        out.networks,
        private,
        shared,
        None if mtu == Interface().mtu else mtu,
        out.kill_switch,
        out.dns,
        out.dns_domains,
    )
    keyed = replace(answers, private_key=private or new_key())  # to see that all else is right
    files.check(client_text(keyed), f"the file of {name}")
    return [client_text(answers), client_text(answers, commented=False)]


def _hand_out(
    options: Options, out: _Handout, answer: dict[str, Any], texts: list[str], config_file: Path
) -> None:
    """First the client's file, which is nowhere else; then have the gateway go by the list."""
    text, short = texts
    if out.output is not None:
        files.create_secret(out.output, text)
    if options.as_json:
        if out.output is None:
            answer["configuration"] = text
    elif out.as_qr:
        qr.draw(short, sys.stdout)
    elif out.output is None:
        _warn_of_readers()
        click.echo(text, nl=False)
    sys.stdout.flush()
    answer["note"] = _in_force(options, config_file)
    for each in out.warnings:
        click.echo(f"jvpnctl: warning: {clean(each)}", err=True)
    if options.as_json:
        options.show(answer, str)
        return
    where = out.output or "the above"
    click.echo(
        f"{clean(answer['name'])}: {', '.join(answer['addresses'])}; {answer['note']}\n"
        f"Next, on the client: {where} to /etc/jvpn/jvpnd.toml (mode 600), then "
        "systemctl enable --now jvpnd",
        err=True,
    )


def _warn_of_readers() -> None:
    if is_open_to_others(sys.stdout):
        click.echo("jvpnctl: warning: others may read this file; use umask 077", err=True)


def _in_force(options: Options, config_file: Path) -> str:
    """Have the running gateway read its list again; says what came of it."""
    try:
        answer = ask_to_reload(options)
    except NotRunning:
        return "the daemon is not running, and will know when it starts"
    if not os.path.exists(answer["file"]) or not os.path.samefile(answer["file"], config_file):
        return f"but the running daemon reads {clean(answer['file'])}, not {config_file}"
    rest = answer["needs_restart"]
    return "in force" + (f" (other changes need a restart: {', '.join(rest)})" if rest else "")
