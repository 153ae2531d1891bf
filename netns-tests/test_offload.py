"""Inner checksums at receivers that check them: real daemons, real kernels, traffic forwarded
beyond both ends to hosts whose devices have every offload off, where each packet is captured.

    site --- client --- router --- gateway --- far
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import kernelmodel as kernel
import pytest
from lab.daemons import INNER, PORT, Daemon, client_config, gateway_config, key_pair
from lab.namespace import Namespace, ip
from lab.topology import OUTSIDE

INNER_MTU = 1400
SITE, FAR = ("10.88.0.2", "fd88::2"), ("10.90.0.2", "fd90::2")
CLIENT = INNER["client"]
PATIENCE_S = 20
OFF = ("tx", "off", "rx", "off", "tso", "off", "gso", "off", "gro", "off")
UDP_SEGMENT = 103  # linux/udp.h
_ETH_P_ALL, _PACKET_OUTGOING = 3, 4
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_RCVBUFFORCE = 33


class Network:
    """The five hosts; both daemons run and are attached."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as building:
            names = ("site", "client", "router", "gw", "far")
            hosts = [building.enter_context(Namespace(name)) for name in names]
            self.site, self.client, self.router, self.gateway, self.far = hosts
            for host in hosts[1:4]:
                for key in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
                    host.sysctl(f"net.{key}", "1")
            link(self.site, "eth0", self.client, "inside", 88, v6="fd88")
            link(self.client, "uplink", self.router, "lan", 1)
            link(self.router, "wan", self.gateway, "outside", 2)
            link(self.far, "eth0", self.gateway, "inside", 90, v6="fd90")
            self.gateway.ip("addr", "add", f"{OUTSIDE[4]}/32", "dev", "lo")
            self.router.ip("route", "add", OUTSIDE[4], "via", "10.2.0.1")
            self.gateway.ip("route", "add", "10.1.0.0/24", "via", "10.2.0.2")
            self.client.ip("route", "add", "default", "via", "10.1.0.1", "dev", "uplink")
            for host in (self.site, self.far):
                self.offload(host, "eth0", *OFF)
            for host in (self.client, self.gateway):
                self.offload(host, "inside", *OFF)
            self._start(building)
            self._stack = building.pop_all()

    def _start(self, building: contextlib.ExitStack) -> None:
        (secret, public), (client_secret, client_public) = key_pair(), key_pair()
        behind = 'name = "laptop"\nnetworks = ["10.88.0.0/24", "fd88::/64"]\n'
        calling = '[routes]\nmode = "split"\nnetworks = ["10.90.0.0/24", "fd90::/64"]\n'
        listening = gateway_config({"laptop": client_public}, OUTSIDE[4])
        listening = listening.replace('name = "laptop"\n', behind)
        self.gateway_daemon = Daemon(self.gateway, listening, secret)
        building.callback(self.gateway_daemon.close)
        self.client_daemon = Daemon(
            self.client, client_config(public, OUTSIDE[4], routes=calling), client_secret
        )
        building.callback(self.client_daemon.close)
        self.gateway_daemon.start()
        self.client_daemon.start()
        self.client_daemon.wait_state("ATTACHED")

    @staticmethod
    def offload(host: Namespace, device: str, *features: str) -> None:
        host.run("ethtool", "-K", device, *features)

    def lose(self, percent: int) -> None:
        """The router drops these many of the tunnel's datagrams, one by one, both ways; GRO joins
        what is left, at the ends of the tunnel and at the two ways into it."""
        for host, outer in ((self.client, "uplink"), (self.gateway, "outside")):
            self.offload(host, outer, "tso", "off", "gso", "off", "gro", "on")
            self.offload(host, outer, "tx-udp-segmentation", "off")
            self.offload(host, "inside", "gro", "on", "rx-udp-gro-forwarding", "on")
        self.router.nft(
            "table ip lossy {\n chain forward {\n  type filter hook forward priority 0;\n"
            f"  udp dport {PORT} numgen random mod 100 < {percent} counter drop\n"
            f"  udp sport {PORT} numgen random mod 100 < {percent} counter drop\n }}\n}}\n"
        )

    def dropped(self) -> dict[str, int]:
        """By both daemons, but for the chatter of the kernels' own on the tunnel's interface."""
        total: Counter[str] = Counter()
        for daemon in (self.client_daemon, self.gateway_daemon):
            total.update(daemon.status()["traffic"]["dropped"])
        return {cause: n for cause, n in total.items() if cause not in ("bad_source", "no_route")}

    def close(self) -> None:
        self._stack.close()


def link(
    host: Namespace, device: str, peer: Namespace, other: str, number: int, v6: str = ""
) -> None:
    """A veth pair; `host` is .2 and `peer` is .1, the default route where `v6` says so."""
    ip(
        *("link", "add", device, "netns", host.name, "type", "veth"),
        *("peer", "name", other, "netns", peer.name),
    )
    for end, name, last in ((host, device, 2), (peer, other, 1)):
        lines = [f"addr add 10.{number}.0.{last}/24 dev {name}", f"link set {name} up"]
        if v6:
            lines.append(f"addr add {v6}::{last}/64 dev {name} nodad")
        end.ip_batch(*lines)
    if v6:
        host.ip("route", "add", "default", "via", f"10.{number}.0.1")
        host.ip("-6", "route", "add", "default", "via", f"{v6}::1")


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    built = Network()
    yield built
    built.close()


class Capture:
    """What comes in at a device. It all waits in the socket until it is looked at."""

    def __init__(self, host: Namespace, device: str) -> None:
        kind = socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL)
        self._socket = host.within(lambda: socket.socket(*kind))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 256 << 20)
        self._socket.bind((device, _ETH_P_ALL))
        self._socket.setblocking(False)

    def check(self, most: int = INNER_MTU) -> Counter[tuple[int, int]]:
        """Every packet since the last time is what a careful receiver takes, of `most` bytes at
        most; how many there were by IP version and protocol."""
        counts: Counter[tuple[int, int]] = Counter()
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, address = self._socket.recvfrom(1 << 17)
                if address[2] == _PACKET_OUTGOING or packet[0] >> 4 not in (4, 6):
                    continue
                kernel.check(packet)
                assert len(packet) <= most
                at = kernel.layout(packet)
                counts[at.version, at.protocol] += 1
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        assert struct.unpack("=II", statistics)[1] == 0, "the capture is not whole"
        return counts

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


@dataclass(frozen=True)
class Host:
    namespace: Namespace
    addresses: tuple[str, str]  # IPv4, IPv6


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def stream(sender: Host, receiver: Host, size: int, version: int) -> None:
    """TCP from host to host; what arrives is what was sent."""
    source, target = (host.addresses[version == 6] for host in (sender, receiver))
    data = random.Random(size).randbytes(size)
    listener = receiver.namespace.within(
        lambda: socket.create_server((target, 0), family=family(target))
    )
    out = sender.namespace.within(lambda: socket.socket(family(source)))
    arrived = hashlib.sha256()

    def receive() -> None:
        coming, _ = listener.accept()
        coming.settimeout(PATIENCE_S)
        with coming:
            while piece := coming.recv(1 << 20):
                arrived.update(piece)

    with listener, out:
        listener.settimeout(PATIENCE_S)
        out.settimeout(PATIENCE_S)
        out.bind((source, 0))
        receiving = threading.Thread(target=receive)
        receiving.start()
        try:
            out.connect(listener.getsockname())
            out.sendall(data)
            out.shutdown(socket.SHUT_WR)
        finally:
            receiving.join(PATIENCE_S)
    assert arrived.digest() == hashlib.sha256(data).digest()


def datagrams(
    sender: Host, receiver: Host, version: int, *, lossy: bool = False
) -> tuple[list[bytes], list[bytes]]:
    """UDP super-packets from host to host, the last datagram of each an odd one: sent, received.

    Unless the network is `lossy`, each super-packet is awaited before the next.
    """
    source, target = (host.addresses[version == 6] for host in (sender, receiver))
    rest = random.Random(version)
    sent: list[bytes] = []

    def bound(host: Host, address: str) -> socket.socket:
        sock = host.namespace.within(lambda: socket.socket(family(address), socket.SOCK_DGRAM))
        sock.bind((address, 0))
        sock.settimeout(PATIENCE_S)
        return sock

    received: list[bytes] = []
    with bound(sender, source) as out, bound(receiver, target) as into:
        into.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        for _ in range(50):
            size = rest.randrange(600, 1300)
            data = rest.randbytes(size * rest.randrange(2, 40) + rest.randrange(1, size))
            segment = [(socket.SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))]
            out.sendmsg([data], segment, 0, into.getsockname())
            sent += [data[at : at + size] for at in range(0, len(data), size)]
            while not lossy and len(received) < len(sent):
                received.append(into.recv(1 << 16))
        received.append(b"")
        into.settimeout(0.05)
        while received[-1] != b"end":
            out.sendto(b"end", into.getsockname())  # may be lost like all the others
            with contextlib.suppress(TimeoutError):
                while received[-1] != b"end":
                    received.append(into.recv(1 << 16))
    return sent, [datagram for datagram in received if datagram not in (b"", b"end")]


def hosts(network: Network) -> tuple[Host, Host, Host, Host]:
    return (
        Host(network.site, SITE),
        Host(network.client, CLIENT),
        Host(network.gateway, INNER["gateway"]),
        Host(network.far, FAR),
    )


def test_forwarded_packets_are_good_at_hosts_without_offloads(network: Network) -> None:
    site, client, gateway, far = hosts(network)
    with Capture(far.namespace, "eth0") as at_far, Capture(site.namespace, "eth0") as at_site:
        pairs = [(client, far), (far, client), (gateway, site), (site, gateway), (site, far)]
        for version in (4, 6):
            for pair in pairs:
                stream(*pair, 4_000_000, version)
                sent, received = datagrams(*pair, version)
                assert received == sent
        for seen in (at_far.check(), at_site.check()):
            for version in (4, 6):
                assert seen[version, kernel.TCP] > 2000
                assert seen[version, kernel.UDP] > 500
    assert network.dropped() == {}


def test_what_loss_leaves_of_super_packets_is_good_too(network: Network) -> None:
    site, client, gateway, far = hosts(network)
    network.lose(percent=2)
    with Capture(far.namespace, "eth0") as at_far, Capture(site.namespace, "eth0") as at_site:
        for version in (4, 6):
            for pair in ((client, far), (gateway, site), (site, far), (far, site)):
                stream(*pair, 2_000_000, version)
                sent, received = datagrams(*pair, version, lossy=True)
                assert len(sent) // 2 < len(received) < len(sent)
                missing = Counter(sent) - Counter(received)
                assert Counter(received) + missing == Counter(sent)
        for seen in (at_far.check(), at_site.check()):
            assert seen[4, kernel.TCP] > 1000
            assert seen[6, kernel.TCP] > 1000
