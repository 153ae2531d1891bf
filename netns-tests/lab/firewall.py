"""Networks that let only some traffic through: nftables rules on the routers, taken away again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from lab.topology import Lab, Uplink

UDP = "meta l4proto udp drop"
NOTHING = "drop"
_TABLE = "lab_firewall"


def only_tcp(port: int) -> str:
    """Nothing but TCP to this port, and back, passes."""
    return f"tcp dport {port} accept\ntcp sport {port} accept\ndrop"


def reset(port: int) -> str:
    """TCP to this port is answered with a reset, connections that exist too."""
    return f"tcp dport {port} reject with tcp reset"


def throttle(per_s: int) -> str:
    """So many UDP datagrams a second pass, both ways together; the others are lost."""
    return f"meta l4proto udp limit rate over {per_s}/second burst {per_s // 10 or 1} packets drop"


def block(uplink: Uplink, rules: str) -> None:
    """What the router forwards has to pass these rules, in place of those before."""
    lift(uplink)
    uplink.router.nft(
        f"table inet {_TABLE} {{\nchain forward {{\n"
        f"type filter hook forward priority 0\n{rules}\n}}\n}}\n"
    )


def lift(uplink: Uplink) -> None:
    uplink.router.nft(f"table inet {_TABLE}\ndelete table inet {_TABLE}\n")


@contextlib.contextmanager
def blocked(lab: Lab, rules: str, only: Iterable[Uplink] = ()) -> Iterator[None]:
    """Rules on both routers, or only some, while inside."""
    uplinks = list(only) or [lab.a, lab.b]
    try:
        for uplink in uplinks:
            block(uplink, rules)
        yield
    finally:
        for uplink in uplinks:
            lift(uplink)
