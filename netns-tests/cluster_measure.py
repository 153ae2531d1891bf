"""A cluster's figures: how long traffic stops when a gateway is killed, and how quick and clean a
drain of many sessions is. `make measure-cluster`.

A 200 Hz echo to a host of the LAN over 10 ms one-way wires; three members of etcd, two gateways and
everybody's client share the machine, whose load average is told with the figures.
"""

from __future__ import annotations

import argparse
import base64
import ipaddress
import json
import os
import secrets
import selectors
import signal
import socket
import statistics
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lab.cluster import HOST
from lab.clusternet import OUTSIDE, Cluster, ClusterNet
from lab.daemons import PORTS
from lab.stage import until
from lab.traffic import Traffic
from scale import PATIENCE_S, POLICY, used

from jvpnd.core.client import ClientAgent
from jvpnd.core.effects import Send
from jvpnd.core.handshake import ClientHandshake
from jvpnd.core.nodes import node_tag
from jvpnd.core.noise import public_key
from jvpnd.core.path import PathInfo
from jvpnd.core.policy import Policy
from jvpnd.core.states import State
from jvpnd.entropy import SystemEntropy
from jvpnd.host import now_ms, wall_ms

MEMBERS = 3
RATE_HZ = 200
SETTLE_S = 3.0
WATCH_S = 1.0  # after the session is back
AGAIN_S = 1.0  # a packet that was dropped is not sent again before
UNDER_WAY = 64  # births at once
SOURCES = ipaddress.ip_address("10.100.0.1")
INNER = ipaddress.ip_address("10.64.0.16")
CALM = Policy.from_table(tomllib.loads(POLICY))
TUNNELS = {"a": "10.64.0.1/16", "b": "10.64.0.2/16"}


def killed(net: ClusterNet) -> dict[str, Any]:
    """The owner dies by kill -9: what the echo saw of it."""
    with Cluster(net) as cluster:
        cluster.start()
        with Traffic("echo", net.client, net.host, HOST[0], str(RATE_HZ)) as echo:
            time.sleep(SETTLE_S)
            session, seq = cluster.client.status()["session"]["id"], cluster.client.last_seq()
            echo.report()
            cluster.nodes[cluster.owner()].stop(signal.SIGKILL)
            cluster.client.wait_state("ATTACHED", after=seq)
            time.sleep(WATCH_S)
            reports = echo.wait_until("received", above=RATE_HZ)
            sent, received = (sum(r[what] for r in reports) for what in ("sent", "received"))
            return {
                "gap_ms": max(report["longest_gap_ms"] for report in reports),
                "sent": sent,
                "lost": sent - received,
                "survived": cluster.client.status()["session"]["id"] == session,
            }


# --- a drain of many ---


class Client:
    """An agent with a path to either node, behind one socket. It answers, and asks little."""

    def __init__(self, name: str, secret: bytes, gateway: bytes, sock: socket.socket) -> None:
        entropy = SystemEntropy()
        handshake = ClientHandshake(secret, gateway, None, entropy)
        self.agent = ClientAgent(name, handshake, CALM, entropy, wall_ms() - now_ms())
        self.socket = sock

    def add(self, label: str) -> None:
        remote = f"{OUTSIDE[label]}:{PORTS['udp']}"
        info = PathInfo(label, "udp", "up", "-", remote, node_tag(label))
        self.agent.path_added(now_ms(), info)
        self.again()

    def heard(self) -> None:
        try:
            packet, remote = self.socket.recvfrom(4096)
        except BlockingIOError:
            return
        path = next(label for label, address in OUTSIDE.items() if address == remote[0])
        self.agent.packet_received(now_ms(), path, packet)
        self._settle()

    def again(self) -> None:
        self.agent.timer(now_ms())
        self._settle()

    def _settle(self) -> None:
        for effect in self.agent.drain():
            if isinstance(effect, Send):
                try:
                    self.socket.sendto(effect.data, (OUTSIDE[str(effect.to)], PORTS["udp"]))
                except BlockingIOError:
                    return

    def is_at(self, label: str) -> bool:
        session, bound = self.agent.session, self.agent.bound
        return (
            session is not None
            and session.state is State.ATTACHED
            and bound is not None
            and bound.id == label
        )

    def hears(self, label: str) -> bool:
        path = self.agent.paths.get(label)
        return path is not None and path.heard_ms is not None


class Crowd:
    """Many clients, driven by one loop."""

    def __init__(self, net: ClusterNet, gateway: bytes, keys: list[bytes]) -> None:
        addresses = [str(SOURCES + number) for number in range(len(keys))]
        net.net.ip_batch(*(f"addr add {address}/32 dev lo" for address in addresses))
        sockets = net.net.within(lambda: [_bound(address) for address in addresses])
        self.clients = [
            Client(f"c{n}", key, gateway, sock)
            for n, (key, sock) in enumerate(zip(keys, sockets, strict=True))
        ]
        self._waiting = selectors.EpollSelector()
        for number, client in enumerate(self.clients):
            self._waiting.register(client.socket, selectors.EVENT_READ, number)

    def run(
        self, is_done: Callable[[Client], bool], begin: Callable[[Client], None] | None = None
    ) -> float:
        """Until it is done with every client; the seconds taken. `begin`: each of them, some at a
        time."""
        began = idle = time.monotonic()
        missing = set(range(len(self.clients)))
        unbegun = sorted(missing, reverse=True) if begin is not None else []
        while missing:
            while begin is not None and unbegun and len(missing) - len(unbegun) < UNDER_WAY:
                begin(self.clients[unbegun.pop()])
            now = time.monotonic()
            for key, _ in self._waiting.select(0.05):
                self.clients[key.data].heard()
                if key.data in missing and is_done(self.clients[key.data]):
                    missing.discard(key.data)
                    idle = now
            if now - idle > AGAIN_S:
                for number in missing.difference(unbegun):
                    self.clients[number].again()
                idle = now
            if now - began > PATIENCE_S:
                raise SystemExit(f"{len(missing)} clients are still missing")
        return time.monotonic() - began

    def close(self) -> None:
        self._waiting.close()
        for client in self.clients:
            client.socket.close()


def _bound(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 0))
    sock.setblocking(False)
    return sock


def drained(net: ClusterNet, count: int) -> dict[str, Any]:
    """`count` sessions of node a, one of which is a real client's with the echo, go to node b."""
    keys = [secrets.token_bytes(32) for _ in range(count - 1)]
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(net, gateway_policy=POLICY))
        _list(cluster, keys)
        cluster.start_nodes()
        gateway = public_key(base64.b64decode(cluster.secret))
        crowd = Crowd(net, gateway, keys)
        stack.callback(crowd.close)
        births_s = crowd.run(lambda client: client.is_at("a"), lambda client: client.add("a"))
        crowd.run(lambda client: client.hears("b"), lambda client: client.add("b"))
        cluster.client.start()
        cluster.client.wait_state("ATTACHED")
        cluster.take("a")
        nodes = cluster.nodes
        until(lambda: len(nodes["a"].ask("sessions")) == count, "a has them all")
        echo = stack.enter_context(Traffic("echo", net.client, net.host, HOST[0], str(RATE_HZ)))
        time.sleep(SETTLE_S)
        echo.report()
        before = {label: used(node)["cpu_s"] for label, node in nodes.items()}
        began = time.monotonic()
        assert nodes["a"].ctl("drain", "--timeout", "0").returncode == 0
        crowd.run(lambda client: client.is_at("b"))
        until(lambda: nodes["a"].ask("cluster")["sessions"] == 0, "a has none", timeout_s=60)
        taken_s = time.monotonic() - began
        after = {label: used(node)["cpu_s"] for label, node in nodes.items()}
        time.sleep(WATCH_S)
        reports = echo.wait_until("received", above=RATE_HZ)
        sent, received = (sum(r[what] for r in reports) for what in ("sent", "received"))
        return {
            "sessions": count,
            "births_a_s": round(len(keys) / births_s),
            "drain_s": round(taken_s, 2),
            "moves_a_s": round(count / taken_s),
            "cpu_s": {label: round(after[label] - before[label], 2) for label in after},
            "kept": len(nodes["b"].ask("sessions")),
            "echo": {
                "sent": sent,
                "lost": sent - received,
                "longest_gap_ms": max(report["longest_gap_ms"] for report in reports),
            },
        }


def _list(cluster: Cluster, keys: list[bytes]) -> None:
    """Both nodes know these clients, too."""
    clients = "".join(
        f'[[client]]\nname = "c{n}"\naddress = ["{INNER + n}"]\n'
        f'public_key = "{base64.b64encode(public_key(key)).decode()}"\n'
        for n, key in enumerate(keys)
    )
    for label, node in cluster.nodes.items():
        text = node.config_file.read_text().replace("[forwarding]\n", f"{clients}[forwarding]\n")
        text = text.replace('\naddress = ["', f'\naddress = ["{TUNNELS[label]}", "', 1)
        node.config_file.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of a gateway killed; 0: none")
    parser.add_argument("--sessions", type=int, default=1000, help="to drain; 0: no drain")
    options = parser.parse_args()
    found: dict[str, Any] = {"load": os.getloadavg()[0]}
    with (
        tempfile.TemporaryDirectory() as folder,
        ClusterNet(Path(folder), members=MEMBERS) as net,
    ):
        runs = [killed(net) for _ in range(options.runs)]
        if runs:
            gaps_ms = sorted(run["gap_ms"] for run in runs)
            found["killed"] = {"median_ms": statistics.median(gaps_ms), "runs": runs}
        if options.sessions:
            found["drained"] = drained(net, options.sessions)
    print(json.dumps(found, indent=2))
    good = all(run["survived"] for run in runs)
    if options.sessions:
        good &= found["drained"]["kept"] == options.sessions
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
