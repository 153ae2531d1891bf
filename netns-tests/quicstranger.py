"""A QUIC client that begins handshakes and never finishes one."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection


class Stranger(asyncio.DatagramProtocol):
    """Counts UDP payload bytes; reads what comes, answers nothing unless told to."""

    def __init__(self, address: Any, source: str = "127.0.0.1") -> None:
        self._address = address
        self._source = source
        configuration = QuicConfiguration(alpn_protocols=["h3"], verify_mode=ssl.CERT_NONE)
        self._quic = QuicConnection(configuration=configuration)
        self._begun = False
        self._last = 0.0
        self.sent = 0
        self.received = 0
        self.retried = False

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport, _protocol = await self._loop.create_datagram_endpoint(
            lambda: self, local_addr=(self._source, 0)
        )

    async def __aenter__(self) -> Stranger:
        await self.open()
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    @property
    def is_told_off(self) -> bool:
        """Whether the other end closed the connection."""
        return self._quic._close_event is not None

    def is_quiet(self, seconds: float) -> bool:
        return self._loop.time() - self._last > seconds

    def hello(self) -> None:
        """The first packet, or what a RETRY asks for."""
        if not self._begun:
            self._quic.connect(self._address, self._loop.time())
        self._begun = True
        for data, address in self._quic.datagrams_to_send(self._loop.time()):
            self._transport.sendto(data, address)
            self.sent += len(data)

    def datagram_received(self, data: bytes, address: Any) -> None:
        self._last = self._loop.time()
        self.received += len(data)
        self._quic.receive_datagram(data, address, self._loop.time())
        self.retried = self._quic._retry_count > 0
