"""How long datagrams may be on each UDP path of a client: found by probing, told to the data
plane."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from jvpnd.core.packets import stealth_key
from jvpnd.core.sizeprobe import SMALLEST, TOKEN_LEN, size_packet, size_token
from jvpnd.core.wire import SAFE_DATAGRAM, PacketType
from jvpnd.paths import OpenPath
from jvpnd.transport.quicsize import REST_S, SIZES_4, SIZES_6, SizeSearch

TRY_S: Final = 0.3
CALL_S: Final = 1.0  # between small probes until one is answered: only clients are
BUSY_REST_S: Final = 2.0  # between rounds while the path carries traffic
MAX_ASKED: Final = 64  # probes of a path whose answer still counts


def sizes_towards(remote: str, full: int) -> tuple[int, ...]:
    """Lengths worth a try, on the way to a lengthy datagram of `full` bytes."""
    known = SIZES_6 if remote.startswith("[") else SIZES_4
    between = {size for size in known if SAFE_DATAGRAM < size < full}
    return (*sorted(between), full)


class _Probing:
    """One path's search, its probes under way, and its timer."""

    def __init__(self, path: OpenPath, full: int) -> None:
        sizes = sizes_towards(path.info.remote, full)
        self.path = path
        self.search = SizeSearch(sizes, SAFE_DATAGRAM, TRY_S)
        self.asked: OrderedDict[bytes, int] = OrderedDict()
        self.timer: asyncio.TimerHandle | None = None
        self.is_answered = False
        self.sent_whole = False  # a handshake that may be too long

    def token(self, size: int) -> bytes:
        token = os.urandom(TOKEN_LEN)
        self.asked[token] = size
        if len(self.asked) > MAX_ASKED:
            self.asked.popitem(last=False)
        return token


class PathSizes:
    """Probes each path from when it is opened until it is closed."""

    def __init__(
        self,
        gateway_public: bytes,
        full: int,
        is_busy: Callable[[OpenPath], bool],
        tell: Callable[[int, int], None],
    ) -> None:
        """`full`: bytes of the longest datagram that the tunnel sends. `tell` gets a path's socket
        id and its limit: when that changes, and in each round, since the peer may miss it."""
        self._key = stealth_key(gateway_public)
        self._full = full
        self._is_busy = is_busy
        self._tell = tell
        self.bad = 0  # replies that answer nothing that was asked
        self._loop = asyncio.get_running_loop()
        self._paths: dict[int, _Probing] = {}

    def opened(self, path: OpenPath) -> None:
        if path.info.transport != "udp" or self._full <= SAFE_DATAGRAM:
            return
        probing = self._paths[path.socket_id] = _Probing(path, self._full)
        self._tell(path.socket_id, probing.search.size)
        # by then a handshake or a probe has told the gateway who is there; or `doubt` says so
        probing.timer = self._loop.call_later(CALL_S, self._tick, probing)

    def closed(self, path: OpenPath) -> None:
        probing = self._paths.pop(path.socket_id, None)
        if probing is not None and probing.timer is not None:
            probing.timer.cancel()

    def close(self) -> None:
        for probing in list(self._paths.values()):
            self.closed(probing.path)

    def limit(self, path: OpenPath) -> int | None:
        """What it carries as far as is known; None where nothing is asked."""
        probing = self._paths.get(path.socket_id)
        return None if probing is None else probing.search.size

    def doubt(self, path: OpenPath) -> None:
        """Something long was lost, or the gateway has come to know us: ask now, if not already
        about to."""
        probing = self._paths.get(path.socket_id)
        if probing is None or probing.timer is None:
            return
        if probing.timer.when() - self._loop.time() > TRY_S:
            probing.timer.cancel()
            self._tick(probing)

    def needs_halves(self, path: OpenPath, length: int) -> bool:
        """Whether a handshake of this length goes in two datagrams: not the first one over a path
        of which nothing is known."""
        probing = self._paths.get(path.socket_id)
        if probing is None or length <= probing.search.size:
            return False
        before, probing.sent_whole = probing.sent_whole, True
        return before

    def answered(self, path: OpenPath, packet: bytes) -> None:
        """A SIZE_REPLY that came over a path."""
        probing, token = self._paths.get(path.socket_id), size_token(packet, self._key)
        if probing is None or token is None or probing.asked.pop(token, None) != len(packet):
            self.bad += 1
            return
        before = probing.search.size
        if not probing.is_answered:
            probing.is_answered = True
            self.doubt(path)
        probing.search.heard()
        probing.search.answered(len(packet))
        if probing.search.size != before:
            self._tell(path.socket_id, probing.search.size)

    def _tick(self, probing: _Probing) -> None:
        probing.search.rest_s = BUSY_REST_S if self._is_busy(probing.path) else REST_S
        sizes, wait_s = probing.search.tick() if probing.is_answered else ((SMALLEST,), CALL_S)
        self._tell(probing.path.socket_id, probing.search.size)
        if sizes and probing.is_answered:
            sizes = (*sizes, SMALLEST)  # which tells that the path lives
        for size in sizes:
            packet = size_packet(PacketType.SIZE_PROBE, probing.token(size), size, self._key)
            with contextlib.suppress(OSError):  # it does not even fit the uplink
                probing.path.transport.send(packet)
        probing.timer = self._loop.call_later(wait_s, self._tick, probing)
