"""Paths that do not carry every packet: with routers that say so, and with one that does not."""

from __future__ import annotations

from lab.firewall import block, lift
from lab.topology import OUTSIDE, Uplink


def tell(uplink: Uplink, mtu: int) -> None:
    """The router's ways, both, have this MTU, and it answers what is longer by ICMP."""
    n, router = uplink.number, uplink.router
    for version, address in OUTSIDE.items():
        wan = ("via", f"172.16.{n}.2" if version == 4 else f"fd1{n}::2")
        lan = f"10.{n}.0.0/24" if version == 4 else f"fd0{n}::/64"
        of = ("-6",) if version == 6 else ()
        router.ip(*of, "route", "replace", address, *wan, "mtu", "lock", str(mtu))
        router.ip(*of, "route", "replace", lan, "dev", "lan", "mtu", "lock", str(mtu))


def swallow(uplink: Uplink, mtu: int) -> None:
    """What is longer vanishes on the router, both ways, without a word.

    Datagrams that the client's kernel has not cut yet would look too long here.
    """
    off = ("tx-udp-segmentation", "off", "gso", "off")
    uplink.client.run("ethtool", "-K", uplink.device, *off)
    block(uplink, f"meta length > {mtu} drop")


def widen(uplink: Uplink) -> None:
    """All is as it was, and no kernel remembers."""
    tell(uplink, 1500)
    lift(uplink)
    for host in (uplink.client, uplink.gateway):
        for of in ((), ("-6",)):
            host.ip(*of, "route", "flush", "cache")
