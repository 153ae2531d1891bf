"""Connections that strangers begin at one UDP socket, and what they may cost.

Nothing but a good INITIAL of at least 1200 bytes is answered. While it is calm the handshake
begins at once; else the stranger first has to show that it hears us (RETRY), for which nothing is
kept. Each source has so many handshakes a second, those that have shown it apart from the others,
so that nobody uses up another's by forging its address.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any, Final

from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import (
    CONNECTION_ID_MAX_SIZE,
    QuicHeader,
    QuicPacketType,
    encode_quic_retry,
    pull_quic_header,
)

from jvpnd.core.ratelimit import COOKIE_LEN, CookieJar, TokenBuckets, source_key
from jvpnd.transport.limits import MAX_CONNECTIONS
from jvpnd.transport.quicconnection import Connection
from jvpnd.transport.quicengine import ID_LEN, Datagrams, Quic
from jvpnd.transport.quicsize import BASE
from jvpnd.transport.quicsocket import UdpSocket

MAX_HALF_OPEN: Final = 256  # beyond, the oldest goes
CALM: Final = 16  # half-open ones with which nobody has to show its address
SOURCE_RATE_PER_S: Final = 20
SOURCE_BURST: Final = 40
SOURCES: Final = 4096

_LONG_HEADER: Final = 0x80


class Listener:
    """Owns its connections; `on_ready`, `on_size` and `on_end` tell of those that got ready."""

    def __init__(
        self,
        fd: int,
        configuration: QuicConfiguration,
        limit_s: float,
        on_ready: Callable[[Connection], None],
        on_size: Callable[[Connection], None],
        on_end: Callable[[Connection], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._configuration = configuration
        self._limit_s = limit_s
        self._on_ready = on_ready
        self._on_size = on_size
        self._on_end = on_end
        self._by_id: dict[bytes, Connection] = {}
        self._ids: dict[Connection, set[bytes]] = {}
        self._half_open: dict[Connection, None] = {}
        self._jar = CookieJar(os.urandom(32))
        self._sources = TokenBuckets(SOURCE_RATE_PER_S, SOURCE_BURST, SOURCES)
        self._udp = UdpSocket(fd, self._received, lambda _errno: None)

    def close(self) -> None:
        """End all connections."""
        for connection in list(self._ids):
            connection.close("shut down")

    def ready(self, connection: Connection) -> None:
        del self._half_open[connection]
        self._on_ready(connection)

    def resized(self, connection: Connection) -> None:
        self._on_size(connection)

    def ended(self, connection: Connection, why: str) -> None:
        for identity in self._ids.pop(connection):
            del self._by_id[identity]
        self._half_open.pop(connection, None)
        if connection.is_ready:
            self._on_end(connection)

    def identified(self, connection: Connection, identity: bytes, added: bool) -> None:
        if added:
            self._by_id[identity] = connection
            self._ids[connection].add(identity)
        elif identity in self._ids[connection]:
            self._ids[connection].discard(identity)
            del self._by_id[identity]

    def _received(self, datagrams: Datagrams) -> None:
        touched: dict[Connection, None] = {}
        for data, address in datagrams:
            connection = self._find(data, address)
            if connection is not None:
                connection.receive(data, address)
                touched[connection] = None
        for connection in touched:
            connection.flush()

    def _find(self, data: bytes, address: Any) -> Connection | None:
        if not data:
            return None
        if not data[0] & _LONG_HEADER:
            return self._by_id.get(data[1 : 1 + ID_LEN])
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=ID_LEN)
        except ValueError:
            return None
        known = self._by_id.get(header.destination_cid)
        if known is not None:
            return known
        good = header.version in self._configuration.supported_versions
        if header.packet_type != QuicPacketType.INITIAL or len(data) < BASE or not good:
            return None
        return self._meet(header, address)

    def _meet(self, header: QuicHeader, address: Any) -> Connection | None:
        """A stranger's first packet: a connection for it, or RETRY, or nothing."""
        if len(self._ids) >= MAX_CONNECTIONS:
            return None
        now_ms = int(self._loop.time() * 1000)
        key = source_key(address[0])
        if header.token:
            cookie, first_id = header.token[:COOKIE_LEN], header.token[COOKIE_LEN:]
            good = len(first_id) <= CONNECTION_ID_MAX_SIZE
            if not good or not self._jar.verify(cookie, address[0], address[1], now_ms):
                return None
            if self._sources.allow(b"\1" + key, now_ms):
                return self._open(header.destination_cid, first_id, True, address)
        elif len(self._half_open) >= CALM or not self._sources.allow(b"\0" + key, now_ms):
            self._retry(header, address, now_ms)
        else:
            return self._open(header.destination_cid, header.destination_cid, False, address)
        return None

    def _retry(self, header: QuicHeader, address: Any, now_ms: int) -> None:
        assert header.version is not None
        cookie = self._jar.make(address[0], address[1], now_ms)
        packet = encode_quic_retry(
            version=header.version,
            source_cid=os.urandom(ID_LEN),
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=cookie + header.destination_cid,  # forged, it fails the client's own check
        )
        self._udp.send([(packet, address)])

    def _open(self, identity: bytes, first_id: bytes, retried: bool, address: Any) -> Connection:
        if len(self._half_open) >= MAX_HALF_OPEN:
            next(iter(self._half_open)).close("too many handshakes")
        quic = Quic(
            self._configuration,
            original_destination_connection_id=first_id,
            retry_source_connection_id=identity if retried else None,
        )
        connection = Connection(quic, self._udp, address, self._limit_s, self)
        self._half_open[connection] = None
        self._ids[connection] = set()
        self.identified(connection, identity, True)
        self.identified(connection, quic.host_cid, True)
        return connection
