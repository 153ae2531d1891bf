"""Where a gateway can be reached: as a client calls it, and as a gateway listens there."""

from __future__ import annotations

import importlib.util

from jvpnd.core.dataclass import dataclass, field


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`address` is an IP address or, on a client, perhaps a host name. `server_name` and `alpn` are
    what TLS and QUIC show on the wire. `node`: the tag of the node of a cluster that is there."""

    transport: str
    address: str
    port: int
    server_name: str | None = None
    alpn: tuple[str, ...] = ()
    node: int = 0


@dataclass(frozen=True, slots=True)
class Listen:
    """`pem`: certificates and their key, for TLS and QUIC; None: one that is made. `advertise`: the
    address or host name by which clients reach it, "" where that is not known."""

    transport: str
    address: str
    port: int
    alpn: tuple[str, ...] = ()
    pem: bytes | None = field(default=None, repr=False)
    advertise: str = ""


def missing(transport: str) -> str:
    """What to install before `transport` works; "" if all is there."""
    if transport != "quic" or importlib.util.find_spec("aioquic") is not None:
        return ""
    return "QUIC needs aioquic, which is not installed: pip install 'jvpn[quic]'"
