"""A gateway's part for paths that do not carry every datagram: it answers size probes, and takes
and gives handshakes in halves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from jvpnd.core.effects import Origin, Send
from jvpnd.core.halves import Halves, in_halves
from jvpnd.core.noise import public_key
from jvpnd.core.packets import stealth_key
from jvpnd.core.ratelimit import TokenBuckets, source_key
from jvpnd.core.sizeprobe import size_packet, size_token
from jvpnd.core.wire import PacketType
from jvpnd.host import now_ms

PROBES_PER_S: Final = 100  # answered to one source
PROBE_BURST: Final = 200
SOURCES: Final = 4096
MAX_KNOWN: Final = 32_768  # origins of clients
_TO_CLIENTS: Final = (
    PacketType.HANDSHAKE_RESPONSE,
    PacketType.REATTACH_ACK,
    PacketType.CONTROL,
)


class NarrowPaths:
    """Keeps halves, from where clients were heard, and how many probes each source has had answered
    lately; no more."""

    def __init__(self, secret: bytes) -> None:
        """`secret`: the gateway's private key."""
        self._key = stealth_key(public_key(secret))
        self._halves = Halves()
        self._halved: Origin | None = None  # whose handshake in halves is being answered
        self._probes = TokenBuckets(PROBES_PER_S, PROBE_BURST, SOURCES)
        self._known: dict[Origin, None] = {}  # the one heard longest ago first
        self._strange_probes = self._bad_probes = self._many_probes = 0

    @property
    def dropped(self) -> dict[str, int]:
        """Packets that were dropped, by cause."""
        causes = {
            "size probe of a stranger": self._strange_probes,  # and a client's before it is known
            "bad size probe": self._bad_probes,
            "size probe rate": self._many_probes,
            "half a handshake": self._halves.dropped,
        }
        return {cause: count for cause, count in causes.items() if count}

    def answer(self, origin: Origin, packet: bytes, send: Callable[[Send], None]) -> None:
        """Answer a SIZE_PROBE with as many bytes, if it is good and comes from where a client was
        authentically heard: nobody else is answered anything."""
        if origin not in self._known:
            self._strange_probes += 1
            return
        token = size_token(packet, self._key)
        if token is None:
            self._bad_probes += 1
        elif not self._probes.allow(source_key(origin.remote[0]), int(now_ms())):
            self._many_probes += 1
        else:
            send(Send(origin, size_packet(PacketType.SIZE_REPLY, token, len(packet), self._key)))

    def whole(self, origin: Origin, packet: bytes) -> bytes | None:
        """The packet, or that of which it was the last half to come; None if one is missing."""
        self._halved = None
        if packet[:1] != bytes([PacketType.HALF]):
            return packet
        whole = self._halves.add(origin, packet) if origin.transport == "udp" else None
        if whole is not None:
            self._halved = origin
        return whole

    def packets(self, effect: Send) -> Sequence[bytes]:
        """What is sent for it: who asked in halves is answered in halves."""
        kind, to = effect.data[0], effect.to
        if kind in _TO_CLIENTS and isinstance(to, Origin) and to.transport == "udp":
            self._known.pop(to, None)
            self._known[to] = None
            if len(self._known) > MAX_KNOWN:
                del self._known[next(iter(self._known))]
        if kind == PacketType.HANDSHAKE_RESPONSE and to == self._halved:
            return in_halves(effect.data)
        return (effect.data,)
