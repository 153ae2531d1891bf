"""More traffic than a tunnel can carry: TCP streams and UDP as fast as the sender can, for a time.

Each end of each direction is a process of its own inside a namespace (`python -m lab.flood ...`).
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from lab.namespace import Namespace

TCP_PORT, UDP_PORT = 7781, 7782
CHUNK = bytes(1 << 17)
DATAGRAM = bytes(1300)
BURST = 32  # datagrams between two looks at the clock
STREAMS = 3


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def sink(address: str) -> None:
    """Take what comes until stdin ends; then print how many bytes came by TCP and by UDP."""
    family = _family(address)
    came = {"tcp": 0, "udp": 0}
    into = bytearray(1 << 18)
    with (
        socket.create_server((address, TCP_PORT), family=family) as server,
        socket.socket(family, socket.SOCK_DGRAM) as datagrams,
        selectors.DefaultSelector() as selector,
    ):
        datagrams.bind((address, UDP_PORT))
        for source in (sys.stdin, server, datagrams):
            selector.register(source, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in selector.select():
                source = key.fileobj
                if source is sys.stdin:
                    print(json.dumps(came), flush=True)
                    return
                assert isinstance(source, socket.socket)
                if source is server:
                    selector.register(server.accept()[0], selectors.EVENT_READ)
                    continue
                try:
                    size = source.recv_into(into)
                except OSError:
                    size = 0
                came["udp" if source is datagrams else "tcp"] += size
                if not size and source is not datagrams:
                    selector.unregister(source)
                    source.close()


def streams(address: str, count: int, seconds: float) -> None:
    """`count` TCP connections that always have something to send."""

    def feed() -> None:
        with (
            contextlib.suppress(OSError),  # on a slow line the datagrams may leave it no room
            socket.create_connection((address, TCP_PORT), seconds) as connection,
        ):
            connection.settimeout(None)
            while True:
                connection.sendall(CHUNK)

    for _ in range(count):
        threading.Thread(target=feed, daemon=True).start()
    time.sleep(seconds)
    os._exit(0)  # the threads may wait for a peer that reads no more


def blast(address: str, seconds: float) -> None:
    """Datagrams without a pause."""
    until = time.monotonic() + seconds
    with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
        sock.connect((address, UDP_PORT))
        sock.setblocking(False)
        while time.monotonic() < until:
            for _ in range(BURST):
                with contextlib.suppress(OSError):  # a full queue: the next one may fit
                    sock.send(DATAGRAM)


class Flood:
    """Both kinds of traffic in both directions between two hosts, at their inner addresses."""

    def __init__(
        self, hosts: tuple[Namespace, Namespace], addresses: tuple[str, str], seconds: float
    ) -> None:
        self.sinks = [
            self._start(host, "sink", address, stdin=True)
            for host, address in zip(hosts, addresses, strict=True)
        ]
        for process in self.sinks:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        self.sources = [
            self._start(host, *what)
            for host, address in zip(hosts, reversed(addresses), strict=True)
            for what in (
                ("streams", address, str(STREAMS), str(seconds)),
                ("blast", address, str(seconds)),
            )
        ]

    @staticmethod
    def _start(host: Namespace, *what: str, stdin: bool = False) -> subprocess.Popen[str]:
        return host.popen(
            *(sys.executable, "-m", "lab.flood", *what),
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            env={"PYTHONPATH": str(Path(__file__).parents[1])},
        )

    def wait(self) -> None:
        """Until the time is up."""
        for process in self.sources:
            process.wait(120)

    def arrived(self) -> list[dict[str, int]]:
        """Bytes that came by TCP and by UDP at each host; to be asked once, at the end."""
        return [json.loads(process.communicate("\n", 60)[0]) for process in self.sinks]

    def close(self) -> None:
        for process in (*self.sources, *self.sinks):
            if process.poll() is None:
                process.kill()
            process.wait()


@contextlib.contextmanager
def flood(
    hosts: tuple[Namespace, Namespace], addresses: tuple[str, str], seconds: float
) -> Iterator[Flood]:
    running = Flood(hosts, addresses, seconds)
    try:
        yield running
    finally:
        running.close()


if __name__ == "__main__":
    role, where, *more = sys.argv[1:]
    if role == "sink":
        sink(where)
    elif role == "streams":
        streams(where, int(more[0]), float(more[1]))
    else:
        blast(where, float(more[0]))
