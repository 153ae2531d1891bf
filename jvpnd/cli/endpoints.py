"""Where a client reaches its gateway: this one, and the other nodes of its cluster."""

from __future__ import annotations

from typing import Any

from jvpnd.cli.options import Options
from jvpnd.config import Config
from jvpnd.control.client import NotRunning
from jvpnd.control.protocol import Refused
from jvpnd.enrol.errors import EnrolError
from jvpnd.transport.endpoint import Endpoint

Named = tuple[Endpoint, str]
"""With the name of its node, "" at a gateway that is alone."""


def client_endpoints(
    options: Options, config: Config, host: str | None
) -> tuple[list[Named], list[str]]:
    """The endpoints, and what should be said of them. `host`: takes the place of this gateway's
    own address. Raises EnrolError where this gateway has none."""
    own = _own(config, host)
    if config.cluster is None or config.cluster.etcd is None:
        return own, []
    try:
        answer = options.ask("cluster")
    except (NotRunning, Refused) as error:
        return own, [f"{error}: of the cluster only {config.node} is in the file"]
    if answer["node"] != config.node:
        return own, [f"{answer['node']} is what runs: only {config.node} is in the file"]
    others, notes = list[Named](), list[str]()
    for node in answer["nodes"]:
        if node["is_self"]:
            continue
        its = _told(node)
        if not its:
            problem = "tells no address at which clients reach it ([[listen]] advertise)"
            notes.append(f"{node['name']} {problem}: it is not in the file")
        others += its
    taken = {endpoint for endpoint, _ in own}
    return [*own, *(each for each in others if each[0] not in taken)], notes


def _own(config: Config, host: str | None) -> list[Named]:
    node = "" if config.cluster is None else config.node
    found = [
        (Endpoint(each.transport, host or each.advertise, each.port), node)
        for each in config.listen
        if host or each.advertise
    ]
    if not found:
        raise EnrolError(
            "listen[1].advertise is missing: where do clients reach this gateway? "
            "(or say it with --endpoint)"
        )
    return found


def _told(node: dict[str, Any]) -> list[Named]:
    """What another node says of itself, as `udp 192.0.2.1:7700`; `*`: an address it cannot know."""
    found = []
    for text in node["endpoints"]:
        transport, where = text.split(" ", 1)
        address, port = where.rsplit(":", 1)
        if address != "*":
            found.append((Endpoint(transport, address.strip("[]"), int(port)), node["name"]))
    return found
