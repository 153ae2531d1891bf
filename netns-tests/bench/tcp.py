"""TCP through a tunnel with iperf3: how much arrives, and what CPU time that took."""

from __future__ import annotations

import json
from dataclasses import dataclass

from lab.namespace import Namespace

from bench import processes
from bench.link import Link
from bench.peers.base import Tunnel

PORT = 5201
CONGESTION_CONTROL = "cubic"  # Linux's default, which not every host keeps
SLACK_S = 20.0  # beyond the traffic's own time, before iperf3 counts as stuck


@dataclass(frozen=True)
class Transfer:
    """One run. CPU seconds are of the product's processes, `machine` of everything there is."""

    bits_per_s: float
    bytes_received: int
    client_cpu_s: float
    gateway_cpu_s: float
    machine_cpu_s: float

    def per_gigabyte(self, cpu_s: float) -> float:
        return cpu_s / (self.bytes_received / 1e9)


class Iperf:
    """A server in the gateway for one run, and its client; `wait` gives the client's report."""

    def __init__(
        self, client: Namespace, gateway: Namespace, address: str, seconds: int, *more: str
    ) -> None:
        self._seconds = seconds
        where = ("-p", str(PORT))
        self._server = gateway.popen("iperf3", "-s", "-1", "--forceflush", "-B", address, *where)
        assert self._server.stdout is not None
        for line in self._server.stdout:
            if "listening" in line:
                break
        self._client = client.popen(
            *("iperf3", "-J", "-C", CONGESTION_CONTROL, "-c", address, *where),
            *("-t", str(seconds), *more),
        )

    def wait(self) -> tuple[float, int]:
        """(bits a second, bytes), both as the receiver counted."""
        try:
            text, _ = self._client.communicate(timeout=self._seconds + SLACK_S)
            report = json.loads(text)
            if "error" in report:
                raise RuntimeError(f"iperf3: {report['error']}")
            received = report["end"]["sum_received"]
            return float(received["bits_per_second"]), int(received["bytes"])
        finally:
            self.close()

    def close(self) -> None:
        for process in (self._client, self._server):
            if process.poll() is None:
                process.kill()
            process.wait()


def transfer(link: Link, tunnel: Tunnel, seconds: int, streams: int, down: bool) -> Transfer:
    """Client to gateway, or `down`: gateway to client."""

    def spent() -> tuple[float, float, float]:
        return (
            processes.cpu_s(tunnel.client_pids),
            processes.cpu_s(tunnel.gateway_pids),
            processes.machine_cpu_s(),
        )

    options = ["-P", str(streams), *(["-R"] if down else [])]
    before = spent()
    iperf = Iperf(link.client, link.gateway, tunnel.gateway, seconds, *options)
    bits_per_s, count = iperf.wait()
    client, gateway, machine = (b - a for a, b in zip(before, spent(), strict=True))
    return Transfer(bits_per_s, count, client, gateway, machine)
