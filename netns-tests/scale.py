"""Ten thousand clients of one gateway: births, memory, and all back after kill -9. `make scale`.

A real daemon in a namespace of its own. The clients are agents of the core behind real sockets,
each with a loopback address, in this process. They answer, and ask nothing by themselves.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import ipaddress
import json
import os
import resource
import secrets
import selectors
import signal
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lab.daemons import Daemon
from lab.namespace import Namespace
from lab.stage import until

from jvpnd.core.client import ClientAgent
from jvpnd.core.effects import Send
from jvpnd.core.handshake import ClientHandshake
from jvpnd.core.noise import public_key
from jvpnd.core.path import PathInfo
from jvpnd.core.policy import Policy
from jvpnd.core.states import State
from jvpnd.entropy import SystemEntropy
from jvpnd.host import now_ms, wall_ms

GATEWAY = ("127.0.0.1", 7700)
UNDER_WAY = 64  # births at once
PATIENCE_S = 180.0
AGAIN_S = 1.0  # a packet that was dropped is not sent again before
_NET = 0x40000000  # CLONE_NEWNET
# Nobody asks by himself here, so nobody must be missed.
POLICY = """
heartbeat_idle_ms = 30000
volatile_after_ms = 60000
volatile_to_degraded_ms = 60000
max_recovery_window_ms = 600000
transport_loss_ttl_ms = 3600000
"""


class Client:
    """An agent behind a socket."""

    def __init__(self, number: int, secret: bytes, gateway_public: bytes) -> None:
        entropy = SystemEntropy()
        handshake = ClientHandshake(secret, gateway_public, None, entropy)
        wall_at_zero = wall_ms() - now_ms()
        self.agent = ClientAgent(str(number), handshake, Policy(), entropy, wall_at_zero)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((str(ipaddress.ip_address("127.1.0.0") + number), 0))
        self.socket.connect(GATEWAY)
        self.socket.setblocking(False)

    def begin(self) -> None:
        self.agent.path_added(now_ms(), PathInfo("p", "udp", "p", "-", "-"))
        self.settle()

    def heard(self) -> None:
        try:
            packet = self.socket.recv(4096)
        except (BlockingIOError, ConnectionRefusedError):
            return
        self.agent.packet_received(now_ms(), "p", packet)
        self.settle()

    def again(self) -> None:
        self.agent.timer(now_ms())
        self.settle()

    def settle(self) -> None:
        for effect in self.agent.drain():
            if isinstance(effect, Send):
                try:
                    self.socket.send(effect.data)
                except (BlockingIOError, ConnectionRefusedError):
                    return

    @property
    def session_id(self) -> str | None:
        session = self.agent.session
        return session.id.hex() if session is not None and session.id is not None else None

    def is_attached(self, epoch: int) -> bool:
        session = self.agent.session
        return (
            session is not None and session.state is State.ATTACHED and session.epoch >= epoch
        )


def gateway_config(publics: list[bytes]) -> str:
    first = ipaddress.ip_address("10.64.0.2")
    clients = "".join(
        f'[[client]]\nname = "c{n}"\npublic_key = "{base64.b64encode(public).decode()}"\n'
        f'address = ["{first + n}"]\n'
        for n, public in enumerate(publics)
    )
    return (
        'role = "gateway"\nnode = "gw1"\nlanes = 1\n'
        '[interface]\nname = "jvpn0"\naddress = ["10.64.0.1/10"]\n'
        '[identity]\nprivate_key_file = "private.key"\n'
        f'[[listen]]\ntransport = "udp"\naddress = "{GATEWAY[0]}"\nport = {GATEWAY[1]}\n'
        f"{clients}[policy]\n{POLICY}"
    )


def enter(namespace: Namespace) -> None:
    """Sockets are made there from now on."""
    with open(f"/run/netns/{namespace.name}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _NET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


def used(daemon: Daemon) -> dict[str, float]:
    """Memory in KiB and CPU seconds of the control process."""
    assert daemon.process is not None
    proc = Path(f"/proc/{daemon.process.pid}")
    rows = dict(line.split(":", 1) for line in (proc / "smaps_rollup").read_text().splitlines()[1:])
    ticks = (proc / "stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return {
        "kib": float(rows["Private_Dirty"].split()[0]),
        "cpu_s": sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"),
    }


def until_attached(
    clients: list[Client], waiting: selectors.BaseSelector, epoch: int, starts: bool
) -> float:
    """Run the clients until each is attached under this epoch or a later one; the seconds taken.

    `starts`: begin each, some at a time; else the gateway does.
    """
    began, missing, idle = time.monotonic(), set(range(len(clients))), time.monotonic()
    unborn = list(reversed(range(len(clients)))) if starts else []
    while missing:
        while unborn and len(missing) - len(unborn) < UNDER_WAY:
            clients[unborn.pop()].begin()
        ready = waiting.select(0.1)
        now = time.monotonic()
        for key, _ in ready:
            client = clients[key.data]
            client.heard()
            if key.data in missing and client.is_attached(epoch):
                missing.discard(key.data)
                idle = now
        if now - idle > AGAIN_S and len(missing) > len(unborn):
            for number in list(missing - set(unborn))[:UNDER_WAY]:
                clients[number].again()
            idle = now
        if now - began > PATIENCE_S:
            raise SystemExit(f"{len(missing)} clients are not attached")
    return time.monotonic() - began


def unknown(gateway: Daemon, clients: list[Client]) -> list[Client]:
    """Those whose first packet of the session was lost: they say it again."""
    known = {row["id"] for row in gateway.ask("sessions")}
    missing = [client for client in clients if client.session_id not in known]
    for client in missing:
        client.heard()
        client.again()
    return missing


def scale(count: int) -> dict[str, Any]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 1000), max(hard, count + 1000)))
    secret = secrets.token_bytes(32)
    keys = [secrets.token_bytes(32) for _ in range(count)]
    with ExitStack() as stack:
        namespace = stack.enter_context(Namespace("scale"))
        config = gateway_config([public_key(key) for key in keys])
        gateway = Daemon(namespace, config, base64.b64encode(secret).decode())
        stack.callback(gateway.close)
        gateway.start(timeout_s=PATIENCE_S)
        enter(namespace)
        clients = [Client(n, key, public_key(secret)) for n, key in enumerate(keys)]
        waiting = stack.enter_context(selectors.EpollSelector())
        for number, client in enumerate(clients):
            waiting.register(client.socket, selectors.EVENT_READ, number)
        before = used(gateway)
        births_s = until_attached(clients, waiting, 1, starts=True)
        after = used(gateway)
        until(lambda: not unknown(gateway, clients), "the gateway has them all")
        gateway.stop(signal.SIGKILL)
        killed = time.monotonic()
        gateway.start(timeout_s=PATIENCE_S)
        started_s = time.monotonic() - killed
        storm_s = until_attached(clients, waiting, 2, starts=False)
        stormed = used(gateway)
        kept = len(gateway.ask("sessions"))
        return {
            "sessions": count,
            "births_s": round(births_s, 2),
            "births_a_s": round(count / births_s),
            "births_a_cpu_s": round(count / (after["cpu_s"] - before["cpu_s"])),
            "kib_a_session": round((after["kib"] - before["kib"]) / count, 2),
            "start_s": round(started_s, 2),
            "storm_s": round(storm_s, 2),
            "storm_cpu_s": round(stormed["cpu_s"], 2),
            "kept": kept,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=10_000)
    found = scale(parser.parse_args().sessions)
    print(json.dumps(found, indent=2))
    return 0 if found["kept"] == found["sessions"] else 1


if __name__ == "__main__":
    sys.exit(main())
