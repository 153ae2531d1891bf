"""jvpnctl init: the first configuration of a gateway or a client."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from jvpnd.cli.options import (
    Options,
    config_option,
    json_option,
    kill_switch_option,
    list_option,
    networks_option,
)
from jvpnd.config import load
from jvpnd.configroutes import DEFAULT_NAME
from jvpnd.core.noise import public_key
from jvpnd.enrol import addressing, files, host
from jvpnd.enrol.errors import EnrolError
from jvpnd.enrol.keys import key_text, new_key
from jvpnd.enrol.texts import (
    KEY_FILE,
    ClientAnswers,
    ClusterAnswers,
    GatewayAnswers,
    client_text,
    gateway_text,
)
from jvpnd.transport.endpoint import Endpoint

PORT = 7700
CLUSTER_KEY_FILE = "cluster.key"

_node = click.option("--node", metavar="NAME", help="This node's name (default: the host's).")
_port = click.option(
    "--port", type=click.IntRange(1, 65535), help=f"The gateway's port (default: {PORT})."
)
_interface = click.option(
    "--interface", metavar="NAME", default=DEFAULT_NAME, show_default=True, help="The TUN's name."
)
_force = click.option("--force", is_flag=True, help="Replace a configuration that is there.")


@click.group()
def init() -> None:
    """Write this node's first configuration and its private key.

    What no option says is asked for on a terminal. A private key that is there already stays.
    """


@init.command("gateway")
@_node
@click.option(
    "--public-address", metavar="HOST", help="The address or name by which clients reach it."
)
@_port
@click.option(
    "--network", "networks", metavar="CIDR", multiple=True,
    help="A network for the tunnel; several times: IPv4 and IPv6 (default: two that are free).",
)
@click.option(
    "--nat/--no-nat", default=None,
    help="Whether clients reach what is beyond the gateway, by its address (default: yes).",
)
@list_option("--cluster-etcd", "Be a node of a cluster that shares this etcd.", "URL,...")
@list_option("--cluster-address", "Where the other nodes reach this one.", "IP,...")
@click.option(
    "--cluster-key", metavar="FILE", type=click.Path(path_type=Path),
    help="The cluster key (default: cluster.key beside the configuration; made if need be).",
)
@_interface
@config_option
@_force
@json_option
@click.pass_obj
def init_gateway(
    options: Options,
    /,
    node: str | None,
    public_address: str | None,
    port: int | None,
    networks: tuple[str, ...],
    nat: bool | None,
    interface: str,
    config_file: Path,
    force: bool,
    **cluster: Any,
) -> None:
    """Make this host a gateway."""
    shared, cluster_keys = _cluster(config_file, **cluster)
    node = node or _asked("Name of this gateway", _host_name())
    if public_address is None:
        public_address = _required(
            "--public-address",
            "Address or name by which clients reach this gateway",
            host.outward_address(),
        )
    port = port or _asked("Port", PORT)
    addresses = [addressing.own_address(each) for each in networks]
    if not addresses:
        free = addressing.free_networks(host.networks_in_use(), os.urandom(5))
        text = _asked("Own addresses in the tunnel, with prefix length", " ".join(free))
        addresses = [addressing.own_address(each) for each in re.split(r"[ ,]+", text.strip())]
    if nat is None:
        nat = _asked("May clients reach the internet through it (NAT)", True, click.confirm)
    key_file = _key_file(config_file)
    is_own = host.is_own(public_address)
    answers = GatewayAnswers(
        node, addresses, public_address, port, nat, interface, key_file, is_own, shared
    )
    made = _write(config_file, gateway_text(answers), force, cluster_keys)
    notes = []
    if host.is_private(public_address):
        notes.append(
            f"{public_address} is a private address: clients elsewhere need the public one, and "
            f"the router has to forward UDP and TCP port {port}"
        )
    notes.append(f"let UDP and TCP port {port} in, if there is a firewall")
    if shared is not None:
        key = config_file.absolute().parent / shared.key_file
        notes.append(
            f"each further node gets {made['private_key_file']} and {key} before its own init, "
            f"with --node of its own and {' '.join(f'--network {each}' for each in addresses)}"
        )
    following = ["systemctl enable --now jvpnd", f"jvpnctl client add NAME{_where(config_file)}"]
    _show(options, made, notes, following)


@init.command("client")
@_node
@click.option("--gateway-key", metavar="KEY", help="The gateway's public key.")
@click.option("--gateway-address", metavar="HOST", help="The gateway's address or name.")
@_port
@click.option(
    "--full/--split", "is_full", default=None,
    help="Everything through the tunnel, or only the tunnel's own network and --networks.",
)
@networks_option
@kill_switch_option
@_interface
@config_option
@_force
@json_option
@click.pass_obj
def init_client(
    options: Options,
    node: str | None,
    gateway_key: str | None,
    gateway_address: str | None,
    port: int | None,
    is_full: bool | None,
    networks: list[str],
    kill_switch: bool,
    interface: str,
    config_file: Path,
    force: bool,
) -> None:
    """Make this host a client whose private key never leaves it.

    Simpler is `jvpnctl client add NAME` on the gateway, which makes the whole file.
    """
    node = node or _asked("Name of this client", _host_name())
    if gateway_key is None:
        gateway_key = _required("--gateway-key", "The gateway's public key", None)
    if gateway_address is None:
        gateway_address = _required("--gateway-address", "The gateway's address or name", None)
    port = port or _asked("The gateway's port", PORT)
    if is_full is None:
        question = "Everything through the tunnel"
        is_full = kill_switch or (not networks and _asked(question, False, click.confirm))
    endpoint = Endpoint("udp", gateway_address, port)
    answers = ClientAnswers(
        node,
        gateway_key,
        [(endpoint, "")],
        is_full,
        networks,
        kill_switch=kill_switch,
        interface=interface,
        key_file=_key_file(config_file),
    )
    made = _write(config_file, client_text(answers), force)
    add = f"jvpnctl client add {node} --public-key {made['public_key']}"
    _show(options, made, [], [f"{add}   (on the gateway)", "systemctl enable --now jvpnd"])


def _host_name() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname().split(".")[0])[:64] or "node"


def _asked(question: str, default: Any, ask: Callable[..., Any] = click.prompt) -> Any:
    """The answer, of the default's type; the default where there is nobody to ask."""
    if not sys.stdin.isatty():
        return default
    return ask(question, default=default, err=True)


def _required(flag: str, question: str, default: str | None) -> str:
    """What nobody can answer but the user."""
    if not sys.stdin.isatty():
        raise EnrolError(f"{flag} is missing (standard input is no terminal, nothing is asked)")
    return str(click.prompt(question, default=default, err=True))


def _cluster(
    config_file: Path,
    cluster_etcd: Sequence[str],
    cluster_address: Sequence[str],
    cluster_key: Path | None,
) -> tuple[ClusterAnswers | None, list[Path]]:
    """What was said of a cluster, and the key to be made where there is none yet."""
    if not cluster_etcd:
        if cluster_address or cluster_key is not None:
            raise click.UsageError("--cluster-address and --cluster-key go with --cluster-etcd")
        return None, []
    if cluster_key is not None:  # a new one at a mistyped place would open nothing
        return ClusterAnswers(cluster_etcd, cluster_address, str(cluster_key.absolute())), []
    usual = config_file.name == files.CONFIG_FILE.name
    name = CLUSTER_KEY_FILE if usual else f"{config_file.stem}-{CLUSTER_KEY_FILE}"
    made = config_file.absolute().parent / name
    return ClusterAnswers(cluster_etcd, cluster_address, name), [made]


def _write(
    config_file: Path, text: str, force: bool, more_keys: Sequence[Path] = ()
) -> dict[str, Any]:
    key_file = config_file.absolute().parent / _key_file(config_file)
    is_new = files.create(config_file, text, key_file, new_key, force, more_keys)
    config = load(config_file)
    return {
        "config": str(config_file),
        "private_key_file": str(key_file),
        "new_key": is_new,
        "role": config.role,
        "node": config.node,
        "addresses": list(config.interface.address),
        "public_key": key_text(public_key(config.private_key)),
    }


def _key_file(config_file: Path) -> str:
    """Each instance has its own, beside its configuration."""
    usual = config_file.name == files.CONFIG_FILE.name
    return KEY_FILE if usual else f"{config_file.stem}.key"


def _where(config_file: Path) -> str:
    """What to say besides where the file is not in its usual place."""
    return "" if config_file == files.CONFIG_FILE else f" --config {config_file}"


def _show(
    options: Options, made: dict[str, Any], notes: list[str], following: list[str]
) -> None:
    def text(_: object) -> str:
        key = "new" if made["new_key"] else "was there, and stays"
        lines = [
            f"{made['config']}: {made['role']} {made['node']}",
            f"{made['private_key_file']}: {key}",
            f"public key: {made['public_key']}",
        ]
        if made["addresses"]:
            lines.append(f"in the tunnel: {', '.join(made['addresses'])}")
        lines += [f"note: {each}" for each in notes]
        return "\n".join([*lines, "", "Next:", *(f"  {each}" for each in following)])

    options.show({**made, "notes": notes, "next": following}, text)
