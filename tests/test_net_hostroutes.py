"""Our netlink messages say to pyroute2 what they are meant to say."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from jvpnd.net.hostroutes import Request, answer_for, drop, leave, put
from jvpnd.net.netlink import HEADER
from jvpnd.net.ownplan import METRIC_LENT, HostRoute

INTO_TUNNEL = HostRoute("10.77.0.2/32")
BY_NODE = HostRoute("fd60::/64", "fd50::2", METRIC_LENT)


def decoded(request: Request, kind: Any) -> dict[str, Any]:
    _, flags, body = request
    message = kind(HEADER.pack(HEADER.size + len(body), request[0], flags, 1, 0) + body)
    message.decode()
    return {**message, **dict(message["attrs"])}


@pytest.mark.parametrize(
    ("route", "family", "way"),
    [
        (INTO_TUNNEL, socket.AF_INET, {"RTA_DST": "10.77.0.2", "RTA_OIF": 7, "RTA_PRIORITY": 1}),
        (
            BY_NODE,
            socket.AF_INET6,
            {"RTA_DST": "fd60::", "RTA_GATEWAY": "fd50::2", "RTA_PRIORITY": 2},
        ),
    ],
)
def test_a_route_is_put_and_dropped_by_all_that_it_is(
    route: HostRoute, family: int, way: dict[str, object]
) -> None:
    for request, kind, flags in ((put(route, 7), 24, 0x505), (drop(route, 7), 25, 0x5)):
        assert request[:2] == (kind, flags)
        found = decoded(request, rtmsg)
        assert (found["family"], found["table"], found["proto"]) == (family, 254, 106)
        assert found["dst_len"] == int(route.network.split("/")[1])
        assert {key: found[key] for key in found if key.startswith("RTA_")} == way


@pytest.mark.parametrize("address", ["192.168.50.202", "fd50::c:2"])
def test_a_neighbour_is_a_proxy_of_ours(address: str) -> None:
    neighbour = (address, "eth1")
    for request, kind in ((answer_for(neighbour, 3), 28), (leave(neighbour, 3), 29)):
        assert request[0] == kind
        found = decoded(request, ndmsg)
        assert (found["ifindex"], found["flags"]) == (3, 0x08)
        assert (found["NDA_DST"], found["NDA_PROTOCOL"]) == (address, 106)
