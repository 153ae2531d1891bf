"""Makes docs/vectors.json: what a real client and a real gateway say to each other when their dice
are known. `python -m tests.vectors docs/vectors.json` writes it anew.

ML-KEM encapsulation draws its own randomness, so its outcome is an input: where the file is there,
its ciphertext and secret are used again, and the file comes out as it was.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from jvpnd.core import keys, noise
from jvpnd.core.client import ClientAgent
from jvpnd.core.effects import Effect, Endpoint, Origin, Send, Swap
from jvpnd.core.gateway import Gateway, Stored
from jvpnd.core.noise import public_key
from jvpnd.core.packets import encode_retry, request_tag, stealth_key
from jvpnd.core.path import PathInfo
from jvpnd.core.peer import ClientEntry, Peer
from jvpnd.core.policy import Policy
from jvpnd.core.ratelimit import CookieJar
from jvpnd.core.record import row_of
from jvpnd.core.sessionrow import Row
from jvpnd.core.wire import FLAG_REPORT, FRAME, REPORT, PacketType, Suite
from jvpnd.dataplane.counters import Drop
from jvpnd.dataplane.seal import Cut, Opener, Sealer
from jvpnd.dataplane.span import Assembly, SpanBuffers

from .simulation.ends import Identity

FILE = Path(__file__).parent.parent / "docs/vectors.json"

Vector = dict[str, Any]


def known(what: str, count: int = 32) -> bytes:
    """Bytes that look random and are the same each time."""
    return hashlib.shake_256(b"JVP/1 vectors: " + what.encode()).digest(count)


GATEWAY_SECRET, CLIENT_SECRET, PSK = known("gateway"), known("client"), known("psk")
HOME, AWAY = Origin(1, ("198.51.100.1", 4000)), Origin(1, ("203.0.113.9", 5000))
ENTRY = ClientEntry("laptop", public_key(CLIENT_SECRET), ("10.77.0.2/24", "fd77::2/64"), (), PSK)
ENDPOINTS = (Endpoint("udp", "192.0.2.7", 7700), Endpoint("tls", "", 443))
BORN_MS, MOVED_MS = 1_000.0, 3_500.0

# What the Noise state takes in, one after the other: both messages, as the gateway sees them.
STEPS = (
    *("prologue", "gateway static", "e", "e as key", "es", "s", "ss", "payload"),
    *("e", "e as key", "ee", "se", "psk", "payload"),
)


class KnownEntropy:
    """Dice that are known, and remember what they gave."""

    def __init__(self, whose: str, kem: tuple[bytes, bytes] | None = None) -> None:
        """`kem`: secret and ciphertext."""
        self.drawn: list[bytes] = []
        self._whose, self._kem = whose, kem

    def draw(self, count: int) -> bytes:
        self.drawn.append(known(f"{self._whose} {len(self.drawn)}", count))
        return self.drawn[-1]

    def encapsulate(self, public_key: bytes) -> tuple[bytes, bytes]:
        assert self._kem is not None
        return self._kem


def make(kem: tuple[bytes, bytes] | None = None) -> Vector:
    """The whole file. `kem`: secret and ciphertext; None: fresh ones."""
    if kem is None:
        seed = KnownEntropy("client").draw(64)
        kem = MLKEM768PrivateKey.from_seed_bytes(seed).public_key().encapsulate()
    dice, theirs = KnownEntropy("client"), KnownEntropy("gateway", kem)
    gateway = Gateway("gw1", GATEWAY_SECRET, [ENTRY], Policy(), theirs, endpoints=ENDPOINTS)
    identity = Identity("laptop", CLIENT_SECRET, public_key(GATEWAY_SECRET), PSK)
    agent = identity.agent(Policy(), dice)
    static = {
        "gateway_secret": GATEWAY_SECRET,
        "gateway_public": public_key(GATEWAY_SECRET),
        "client_secret": CLIENT_SECRET,
        "client_public": public_key(CLIENT_SECRET),
        "psk": PSK,
    }
    with traced() as steps:
        agent.path_added(BORN_MS, PathInfo("p", "udp", "p", "-", "-"))
        init = sent(agent, PacketType.HANDSHAKE_INIT)
        steps.clear()  # the client's: the gateway's are the same
        (response,) = given(gateway, BORN_MS, HOME, init)
        noise_steps = [{"after": what, **step} for what, step in zip(STEPS, steps, strict=True)]
    agent.packet_received(BORN_MS, "p", response)
    probe = sent(agent, PacketType.CONTROL)
    (reply,) = given(gateway, BORN_MS, HOME, probe)
    (peer,) = gateway.sessions.values()
    handshake = {
        "kem_seed": dice.drawn[0],
        "kem_public": MLKEM768PrivateKey.from_seed_bytes(dice.drawn[0])
        .public_key()
        .public_bytes_raw(),
        "kem_secret": kem[0],
        "kem_ciphertext": kem[1],
        "client_ephemeral_secret": dice.drawn[1],
        "client_index": dice.drawn[2],
        "timestamp_us": int((1e12 + BORN_MS) * 1000),
        "session_id": theirs.drawn[1],
        "gateway_index": theirs.drawn[2],
        "next_index": theirs.drawn[3],
        "ticket_nonce": theirs.drawn[4],
        "gateway_ephemeral_secret": theirs.drawn[5],
        "addresses": list(ENTRY.addresses),
        "endpoints": [[each.transport, each.address, each.port, each.node] for each in ENDPOINTS],
        "stealth_key": stealth_key(public_key(GATEWAY_SECRET)),
        "reset_key": keys.reset_key(GATEWAY_SECRET, theirs.drawn[1]),
        "ticket_key": keys.ticket_key(GATEWAY_SECRET),
        "init": init,
        "response": response,
        "noise": noise_steps,
        "root": peer.session.root,
        "proof_key": keys.proof_key(peer.session.root),
    }
    first_row = row_of(peer, "gw1")
    vectors = {
        "about": "JVP/1 test vectors. Everything is hexadecimal but numbers and names. Made by "
        "tests/vectors.py, checked by tests/test_vectors.py, explained in docs/protocol.md.",
        "static": static,
        "handshake": handshake,
        "first_epoch": epoch_of(peer),
        "probe": probe,
        "probe_reply": reply,
        "data": data_records(peer.keys.receive.data, peer.keys.index),
        "notice": notice(first_row),
        "retry": retry(dice.drawn[2]),
        "reattach": reattach(agent, gateway, dice, theirs),
    }
    vectors["close"] = close(gateway)
    written: Vector = plain(vectors)
    return written


@contextmanager
def traced() -> Iterator[list[Vector]]:
    """What the Noise state is after each of its operations."""
    steps: list[Vector] = []
    original = noise._SymmetricState

    class Traced(original):  # type: ignore[misc, valid-type]
        def mix_hash(self, data: bytes) -> None:
            super().mix_hash(data)
            self._note()

        def mix_key(self, material: bytes) -> None:
            super().mix_key(material)
            self._note()

        def _note(self) -> None:
            steps.append({"h": self.hash, "ck": self._chaining_key, "k": self._cipher_key})

    noise._SymmetricState = Traced  # type: ignore[misc]
    try:
        yield steps
    finally:
        noise._SymmetricState = original  # type: ignore[misc]


def given(gateway: Gateway, now_ms: float, origin: Origin, packet: bytes) -> list[bytes]:
    """What the gateway answers."""
    gateway.packet_received(now_ms, origin, packet)
    return answers(gateway, now_ms)


def answers(gateway: Gateway, now_ms: float) -> list[bytes]:
    found = []
    while effects := gateway.drain():
        for effect in effects:
            if isinstance(effect, Swap):
                gateway.store_result(now_ms, effect.token, Stored.OK)
        found += packets(effects)
    return found


def packets(effects: list[Effect]) -> list[bytes]:
    return [effect.data for effect in effects if isinstance(effect, Send)]


def sent(agent: ClientAgent, kind: PacketType) -> bytes:
    return next(packet for packet in packets(agent.drain()) if packet[0] == kind)


def epoch_of(peer: Peer) -> Vector:
    held = peer.keys
    return {
        "epoch": held.epoch,
        "data_c2g": held.receive.data,
        "control_c2g": held.receive.control,
        "data_g2c": held.send.data,
        "control_g2c": held.send.control,
        "notice_key": keys.notice_key(peer.session.root, held.epoch),
        "gateway_index": held.index,
        "client_index": held.peer_index,
    }


def reattach(
    agent: ClientAgent, gateway: Gateway, dice: KnownEntropy, theirs: KnownEntropy
) -> Vector:
    """The path dies, and the session moves to another one."""
    (peer,) = gateway.sessions.values()
    ticket, before, their_before = agent._state.credentials, len(dice.drawn), len(theirs.drawn)
    assert ticket is not None
    agent.path_added(MOVED_MS, PathInfo("q", "tcp", "q", "-", "-"))
    agent.drain()
    agent.path_removed(MOVED_MS, "p", "uplink lost")
    request = sent(agent, PacketType.REATTACH_REQUEST)
    (ack,) = given(gateway, MOVED_MS + 10, replace(AWAY, transport="tcp"), request)
    agent.packet_received(MOVED_MS + 20, "q", ack)
    forgetful = Gateway("gw1", GATEWAY_SECRET, [ENTRY], Policy(), KnownEntropy("another"))
    (reject,) = given(forgetful, MOVED_MS + 10, AWAY, request)
    nonce, index, seal_nonce = dice.drawn[before:]
    gateway_nonce, next_index, ticket_nonce, ack_nonce = theirs.drawn[their_before:]
    return {
        "ticket": ticket.ticket,
        "attempt": 2,
        "client_nonce": nonce,
        "client_index": index,
        "request_nonce": seal_nonce,
        "request": request,
        "gateway_nonce": gateway_nonce,
        "next_index": next_index,
        "ticket_nonce": ticket_nonce,
        "ack_key": keys.ack_key(peer.session.root, 2, nonce),
        "ack_nonce": ack_nonce,
        "ack": ack,
        "epoch": epoch_of(peer),
        "reject_of_a_gateway_without_the_session": reject,
        "request_tag": request_tag(request),
    }


def notice(row: Row) -> Vector:
    """The gateway was started again in the first epoch."""
    dice = KnownEntropy("restarted gateway")
    gateway = Gateway("gw1", GATEWAY_SECRET, [ENTRY], Policy(), dice)
    gateway.restore(BORN_MS, [row])
    gateway.timer(BORN_MS)
    (packet,) = answers(gateway, BORN_MS)
    return {"nonce": dice.drawn[-1], "packet": packet}


def close(gateway: Gateway) -> bytes:
    """An operator ends the session in its second epoch."""
    (session_id,) = gateway.sessions
    gateway.terminate(MOVED_MS + 100, session_id)
    (packet,) = answers(gateway, MOVED_MS + 100)
    return packet


def retry(client_index: bytes) -> Vector:
    secret, now_ms = known("cookies"), 1_234_567
    cookie = CookieJar(secret).make(*HOME.remote, now_ms)
    return {
        "secret": secret,
        "address": list(HOME.remote),
        "now_ms": now_ms,
        "cookie": cookie,
        "packet": encode_retry(int.from_bytes(client_index, "little"), cookie),
    }


def udp_packet(payload: int) -> bytes:
    """IPv4 and UDP from the client; checksums are left to whoever sends."""
    head = bytes.fromhex("45000000000040004011000000000000000000001f901f9000000000")
    packet = bytearray(head + known("payload", payload))
    packet[2:4], packet[24:26] = len(packet).to_bytes(2, "big"), (8 + payload).to_bytes(2, "big")
    packet[12:16], packet[16:20] = bytes([10, 77, 0, 2]), bytes([10, 77, 0, 1])
    return bytes(packet)


def data_records(key: bytes, index: int) -> list[Vector]:
    """DATA of the client in its first epoch, all under one sealer a suite, so counters go on."""
    found: list[Vector] = []
    for suite in Suite:
        sealer = Sealer(suite, key, index, lane=0)

        def note(what: str, plain_text: bytes, *datagrams: bytes, suite: Suite = suite) -> None:
            record = {"what": what, "suite": suite.name, "plain": plain_text}
            found.append({**record, "datagrams": list(datagrams)})

        packet, super_packet = udp_packet(40), udp_packet(250)
        frames = (
            FRAME.pack(1, len(packet), 0)
            + packet
            + FRAME.pack(0, len(super_packet), 100)
            + super_packet
            + FRAME.pack(FLAG_REPORT, REPORT.size, 0)
            + REPORT.pack(1000, 2, 3, 1232)
        )
        out = memoryview(bytearray(4096))
        end = sealer.seal(memoryview(frames), out, 0)
        note("frames: a packet, a super-packet, a report", frames, bytes(out[:end]))

        pieces = sealer.seal_span(memoryview(frames), 200, SpanBuffers())
        parts = [bytes(head) + bytes(body) for head, body in zip(*[iter(pieces)] * 2, strict=True)]
        note("the same over datagrams of at most 200 bytes", frames, *parts)

        room = bytearray(5) + bytearray(super_packet)
        cut = Cut(5, len(room), super_packet[:28], 100, 3)
        for number in range(cut.count):
            end = sealer.seal_slices(memoryview(room), cut, number, number + 1, out, 0)
            datagram = bytes(out[:end])
            opened = opened_by(suite, key, index, datagram)
            note(f"slice {number} of the super-packet", opened, datagram)
    return found


def opened_by(suite: Suite, key: bytes, index: int, datagram: bytes) -> bytes:
    """The plain text, as the receiving end opens it."""
    room, drops = memoryview(bytearray(70_000)), memoryview(bytearray(8 * len(Drop))).cast("Q")
    opener = Opener(suite, key, index, Assembly())
    batch = memoryview(bytearray(datagram))
    ((at, length),), _, _ = opener.open_run(batch, 0, len(datagram), room, 0, drops)
    return bytes(room[at : at + length])


def plain(value: Any) -> Any:
    """As JSON has it: bytes in hexadecimal."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value


def kem_of(vectors: Vector) -> tuple[bytes, bytes]:
    handshake = vectors["handshake"]
    return bytes.fromhex(handshake["kem_secret"]), bytes.fromhex(handshake["kem_ciphertext"])


def main(name: str) -> None:
    path = Path(name)
    kem = kem_of(json.loads(path.read_text())) if path.exists() else None
    path.write_text(json.dumps(make(kem), indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
