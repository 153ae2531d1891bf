"""What the configuration says of forwarding: what a gateway does with packets between the tunnel
and other interfaces. docs/gateway-network.md."""

from __future__ import annotations

import re

from jvpnd.configendpoint import once
from jvpnd.configfile import Table
from jvpnd.core.policy import shown
from jvpnd.net.forwardplan import Forwarding

_KEYS = ("nat", "client_to_client", "proxy_neighbours", "mss_clamp")
_WHERE = 'true, false or interfaces like ["eth1"]'
_IFNAME = re.compile(r"[A-Za-z0-9._-]{1,15}")


def forwarding_of(top: Table, own: str) -> Forwarding:
    """The table [forwarding] of a gateway whose tunnel is `own`. Raises ConfigError."""
    table = top.table("forwarding", _KEYS)
    default = Forwarding()
    return Forwarding(
        table.flag("nat", default.nat),
        table.flag("client_to_client", default.client_to_client),
        _proxied(table, own),
        table.flag("mss_clamp", default.mss_clamp),
    )


def _proxied(table: Table, own: str) -> bool | tuple[str, ...]:
    key = "proxy_neighbours"
    names = table.flag_or_texts(key, _WHERE, False)
    if isinstance(names, bool):
        return names
    once(table, key, names)
    for name in names:
        if not _IFNAME.fullmatch(name) or name in (".", ".."):
            raise table.error(key, f"{shown(name)} is not an interface name", _WHERE)
        if name == own:
            raise table.error(key, f"{name} is the tunnel itself", "other interfaces")
    return tuple(names)
