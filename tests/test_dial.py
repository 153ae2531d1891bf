"""A client's dialer and its relays."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from jvpnd.transport import dial
from jvpnd.transport.carrier import Stream
from jvpnd.transport.dial import Dialer
from jvpnd.transport.endpoint import Endpoint

HERE = Endpoint("tls", "127.0.0.1", 443)


class Relay:
    """Says at once that a connection is ready."""

    made: list[Relay]

    def __init__(
        self, on_ready: Callable[[int], None], _failed: object, on_exit: Callable[[], None]
    ) -> None:
        self._on_ready = on_ready
        self.die = on_exit
        self.made.append(self)

    def connect(self, number: int, *_: object) -> None:
        asyncio.get_running_loop().call_soon(self._on_ready, number)


def test_a_relay_that_ends_while_tcp_connects_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    Relay.made = []

    async def connect(*_: object) -> socket.socket:
        for relay in Relay.made:
            relay.die()
        return socket.socket()

    async def dialed() -> None:
        dialer = Dialer(0, None)
        monkeypatch.setattr(dialer, "_connect", connect)
        for number in (1, 2):
            transport = await dialer.dial("lo", "127.0.0.1", HERE)
            assert isinstance(transport, Stream)
            transport.close()
            assert len(Relay.made) == number

    monkeypatch.setattr(dial, "TlsRelay", Relay)
    asyncio.run(dialed())
