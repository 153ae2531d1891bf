"""Which way the addresses of a cluster's clients take from this node: pure, from who owns what."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Verb = Literal["own", "lend", "forget"]

# Each way has its own metric, so that the new one is there before the old one goes. Both are below
# what routing daemons give (bird 32, FRR 20): this node knows first.
METRIC_OWNED: Final = 1
METRIC_LENT: Final = 2


@dataclass(frozen=True, slots=True)
class HostRoute:
    """To a network (CIDR): into the tunnel (`via` None), or by another node."""

    network: str
    via: str | None = None
    metric: int = METRIC_OWNED


@dataclass(frozen=True, slots=True)
class Holding:
    """Who has a network. `via`: LAN addresses of the node that does, of either IP version."""

    verb: Verb
    owner: str = ""
    via: tuple[str, ...] = ()

    def route_to(self, network: str) -> HostRoute | None:
        """None: no way is known."""
        if self.verb == "own":
            return HostRoute(network)
        for address in self.via:
            if (":" in address) == (":" in network):
                return HostRoute(network, address, METRIC_LENT)
        return None


NOBODY: Final = Holding("forget")


def networks_of(addresses: Iterable[str], networks: Iterable[str]) -> list[str]:
    """A client's addresses as networks of one address each, and its networks; each one once."""
    found = dict.fromkeys(map(network_of, canonical(addresses)))
    found |= dict.fromkeys(str(ipaddress.ip_network(text, strict=False)) for text in networks)
    return list(found)


def network_of(address: str) -> str:
    """The network of this one address, as the kernel writes it."""
    return f"{address}/128" if ":" in address else f"{address}/32"


def addresses_in(networks: Iterable[str]) -> list[str]:
    """Those of them that are one address."""
    return [
        address
        for network in networks
        if network_of(address := network.partition("/")[0]) == network
    ]


def canonical(addresses: Iterable[str]) -> tuple[str, ...]:
    """As the kernel writes them. Raises ValueError for what is no address."""
    return tuple(str(ipaddress.ip_address(text)) for text in addresses)


def shortened(networks: Sequence[str]) -> str:
    """For one line of a log: the first one, and how many there are besides."""
    return networks[0] + (f" and {len(networks) - 1} more" if len(networks) > 1 else "")
