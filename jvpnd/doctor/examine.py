"""Gathers the facts and has them judged, in the order in which a user would mend things."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jvpnd.config import Config, ConfigError, Interface, load
from jvpnd.control.client import NotRunning
from jvpnd.control.protocol import Refused
from jvpnd.doctor import gather, machine, network, service
from jvpnd.doctor.finding import Finding
from jvpnd.net.routeplan import PROTOCOL

Ask = Callable[[str], Any]


def examine(file: Path, ask: Ask) -> list[Finding]:
    """Every finding. `ask`: a command of the daemon; raises Refused or NotRunning."""
    config, problem = None, None
    try:
        config = load(file)
    except ConfigError as error:
        problem = str(error)
    state, silence = _daemon(ask)
    what = f"{config.role} {config.node}" if config is not None else ""
    return [
        service.configuration(problem, str(file), what),
        service.daemon(state, silence),
        *_machine(config),
        *_network(config),
        *_service(config, state is not None),
    ]


def _daemon(ask: Ask) -> tuple[str | None, str]:
    try:
        return str(ask("status")["state"]), ""
    except (NotRunning, Refused) as error:
        return None, str(error)


def _machine(config: Config | None) -> list[Finding]:
    return [
        machine.privileges(gather.capabilities()),
        *machine.libraries(*gather.libraries()),
        *machine.tun_device(gather.tun(), config.lanes if config is not None else 1),
        machine.udp_offloads(gather.missing_udp_offloads()),
        machine.nft(gather.nft_problem()),
        machine.clock(gather.clock()),
    ]


def _network(config: Config | None) -> list[Finding]:
    host = gather.Netlink()
    interface = config.interface if config is not None else Interface()
    own, inside = interface.name, _inside(config)
    names = {route.device for route in host.routes}
    return [
        network.uplinks(host.routes, own, config.role if config is not None else "client"),
        network.mtu(host.links, host.routes, own, interface.mtu),
        network.overlaps(inside, host.routes, own),
        network.other_vpns(host.links, host.routes, host.rules, own, PROTOCOL),
        network.reverse_path(gather.reverse_path(names), host.routes, own),
        network.ipv6(gather.ipv6_is_disabled(), inside),
    ]


def _service(config: Config | None, is_running: bool) -> list[Finding]:
    found = [service.resolver(*gather.resolver())]
    if config is None:
        return found
    if config.listen:
        refused = {} if is_running else gather.refused_ports(config.listen)
        found += service.ports(refused, is_running, len(config.listen))
    names = gather.endpoint_names(config)
    return found + service.names(gather.unresolved(names), len(names))


def _inside(config: Config | None) -> list[network.Network]:
    """What is to go through the tunnel, as far as the configuration says."""
    if config is None:
        return []
    behind = [text for each in config.clients for text in each.networks]
    return [
        *(ipaddress.ip_interface(text).network for text in config.interface.address),
        *map(ipaddress.ip_network, (*config.routes.networks, *behind)),
    ]
