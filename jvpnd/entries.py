"""A gateway's configuration in the words of the core."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from jvpnd.config import Client, Config
from jvpnd.configendpoint import ip_of
from jvpnd.core.nodes import Sharing
from jvpnd.core.peer import ClientEntry
from jvpnd.transport.endpoint import Listen


def entries(config: Config) -> list[ClientEntry]:
    """The clients."""
    return [_entry(client, config.interface.address) for client in config.clients]


def _entry(client: Client, own: tuple[str, ...]) -> ClientEntry:
    """A client's addresses with the prefix length of the gateway's network that they are in."""
    networks = [ipaddress.ip_interface(address).network for address in own]
    addresses = []
    for text in client.address:
        host = ipaddress.ip_interface(text).ip
        prefix = next((n.prefixlen for n in networks if host in n), host.max_prefixlen)
        addresses.append(f"{host}/{prefix}")
    return ClientEntry(
        client.name, client.public_key, tuple(addresses), client.networks, client.preshared_key
    )


def networks_behind(config: Config) -> list[str]:
    """What is behind the clients."""
    return [network for client in config.clients for network in client.networks]


def sharing(config: Config) -> Sharing:
    if config.cluster is None:
        return Sharing.ALONE
    return Sharing.STICKY if config.cluster.etcd is None else Sharing.STORE


def told_endpoints(config: Config) -> list[tuple[str, str, int]]:
    """(transport, address, port) where clients are told to reach this gateway."""
    return [(each.transport, _told(each), each.port) for each in config.listen]


def _told(listen: Listen) -> str:
    """The address that clients are told; "": the one by which they have come, as with a name."""
    return listen.advertise if ip_of(listen.advertise) is not None else ""


def inner(addresses: Sequence[str], networks: Sequence[str]) -> tuple[str, ...]:
    """What a session may send from, and is sent what is for: its addresses, without the length of
    their prefix, and its networks."""
    return (*(str(ipaddress.ip_interface(address).ip) for address in addresses), *networks)
