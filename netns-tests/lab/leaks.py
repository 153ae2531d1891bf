"""Traffic of every kind that a host might let out, and taps that see what it did let out.

Each is a process inside a namespace (`python -m lab.leaks tap|offer`) that is asked, and answers,
in lines.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from lab.namespace import Namespace

_MODULE = (sys.executable, "-m", "lab.leaks")
_ENV = {"PYTHONPATH": str(Path(__file__).parents[1])}
_ETH_P_ALL, _ETH_P_IP, _ETH_P_IPV6, _ETH_P_ARP = 3, 0x0800, 0x86DD, 0x0806
_PACKET_OUTGOING = 4
_SO_RCVBUFFORCE = 33
_ICMPV6 = 58
_IDLE_S = 0.05  # between two rounds of offers
_MOST = 200  # leaks that are told in full


class Tap:
    """On a device that the host under test sends to: what came in, but for what may.

    May: ARP, IPv6 neighbour and router discovery, MLD, DHCP, and packets to `transport`, which is
    "address/protocol/port", any of them.
    """

    def __init__(self, namespace: Namespace, device: str, transport: list[str]) -> None:
        self._process = namespace.popen(
            *(*_MODULE, "tap", device, *transport), stdin=subprocess.PIPE, env=_ENV
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def seen(self) -> tuple[int, list[str]]:
        """Since the start: the number of transport packets, and all that should not be there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        transport, leaks = json.loads(self._process.stdout.readline())
        return transport, leaks

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Offers:
    """Tries all the time to send, over every way that the host has, to everywhere."""

    def __init__(self, namespace: Namespace, *devices: str) -> None:
        """`devices`: also straight out of these."""
        self._process = namespace.popen(
            *(*_MODULE, "offer", *devices), stdin=subprocess.PIPE, env=_ENV
        )

    def rounds(self) -> int:
        """How often everything was tried."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def wait_rounds(self, number: int, timeout_s: float = 30) -> None:
        """So many more from now."""
        wanted, deadline = self.rounds() + number, time.monotonic() + timeout_s
        while self.rounds() < wanted:
            assert time.monotonic() < deadline, "nothing is offered"
            time.sleep(0.02)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


# --- inside the namespace ---


def _tap(device: str, transport: set[str]) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        sock.bind((device, _ETH_P_ALL))
        print("ready", flush=True)
        passed, leaks = 0, []
        while True:
            readable, _, _ = select.select([sock, sys.stdin], [], [])
            if sock in readable:
                packet, (_, kind, direction, *_) = sock.recvfrom(65535)
                if direction == _PACKET_OUTGOING or kind == _ETH_P_ARP:
                    continue
                what = _what(kind, packet)
                if what in transport:
                    passed += 1
                elif what and len(leaks) < _MOST:
                    leaks.append(what)
            elif not sys.stdin.readline():
                return
            else:
                print(json.dumps([passed, leaks]), flush=True)


def _what(kind: int, packet: bytes) -> str:
    """The packet as "address/protocol/port"; "" where the link itself needs it."""
    if kind == _ETH_P_IP:
        protocol, target, rest = packet[9], packet[16:20], packet[4 * (packet[0] & 15) :]
    elif kind == _ETH_P_IPV6:
        protocol, target, rest = packet[6], packet[24:40], packet[40:]
        if protocol == 0:  # hop by hop options, as MLD has
            protocol, rest = rest[0], rest[8 * (rest[1] + 1) :]
    else:
        return f"ethertype {kind:#x}"
    to = ipaddress.ip_address(target)
    if protocol == _ICMPV6:
        return "" if rest[0] in (131, 132, 133, 135, 136, 143) else f"{to}/icmp/{rest[0]}"
    if protocol == socket.IPPROTO_ICMP:
        return f"{to}/icmp/{rest[0]}"
    if protocol in (socket.IPPROTO_UDP, socket.IPPROTO_TCP):
        source, port = struct.unpack_from(">HH", rest)
        if protocol == socket.IPPROTO_UDP and (source, port) in ((68, 67), (546, 547)):
            return ""
        return f"{to}/{'udp' if protocol == socket.IPPROTO_UDP else 'tcp'}/{port}"
    return f"{to}/protocol {protocol}/"


TARGETS = (
    *("198.51.100.9", "2001:db8:99::9"),
    *("203.0.113.7", "2001:db8:7::7"),  # the gateway itself, but none of its ports
    *("10.1.0.1", "10.2.0.1", "fd01::1", "fd02::1", "10.1.0.99"),  # on the uplinks' links
    *("224.0.0.251", "ff02::fb", "255.255.255.255"),
)


def _offer(devices: list[str]) -> None:
    for number in itertools.count(1):
        for target, device in itertools.product(TARGETS, ("", *devices)):
            for way in (_ask_name, _ping, _connect):
                with contextlib.suppress(OSError):  # no route, not permitted, no such device
                    way(target, device.encode())
        if select.select([sys.stdin], [], [], _IDLE_S)[0]:
            if not sys.stdin.readline():
                return
            print(number, flush=True)


def _socket(target: str, device: bytes, kind: int, protocol: int = 0) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if device:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
    except OSError:
        sock.close()
        raise
    return sock


def _ask_name(target: str, device: bytes) -> None:
    with _socket(target, device, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"who is it", (target, 53))


def _ping(target: str, device: bytes) -> None:
    six = ":" in target
    protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
    with _socket(target, device, socket.SOCK_RAW, protocol) as sock:
        sock.sendto(bytes([128 if six else 8]) + bytes(7), (target, 0))


def _connect(target: str, device: bytes) -> None:
    with _socket(target, device, socket.SOCK_STREAM) as sock:
        sock.connect((target, 80))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        if sys.argv[1] == "tap":
            _tap(sys.argv[2], set(sys.argv[3:]))
        else:
            _offer(sys.argv[2:])
