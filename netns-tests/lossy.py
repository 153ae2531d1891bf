"""What records that span datagrams are worth, and cost where datagrams are lost. `make lossy`.

    client eth0 --- router --- eth0 gateway

The router drops single datagrams at random: the ends send them one by one and join what arrives,
as a network card would. One TCP stream, CUBIC, with spans and without, in turn, several rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys

from bench import ping
from bench.table import aligned
from bench.tcp import Iperf
from lab.daemons import INNER, ONLY_ETH0, Pair, disabling
from lab.namespace import Namespace, ip, sweep
from lab.topology import OUTSIDE

LOSSES_PERCENT = (0.0, 0.1, 1.0, 5.0)
MODES = {"records span datagrams": "", "a record a datagram": disabling("spans")}


class LossyLink:
    """Two hosts with a router between them that loses datagrams."""

    def __init__(self, loss_percent: float) -> None:
        with contextlib.ExitStack() as building:
            self.client = building.enter_context(Namespace("client"))
            self.router = building.enter_context(Namespace("router"))
            self.gateway = building.enter_context(Namespace("gw"))
            self._connect(self.client, "lan", "192.0.2.2", "192.0.2.1")
            self._connect(self.gateway, "wan", OUTSIDE[4], "203.0.113.1")
            self.router.sysctl("net.ipv4.ip_forward", "1")
            if loss_percent:
                share = round(loss_percent * 100)
                self.router.nft(
                    "table inet lossy {\nchain forward {\ntype filter hook forward priority 0;\n"
                    f"meta l4proto udp numgen random mod 10000 < {share} drop\n}}\n}}\n"
                )
            self._stack = building.pop_all()

    def _connect(self, host: Namespace, port: str, address: str, router: str) -> None:
        ip(
            *("link", "add", "eth0", "netns", host.name),
            *("type", "veth", "peer", "name", port, "netns", self.router.name),
        )
        for end, device, own in ((host, "eth0", address), (self.router, port, router)):
            end.ip("addr", "add", f"{own}/24", "dev", device)
            end.ip("link", "set", device, "up")
            single = ("tso", "off", "gso", "off", "tx-udp-segmentation", "off")
            end.run("ethtool", "-K", device, *single, "gro", "on" if end is host else "off")
        host.ip("route", "add", "default", "via", router)

    def __enter__(self) -> LossyLink:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def gbit_per_s(loss_percent: float, debug: str, seconds: int) -> float:
    """What one TCP stream from client to gateway carries."""
    with LossyLink(loss_percent) as link:
        pair = Pair(link.client, link.gateway, 4, debug, debug, ONLY_ETH0)
        with pair:
            pair.start()
            inner = INNER["gateway"][0]
            ping.wait_until_up(link.client, inner)
            return Iperf(link.client, link.gateway, inner, seconds).wait()[0] / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(prog="lossy.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of each TCP run")
    wanted = parser.parse_args()
    found: dict[tuple[float, str], list[float]] = {}
    for number in range(wanted.rounds):
        for loss in LOSSES_PERCENT:
            for mode, debug in MODES.items():
                rate = gbit_per_s(loss, debug, wanted.seconds)
                found.setdefault((loss, mode), []).append(rate)
                print(f"round {number + 1}, {loss} % lost, {mode}: {rate:.3f} Gbit/s", flush=True)
    rows = [["datagrams lost", *(f"{mode}, Gbit/s" for mode in MODES)]]
    for loss in LOSSES_PERCENT:
        rates = [found[loss, mode] for mode in MODES]
        cells = [f"{statistics.median(r):.3f} ({min(r):.3f}-{max(r):.3f})" for r in rates]
        rows.append([f"{loss} %", *cells])
    print(f"\n{aligned(rows)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        sweep()
