"""Everything that is measured. A new peer is a file in this folder and a line in `contenders`."""

from __future__ import annotations

import os

from bench.peers import jvpn, openvpn, plain, wireguard
from bench.peers.base import Peer


def contenders() -> list[Peer]:
    """In the order of the table: the bare cable, ours, the others from old to new."""
    peers: list[Peer] = [plain.Plain(), *jvpn.variants()]
    peers.append(wireguard.WireguardGo("wireguard-go", "wireguard-go"))
    if newer := os.environ.get("WIREGUARD_GO"):
        peers.append(wireguard.WireguardGo("wireguard-go-new", newer))
    peers.append(openvpn.OpenVpn())
    return peers


__all__ = ["Peer", "contenders"]
