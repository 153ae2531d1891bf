"""What is cut out of netlink messages is what pyroute2 finds in them, whatever this host says."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from jvpnd.net import links, rtnetlink
from jvpnd.net.netlink import HEADER, attributes, messages


def decoded(message: bytes) -> dict[str, object]:
    found = next(MarshalRtnl().parse(message))
    return {**found, **dict(found["attrs"])}


def test_links_are_as_pyroute2_finds_them() -> None:
    dump = [message for _, message in rtnetlink.dump(rtnetlink.GETLINK, bytes(16))]
    assert dump
    for message in dump:
        link, other = links._link(message), decoded(message)
        assert (link.index, link.name) == (other["index"], other["IFLA_IFNAME"])
        assert link.mtu == other["IFLA_MTU"]
        assert link.name == socket.if_indextoname(link.index)


def test_addresses_are_as_pyroute2_finds_them() -> None:
    for _, message in rtnetlink.dump(rtnetlink.GETADDR, bytes(8)):
        address, other = links._address(message), decoded(message)
        assert (address.index, address.family) == (other["index"], other["family"])
        assert address.local == other.get("IFA_LOCAL", other.get("IFA_ADDRESS"))
        assert (address.prefix_len, address.scope) == (other["prefixlen"], other["scope"])
        assert address.flags == other.get("IFA_FLAGS", other["flags"])


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_routes_are_as_pyroute2_finds_them(family: int) -> None:
    header = rtnetlink.RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    for _, message in rtnetlink.dump(rtnetlink.GETROUTE, header):
        other = decoded(message)
        for route in links._default_routes(message):
            assert (route.index, route.family) == (other.get("RTA_OIF"), other["family"])
            assert route.metric == other.get("RTA_PRIORITY", 0)
            assert route.gateway == other.get("RTA_GATEWAY")
            assert route.source == other.get("RTA_PREFSRC")


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def test_each_hop_of_a_route_is_one_and_dead_ones_are_none() -> None:
    hops = b""
    for index, flags, gateway in ((3, 0, "192.0.2.1"), (4, links._RTNH_F_DEAD, "192.0.2.2")):
        inner = attribute(rtnetlink.RTA_GATEWAY, socket.inet_aton(gateway))
        hops += links._RTNEXTHOP.pack(8 + len(inner), flags, 0, index) + inner
    body = rtnetlink.RTMSG.pack(socket.AF_INET, 0, 0, 0, 254, 3, 0, 1, 0)
    body += attribute(rtnetlink.RTA_PRIORITY, struct.pack("=I", 50))
    body += attribute(rtnetlink.RTA_MULTIPATH, hops)
    (route,) = links._default_routes(HEADER.pack(HEADER.size + len(body), 24, 0, 0, 0) + body)
    assert (route.index, route.gateway, route.metric) == (3, "192.0.2.1", 50)


@given(st.binary(max_size=200), st.integers(0, 40))
def test_garbage_is_cut_without_an_end_and_never_raises(data: bytes, offset: int) -> None:
    for _, message in messages(data):
        assert message
    assert all(len(value) <= len(data) for value in attributes(data, offset).values())
    list(links._hops(data))
