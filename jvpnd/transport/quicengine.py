"""aioquic as the relay uses it. What it keeps to itself is touched in this file only."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable, Sequence
from typing import Any, Final

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.congestion.base import QuicCongestionControl, register_congestion_control
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.recovery import QuicPacketPacer
from aioquic.tls import CipherSuite, Epoch
from cryptography.hazmat.backends import openssl  # noqa: F401 - loaded while there are files
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates

from jvpnd.transport.quicsize import BASE

IDLE_S: Final = 30.0  # the tunnel's own probes keep a connection alive
ID_LEN: Final = 8  # of our connection ids
MAX_PENDING: Final = 64  # tunnel datagrams that cannot go out yet
LOST_TRACK: Final = 2**15  # unacknowledged packets; aioquic sends 16 bits of their numbers

_ACK_DELAY_S: Final = 0.01  # at most the 25 ms that aioquic promises
_MAX_FRAME: Final = 65535
# first byte, packet number, tag; type and length (two bytes from 64 on) of the frame
_OVERHEAD: Final = 1 + 2 + 16 + 1 + 2
_KEY: Final = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [^\n]*", re.DOTALL)
_UNLIMITED: Final = "unlimited"

Datagrams = list[tuple[bytes, Any]]
"""UDP payloads, and the address that each goes to as the kernel spells it."""


class _Unlimited(QuicCongestionControl):
    """None: as over UDP, the flows inside the tunnel have their own.

    A second one below them backs off twice, and after an outage stays silent for as long again.
    """

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self.congestion_window = 2**40
        self.large_lost = 0

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        self.bytes_in_flight -= packet.sent_bytes
        if packet.sent_bytes > BASE:
            self.large_lost = 0

    def on_packet_sent(self, *, packet: QuicSentPacket) -> None:
        self.bytes_in_flight += packet.sent_bytes

    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes
            self.large_lost += packet.sent_bytes > BASE

    def on_persistent_congestion(self) -> None:
        pass

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        pass


register_congestion_control(_UNLIMITED, _Unlimited)


class _Unpaced(QuicPacketPacer):
    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        pass


class Quic(QuicConnection):
    """A QUIC connection for DATAGRAM frames and nothing else."""

    def __init__(self, configuration: QuicConfiguration, **ids: bytes | None) -> None:
        super().__init__(configuration=configuration, **ids)  # type: ignore[arg-type]
        self._ack_delay = _ACK_DELAY_S
        self._loss._pacer = _Unpaced(max_datagram_size=BASE)
        for limit in (self._local_max_streams_bidi, self._local_max_streams_uni):
            limit.value = limit.sent = 0

    @property
    def overhead(self) -> int:
        """Bytes of a UDP payload that are not the tunnel datagram in it."""
        return _OVERHEAD + len(self._peer_cid.cid)

    @property
    def takes_datagrams(self) -> bool:
        """Whether the other end does, for which it has to have offered it."""
        return self._remote_max_datagram_frame_size is not None

    @property
    def pending(self) -> int:
        return len(self._datagrams_pending)

    @property
    def unacknowledged(self) -> int:
        """Packets sent since the newest that arrived."""
        space = self._spaces.get(Epoch.ONE_RTT)
        return self._packet_number - space.largest_acked_packet if space is not None else 0

    @property
    def why_ended(self) -> str | None:
        """None while it lives."""
        if self._close_event is None:
            return None
        return self._close_event.reason_phrase or "closed by the other end"

    def lost_large(self, limit: int) -> bool:
        """Whether so many packets above BASE were lost in a row; begins to count anew then."""
        control = self._loss._cc
        assert isinstance(control, _Unlimited)
        if control.large_lost < limit:
            return False
        control.large_lost = 0
        return True

    def resize(self, size: int) -> None:
        """Send UDP payloads of so many bytes at most."""
        self._max_datagram_size = size
        fits = size - self.overhead
        for _ in range(self.pending):  # aioquic would wait forever for room for a longer one
            data = self._datagrams_pending.popleft()
            if len(data) <= fits:
                self._datagrams_pending.append(data)

    def probe(self, size: int, data: bytes, now: float) -> Datagrams:
        """`data`, padded to a UDP payload of `size` bytes; nothing else may be pending."""
        before = self._max_datagram_size
        self._max_datagram_size = size
        self.send_datagram_frame(data.ljust(size - self.overhead, b"\0"))
        datagrams = self.datagrams_to_send(now)
        self._datagrams_pending.clear()
        self._max_datagram_size = before
        return datagrams


def client(server_name: str | None, alpn: Sequence[str]) -> QuicConfiguration:
    """The tunnel's handshake proves who the gateway is: whatever certificate will do."""
    configuration = _configuration(alpn, is_client=True)
    configuration.server_name = server_name
    configuration.verify_mode = ssl.CERT_NONE
    return configuration


def server(pem: bytes, alpn: Sequence[str]) -> QuicConfiguration:
    """`pem`: certificates, own first, and the key. Raises ValueError."""
    configuration = _configuration(alpn, is_client=False)
    key = _KEY.search(pem)
    if key is None:
        raise ValueError("no private key in the PEM")
    # AES-GCM would have to change keys every 2**23 packets (RFC 9001, 6.6), and is no faster here
    configuration.cipher_suites = [
        CipherSuite.CHACHA20_POLY1305_SHA256,
        CipherSuite.AES_256_GCM_SHA384,
        CipherSuite.AES_128_GCM_SHA256,
    ]
    own, *chain = load_pem_x509_certificates(pem)
    configuration.certificate, configuration.certificate_chain = own, chain
    configuration.private_key = load_pem_private_key(key[0], None)
    return configuration


def _configuration(alpn: Sequence[str], is_client: bool) -> QuicConfiguration:
    return QuicConfiguration(
        alpn_protocols=list(alpn),
        congestion_control_algorithm=_UNLIMITED,
        connection_id_length=ID_LEN,
        idle_timeout=IDLE_S,
        is_client=is_client,
        max_data=0,  # streams carry nothing
        max_stream_data=0,
        max_datagram_frame_size=_MAX_FRAME,
    )
