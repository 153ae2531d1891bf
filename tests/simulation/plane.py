"""A small model of the data plane: it really seals and opens DATA, and keeps account of nonces."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from jvpnd.core.channel import ControlChannel
from jvpnd.core.effects import BindReceive, BindSend, Destination
from jvpnd.core.replay import ReplayWindow
from jvpnd.core.wire import (
    HEADER,
    HEADER_LEN,
    PacketType,
    Suite,
    data_nonce,
    decode_sealed_header,
)

HELD_MAX = 128
_REPORT = struct.Struct("<II")  # records that came, and those missing below the highest
_CIPHERS = {Suite.AES_256_GCM: AESGCM, Suite.CHACHA20_POLY1305: ChaCha20Poly1305}


@lru_cache(256)
def _cipher(suite: Suite, key: bytes) -> AESGCM | ChaCha20Poly1305:
    return _CIPHERS[suite](key)


@dataclass
class Ledger:
    """The highest nonce that anybody has sealed with under each key, over the whole run: it only
    rises, so none comes twice."""

    highest: dict[bytes, int] = field(default_factory=dict)

    def note(self, key: bytes, counter: int) -> None:
        assert counter > self.highest.get(key, -1), f"nonce {counter} reused"
        self.highest[key] = counter

    def watch_control(self, monkeypatch: object) -> None:
        """Account for CONTROL packets too, which the core seals itself."""
        ledger, seal = self, ControlChannel.seal

        def noted(channel: ControlChannel, body: bytes) -> bytes:
            ledger.note(channel._send_key, channel._counter)
            return seal(channel, body)

        monkeypatch.setattr(ControlChannel, "seal", noted)  # type: ignore[attr-defined]


@dataclass
class _Sending:
    binding: BindSend
    counter: int = 0


@dataclass
class _Receiving:
    binding: BindReceive
    window: ReplayWindow = field(default_factory=ReplayWindow)
    records: int = 0
    highest: int = -1


class Plane:
    """One end's data plane. At most one send binding a session, by construction as in the real one;
    what is checked is that a newer one is never followed by an older one."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.sending: dict[bytes, _Sending] = {}
        self.receiving: dict[int, _Receiving] = {}
        self.expected: set[int] = set()
        self.held: list[tuple[Destination, bytes]] = []
        self.keys_seen: set[bytes] = set()
        self.last_tx_ms = self.last_rx_ms = 0
        self.tx = self.rx = self.rx_index = 0
        self.peer_report = (0, 0)

    def bind_send(self, binding: BindSend) -> None:
        assert binding.key not in self.keys_seen, "a send key was bound a second time"
        self.keys_seen.add(binding.key)
        self.sending[binding.session_id] = _Sending(binding)

    def bind_receive(self, binding: BindReceive) -> list[tuple[Destination, bytes]]:
        """Returns what was held for this index, to be received again."""
        self.receiving[binding.index] = _Receiving(binding)
        self.expected.discard(binding.index)
        held = [h for h in self.held if _index(h[1]) == binding.index]
        self.held = [h for h in self.held if _index(h[1]) != binding.index]
        return held

    def release_receive(self, index: int) -> None:
        self.receiving.pop(index, None)

    def seal(
        self, now_ms: int, session_id: bytes, plain: bytes
    ) -> tuple[Destination, bytes] | None:
        """The datagram and where it goes; None without a binding."""
        sending = self.sending.get(session_id)
        if sending is None:
            return None
        binding, counter = sending.binding, sending.counter
        sending.counter += 1
        self.ledger.note(binding.key, counter)
        clear = HEADER.pack(PacketType.DATA, 0, 0, binding.index, counter)
        cipher = _cipher(binding.suite, binding.key)
        self.tx, self.last_tx_ms = self.tx + 1, now_ms
        report = _REPORT.pack(*self.report())
        return binding.to, clear + cipher.encrypt(data_nonce(0, counter), report + plain, clear)

    def report(self) -> tuple[int, int]:
        """Of the newest epoch heard: records that came, and those missing."""
        receiving = self.receiving.get(self.rx_index)
        if receiving is None:
            return 0, 0
        return receiving.records, receiving.highest + 1 - receiving.records

    def open(self, now_ms: int, source: Destination, packet: bytes) -> tuple[bytes, bytes] | None:
        """(session id, plain text), None for what is dropped or held."""
        header = decode_sealed_header(packet)
        if header is None:
            return None
        index, counter = header.index, header.counter
        receiving = self.receiving.get(index)
        if receiving is None:
            if index in self.expected and len(self.held) < HELD_MAX:
                self.held.append((source, packet))
            return None
        binding = receiving.binding
        cipher = _cipher(binding.suite, binding.key)
        try:
            plain = cipher.decrypt(
                data_nonce(0, counter), packet[HEADER_LEN:], packet[:HEADER_LEN]
            )
        except InvalidTag:
            return None
        if not receiving.window.check_and_set(counter):
            return None
        self.rx, self.last_rx_ms, self.rx_index = self.rx + 1, now_ms, index
        receiving.records += 1
        receiving.highest = max(receiving.highest, counter)
        came, missing = _REPORT.unpack_from(plain)
        self.peer_report = came, missing
        return binding.session_id, plain[_REPORT.size :]


def _index(packet: bytes) -> int:
    index: int = HEADER.unpack_from(packet)[3]
    return index
