"""The standard network: a client with two uplinks, a router behind each, and a gateway.

    client  up-a --- lan [router a] wan ===wire=== ga  gateway
            up-b --- lan [router b] wan ===wire=== gb

The wires are where delay, jitter, loss and silence happen, out of the client's sight.
"""

from __future__ import annotations

import contextlib
from types import TracebackType

from lab.namespace import Namespace, ip
from lab.wire import Conditions, Wire

OUTSIDE = {4: "203.0.113.7", 6: "2001:db8:7::7"}  # the gateway's address on the outside


class Uplink:
    """One of the client's ways out: its router and its wire."""

    def __init__(self, letter: str, number: int, client: Namespace, gateway: Namespace) -> None:
        self.device = f"up-{letter}"
        self.number = number
        self.client, self.gateway = client, gateway
        self.router = Namespace(f"r{letter}")
        self._gateway_device = f"g{letter}"
        self._build_lan()
        self.wire = Wire(self.router.name, "wan", gateway.name, self._gateway_device)
        self._build_wan()
        self.set_up()

    def _build_lan(self) -> None:
        ip(
            *("link", "add", self.device, "netns", self.client.name, "type", "veth"),
            *("peer", "name", "lan", "netns", self.router.name),
        )
        self.router.sysctl("net.ipv4.ip_forward", "1")
        self.router.sysctl("net.ipv6.conf.all.forwarding", "1")
        self.router.ip("addr", "add", f"10.{self.number}.0.1/24", "dev", "lan")
        self.router.ip("addr", "add", f"fd0{self.number}::1/64", "dev", "lan", "nodad")
        self.router.ip("link", "set", "lan", "up")

    def _build_wan(self) -> None:
        n, gateway, device = self.number, self.gateway, self._gateway_device
        self.router.ip("addr", "add", f"172.16.{n}.1/24", "dev", "wan")
        self.router.ip("addr", "add", f"fd1{n}::1/64", "dev", "wan", "nodad")
        self.router.ip("route", "add", "default", "via", f"172.16.{n}.2")
        self.router.ip("-6", "route", "add", "default", "via", f"fd1{n}::2")
        gateway.ip("addr", "add", f"172.16.{n}.2/24", "dev", device)
        gateway.ip("addr", "add", f"fd1{n}::2/64", "dev", device, "nodad")
        gateway.ip("route", "add", f"10.{n}.0.0/24", "via", f"172.16.{n}.1")
        gateway.ip("-6", "route", "add", f"fd0{n}::/64", "via", f"fd1{n}::1")

    def set_up(self, host: int = 2) -> None:
        """Link up, address and default route, as a DHCP client would leave them."""
        self.client.ip_batch(*self.lease(host))

    def lease(self, host: int = 2) -> list[str]:
        """The lines for `ip` (`-6` in front where it is `ip -6`) that set it up."""
        n, metric = self.number, f"dev {self.device} metric {100 * self.number}"
        return [
            f"addr replace 10.{n}.0.{host}/24 dev {self.device}",
            f"link set {self.device} up",
            f"route replace default via 10.{n}.0.1 {metric}",
            f"addr replace fd0{n}::{host}/64 dev {self.device} nodad",
            f"-6 route replace default via fd0{n}::1 {metric}",
        ]

    def set_down(self) -> None:
        """As if the cable were pulled: the client's kernel tells."""
        self.client.ip("link", "set", self.device, "down")

    def change_address(self, host: int) -> None:
        """A new lease: the old address goes, the new one and its route come."""
        flush = f"addr flush dev {self.device} scope global"
        self.client.ip_batch(flush, *self.lease(host))

    def silence(self) -> None:
        """A blackhole: nothing passes the wire, and no interface tells."""
        self.wire.set_both(Conditions(silent=True))

    def translate(self, ports: str = "20000-29999") -> None:
        """Masquerade behind the router, from these source ports."""
        self.router.nft(
            "table ip lab_nat\n"
            "delete table ip lab_nat\n"
            "table ip lab_nat {\n"
            "  chain post {\n"
            "    type nat hook postrouting priority 100;\n"
            f'    oifname "wan" meta l4proto udp masquerade to :{ports}\n'
            '    oifname "wan" masquerade\n'
            "  }\n"
            "}\n"
        )

    def rebind(self, ports: str = "40000-49999") -> None:
        """The router forgets its mappings: the same flow comes out of another port."""
        self.translate(ports)
        self.router.run("conntrack", "-F")

    def close(self) -> None:
        self.wire.close()
        self.router.close()


class Lab:
    """The whole network, ready to use; `conditions` hold on both wires, both ways."""

    def __init__(self, conditions: Conditions | None = None) -> None:
        with contextlib.ExitStack() as building:
            self.client = building.enter_context(Namespace("client"))
            self.gateway = building.enter_context(Namespace("gw"))
            for version, address in OUTSIDE.items():
                length = 32 if version == 4 else 128
                self.gateway.ip("addr", "add", f"{address}/{length}", "dev", "lo")
            self.a = Uplink("a", 1, self.client, self.gateway)
            building.callback(self.a.close)
            self.b = Uplink("b", 2, self.client, self.gateway)
            building.callback(self.b.close)
            for uplink in (self.a, self.b):
                uplink.wire.set_both(conditions or Conditions())
            self._stack = building.pop_all()

    def uplink(self, device: str) -> Uplink:
        """The uplink with this interface of the client's."""
        return next(uplink for uplink in (self.a, self.b) if uplink.device == device)

    def stranger(self) -> Namespace:
        """One more host, 192.0.2.66, on a network of its own with the gateway (192.0.2.1)."""
        host = self._stack.enter_context(Namespace("evil"))
        ip(
            *("link", "add", "eth0", "netns", host.name, "type", "veth"),
            *("peer", "name", "gx", "netns", self.gateway.name),
        )
        host.ip("addr", "add", "192.0.2.66/24", "dev", "eth0")
        host.ip("link", "set", "eth0", "up")
        self.gateway.ip("addr", "add", "192.0.2.1/24", "dev", "gx")
        self.gateway.ip("link", "set", "gx", "up")
        host.ip("route", "add", "default", "via", "192.0.2.1")
        return host

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
