"""A UDP socket of the relay: reads in batches; what it does not take at once waits, a little."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from jvpnd.transport.quicengine import Datagrams

MAX_PAYLOAD: Final = 2048  # above any size that is probed for
DATAGRAMS_A_TURN: Final = 64
MAX_WAITING: Final = 256

_IP_MTU_DISCOVER: Final = 10  # linux/in.h
_IPV6_MTU_DISCOVER: Final = 23  # linux/in6.h
_PMTUDISC_PROBE: Final = 3  # never fragment, and leave the size to us


class UdpSocket:
    """`on_datagrams` gets what came, a batch at a time; `on_error` the errno of a failed call."""

    def __init__(
        self,
        fd: int,
        on_datagrams: Callable[[Datagrams], None],
        on_error: Callable[[int], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_datagrams = on_datagrams
        self._on_error = on_error
        self._waiting: deque[tuple[bytes, Any]] = deque()
        self._held_up: dict[Callable[[], None], None] = {}
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        if self._socket.family == socket.AF_INET6:  # which sends IPv4 too where it is dual-stack
            option = _IPV6_MTU_DISCOVER
            self._socket.setsockopt(socket.IPPROTO_IPV6, option, _PMTUDISC_PROBE)
        self._loop.add_reader(self._socket, self._read)

    @property
    def peer(self) -> Any:
        """Where a connected socket leads to."""
        return self._socket.getpeername()

    @property
    def is_full(self) -> bool:
        return bool(self._waiting)

    def when_free(self, resume: Callable[[], None]) -> None:
        """Call `resume`, once, when it is no longer full."""
        self._held_up[resume] = None

    def send(self, datagrams: Datagrams) -> None:
        """Send now or a little later; what is too much is dropped, as the network would."""
        for number, (data, address) in enumerate(datagrams):
            if self._waiting or not self._try_send(data, address):
                self._keep(datagrams[number:])
                return

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()

    def _keep(self, datagrams: Datagrams) -> None:
        if not self._waiting:
            self._loop.add_writer(self._socket, self._send_waiting)
        self._waiting.extend(datagrams[: MAX_WAITING - len(self._waiting)])

    def _try_send(self, data: bytes, address: Any) -> bool:
        try:
            self._socket.sendto(data, address)
        except BlockingIOError:
            return False
        except OSError as error:  # EMSGSIZE: a probe was too large for the interface
            self._loop.call_soon(self._on_error, error.errno or 0)
        return True

    def _send_waiting(self) -> None:
        while self._waiting:
            if not self._try_send(*self._waiting[0]):
                return
            self._waiting.popleft()
        self._loop.remove_writer(self._socket)
        resumed, self._held_up = self._held_up, {}
        for resume in resumed:
            resume()

    def _read(self) -> None:
        datagrams: Datagrams = []
        receive = self._socket.recvfrom
        try:
            for _ in range(DATAGRAMS_A_TURN):
                datagrams.append(receive(MAX_PAYLOAD))
        except BlockingIOError:
            pass
        except OSError as error:  # of an earlier send
            self._loop.call_soon(self._on_error, error.errno or 0)
        self._on_datagrams(datagrams)
