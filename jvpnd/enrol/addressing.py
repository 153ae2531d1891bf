"""Which inner networks and addresses to take. What is taken already comes in as an argument."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from typing import Final, TypeAlias

from jvpnd.config import is_host
from jvpnd.enrol.errors import EnrolError

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_FIRST: Final = 77  # 10.77.0.0/24, then the next ones
_MAX_TRIES: Final = 1 << 17  # more than clients can be listed


def free_networks(taken: Collection[Network], random: bytes) -> tuple[str, str]:
    """The gateway's own address in an IPv4 /24 that overlaps nothing in `taken`, and in an IPv6
    /64 with 40 random bits (RFC 4193 section 3.2); both with prefix length.

    `random`: 5 bytes. Raises EnrolError where all of 10.0.0.0/8 is taken.
    """
    prefix = ipaddress.IPv6Address(b"\xfd" + random[:5] + bytes(10))
    for number in (*range(_FIRST, 256), *range(1, _FIRST)):
        network = ipaddress.IPv4Network(f"10.{number}.0.0/24")
        if not any(network.overlaps(other) for other in taken if other.version == 4):
            return f"{network[1]}/24", f"{prefix + 1}/64"
    raise EnrolError("no 10.x.0.0/24 is free on this host: choose a network with --network")


def own_address(network: str) -> str:
    """`network` as [interface] address has it: a network stands for its first host."""
    try:
        given = ipaddress.ip_interface(network)
    except ValueError:
        raise EnrolError(f"--network {network}: is no network like 10.77.0.0/24") from None
    if given.ip == given.network.network_address and given.network.num_addresses > 2:
        return f"{given.network[1]}/{given.network.prefixlen}"
    return given.with_prefixlen


def next_addresses(own: Iterable[str], used: Collection[str]) -> list[str]:
    """An address for one more client in each of the gateway's networks, with the same host number
    in all of them. `own`: those of [interface] address; `used`: those of the clients.

    Raises EnrolError where a network is full.
    """
    interfaces = [ipaddress.ip_interface(text) for text in own]
    taken = {ipaddress.ip_address(text) for text in used} | {each.ip for each in interfaces}
    networks = [each.network for each in interfaces]
    for number in range(min(_MAX_TRIES, *(each.num_addresses for each in networks), 1 << 32)):
        found = [network.network_address + number for network in networks]
        if all(
            address not in taken and is_host(address, network)
            for address, network in zip(found, networks, strict=True)
        ):
            return [str(address) for address in found]
    full = min(networks, key=lambda each: each.num_addresses)
    raise EnrolError(f"no address is left in {full} ([interface] address)")
