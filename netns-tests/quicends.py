"""Ends of a QUIC relay for tests: relays with what they told, certificates, a wire between."""

from __future__ import annotations

import asyncio
import datetime
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twoplanes import PATIENCE_S, until

from jvpnd.transport.quic import QuicRelay, new_pipe

ALPN = ["h3"]
LISTENER = 3


def certificate() -> bytes:
    """A self-signed one, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gateway.example")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return made.public_bytes(serialization.Encoding.PEM) + secret


PEM = certificate()


@dataclass
class Side:
    """A relay and what it told."""

    ready: dict[int, int] = field(default_factory=dict)  # number: size
    pipes: dict[int, socket.socket] = field(default_factory=dict)
    remotes: dict[int, Any] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    exits: int = 0
    address: Any = None  # where it listens
    relay: QuicRelay = field(init=False)

    def accepted(
        self, listener: int, number: int, remote: Any, size: int, pipe: socket.socket
    ) -> None:
        assert listener == LISTENER
        self.ready[number], self.remotes[number], self.pipes[number] = size, remote, pipe

    def exited(self) -> None:
        self.exits += 1

    def listen(self, host: str) -> Any:
        """Where it listens."""
        with udp(host) as sock:
            sock.bind((host, 0))
            self.relay.listen(LISTENER, sock, PEM, ALPN)
            self.address = sock.getsockname()
        return self.address

    def connect(
        self,
        number: int,
        address: Any,
        alpn: list[str] = ALPN,
        name: str | None = "gateway.example",
    ) -> socket.socket:
        """Our end of the pipe."""
        ours, theirs = new_pipe()
        with theirs, udp(address[0]) as sock:
            sock.connect(address)
            self.relay.connect(number, sock, theirs, name, alpn)
        self.pipes[number] = ours
        return ours


def udp(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)


@asynccontextmanager
async def side() -> AsyncIterator[Side]:
    here = Side()
    here.relay = QuicRelay(
        here.ready.__setitem__,
        here.accepted,
        here.ready.__setitem__,
        here.failed.__setitem__,
        here.exited,
    )
    try:
        yield here
    finally:
        await here.relay.stop()
        for pipe in here.pipes.values():
            pipe.close()


@dataclass
class Link:
    """One connection, both ends."""

    client: Side
    gateway: Side
    number: int  # at the gateway
    ours: socket.socket
    theirs: socket.socket

    def sizes(self) -> tuple[int, int]:
        """Largest tunnel datagram, from client to gateway and back."""
        return self.client.ready[1], self.gateway.ready[self.number]


@asynccontextmanager
async def link(host: str = "127.0.0.1") -> AsyncIterator[Link]:
    """A client and a gateway with one connection, 1 at the client."""
    async with side() as gateway, side() as client:
        yield await joined(client, gateway, gateway.listen(host))


async def joined(client: Side, gateway: Side, address: Any, number: int = 1) -> Link:
    """Connection `number` from client to gateway, ready."""
    before = set(gateway.pipes)
    ours = client.connect(number, address)
    await until(lambda: number in client.ready and gateway.pipes.keys() - before, "connected")
    (accepted,) = gateway.pipes.keys() - before
    return Link(client, gateway, accepted, ours, gateway.pipes[accepted])


async def receive(pipe: socket.socket) -> bytes:
    """The next message; b"" at the end."""
    loop = asyncio.get_running_loop()
    try:
        return await asyncio.wait_for(loop.sock_recv(pipe, 65536), PATIENCE_S)
    except ConnectionResetError:  # closed with messages unread
        return b""


async def drain(pipe: socket.socket) -> list[bytes]:
    """What comes until the end."""
    got = []
    while data := await receive(pipe):
        got.append(data)
    return got


class Wire(asyncio.DatagramProtocol):
    """Forwards UDP to `address` and back, and keeps the lengths of what went there."""

    def __init__(self, address: Any) -> None:
        self._address = address
        self._client: Any = None
        self.lengths: list[int] = []
        self.cut = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    @property
    def address(self) -> Any:
        return self._transport.get_extra_info("sockname")

    def datagram_received(self, data: bytes, address: Any) -> None:
        if self.cut:
            return
        if address == self._address:
            self._transport.sendto(data, self._client)
        else:
            self._client = address
            self.lengths.append(len(data))
            self._transport.sendto(data, self._address)


@asynccontextmanager
async def wire(address: Any) -> AsyncIterator[Wire]:
    loop = asyncio.get_running_loop()
    transport, middle = await loop.create_datagram_endpoint(
        lambda: Wire(address), local_addr=(address[0], 0)
    )
    try:
        yield middle
    finally:
        transport.close()
