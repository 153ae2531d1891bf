"""Host routes and proxied neighbours by the thousand: rtnetlink messages, many in one send.

pyroute2 would take a second of the event loop for a thousand sessions. All of it blocks, for
milliseconds: call it in a thread. Layouts: linux/rtnetlink.h, linux/neighbour.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterator, Sequence
from socket import AF_INET, AF_INET6
from typing import Final

from jvpnd.net.forwardplan import Neighbour
from jvpnd.net.netlink import (
    HEADER,
    NLMSG_ERROR,
    RECV_BYTES,
    SOL_NETLINK,
    attribute,
    attributes,
    messages,
)
from jvpnd.net.ownplan import HostRoute
from jvpnd.net.routeplan import PROTOCOL
from jvpnd.net.rtnetlink import (
    CREATE,
    DELROUTE,
    GETROUTE,
    NEWROUTE,
    NUMBER,
    REPLACE,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTA_PRIORITY,
    RTMSG,
    TABLE_MAIN,
    dump,
    number,
)

_NDMSG: Final = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_CODE: Final = struct.Struct("=i")
_NEWNEIGH, _DELNEIGH, _GETNEIGH = 28, 29, 30
_REQUEST_ACK: Final = 0x1 | 0x4
_NDA_DST, _NDA_PROTOCOL = 1, 12
_NTF_PROXY: Final = 0x08
_RTN_UNICAST: Final = 1
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_NOWHERE = 0, 253, 255
_NETLINK_CAP_ACK: Final = 10
_CHUNK: Final = 64  # requests on their way; their answers fit into any receive buffer

Request = tuple[int, int, bytes]  # type, flags, body


def put(route: HostRoute, tunnel: int) -> Request:
    """Add a route, or put it in the place of the one with its network and metric."""
    scope = _SCOPE_LINK if route.via is None else _SCOPE_UNIVERSE
    return NEWROUTE, _REQUEST_ACK | CREATE | REPLACE, _route_body(route, tunnel, scope)


def drop(route: HostRoute, tunnel: int) -> Request:
    """Remove exactly this route."""
    return DELROUTE, _REQUEST_ACK, _route_body(route, tunnel, _SCOPE_NOWHERE)


def answer_for(neighbour: Neighbour, index: int) -> Request:
    """Answer for an address on the interface of this index."""
    return _NEWNEIGH, _REQUEST_ACK | CREATE | REPLACE, _neighbour_body(neighbour, index)


def leave(neighbour: Neighbour, index: int) -> Request:
    """Answer no longer."""
    return _DELNEIGH, _REQUEST_ACK, _neighbour_body(neighbour, index)


def carry_out(requests: Sequence[Request]) -> list[int]:
    """Do all of them, in order; the errno of each, 0 if it is done. Raises OSError where the kernel
    cannot be asked at all."""
    codes = [0] * len(requests)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.bind((0, 0))
        sock.setsockopt(SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        for start in range(0, len(requests), _CHUNK):
            chunk = requests[start : start + _CHUNK]
            sock.send(b"".join(_message(start + at, each) for at, each in enumerate(chunk)))
            left = len(chunk)
            while left:
                for kind, message in messages(sock.recv(RECV_BYTES)):
                    if kind == NLMSG_ERROR:
                        number = HEADER.unpack_from(message)[3]
                        codes[number] = -_CODE.unpack_from(message, HEADER.size)[0]
                        left -= 1
    return codes


def present(tunnel: int) -> Iterator[HostRoute]:
    """Routes of the main table with our protocol number: those into the tunnel, and all that lead
    by another host, whoever of us made them."""
    for family in (AF_INET, AF_INET6):
        body = RTMSG.pack(family, 0, 0, 0, TABLE_MAIN, PROTOCOL, 0, 0, 0)
        for _, message in dump(GETROUTE, body):
            fields = RTMSG.unpack_from(message, HEADER.size)
            if fields[4:6] != (TABLE_MAIN, PROTOCOL) or fields[7] != _RTN_UNICAST:
                continue
            found = attributes(message, HEADER.size + RTMSG.size)
            gateway, index = found.get(RTA_GATEWAY), number(found.get(RTA_OIF))
            if gateway is None and index != tunnel:
                continue
            network = f"{_host(family, found.get(RTA_DST))}/{fields[1]}"
            via = None if gateway is None else _host(family, gateway)
            yield HostRoute(network, via, number(found.get(RTA_PRIORITY)) or 0)


def answered() -> Iterator[Neighbour]:
    """For what this host answers, whoever made it do so."""
    names = dict(socket.if_nameindex())
    for family in (AF_INET, AF_INET6):
        body = _NDMSG.pack(family, 0, 0, _NTF_PROXY, 0)
        for _, message in dump(_GETNEIGH, body):
            _, index, _, flags, _ = _NDMSG.unpack_from(message, HEADER.size)
            address = attributes(message, HEADER.size + _NDMSG.size).get(_NDA_DST)
            if flags & _NTF_PROXY and address is not None and index in names:
                yield _host(family, address), names[index]


def remove_left(networks: Collection[str]) -> None:
    """Remove our routes to these networks that lead by other hosts."""
    left = [route for route in present(0) if route.via is not None and route.network in networks]
    carry_out([drop(route, 0) for route in left])


def _route_body(route: HostRoute, tunnel: int, scope: int) -> bytes:
    address, _, length = route.network.partition("/")
    family = AF_INET6 if ":" in address else AF_INET
    head = (family, int(length), 0, 0, TABLE_MAIN, PROTOCOL, scope, _RTN_UNICAST, 0)
    body = RTMSG.pack(*head) + attribute(RTA_DST, socket.inet_pton(family, address))
    if route.metric:
        body += attribute(RTA_PRIORITY, NUMBER.pack(route.metric))
    if route.via is None:
        return body + attribute(RTA_OIF, NUMBER.pack(tunnel))
    return body + attribute(RTA_GATEWAY, socket.inet_pton(family, route.via))


def _neighbour_body(neighbour: Neighbour, index: int) -> bytes:
    address = neighbour[0]
    family = AF_INET6 if ":" in address else AF_INET
    body = _NDMSG.pack(family, index, 0, _NTF_PROXY, 0)
    body += attribute(_NDA_DST, socket.inet_pton(family, address))
    return body + attribute(_NDA_PROTOCOL, bytes([PROTOCOL]))


def _message(number: int, request: Request) -> bytes:
    kind, flags, body = request
    return HEADER.pack(HEADER.size + len(body), kind, flags, number, 0) + body


def _host(family: int, packed: bytes | None) -> str:
    if packed is None:
        return "0.0.0.0" if family == AF_INET else "::"
    return socket.inet_ntop(family, packed)
