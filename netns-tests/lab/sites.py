"""Networks behind the two ends, each with one host.

    home (.9) --- eth1 [client] ~~~ tunnel ~~~ [gateway] eth1 --- office (.9)
    192.168.60.0/24                              192.168.50.0/24
"""

from __future__ import annotations

import contextlib
from types import TracebackType

from lab.namespace import Namespace, ip
from lab.topology import Lab

HOME, OFFICE = ("192.168.60.9", "fd60::9"), ("192.168.50.9", "fd50::9")
HOME_NETWORKS = ("192.168.60.0/24", "fd60::/64")
OFFICE_NETWORKS = ("192.168.50.0/24", "fd50::/64")
DEVICE = "eth1"  # of the client and of the gateway


def _add_host(label: str, router: Namespace, number: int) -> Namespace:
    """A host .9 behind `router`, which is .1 there."""
    host = Namespace(label)
    ip(
        *("link", "add", "eth0", "netns", host.name, "type", "veth"),
        *("peer", "name", DEVICE, "netns", router.name),
    )
    for namespace, device, last in ((router, DEVICE, 1), (host, "eth0", 9)):
        namespace.ip("addr", "add", f"192.168.{number}.{last}/24", "dev", device)
        namespace.ip("addr", "add", f"fd{number}::{last}/64", "dev", device, "nodad")
        namespace.ip("link", "set", device, "up")
    return host


class Sites:
    """Both hosts, on the lab's client and gateway; they know no way but to their own network."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.office = _add_host("office", lab.gateway, 50)
        self.home = _add_host("home", lab.client, 60)
        for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            lab.client.sysctl(key, "1")

    def route(self) -> None:
        """The routers are the hosts' default routes."""
        for host, number in ((self.office, 50), (self.home, 60)):
            host.ip("route", "add", "default", "via", f"192.168.{number}.1")
            host.ip("-6", "route", "add", "default", "via", f"fd{number}::1")

    def close(self) -> None:
        self.office.close()
        self.home.close()
        for router in (self._lab.client, self._lab.gateway):
            with contextlib.suppress(RuntimeError):
                router.ip("link", "del", DEVICE)

    def __enter__(self) -> Sites:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
