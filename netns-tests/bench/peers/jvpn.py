"""Jumping VPN: the daemons of this checkout, over each transport and with each cipher suite."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from lab.daemons import INNER, ONLY_ETH0, Pair, disabling

import jvpnd
from bench.link import Link
from bench.peers.base import Peer, Tunnel
from jvpnd.core.wire import TRANSPORTS, Suite
from jvpnd.host import has_aes
from jvpnd.transport.endpoint import missing

# A suite's name in `jvpn-udp-...` and in labels; the gateway's configuration that makes it pick it.
SUITES = {
    Suite.AES_256_GCM: ("aes", "AES", ""),
    Suite.CHACHA20_POLY1305: ("chacha", "ChaCha20", disabling("aes")),
}



class Jvpn(Peer):
    family = "jvpn"

    def __init__(self, transport: str, suite: Suite, lanes: int | None = None) -> None:
        short, long, self._gateway_config = SUITES[suite]
        self._transport, self._suite, self._lanes = transport, suite, lanes
        self.name = f"jvpn-{transport}-{short}"
        self.label = f"Jumping VPN, {transport.upper()}, {long}"
        if lanes:
            self.name += f"-{lanes}lanes"
            self.label += f", {lanes} lanes"

    def version(self) -> str:
        return jvpnd.__version__

    def missing(self) -> str:
        if self._suite == Suite.AES_256_GCM and not has_aes():
            return "this CPU has no AES instructions"
        return missing(self._transport)

    @contextlib.contextmanager
    def start(self, link: Link) -> Iterator[Tunnel]:
        config = self._gateway_config
        pair = Pair(
            link.client,
            link.gateway,
            gateway_policy=config,
            routes=ONLY_ETH0,
            transports=(self._transport,),
        )
        with pair:
            if self._lanes:
                pair.client.use_lanes(self._lanes)
                pair.gateway.use_lanes(self._lanes)
            pair.start()
            self._check(pair.client.status()["session"])
            assert pair.client.process is not None
            assert pair.gateway.process is not None
            pids = (pair.client.process.pid,), (pair.gateway.process.pid,)
            yield Tunnel(INNER["gateway"][0], *pids)

    def _check(self, session: dict[str, Any]) -> None:
        """That it runs as it is called: another suite or transport would be a false figure."""
        transport, suite = session["binding"]["transport"], session["suite"]
        if (transport, suite) != (self._transport, self._suite.name):
            raise RuntimeError(f"{self.name} runs over {transport} with {suite}")


def variants() -> list[Peer]:
    """UDP with every suite and with a second lane, and the other transports."""
    found: list[Peer] = [Jvpn("udp", suite) for suite in SUITES]
    found += [Jvpn(each, Suite.AES_256_GCM) for each in TRANSPORTS if each != "udp"]
    return [*found, Jvpn("udp", Suite.AES_256_GCM, lanes=2)]
