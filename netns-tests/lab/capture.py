"""An attacker's tools: listen on a wire, send datagrams again, forge where they come from.

Each tool is a process inside a namespace (`python -m lab.capture listen|send`) that is asked, and
answers, in lines of JSON.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab.namespace import Namespace

ETH_P_ALL = 3
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_IPV4 = struct.Struct(">BxHxxxxBBxx4s4s")  # RFC 791
_IPV6 = struct.Struct(">IHBB16s16s")  # RFC 8200
_UDP = struct.Struct(">HHHH")  # RFC 768
_SEND = (sys.executable, "-m", "lab.capture", "send")
_ENV = {"PYTHONPATH": str(Path(__file__).parents[1])}
_LISTEN = (sys.executable, "-m", "lab.capture", "listen")


@dataclass
class Counts:
    """Datagrams, and bytes of their payloads."""

    sent: int = 0
    sent_bytes: int = 0
    answers: int = 0
    answer_bytes: int = 0


@dataclass(frozen=True)
class Datagram:
    """One UDP datagram as it was on the wire."""

    source: tuple[str, int]
    target: tuple[str, int]
    payload: bytes

    @property
    def type(self) -> int:
        """First byte: the packet's type in JVP/1."""
        return self.payload[0] if self.payload else 0


def parse(packet: bytes) -> Datagram | None:
    """The datagram in an IP packet; None for anything else, and for fragments."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= _IPV4.size:
        first, total, _, protocol, source, target = _IPV4.unpack_from(packet)
        at, end = 4 * (first & 15), total
    elif version == 6 and len(packet) >= _IPV6.size:
        _, length, protocol, _, source, target = _IPV6.unpack_from(packet)
        at, end = _IPV6.size, _IPV6.size + length
    else:
        return None
    if protocol != socket.IPPROTO_UDP or len(packet) < at + _UDP.size:
        return None
    source_port, target_port, _, _ = _UDP.unpack_from(packet, at)
    addresses = [str(ipaddress.ip_address(raw)) for raw in (source, target)]
    payload = packet[at + _UDP.size : end]
    return Datagram((addresses[0], source_port), (addresses[1], target_port), payload)


def forge(datagram: Datagram) -> bytes:
    """An IPv4 packet with this source, whoever sends it. The kernel fills in its checksum."""
    udp = _UDP.pack(datagram.source[1], datagram.target[1], _UDP.size + len(datagram.payload), 0)
    ends = (ipaddress.IPv4Address(host).packed for host, _ in (datagram.source, datagram.target))
    size = _IPV4.size + len(udp) + len(datagram.payload)
    return _IPV4.pack(0x45, size, 64, socket.IPPROTO_UDP, *ends) + udp + datagram.payload


class Listener:
    """Notes every UDP datagram that passes a device, both ways; ask it what it has heard."""

    def __init__(self, namespace: Namespace, device: str, port: int) -> None:
        command = (*_LISTEN, device, str(port))
        self._process = namespace.popen(*command, stdin=subprocess.PIPE, env=_ENV)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        self._heard: list[Datagram] = []

    def heard(self) -> list[Datagram]:
        """Everything since the start, in order."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        rows = json.loads(self._process.stdout.readline())
        self._heard += [
            Datagram((a, a_port), (b, b_port), bytes.fromhex(text))
            for a, a_port, b, b_port, text in rows
        ]
        return self._heard

    def wait_for(self, wanted: Callable[[Datagram], bool], timeout_s: float = 20) -> Datagram:
        """The first datagram that is `wanted`."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = next(filter(wanted, self.heard()), None)
            if found is not None:
                return found
            assert time.monotonic() < deadline, "no such datagram was heard"
            time.sleep(0.05)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Sender:
    """Sends what it is told from inside a namespace: from its own address, or from forged ones.

    `per_s` is in datagrams a second; `total`: the datagrams are sent in turn until so many are out,
    by default each once.
    """

    def __init__(self, namespace: Namespace) -> None:
        self._process = namespace.popen(*_SEND, stdin=subprocess.PIPE, env=_ENV)

    def send(
        self,
        target: tuple[str, int],
        payloads: Iterable[bytes],
        per_s: float = 2000,
        total: int | None = None,
    ) -> Counts:
        """From one socket. Answers are awaited for half a second after the last datagram."""
        rows = [payload.hex() for payload in payloads]
        self._ask(target=target, payloads=rows, per_s=per_s, total=total)
        return self.counts()

    def send_forged(
        self, datagrams: Iterable[Datagram], per_s: float = 2000, total: int | None = None
    ) -> Counts:
        """From wherever the datagrams say. Answers do not come here and are not counted."""
        self.start_forged(datagrams, per_s, total)
        return self.counts()

    def start_forged(
        self, datagrams: Iterable[Datagram], per_s: float, total: int | None = None
    ) -> None:
        """Begin, and do not wait for the end: `counts` does."""
        rows = [(datagram.target[0], forge(datagram).hex()) for datagram in datagrams]
        self._ask(packets=rows, per_s=per_s, total=total)

    def counts(self) -> Counts:
        """What went out and what came back, once all has."""
        assert self._process.stdout is not None
        return Counts(**json.loads(self._process.stdout.readline()))

    def _ask(self, **request: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- inside the namespace ---


def _listen(device: str, port: int) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        sock.bind((device, ETH_P_ALL))
        print("ready", flush=True)
        rows: list[tuple[object, ...]] = []
        while True:
            readable, _, _ = select.select([sock, sys.stdin], [], [])
            if sock in readable:
                datagram = parse(sock.recv(65535))
                if datagram is not None and port in (datagram.source[1], datagram.target[1]):
                    rows.append((*datagram.source, *datagram.target, datagram.payload.hex()))
            elif not sys.stdin.readline():
                return
            else:
                print(json.dumps(rows), flush=True)
                rows = []


def _send() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        forged = "packets" in request
        rows = request["packets" if forged else "payloads"]
        total = len(rows) if request["total"] is None else request["total"]
        if forged:
            packets = [(host, bytes.fromhex(text)) for host, text in rows]
            counts = _send_packets(packets, request["per_s"], total)
        else:
            payloads = [bytes.fromhex(text) for text in rows]
            counts = _send_payloads(tuple(request["target"]), payloads, request["per_s"], total)
        print(json.dumps(asdict(counts)), flush=True)


def _paced(per_s: float, total: int, idle: Callable[[], None]) -> Iterator[int]:
    """Numbers of datagrams, each as it is due; `idle` is called in between."""
    start = time.monotonic()
    for number in range(total):
        early_s = start + number / per_s - time.monotonic()
        if early_s > 0.001:
            idle()
            time.sleep(early_s)
        yield number


def _send_packets(packets: list[tuple[str, bytes]], per_s: float, total: int) -> Counts:
    counts = Counts()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        for number in _paced(per_s, total, lambda: None):
            host, packet = packets[number % len(packets)]
            sock.sendto(packet, (host, 0))
            counts.sent += 1
            counts.sent_bytes += len(packet) - _IPV4.size - _UDP.size
    return counts


def _send_payloads(
    target: tuple[str, int], payloads: list[bytes], per_s: float, total: int
) -> Counts:
    counts = Counts()
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:

        def take_answers() -> None:
            with contextlib.suppress(BlockingIOError, TimeoutError):
                while True:
                    counts.answer_bytes += len(sock.recv(65535))
                    counts.answers += 1

        sock.bind(("", 0))
        sock.setblocking(False)
        for number in _paced(per_s, total, take_answers):
            payload = payloads[number % len(payloads)]
            with contextlib.suppress(BlockingIOError):
                sock.sendto(payload, target)
                counts.sent += 1
                counts.sent_bytes += len(payload)
        sock.settimeout(0.5)
        take_answers()
    return counts


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        if sys.argv[1] == "listen":
            _listen(sys.argv[2], int(sys.argv[3]))
        else:
            _send()
