"""Gathers the facts and has them judged, in the order in which a user would mend things."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jvpnd.config import Config, ConfigError, Interface, load
from jvpnd.control.client import NotRunning
from jvpnd.control.protocol import Refused
from jvpnd.doctor import cluster, gather, machine, network, service
from jvpnd.doctor.finding import Finding
from jvpnd.entries import told_endpoints
from jvpnd.net.hook import unsafe
from jvpnd.net.routeplan import PROTOCOL
from jvpnd.store.observer import READY, NodeInfo

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
        *_cluster(config, ask if state is not None else None),
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


def _cluster(config: Config | None, ask: Ask | None) -> list[Finding]:
    """`ask`: None where the daemon does not run."""
    settings = config.cluster if config is not None else None
    if config is None or settings is None or settings.etcd is None:
        return []
    from jvpnd.doctor import etcd  # needs what is an extra

    members = etcd.members(settings, config.node)
    found = cluster.members(members, settings.prefix) + cluster.clock(members)
    if settings.hook is not None:
        found.append(cluster.hook(unsafe(str(settings.hook)), str(settings.hook)))
    alive = etcd.listed(settings)
    if alive is None:
        return found
    found.append(cluster.nodes(alive, config.node))
    if ask is not None:
        return found + _running_name(config.node, ask)
    own = NodeInfo(READY, tuple(told_endpoints(config)), settings.address, 0, 0)
    return [*found, cluster.name(alive, own, config.node)]


def _running_name(node: str, ask: Ask) -> list[Finding]:
    try:
        return [cluster.running_name(str(ask("cluster")["problem"]), node)]
    except (NotRunning, Refused):  # it runs with another configuration
        return []


def _inside(config: Config | None) -> list[network.Network]:
    """What is to go through the tunnel, as far as the configuration says."""
    if config is None:
        return []
    behind = [text for each in config.clients for text in each.networks]
    return [
        *(ipaddress.ip_interface(text).network for text in config.interface.address),
        *map(ipaddress.ip_network, (*config.routes.networks, *behind)),
    ]
