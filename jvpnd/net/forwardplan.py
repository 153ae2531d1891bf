"""What a gateway does with packets between its tunnel and other interfaces: pure, from settings.

One nft table holds all of it, so that it changes as a whole: translation, the wall between clients,
and the clamp of TCP's MSS. Neighbours are the clients' addresses that we answer for on a LAN.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Sequence

from jvpnd.core.dataclass import dataclass
from jvpnd.net.routeplan import fwmark_of

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Lan = tuple[str, Network]
"""An interface, and a network that it is in."""
Neighbour = tuple[str, str]
"""A client's address, and the interface on which we answer for it."""

# Of a connection that was translated at another node: nobody can go on with it, so its client is
# told at once. One of its own that has lost its place in the window is `invalid`, and left alone.
_ORPHANS = "ct state new tcp flags & (syn | rst) == 0 counter reject with tcp reset"


@dataclass(frozen=True, slots=True)
class Forwarding:
    """`proxy_neighbours`: on these interfaces; True is all of them, False and () are none.
    `cluster`: this is a node of one. Flows may have begun at another node, and it answers for the
    clients whose sessions it owns only (ownership.py)."""

    nat: bool = False
    client_to_client: bool = True
    proxy_neighbours: bool | tuple[str, ...] = False
    mss_clamp: bool = True
    cluster: bool = False

    def proxies_on(self, interface: str) -> bool:
        chosen = self.proxy_neighbours
        return chosen if isinstance(chosen, bool) else interface in chosen


def forward_table(name: str) -> str:
    """The nft table of the gateway's interface `name`."""
    return f"inet jvpn_forward_{fwmark_of(name):x}"


def without_forward_table(name: str) -> str:
    """Removes it, there or not."""
    table = forward_table(name)
    return f"add table {table}\ndelete table {table}\n"


def forward_rules(
    name: str, settings: Forwarding, own: Iterable[str], proxied: Collection[str] = ()
) -> str:
    """The nft commands that put the table in place of the one before, in one transaction.

    `own` are the tunnel's networks, which are translated; not where they leave to `proxied`
    interfaces, whose hosts know our clients by their own addresses.
    """
    translated = _translated(name, own, proxied) if settings.nat else []
    forward = _forward_chain(name, settings, translated)
    translate = _translate_chain(translated)
    if not forward and not translate:
        return without_forward_table(name)
    table = forward_table(name)
    return f"{without_forward_table(name)}table {table} {{\n{forward}{translate}}}\n"


def _translated(name: str, own: Iterable[str], proxied: Collection[str]) -> list[str]:
    """What matches the packets that are translated: where they come from and leave to."""
    kept = ", ".join(f'"{each}"' for each in (name, *sorted(proxied)))
    found = []
    for text in own:
        network = ipaddress.ip_interface(text).network
        family = "ip" if network.version == 4 else "ip6"
        found.append(f"{family} saddr {network} oifname != {{ {kept} }}")
    return found


def _forward_chain(name: str, settings: Forwarding, translated: Sequence[str]) -> str:
    rules = []
    if not settings.client_to_client:
        between = f'iifname "{name}" oifname "{name}"'
        rules.append(f"{between} counter reject with icmpx admin-prohibited")
    if settings.cluster:
        rules += [f'iifname "{name}" {each} {_ORPHANS}' for each in translated]
    if settings.mss_clamp:  # `rt mtu`: the lesser of the ways there and back; it raises nothing
        rules += [
            f'{way} "{name}" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu'
            for way in ("iifname", "oifname")
        ]
    return _chain("forward", "type filter hook forward priority mangle", rules)


def _translate_chain(translated: Sequence[str]) -> str:
    rules = [f"{each} masquerade" for each in translated]
    return _chain("postrouting", "type nat hook postrouting priority srcnat", rules)


def _chain(name: str, hook: str, rules: Sequence[str]) -> str:
    if not rules:
        return ""
    body = "".join(f"{rule}\n" for rule in rules)
    return f"chain {name} {{\n{hook}; policy accept;\n{body}}}\n"


def neighbours(
    settings: Forwarding, lans: Iterable[Lan], clients: Iterable[str]
) -> frozenset[Neighbour]:
    """For which clients' addresses we answer, and where: on each LAN that they lie in."""
    chosen = [(each, net) for each, net in lans if settings.proxies_on(each)]
    by_version: dict[int, list[Lan]] = {4: [], 6: []}
    for interface, network in chosen:
        by_version[network.version].append((interface, network))
    found = set()
    for text in clients:
        address = ipaddress.ip_address(text)
        for interface, network in by_version[address.version]:
            if address in network:
                found.add((text, interface))
    return frozenset(found)
