"""Configuration files as text, with comments for whoever reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from jvpnd.configroutes import DEFAULT_NAME
from jvpnd.core.dataclass import dataclass
from jvpnd.transport.endpoint import Endpoint

KEY_FILE: Final = "private.key"
_quoted = json.dumps  # a basic string of TOML, a list of them, true and false


@dataclass(frozen=True, slots=True)
class ClusterAnswers:
    """How a gateway is a node of a cluster. `etcd`: URLs; `addresses`: where other nodes reach this
    one."""

    etcd: Sequence[str]
    addresses: Sequence[str]
    key_file: str


@dataclass(frozen=True, slots=True)
class GatewayAnswers:
    """What a new gateway has to know. `addresses`: its own inside the tunnel, with prefix length;
    `public_address`: the address or host name by which clients reach it, `is_own_address`: an
    address of this host; `nat`: whether clients go out by its address; `cluster`: None if it is
    alone."""

    node: str
    addresses: Sequence[str]
    public_address: str
    port: int
    nat: bool = True
    interface: str = DEFAULT_NAME
    key_file: str = KEY_FILE
    is_own_address: bool = False
    cluster: ClusterAnswers | None = None


@dataclass(frozen=True, slots=True)
class ClientAnswers:
    """What a client has to know. `endpoints`: each with its node's name, "" where the gateway is no
    node of a cluster; `private_key`: None where it is in `key_file`, beside; `networks`: what it
    sends into the tunnel besides the tunnel's own network; `mtu` None: the default one."""

    node: str
    gateway_key: str
    endpoints: Sequence[tuple[Endpoint, str]]
    is_full: bool = False
    networks: Sequence[str] = ()
    private_key: str | None = None
    preshared_key: str | None = None
    mtu: int | None = None
    kill_switch: bool = False
    dns_servers: Sequence[str] = ()
    dns_domains: Sequence[str] = ()
    interface: str = DEFAULT_NAME
    key_file: str = KEY_FILE


def gateway_text(answers: GatewayAnswers) -> str:
    """A whole configuration file."""
    where = f"address = {_quoted(answers.public_address)}\n"
    reached = ""
    if not answers.is_own_address:
        where = 'address = "::"                  # on every address, IPv6 and IPv4\n'
        reached = f"advertise = {_quoted(answers.public_address)}  # where clients reach it\n"
    listen = "\n".join(
        f"[[listen]]\ntransport = {_quoted(transport)}\n{where}port = {answers.port}\n{reached}"
        for transport in ("udp", "tcp")
    )
    return f"""\
# Jumping VPN gateway. Every key: docs/configuration.md, or man jvpnd.toml.
# After a change: jvpnctl reload (policy and clients), else systemctl restart jvpnd.
role = "gateway"
node = {_quoted(answers.node)}

[identity]
private_key_file = {_quoted(answers.key_file)}  # beside this file

[interface]
name = {_quoted(answers.interface)}
# The gateway's own addresses in the tunnel; clients get theirs from the same networks.
address = {_quoted(list(answers.addresses))}

# Clients use UDP, and move to TCP where UDP is blocked. Open both in the firewall.
{listen}
# For networks that let nothing but HTTPS through:
# [[listen]]
# transport = "tls"
# address = "::"
# port = 443
# advertise = {_quoted(answers.public_address)}

[forwarding]
nat = {_quoted(answers.nat)}  # whether clients reach what is beyond, by this host's own address
{_cluster_text(answers.cluster) if answers.cluster is not None else ""}
# Clients: `jvpnctl client add NAME` puts them here.
"""


def _cluster_text(answers: ClusterAnswers) -> str:
    mark = "" if answers.addresses else "# "
    addresses = _quoted(list(answers.addresses or ("192.0.2.1",)))
    return f"""
# Gateways that take over each other's sessions: the same private key, cluster key and clients.
[cluster]
store = "etcd"
endpoints = {_quoted(list(answers.etcd))}
key_file = {_quoted(answers.key_file)}  # seals what goes into etcd
{mark}address = {addresses}  # where the other nodes reach this one
"""


def client_text(answers: ClientAnswers, commented: bool = True) -> str:
    """A whole configuration file; without comments where it has to be short."""
    identity = f"private_key_file = {_quoted(answers.key_file)}  # beside this file"
    if answers.private_key is not None:
        identity = f"private_key = {_quoted(answers.private_key)}"
    gateway = [f"public_key = {_quoted(answers.gateway_key)}"]
    if answers.preshared_key is not None:
        gateway.append(f"preshared_key = {_quoted(answers.preshared_key)}")
    lines = [
        "# Jumping VPN client. Every key: docs/configuration.md, or man jvpnd.toml.",
        "# Goes to /etc/jvpn/jvpnd.toml; for its owner alone (chmod 600) where a key is in it.",
        'role = "client"',
        f"node = {_quoted(answers.node)}",
        "",
        "[identity]",
        identity,
        "",
        "[interface]",
        f"name = {_quoted(answers.interface)}",
        *([f"mtu = {answers.mtu}"] if answers.mtu is not None else []),
        "",
        "[gateway]",
        *gateway,
        "",
        "# More than one: the client moves between them.",
        *(line for each in answers.endpoints for line in _endpoint_lines(*each)),
        "[routes]",
        *_route_lines(answers),
        *_dns_lines(answers),
    ]
    if not commented:
        lines = [line.split("  #")[0] for line in lines if line and not line.startswith("#")]
    return "\n".join(lines) + "\n"


def _endpoint_lines(endpoint: Endpoint, node: str) -> list[str]:
    return [
        "[[gateway.endpoint]]",
        f"transport = {_quoted(endpoint.transport)}",
        f"address = {_quoted(endpoint.address)}",
        f"port = {endpoint.port}",
        *([f"node = {_quoted(node)}"] if node else []),
        "",
    ]


def _route_lines(answers: ClientAnswers) -> list[str]:
    switch = [f"kill_switch = {_quoted(True)}"] if answers.kill_switch else []
    if answers.is_full:
        return [
            "# Everything goes through the tunnel; with kill_switch = true nothing goes past it,",
            "# even while it is down.",
            'mode = "full"',
            *switch,
        ]
    return [
        "# The tunnel's own network and these go through it; with mode = \"full\" everything.",
        'mode = "split"',
        f"networks = {_quoted(list(answers.networks))}",
        *switch,
    ]


def _dns_lines(answers: ClientAnswers) -> list[str]:
    if not (answers.dns_servers or answers.dns_domains):
        return []
    domains = _quoted(list(answers.dns_domains))
    return [
        "",
        "# Asked through the tunnel, for names in these domains; for all names if there are none.",
        "[dns]",
        f"servers = {_quoted(list(answers.dns_servers))}",
        *([f"domains = {domains}"] if answers.dns_domains else []),
    ]


def client_block(
    name: str,
    public_key: str,
    addresses: Sequence[str],
    networks: Sequence[str] = (),
    preshared_key: str | None = None,
) -> str:
    """A client's entry in its gateway's file. `networks`: those behind it."""
    lines = [
        "[[client]]",
        f"name = {_quoted(name)}",
        f"public_key = {_quoted(public_key)}",
        f"address = {_quoted(list(addresses))}",
    ]
    if networks:
        lines.append(f"networks = {_quoted(list(networks))}")
    if preshared_key is not None:
        lines.append(f"preshared_key = {_quoted(preshared_key)}")
    return "\n".join(lines) + "\n"
