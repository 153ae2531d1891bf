"""A client's connections to its gateway: TCP itself, TLS and QUIC through their relays."""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
from typing import Final
from weakref import WeakValueDictionary

from jvpnd.core.effects import host_port
from jvpnd.transport import quic, udp
from jvpnd.transport.carrier import Messages, Stream, Transport
from jvpnd.transport.endpoint import Endpoint
from jvpnd.transport.proxy import Proxy
from jvpnd.transport.tcp import new_connection, path_error
from jvpnd.transport.tls import ProxyRequest, TlsRelay
from jvpnd.transport.udp import PathError

CONNECT_S: Final = 5.0  # for the TCP handshake, then again for what a relay does
ALPN: Final = {"tls": ("http/1.1",), "quic": ("h3",)}  # what a firewall expects there


class Dialer:
    """Makes connections; relays are started when the first one needs them."""

    def __init__(self, mark: int, proxy: Proxy | None) -> None:
        """`mark`: firewall mark of all sockets. `proxy`: what TLS goes through."""
        self._mark = mark
        self._proxy = proxy
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._pipes: WeakValueDictionary[int, Messages] = WeakValueDictionary()
        self._tls: TlsRelay | None = None
        self._quic: quic.QuicRelay | None = None

    async def dial(self, uplink: str, source: str, endpoint: Endpoint) -> Transport:
        """A connection over this uplink, ready to use. Raises PathError: a sentence that says why
        there is none."""
        how = {"tcp": self._dial_tcp, "tls": self._dial_tls, "quic": self._dial_quic}
        try:
            return await how[endpoint.transport](uplink, source, endpoint)
        except TimeoutError:
            error = OSError(errno.ETIMEDOUT, "no answer")
            remote = (endpoint.address, endpoint.port)
            raise path_error(uplink, source, remote, error) from None

    async def close(self) -> None:
        """End the relays; connections that are under way fail."""
        for relay in (self._tls, self._quic):
            if relay is not None:
                await relay.stop()

    async def _connect(self, uplink: str, source: str, remote: tuple[str, int]) -> socket.socket:
        loop = asyncio.get_running_loop()
        sock = new_connection(uplink, source, remote, self._mark)
        try:
            async with asyncio.timeout(CONNECT_S):
                await loop.sock_connect(sock, remote)
        except TimeoutError:
            sock.close()
            raise
        except OSError as error:
            sock.close()
            raise path_error(uplink, source, remote, error) from error
        except asyncio.CancelledError:
            sock.close()
            raise
        return sock

    async def _dial_tcp(self, uplink: str, source: str, endpoint: Endpoint) -> Transport:
        return Stream(await self._connect(uplink, source, (endpoint.address, endpoint.port)))

    async def _dial_tls(self, uplink: str, source: str, endpoint: Endpoint) -> Transport:
        remote, request = (endpoint.address, endpoint.port), None
        if self._proxy is not None:
            request = ProxyRequest(host_port(*remote), self._proxy.authorization)
            remote = await self._address_of(self._proxy, source)
        number = next(self._numbers)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        alpn = endpoint.alpn or ALPN["tls"]
        with theirs, await self._connect(uplink, source, remote) as sock:
            if self._tls is None:  # only now: the one from before may have ended meanwhile
                self._tls = TlsRelay(self._tls_ready, self._failed, self._tls_exited)
            self._tls.connect(number, sock, theirs, endpoint.server_name, alpn, request)
        await self._is_ready(number, ours)
        return Stream(ours)

    async def _dial_quic(self, uplink: str, source: str, endpoint: Endpoint) -> Transport:
        if self._quic is None:
            self._quic = quic.QuicRelay(
                self._quic_ready, _nobody, self._resized, self._failed, self._quic_exited
            )
        number = next(self._numbers)
        remote = (endpoint.address, endpoint.port)
        ours, theirs = quic.new_pipe()
        alpn = endpoint.alpn or ALPN["quic"]
        with theirs, udp.open_path(uplink, source, remote, self._mark) as group:
            (sock,) = group.sockets
            self._quic.connect(number, sock, theirs, endpoint.server_name, alpn)
        pipe = Messages(ours, await self._is_ready(number, ours))
        self._pipes[number] = pipe
        return pipe

    async def _address_of(self, proxy: Proxy, source: str) -> tuple[str, int]:
        """The proxy's address of the IP version of `source`. Raises PathError."""
        family = socket.AF_INET6 if ":" in source else socket.AF_INET
        loop = asyncio.get_running_loop()
        try:
            rows = await loop.getaddrinfo(proxy.host, proxy.port, family=family)
        except socket.gaierror as error:
            raise PathError(errno.EHOSTUNREACH, f"proxy {proxy.host}: {error.strerror}") from error
        return str(rows[0][4][0]), proxy.port

    # --- the relays' word ---

    async def _is_ready(self, number: int, ours: socket.socket) -> int:
        """Wait for the relay; what it says the connection carries."""
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(CONNECT_S):
                size: int = await future
                return size
        except BaseException:
            ours.close()
            raise
        finally:
            del self._waiting[number]

    def _tls_ready(self, number: int) -> None:
        self._quic_ready(number, 0)

    def _quic_ready(self, number: int, size: int) -> None:
        future = self._waiting.get(number)
        if future is not None and not future.done():
            future.set_result(size)

    def _failed(self, number: int, why: str) -> None:
        future = self._waiting.get(number)
        if future is not None and not future.done():
            future.set_exception(PathError(errno.ECONNABORTED, why))

    def _resized(self, number: int, size: int) -> None:
        pipe = self._pipes.get(number)
        if pipe is not None:
            pipe.resize(size)

    def _tls_exited(self) -> None:
        self._tls = None
        self._all_failed("the TLS relay ended")

    def _quic_exited(self) -> None:
        self._quic = None
        self._all_failed("the QUIC relay ended")

    def _all_failed(self, why: str) -> None:
        for number in list(self._waiting):
            self._failed(number, why)


def _nobody(
    listener: int, number: int, remote: tuple[str, int], size: int, pipe: socket.socket
) -> None:
    """A client accepts no connections."""
    pipe.close()
