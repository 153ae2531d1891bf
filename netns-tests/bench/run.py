"""One run: every contender once a round, several rounds, so that a bad minute hits everybody."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from bench import ping, processes
from bench.link import Link
from bench.peers.base import Peer, Tunnel
from bench.results import Results
from bench.tcp import Iperf, Transfer, transfer
from bench.udp import Generator

RAMP_S = 0.5  # before pings under load begin


@dataclass(frozen=True)
class Effort:
    """How much time each measurement gets."""

    rounds: int = 3
    seconds: int = 5  # of each TCP run
    trial_s: float = 1.0  # of each trial of a UDP search
    trials: int = 16
    pings: int = 300


QUICK = Effort(rounds=1, seconds=1, trial_s=0.2, trials=8, pings=50)


class Measurement:
    """One contender in one round: its tunnel is up, nothing else runs."""

    def __init__(self, link: Link, tunnel: Tunnel, generator: Generator, effort: Effort) -> None:
        self._link, self._tunnel, self._generator = link, tunnel, generator
        self._effort = effort
        self.values: dict[str, float] = {}
        self.details: dict[str, Any] = {}

    def all(self) -> None:
        ping.wait_until_up(self._link.client, self._tunnel.gateway)
        self.idle()
        for streams in (1, 4):
            for down in (False, True):
                self.tcp(streams, down)
        self.loaded()
        for size in (64, 1300):
            self.udp(size)
        self.memory()

    def idle(self) -> None:
        trips = ping.ping(self._link.client, self._tunnel.gateway, self._effort.pings)
        self._round_trips("idle", trips)

    def tcp(self, streams: int, down: bool) -> None:
        done = transfer(self._link, self._tunnel, self._effort.seconds, streams, down)
        name = f"tcp{streams}_{'down' if down else 'up'}"
        self.values[name] = done.bits_per_s / 1e9
        self.details[name] = asdict(done)
        if streams == 1 and not down:
            self._cpu(done)

    def _cpu(self, done: Transfer) -> None:
        self.values["machine_cpu"] = done.per_gigabyte(done.machine_cpu_s)
        if self._tunnel.client_pids:
            self.values["client_cpu"] = done.per_gigabyte(done.client_cpu_s)
            self.values["gateway_cpu"] = done.per_gigabyte(done.gateway_cpu_s)

    def loaded(self) -> None:
        """Echoes beside one TCP stream that lasts a little longer than they do."""
        seconds = round(self._effort.pings * ping.INTERVAL_S + 2 * RAMP_S + 0.5)
        link, address = self._link, self._tunnel.gateway
        iperf = Iperf(link.client, link.gateway, address, seconds)
        try:
            time.sleep(RAMP_S)
            trips = ping.ping(link.client, address, self._effort.pings)
            iperf.wait()
        finally:
            iperf.close()
        self._round_trips("load", trips)

    def _round_trips(self, name: str, trips: ping.RoundTrips) -> None:
        self.values[f"{name}_median"] = trips.median_ms
        self.values[f"{name}_p95"] = trips.p95_ms
        self.details[name] = asdict(trips)

    def udp(self, size: int) -> None:
        effort = self._effort
        found = self._generator.search(
            self._link, self._tunnel, size, effort.trial_s, effort.trials
        )
        self.values[f"udp{size}"] = found.rate / 1e3
        self.details[f"udp{size}"] = asdict(found)

    def memory(self) -> None:
        for end in ("client", "gateway"):
            if pids := getattr(self._tunnel, f"{end}_pids"):
                self.values[f"{end}_memory"] = processes.peak_memory_bytes(pids) / 1e6


def run(peers: list[Peer], effort: Effort, results: Results, tell: Callable[[str], None]) -> None:
    """Measure; what fails is noted in the results and does not stop the others."""
    with Generator() as generator:
        for number in range(effort.rounds):
            turn = number % len(peers)
            for peer in peers[turn:] + peers[:turn]:  # nobody is always first, or always last
                start = time.monotonic()
                problem = _one(peer, effort, generator, results)
                took = f"{time.monotonic() - start:.0f} s"
                said = problem.split("\n", 1)[0] or took
                tell(f"round {number + 1}/{effort.rounds}  {peer.label}: {said}")


def _one(peer: Peer, effort: Effort, generator: Generator, results: Results) -> str:
    with Link() as link:
        try:
            with peer.start(link) as tunnel:
                measurement = Measurement(link, tunnel, generator, effort)
                measurement.all()
                results.add(peer.name, measurement.values, measurement.details)
                return ""
        except Exception as error:  # whatever a product or a tool does is part of the result
            notes = "\n".join(getattr(error, "__notes__", ()))
            problem = f"{type(error).__name__}: {error}\n{notes}".strip()
            results.failed(peer.name, problem)
            return problem
