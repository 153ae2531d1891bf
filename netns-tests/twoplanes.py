"""Two real data planes back to back: TUNs in two namespaces, UDP on the loopback of a third.

To be used inside a process with a namespace of its own (namespaced.in_namespace): nothing here has
a name, all of it goes with the process.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import secrets
import select
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from namespaced import new_namespace, run

from jvpnd.core.offloads import Offloads
from jvpnd.core.wire import HEADER, Suite, datagrams_a_send
from jvpnd.dataplane.launch import launch
from jvpnd.dataplane.plane import DataPlane

FULL = Offloads(vnet=True, tso=True, uso=True, udp_gso=True, udp_gro=True)
PLAIN = Offloads(vnet=False, tso=False, uso=False, udp_gso=False, udp_gro=False)

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
PATIENCE_S = 10.0
MTU = 1400


class Namespace:
    """A network namespace without a name; loopback is up."""

    def __init__(self) -> None:
        home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        new_namespace()
        self._fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _enter(home)
        os.close(home)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The calling thread is inside while the block runs."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _enter(self._fd)
        try:
            yield
        finally:
            _enter(home)
            os.close(home)


def _enter(fd: int) -> None:
    if _LIBC.setns(fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def open_tun(offloads: Offloads, addresses: tuple[str, ...]) -> int:
    """A TUN called t0 with these offloads, up, in the namespace the caller is in."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    flags = 0x1001 | (0x4000 if offloads.vnet else 0)  # IFF_TUN|IFF_NO_PI, IFF_VNET_HDR
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"t0", flags))  # TUNSETIFF
    wanted = offloads.vnet | (6 if offloads.tso else 0) | (0x60 if offloads.uso else 0)
    fcntl.ioctl(fd, 0x400454D0, wanted)  # TUNSETOFFLOAD
    for address in addresses:
        run(f"ip address add {address} dev t0" + (" nodad" if ":" in address else ""))
    run(f"ip link set t0 mtu {MTU} gso_max_segs {datagrams_a_send(MTU)} up")
    return fd


@dataclass
class Observer:
    """Keeps what a plane tells, and lets a test wait for it."""

    packets: list[tuple[int, tuple[str, int], bytes]] = field(default_factory=list)
    elsewhere: list[tuple[int, int, tuple[str, int]]] = field(default_factory=list)
    socket_errors: list[tuple[int, int]] = field(default_factory=list)
    send_errors: list[tuple[int, int]] = field(default_factory=list)
    deaths: list[str] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)  # of the deaths

    def packet_received(self, socket_id: int, remote: tuple[str, int], data: bytes) -> None:
        self.packets.append((socket_id, remote, data))

    def heard_from_elsewhere(self, index: int, socket_id: int, remote: tuple[str, int]) -> None:
        self.elsewhere.append((index, socket_id, remote))

    def socket_failed(self, socket_id: int, errno: int) -> None:
        self.socket_errors.append((socket_id, errno))

    def send_failed(self, slot: int, errno: int) -> None:
        self.send_errors.append((slot, errno))

    def worker_died(self, name: str, why: str) -> None:
        self.deaths.append(name)
        self.causes.append(why)


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something the workers do; they have no event of their own to wait for."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"still not: {what}"
        await asyncio.sleep(0.002)


@dataclass
class End:
    """One end of the tunnel."""

    inside: Namespace
    plane: DataPlane
    observer: Observer
    transport: socket.socket  # socket 1, in the outer namespace
    v4: str
    v6: str
    noise: Counter[str] = field(default_factory=Counter)  # drops that commands_taken caused

    @property
    def address(self) -> tuple[str, int]:
        return self.transport.getsockname()[:2]

    def counters(self) -> tuple[int, int]:
        """Inner packets sent and received in slot 0."""
        row = self.plane.slot_counters(0)
        return row.tx_packets, row.rx_packets

    def udp(self) -> socket.socket:
        """A UDP socket inside, on the IPv4 address."""
        with self.inside():
            inner = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            inner.bind((self.v4, 0))
        inner.settimeout(PATIENCE_S)
        return inner

    def drops(self) -> dict[str, int]:
        """Packets dropped by cause, but for those of commands_taken."""
        return dict(Counter(self.plane.drops()) - self.noise)

    def dropped(self, cause: str) -> int:
        return self.drops().get(cause, 0)


async def launched(
    tun_fds: Sequence[int], offloads: Offloads, observer: Observer
) -> DataPlane:
    plane = DataPlane(launch(len(tun_fds)), tun_fds, offloads, MTU)
    await plane.ready(observer)
    return plane


@asynccontextmanager
async def end(
    number: int, offloads: Offloads = FULL, host: str = "127.0.0.1"
) -> AsyncIterator[End]:
    """End `number` (1 or 2): 10.77.0.N and fd77::N inside, a UDP socket outside."""
    inside, observer = Namespace(), Observer()
    v4, v6 = f"10.77.0.{number}", f"fd77::{number}"
    with inside():
        run("sysctl -qw net.ipv6.conf.default.addr_gen_mode=1")  # no chatter of the kernel's own
        tun_fd = open_tun(offloads, (f"{v4}/24", f"{v6}/64"))
    plane = await launched([tun_fd], offloads, observer)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as transport:
        transport.setblocking(False)
        transport.bind((host, 0))
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            transport.setsockopt(socket.SOL_SOCKET, option + 25, 4 << 20)  # the FORCE variants
        plane.add_socket(1, [transport.fileno()])
        try:
            yield End(inside, plane, observer, transport, v4, v6)
        finally:
            await plane.close()
            os.close(tun_fd)


ANY = ("0.0.0.0/0", "::/0")


async def commands_taken(here: End) -> None:
    """Wait until the downlink has carried out its commands: one made after them shows."""
    here.plane.bind_receive(4095, 4095, Suite.AES_256_GCM, bytes(32), (), 1, None)
    with socket.socket(here.transport.family, socket.SOCK_DGRAM) as probe:
        cause = ""
        while cause != "bad_tag":
            probe.sendto(HEADER.pack(8, 0, 0, 4095, 0) + bytes(16), here.address)
            await until(lambda: here.dropped("bad_tag") + here.dropped("unknown_index"), "probe")
            cause = "bad_tag" if here.dropped("bad_tag") else "unknown_index"
            here.noise[cause] += 1
    here.plane.release_receive(4095)


async def join(
    one: End, two: End, *, suite: Suite = Suite.AES_256_GCM, index: int = 100
) -> None:
    """Bind slot 0 of both ends to each other, under fresh keys: one hears index + 1, two index."""
    keys = {index: secrets.token_bytes(32), index + 1: secrets.token_bytes(32)}
    ways = ((one, two, index), (two, one, index + 1))
    for sender, receiver, number in ways:
        sources = (f"{sender.v4}/32", f"{sender.v6}/128")
        receiver.plane.bind_receive(0, number, suite, keys[number], sources, 1, sender.address)
        await commands_taken(receiver)
    for sender, receiver, number in ways:
        sender.plane.set_routes(0, ANY)
        sender.plane.bind_send(0, number, suite, keys[number], 1, receiver.address)


@asynccontextmanager
async def tunnel(
    first: Offloads = FULL,
    second: Offloads = FULL,
    *,
    suite: Suite = Suite.AES_256_GCM,
    host: str = "127.0.0.1",
) -> AsyncIterator[tuple[End, End]]:
    """Two ends, bound to each other."""
    async with end(1, first, host) as one, end(2, second, host) as two:
        await join(one, two, suite=suite)
        yield one, two


def transfer(sender: End, receiver: End, data: bytes, *, version: int = 4) -> bytes:
    """Send `data` over one TCP connection through the tunnel; what arrived. Blocks."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    host = receiver.v4 if version == 4 else receiver.v6
    with receiver.inside():
        listener = socket.create_server((host, 0), family=family)
    with sender.inside():
        out = socket.socket(family)
    listener.settimeout(PATIENCE_S)
    out.settimeout(PATIENCE_S)
    received = bytearray()
    with listener, out:
        out.connect(listener.getsockname())
        coming, _ = listener.accept()
        coming.setblocking(False)
        out.setblocking(False)
        poll = select.poll()
        poll.register(out, select.POLLOUT)
        poll.register(coming, select.POLLIN)
        sent = 0
        while len(received) < len(data):
            ready = dict(poll.poll(PATIENCE_S * 1000))
            assert ready, f"the connection hangs after {len(received)} bytes"
            if out.fileno() in ready:
                sent += out.send(data[sent : sent + 262144])
                if sent == len(data):
                    poll.unregister(out)
            if coming.fileno() in ready:
                piece = coming.recv(1 << 20)
                assert piece, f"the connection ended after {len(received)} bytes"
                received += piece
        coming.close()
    return bytes(received)

