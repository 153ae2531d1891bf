"""Real TLS relays, and what stands at the two ends of their connections.

To be used inside a process with a namespace of its own (namespaced.in_namespace).
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from namespaced import in_namespace
from twoplanes import PATIENCE_S, until

from jvpnd.transport.certificate import self_signed
from jvpnd.transport.tls import ProxyRequest, Served, TlsRelay
from jvpnd.transport.tlscontext import pem_file, server_context

CERTIFICATE = self_signed("gw")
MIB = 2**20


def isolated(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run an async test in a child process with a namespace of its own."""

    def body() -> None:
        asyncio.run(test())

    body.__name__, body.__doc__ = test.__name__, test.__doc__
    return in_namespace(body)


class End:
    """A relay, and what it told."""

    def __init__(self, timeout_s: float, certificate: bytes | None) -> None:
        self.ready: list[int] = []
        self.failed: dict[int, str] = {}
        self.exits = 0
        served = None if certificate is None else Served(certificate, ["h2"])
        self.relay = TlsRelay(
            self.ready.append, self._on_failed, self._on_exit, timeout_s, served
        )

    def _on_failed(self, number: int, why: str) -> None:
        assert number not in self.failed
        self.failed[number] = why

    def _on_exit(self) -> None:
        self.exits += 1

    def connect(
        self,
        number: int,
        sock: socket.socket,
        name: str | None = None,
        proxy: ProxyRequest | None = None,
    ) -> socket.socket:
        """Hand a socket over; the far end of its pipe."""
        far, near = socket.socketpair()
        with sock, near:
            self.relay.connect(number, sock, near, name, ["h2", "http/1.1"], proxy)
        far.setblocking(False)
        return far

    def accept(self, number: int, sock: socket.socket) -> socket.socket:
        far, near = socket.socketpair()
        with sock, near:
            self.relay.accept(number, sock, near)
        far.setblocking(False)
        return far

    async def why(self, number: int) -> str:
        """Why this connection failed."""
        await until(lambda: number in self.failed, f"{number} failed")
        assert number not in self.ready
        return self.failed[number]


@asynccontextmanager
async def end(
    timeout_s: float = PATIENCE_S, certificate: bytes = CERTIFICATE
) -> AsyncIterator[End]:
    """A relay that can do both."""
    here = End(timeout_s, certificate)
    try:
        yield here
    finally:
        await here.relay.stop()


def tcp() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        two, _ = listener.accept()
    for sock in (one, two):
        sock.setblocking(False)
    return one, two


async def join(one: End, two: End, number: int = 1) -> tuple[socket.socket, socket.socket]:
    """A connection from one relay to the other: the far ends of both pipes."""
    client, server = tcp()
    pipes = one.connect(number, client), two.accept(number, server)
    await until(lambda: number in one.ready and number in two.ready, "TLS")
    return pipes


async def send(pipe: socket.socket, data: bytes) -> None:
    await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(pipe, data), PATIENCE_S)


async def receive(pipe: socket.socket, length: int) -> bytes:
    """So many bytes; fewer if it ends before."""
    got = bytearray()
    loop = asyncio.get_running_loop()
    while len(got) < length:
        piece = await asyncio.wait_for(loop.sock_recv(pipe, length - len(got)), PATIENCE_S)
        if not piece:
            break
        got += piece
    return bytes(got)


async def ended(sock: socket.socket) -> bool:
    """Whether nothing more comes before the end, which a reset is too."""
    try:
        return await receive(sock, 1) == b""
    except ConnectionResetError:
        return True


async def echo(one: socket.socket, two: socket.socket, length: int) -> None:
    """Different bytes both ways at once."""
    there, back = random.Random(1).randbytes(length), random.Random(2).randbytes(length)
    got = await asyncio.gather(
        receive(two, length), receive(one, length), send(one, there), send(two, back)
    )
    assert got[:2] == [there, back]


def stdlib_server() -> ssl.SSLContext:
    fd = pem_file(CERTIFICATE)
    try:
        context = server_context(fd, ["http/1.1"])
    finally:
        os.close(fd)
    return context


def wrap(context: ssl.SSLContext, sock: socket.socket) -> ssl.SSLSocket:
    sock.settimeout(PATIENCE_S)
    side = context.protocol == ssl.PROTOCOL_TLS_SERVER
    return context.wrap_socket(sock, server_side=side, suppress_ragged_eofs=False)


IDLE = 5  # standard streams, channel, epoll


def descriptors_of(here: End) -> int:
    return len(os.listdir(f"/proc/{here.relay.pid}/fd"))
