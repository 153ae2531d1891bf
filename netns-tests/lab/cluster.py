"""Two nodes of a cluster and a host, on one LAN.

    node a (.1) ---+
    node b (.2) ---+--- bridge      192.168.50.0/24, fd50::/64
    host   (.9) ---+
"""

from __future__ import annotations

import contextlib
import socket
from types import TracebackType

from lab.namespace import Namespace, ip
from lab.node import LAN

NODES = {"a": ("192.168.50.1", "fd50::1"), "b": ("192.168.50.2", "fd50::2")}
HOST = ("192.168.50.9", "fd50::9")
MACS = {"a": "02:00:00:00:00:0a", "b": "02:00:00:00:00:0b"}
_ETH_P_ALL = 3


class ClusterLan:
    """The network, without anything that runs in it."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as building:
            self.switch = building.enter_context(Namespace("lan"))
            self.switch.ip("link", "add", "br0", "type", "bridge")
            self.switch.ip("link", "set", "br0", "up")
            self.nodes = {
                label: self._join(building.enter_context(Namespace(label)), LAN, addresses)
                for label, addresses in NODES.items()
            }
            self.host = self._join(building.enter_context(Namespace("host")), "eth0", HOST)
            for label, mac in MACS.items():
                self.nodes[label].ip("link", "set", LAN, "address", mac)
            for namespace in self.nodes.values():  # they answer without a random wait
                for version in ("4", "6"):
                    namespace.sysctl(f"net.ipv{version}.neigh.{LAN}.proxy_delay", "0")
            self._stack = building.pop_all()

    def _join(self, host: Namespace, device: str, addresses: tuple[str, str]) -> Namespace:
        port = f"p-{host.name.rsplit('-', 1)[-1]}"
        ip(
            *("link", "add", device, "netns", host.name, "type", "veth"),
            *("peer", "name", port, "netns", self.switch.name),
        )
        self.switch.ip("link", "set", port, "master", "br0")
        self.switch.ip("link", "set", port, "up")
        for address, length, *more in ((addresses[0], 24), (addresses[1], 64, "nodad")):
            host.ip("addr", "add", f"{address}/{length}", "dev", device, *more)
        host.ip("link", "set", device, "up")
        return host

    def listen(self) -> socket.socket:
        """Every frame that the host hears; non-blocking."""

        def make() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            sock.setsockopt(socket.SOL_SOCKET, 33, 2**23)  # SO_RCVBUFFORCE
            sock.bind(("eth0", _ETH_P_ALL))
            sock.setblocking(False)
            return sock

        return self.host.within(make)

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> ClusterLan:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def frames(sock: socket.socket) -> list[bytes]:
    """What has been heard since the last call."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(sock.recv(2048))
    return found
