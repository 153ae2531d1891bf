"""Two hosts on one cable, as plain as it gets:  client eth0 --- eth0 gateway.

No process of ours stands between them, and MTU and offloads are what the kernel gives a veth pair.
There is no default route: what is meant for the inside of a tunnel that is down arrives nowhere.
"""

from __future__ import annotations

import contextlib
from types import TracebackType

from lab.namespace import Namespace, ip
from lab.topology import OUTSIDE

MTU = 1500
GATEWAY, CLIENT = OUTSIDE[4], "203.0.113.2"


class Link:
    """The two hosts, ready to use."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as building:
            self.client = building.enter_context(Namespace("client"))
            self.gateway = building.enter_context(Namespace("gw"))
            ip(
                *("link", "add", "eth0", "mtu", str(MTU), "netns", self.client.name),
                *("type", "veth", "peer", "name", "eth0", "netns", self.gateway.name),
            )
            for host, address in ((self.client, CLIENT), (self.gateway, GATEWAY)):
                host.ip("addr", "add", f"{address}/24", "dev", "eth0")
                host.ip("link", "set", "eth0", "up")
            self._stack = building.pop_all()

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
