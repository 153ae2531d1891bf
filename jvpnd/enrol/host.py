"""What enrolment wants to know of this host. Sends nothing."""

from __future__ import annotations

import contextlib
import ipaddress
import socket

from jvpnd.enrol.addressing import Network

_ANYWHERE = (("198.51.100.1", socket.AF_INET), ("2001:db8::1", socket.AF_INET6))


def networks_in_use() -> list[Network]:
    """Of every address and route but the default ones."""
    from pyroute2 import IPRoute  # slow to import

    found: set[Network] = set()
    with IPRoute() as ip:
        for row in ip.get_addr():
            found.add(_network(row.get_attr("IFA_ADDRESS"), row["prefixlen"]))
        for row in ip.get_routes():
            to, length = row.get_attr("RTA_DST"), row["dst_len"]
            if to is not None and length:
                found.add(_network(to, length))
    return sorted(found, key=lambda each: (each.version, each.network_address.packed))


def _network(address: str, length: int) -> Network:
    return ipaddress.ip_interface(f"{address}/{length}").network


def outward_address() -> str | None:
    """The address by which this host reaches the rest of the world, IPv4 if it has both."""
    for there, family in _ANYWHERE:
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((there, 9))  # looks a route up, and sends nothing
            return str(probe.getsockname()[0])
    return None


def is_own(address: str) -> bool:
    """Whether it is an address of this host. UDP answers then leave from it, whichever others the
    host has."""
    try:
        family, kind, _, _, to = socket.getaddrinfo(
            address, 0, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
        )[0]
        with socket.socket(family, kind) as sock:
            sock.bind(to)
    except OSError:
        return False
    return True


def is_private(address: str) -> bool:
    """Whether it is an address that the internet does not reach."""
    try:
        return ipaddress.ip_address(address).is_private
    except ValueError:
        return False
