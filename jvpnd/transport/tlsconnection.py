"""One connection of the TLS relay: a pipe on one side, TLS over TCP on the other.

Each direction holds back its own reader: cipher text that TCP does not take stops reading the
pipe, plain text that the pipe does not take stops reading TCP. So a connection keeps at most what
one turn reads, each way. TLS works in memory (SSLObject): one receive or send is many records.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Callable
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT
from typing import Final, Protocol

from jvpnd.transport.poll import Poll
from jvpnd.transport.proxy import ConnectResponse, ProxyError
from jvpnd.transport.tlscontext import reason_of

TURN: Final = 128 * 1024
"""What a connection may read at once, each way: the others wait no longer than that takes."""
UNSENT: Final = 64 * 1024
"""What may wait in the TCP socket, and hence before a probe, beside what is on its way."""
_MAX_RECORD: Final = 16384
_GONE: Final = EPOLLERR | EPOLLHUP
_NOTHING: Final = memoryview(b"")

# For all connections: nothing stays in them from one turn to the next. Plain text is shorter than
# its cipher text, but the beginning of its first record may have come before.
_CIPHER: Final = memoryview(bytearray(TURN))
_PLAIN: Final = memoryview(bytearray(TURN + 2 * _MAX_RECORD))

# What OpenSSL makes of the first bytes of something else.
_NOT_TLS: Final = frozenset(
    ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "PACKET_LENGTH_TOO_LONG")
)


TlsOver = Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject]
"""Makes one end of TLS that reads from the first and writes to the second."""

_ReadInto = Callable[[int, memoryview], int]


class _PeerClosedError(OSError):
    pass


class _PipeClosedError(Exception):
    pass


class Owner(Protocol):
    """Who is told about a connection."""

    def on_ready(self, connection: Connection) -> None:
        """TLS is there."""

    def on_failed(self, connection: Connection, why: str) -> None:
        """It will not come about."""

    def on_end(self, connection: Connection) -> None:
        """Last of all, in any case."""


class Connection:
    """Begins with a TCP connection, and owns both descriptors to its end."""

    def __init__(
        self,
        number: int,
        owner: Owner,
        poll: Poll,
        sock: socket.socket,
        pipe: socket.socket,
        tls_over: TlsOver,
        proxy_request: bytes | None,
    ) -> None:
        self.number = number
        self._owner = owner
        self._sock = sock
        self._pipe = pipe
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = tls_over(self._incoming, self._outgoing)
        self._read: _ReadInto = self._tls.read  # type: ignore[assignment]  # with a buffer
        self._response = None if proxy_request is None else ConnectResponse()
        self._unsent = memoryview(proxy_request or b"")
        self._undelivered = _NOTHING
        # Little at first, and for who sends more TLS than data: new keys take 30 µs for 27 bytes.
        self._appetite = _MAX_RECORD
        self._established = False
        self._watch_sock = poll.watch(sock.fileno(), self._on_sock)
        self._watch_pipe = poll.watch(pipe.fileno(), self._on_pipe)

    def start(self) -> None:
        self._attempt(self._begin)

    def expire(self, seconds: float) -> None:
        """Give up waiting for TLS."""
        what = "TLS handshake" if self._response is None else "answer from the proxy"
        self._end(f"no {what} in {seconds:g} s")

    # --- what happens ------------------------------------------------------------------

    def _on_sock(self, events: int) -> None:
        def act() -> None:
            if events & _GONE and self._undelivered:
                raise _PeerClosedError
            if events & (EPOLLIN | _GONE):
                self._receive()
            if events & EPOLLOUT:
                self._flush()

        self._attempt(act)

    def _on_pipe(self, events: int) -> None:
        def act() -> None:
            if events & EPOLLOUT:
                self._deliver(self._undelivered)
            if events & (EPOLLIN | _GONE):
                self._take_from_pipe()

        self._attempt(act)

    def _attempt(self, act: Callable[[], None]) -> None:
        try:
            act()
        except _PipeClosedError:
            self._close()
        except (OSError, ProxyError) as error:
            self._end(self._why(error))
        else:
            self._want()

    def _want(self) -> None:
        if self._sock.fileno() < 0:
            if not self._undelivered:
                self._close_pipe()
            return
        deliver, send = bool(self._undelivered), bool(self._unsent)
        # a peer that asks for new keys has an answer each time, and may not read them
        receive = not deliver and self._outgoing.pending < TURN
        take = self._established and not send
        self._watch_sock.want((EPOLLIN if receive else 0) | (EPOLLOUT if send else 0))
        self._watch_pipe.want((EPOLLIN if take else 0) | (EPOLLOUT if deliver else 0))

    # --- from TCP to the pipe ----------------------------------------------------------

    def _receive(self) -> None:
        try:
            count = self._sock.recv_into(_CIPHER[: self._appetite])
        except BlockingIOError:
            return
        if count == 0:
            raise _PeerClosedError
        data = _CIPHER[:count]
        if self._response is not None:
            used = self._response.feed(bytes(data))
            if used is None:
                return
            self._response = None
            data = data[used:]
        self._incoming.write(data)
        if not self._established:
            self._begin()
        if self._established:
            self._open(len(data))

    def _begin(self) -> None:
        """The handshake, as far as it gets."""
        if self._response is None:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                pass
            else:
                self._established = True
                self._owner.on_ready(self)
        self._flush()

    def _open(self, received: int) -> None:
        """Decrypt all that is there: what stays behind in OpenSSL, no event would tell of."""
        length = 0
        ended = False
        try:
            while not ended:
                count = self._read(_MAX_RECORD, _PLAIN[length:])
                length += count
                ended = count == 0
        except ssl.SSLWantReadError:
            pass
        self._appetite = TURN if 2 * length > received else _MAX_RECORD
        self._deliver(_PLAIN[:length])
        if ended:
            raise _PeerClosedError
        self._flush()  # the answer to a new key

    def _deliver(self, data: memoryview) -> None:
        try:
            sent = self._pipe.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            raise _PipeClosedError from None
        self._undelivered = memoryview(bytes(data[sent:]))

    # --- from the pipe to TCP ----------------------------------------------------------

    def _take_from_pipe(self) -> None:
        if self._unsent or not self._established or self._sock.fileno() < 0:
            raise _PipeClosedError  # nothing else is told of at such a time
        try:
            count = self._pipe.recv_into(_PLAIN[:TURN])
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if count == 0:
            raise _PipeClosedError
        self._tls.write(_PLAIN[:count])
        self._flush()

    def _flush(self) -> None:
        """Send what TCP takes."""
        while self._unsent or self._outgoing.pending:
            data = self._unsent or memoryview(self._outgoing.read())
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
            self._unsent = data[sent:]
            if self._unsent:
                return

    # --- the end -----------------------------------------------------------------------

    def _end(self, why: str) -> None:
        """The peer's: what came before it is still delivered."""
        if not self._established:
            self._owner.on_failed(self, why)
        self._close_sock()
        if self._undelivered:
            self._watch_pipe.want(EPOLLOUT)
        else:
            self._close_pipe()

    def _close(self) -> None:
        """Ours: the pipe has no other end any more."""
        self._close_sock()
        self._close_pipe()

    def _close_sock(self) -> None:
        if self._sock.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            if self._established:
                self._tls.unwrap()  # close_notify; never waits for the peer's
        with contextlib.suppress(OSError):
            self._flush()
        self._watch_sock.forget()
        self._sock.close()

    def _close_pipe(self) -> None:
        if self._pipe.fileno() >= 0:
            self._watch_pipe.forget()
            self._pipe.close()
            self._owner.on_end(self)

    def _why(self, error: OSError | ProxyError) -> str:
        if isinstance(error, ProxyError):
            return str(error)
        if isinstance(error, _PeerClosedError):
            return "the peer closed" if self._response is None else "the proxy closed"
        if isinstance(error, ssl.SSLError):
            what = "not TLS" if error.reason in _NOT_TLS else "TLS failed"
            return f"{what}: {reason_of(error)}"
        return os.strerror(error.errno or 0).lower()
