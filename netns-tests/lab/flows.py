"""Many flows at once: TCP both ways with content that is checked, and numbered datagrams.

The sockets are inside namespaces; what drives them are threads of the test's own process.
"""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lab.namespace import Namespace

TIMEOUT_S = 20
BURST = 8  # datagrams of a flow that go out together, some of them cut by the kernel
WINDOW = BURST  # so that a TUN holds all of it
SEGMENT = 700
_UDP_SEGMENT = 103  # linux/udp.h
_NUMBER = struct.Struct("!Q")


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def exchange(client: Namespace, server: Namespace, address: str, count: int, size: int) -> None:
    """Over `count` TCP connections at once `size` bytes each way; all must arrive as sent."""
    listener = server.within(
        lambda: socket.create_server((address, 0), family=_family(address), backlog=count)
    )
    sockets = [client.within(lambda: socket.socket(_family(address))) for _ in range(count)]
    with listener, ThreadPoolExecutor(4 * count) as pool:
        listener.settimeout(TIMEOUT_S)
        pairs = []
        for near in sockets:
            near.settimeout(TIMEOUT_S)
            near.connect(listener.getsockname())
            far, _ = listener.accept()
            far.settimeout(TIMEOUT_S)
            pairs.append((near, far))
        contents = [random.Random(n).randbytes(size) for n in range(2 * count)]
        work = []
        for n, pair in enumerate(pairs):
            ways = zip((pair, pair[::-1]), contents[n::count], strict=True)
            for (sender, receiver), content in ways:
                work.append(pool.submit(sender.sendall, content))
                work.append(pool.submit(_receive, receiver, content))
        for each in work:
            each.result()
        for pair in pairs:
            for end in pair:
                end.close()


def _receive(receiver: socket.socket, content: bytes) -> None:
    found, got = hashlib.sha256(), 0
    while got < len(content):
        data = receiver.recv(1 << 18)
        assert data, f"the connection ended after {got} bytes"
        found.update(data)
        got += len(data)
    assert found.digest() == hashlib.sha256(content).digest()


@dataclass
class _Flow:
    """Datagrams one way, numbered from 0."""

    sender: socket.socket
    receiver: socket.socket
    sent: int = 0
    numbers: list[int] = field(default_factory=list)

    def send(self) -> None:
        """A burst: half of it one by one, the rest in one send."""
        for _ in range(BURST // 2):
            self.sender.send(self._next())
        rest = b"".join(self._next() for _ in range(BURST // 2))
        self.sender.sendmsg([rest], [(socket.SOL_UDP, _UDP_SEGMENT, struct.pack("H", SEGMENT))])

    def _next(self) -> bytes:
        number, self.sent = self.sent, self.sent + 1
        return _NUMBER.pack(number).ljust(SEGMENT, b"\0")

    def receive(self, wait_s: float = 0) -> int:
        """Take what is there; how many datagrams that were."""
        before = len(self.numbers)
        self.receiver.settimeout(wait_s)
        try:
            while True:
                self.numbers.append(_NUMBER.unpack_from(self.receiver.recv(2048))[0])
                self.receiver.settimeout(0)
        except (BlockingIOError, TimeoutError):
            return len(self.numbers) - before


class Datagrams:
    """`count` flows one way, each with ports of its own; made once, used as often as wanted."""

    def __init__(self, sender: Namespace, receiver: Namespace, address: str, count: int) -> None:
        self.flows = []
        for _ in range(count):
            into = receiver.within(lambda: _bound(address))
            out = sender.within(lambda: socket.socket(_family(address), socket.SOCK_DGRAM))
            out.connect(into.getsockname()[:2])
            self.flows.append(_Flow(out, into))

    def run(self, bursts: int) -> None:
        """Send, with a few bursts of each flow under way; everything must arrive.

        So a worker that is not scheduled for a while delays, and no queue overflows.
        """
        for _ in range(bursts):
            for flow in self.flows:
                flow.send()
            self._wait(WINDOW)
        self._wait(0)

    def _wait(self, unseen: int) -> None:
        for flow in self.flows:
            flow.receive()
            while flow.sent - len(flow.numbers) > unseen:
                assert flow.receive(TIMEOUT_S), f"lost {flow.sent - len(flow.numbers)} datagrams"

    def all_arrive(self, timeout_s: float = 15) -> None:
        """Send until something of every flow arrives."""
        missing, deadline = list(self.flows), time.monotonic() + timeout_s
        for flow in missing:
            flow.receive()
        while missing:
            assert time.monotonic() < deadline, f"{len(missing)} flows do not arrive"
            for flow in missing:
                flow.send()
            missing = [flow for flow in missing if not flow.receive(0.02)]

    def close(self) -> None:
        for flow in self.flows:
            flow.sender.close()
            flow.receiver.close()

    def __enter__(self) -> Datagrams:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _bound(address: str) -> socket.socket:
    sock = socket.socket(_family(address), socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.bind((address, 0))
    return sock


def run_all(groups: Sequence[Datagrams], bursts: int) -> None:
    """Several groups at the same time."""
    with ThreadPoolExecutor(len(groups)) as pool:
        for each in [pool.submit(group.run, bursts) for group in groups]:
            each.result()
