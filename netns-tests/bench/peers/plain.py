"""No VPN: the cable itself. The baseline for ping, and the most the machine could do."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator

from bench.link import GATEWAY, Link
from bench.peers.base import Peer, Tunnel


class Plain(Peer):
    name = "plain"
    label = "no VPN"
    family = "plain"

    def version(self) -> str:
        return platform.release()

    @contextlib.contextmanager
    def start(self, link: Link) -> Iterator[Tunnel]:
        yield Tunnel(GATEWAY)
