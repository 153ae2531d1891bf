"""Jumping VPN: the daemons of this checkout, over each transport and with each cipher suite."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jvpnd
from bench.link import Link
from bench.peers.base import Peer, Tunnel
from jvpnd.config import TRANSPORTS
from jvpnd.core.wire import Suite
from jvpnd.host import has_aes
from lab.daemons import INNER, Pair

# What `jvpn-udp-...` is called, and the gateway's configuration that makes it pick the suite.
SUITES = {
    Suite.AES_256_GCM: ("aes", "AES-256-GCM", ""),
    Suite.CHACHA20_POLY1305: ("chacha", "ChaCha20", '[debug]\ndisable = ["aes"]\n'),
}


class Jvpn(Peer):
    family = "jvpn"

    def __init__(self, transport: str, suite: Suite) -> None:
        short, long, self._gateway_config = SUITES[suite]
        self._suite = suite
        self.name = f"jvpn-{transport}-{short}"
        self.label = f"Jumping VPN, {transport.upper()}, {long}"

    def version(self) -> str:
        return jvpnd.__version__

    def missing(self) -> str:
        wanting = self._suite == Suite.AES_256_GCM and not has_aes()
        return "this CPU has no AES instructions" if wanting else ""

    @contextlib.contextmanager
    def start(self, link: Link) -> Iterator[Tunnel]:
        # [debug] stands behind [policy], which is the last table of the laboratory's files.
        with Pair(link.client, link.gateway, gateway_policy=self._gateway_config) as pair:
            pair.start()
            suite = pair.client.status()["session"]["suite"]
            assert suite == self._suite.name, f"{self.name} runs with {suite}"
            assert pair.client.process is not None
            assert pair.gateway.process is not None
            pids = (pair.client.process.pid,), (pair.gateway.process.pid,)
            yield Tunnel(INNER["gateway"][0], *pids)


def variants() -> list[Peer]:
    return [Jvpn(transport, suite) for transport in TRANSPORTS for suite in SUITES]
