"""Proxy ARP and proxy NDP for single addresses, by rtnetlink; and the LANs that this host is in."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTM_GETNEIGH
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from jvpnd.net.apply import GONE, host_families, index_of
from jvpnd.net.forwardplan import Lan, Neighbour
from jvpnd.net.routeplan import PROTOCOL

_NTF_PROXY = 0x08  # linux/neighbour.h
_SCOPE_LINK, _SCOPE_HOST = 253, 254


async def lans(ip: AsyncIPRoute, tunnel: str) -> list[Lan]:
    """The networks of all interfaces but the tunnel."""
    found = set()
    async for message in await ip.addr("dump"):
        if message["scope"] in (_SCOPE_LINK, _SCOPE_HOST):
            continue
        name = _name_of(message["index"])
        address = message.get_attr("IFA_ADDRESS")  # of a point-to-point link: the other end
        if name not in (None, tunnel):
            text = f"{address}/{message['prefixlen']}"
            found.add((name, ipaddress.ip_interface(text).network))
    return sorted(found, key=str)


async def answered(ip: AsyncIPRoute) -> set[Neighbour]:
    """For what this host answers, whoever made it do so."""
    found = set()
    for family in host_families():
        wanted = ndmsg()  # by hand: AsyncIPRoute.neigh does not pass the flag on
        wanted["family"], wanted["flags"] = family, _NTF_PROXY
        flags = NLM_F_REQUEST | NLM_F_DUMP
        async for message in await ip.nlm_request(wanted, RTM_GETNEIGH, flags):
            name, address = _name_of(message["ifindex"]), message.get_attr("NDA_DST")
            if name is not None and address is not None:
                found.add((address, name))
    return found


async def answer_for(ip: AsyncIPRoute, those: Collection[Neighbour]) -> None:
    for address, interface in sorted(those):
        await ip.neigh("add", **_request(address, interface))


async def leave(ip: AsyncIPRoute, those: Collection[Neighbour]) -> None:
    """Answer no longer; what has gone is as good as removed."""
    for address, interface in sorted(those):
        if index_of(interface) is not None:
            try:
                await ip.neigh("del", **_request(address, interface))
            except NetlinkError as error:
                if error.code not in GONE:
                    raise


def _request(address: str, interface: str) -> dict[str, Any]:
    return {
        "dst": address,
        "index": index_of(interface),
        "flags": _NTF_PROXY,
        "protocol": PROTOCOL,
    }


def _name_of(index: int) -> str | None:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return None
