"""A client that keeps no rule: it asks for what it likes, as often as it likes. And mere strangers.

Built from the core's messages, not from its client. One UDP socket, or one TCP connection, in one
namespace; the calls wait for their answer.
"""

from __future__ import annotations

import contextlib
import socket
import time

from jvpnd.core import keys
from jvpnd.core.handshake import ClientHandshake, EpochKeys, Established
from jvpnd.core.messages import (
    NO_SESSION,
    Cause,
    Control,
    InitPayload,
    Probe,
    ReattachAck,
    ReattachRequest,
    decode_ack,
    reason_from_wire,
)
from jvpnd.core.packets import (
    XNONCE_LEN,
    clear_part,
    decode_reject,
    decode_response,
    encode_request,
    request_tag,
    unseal,
)
from jvpnd.core.wire import STREAM_LENGTH, PacketType, decode_sealed_header
from jvpnd.entropy import SystemEntropy
from lab.namespace import Namespace

ANSWER_S = 2.0
SILENCE_S = 1.0  # this long without an answer is a refusal to answer
PATH = 1


class Liar:
    """A session of its own at a gateway, and requests about it that no client would make."""

    def __init__(
        self,
        namespace: Namespace,
        secret: bytes,
        gateway_public: bytes,
        gateway: tuple[str, int],
        transport: str = "udp",
    ) -> None:
        self._entropy = SystemEntropy()
        self._handshake = ClientHandshake(secret, gateway_public, None, self._entropy)
        self._transport = transport
        kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
        self._sock = namespace.within(lambda: socket.socket(socket.AF_INET, kind))
        self._sock.connect(gateway)
        self._came = b""
        self._probes = 0
        self.attach()

    def attach(self) -> None:
        """A session by a true handshake."""
        payload = InitPayload(
            *(0, self._transport, PATH, time.time_ns() // 1000),
            *(NO_SESSION, NO_SESSION, 1, b""),
        )
        pending = self._handshake.start(_now_ms(), "", payload)
        self.send(pending.packet)
        response = decode_response(self._receive(PacketType.HANDSHAKE_RESPONSE))
        done = self._handshake.finish(pending, response) if response else None
        assert done is not None, "the gateway's answer is forged"
        self.session: Established = done
        self.ticket, self._next_index = done.welcome.ticket, done.welcome.next_index
        self.attempt = self.epoch = pending.attempt
        self._use(done.epoch_keys)
        assert self.is_answered(), "the session is not confirmed"

    @property
    def session_id(self) -> str:
        return self.session.welcome.session_id.hex()

    def init(self, session_id: bytes) -> bytes:
        """An INIT that claims to rekey this session."""
        payload = InitPayload(
            0, "udp", PATH, time.time_ns() // 1000, session_id, NO_SESSION, 1_000_000, b""
        )
        return self._handshake.start(_now_ms(), "", payload).packet

    def is_answered(self) -> bool:
        """Whether a probe under the present epoch is: that confirms the binding."""
        self._probes += 1
        probe = Probe(PATH, PATH, self._probes).encode()
        self.send(self._channel.seal(probe))
        with contextlib.suppress(TimeoutError):
            while True:
                packet = self._receive(PacketType.CONTROL, within_s=SILENCE_S)
                header = decode_sealed_header(packet)
                body = self._channel.open(packet, header) if header else None
                if body and body[0] == Control.PROBE_REPLY:
                    return True
        return False

    def request(
        self,
        cause: Cause = Cause.TRANSPORT_DEAD,
        attempt: int | None = None,
        transport: str = "udp",
        age_ms: float = 0,
        ticket: bytes | None = None,
        root: bytes | None = None,
    ) -> bytes:
        """A REATTACH_REQUEST, its proof `age_ms` old; without `attempt` the next one."""
        if attempt is None:
            self.attempt += 1
        self._asked = ReattachRequest(
            self.attempt if attempt is None else attempt,
            self._entropy.draw(32),
            self.epoch,
            1,
            max(0, int(_now_ms() - self.session.asked_ms - age_ms)),
            int.from_bytes(self._entropy.draw(4), "little"),
            transport,
            PATH,
            cause,
        )
        proof = keys.proof_key(root or self.session.root)
        nonce = self._entropy.draw(XNONCE_LEN)
        return encode_request(ticket or self.ticket, proof, nonce, self._asked.encode())

    def ask(self, packet: bytes) -> str:
        """Send a request: "ACK" where it is bound, the proven reason where it is refused, and
        "silence"."""
        self.send(packet)
        try:
            kinds = (PacketType.REATTACH_ACK, PacketType.REATTACH_REJECT)
            answer = self._receive(*kinds, within_s=SILENCE_S)
        except TimeoutError:
            return "silence"
        if answer[0] == PacketType.REATTACH_ACK:
            self._adopt(answer)
            return "ACK"
        reject = decode_reject(answer)
        assert reject is not None
        assert reject.tag == request_tag(packet), "the answer to another request"
        assert reject.is_proven(self.session.welcome.reset_key)
        return str(reason_from_wire(reject.code))

    def _adopt(self, answer: bytes) -> None:
        response, asked = decode_response(answer), self._asked
        assert response is not None
        root, nonce = self.session.root, asked.client_nonce
        key = keys.ack_key(root, asked.attempt, nonce)
        body = unseal(key, response.body, clear_part(answer))
        ack: ReattachAck | None = decode_ack(body) if body else None
        assert ack is not None, "the answer to another request"
        assert ack.attempt == asked.attempt
        self._use(
            EpochKeys(
                asked.attempt,
                asked.receive_index,
                self._next_index,
                keys.client_to_gateway(root, asked.attempt, nonce),
                keys.gateway_to_client(root, asked.attempt, nonce, ack.gateway_nonce),
            )
        )
        self.ticket, self._next_index, self.epoch = ack.ticket, ack.next_index, ack.attempt

    def _use(self, epoch: EpochKeys) -> None:
        self._channel = epoch.channel()

    def send(self, packet: bytes) -> None:
        if self._transport == "udp":
            self._sock.send(packet)
        else:
            self._sock.sendall(STREAM_LENGTH.pack(len(packet)) + packet)

    def _receive(self, *kinds: PacketType, within_s: float = ANSWER_S) -> bytes:
        """The next packet of these kinds; TimeoutError if none comes."""
        deadline = time.monotonic() + within_s
        while True:
            packet = self._next(deadline)
            if packet[0] in kinds:
                return packet

    def _next(self, deadline: float) -> bytes:
        while True:
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
            if self._transport == "udp":
                return self._sock.recv(2048)
            size = int.from_bytes(self._came[:4], "little")
            if len(self._came) >= 4 + size > 4:
                packet, self._came = self._came[4 : 4 + size], self._came[4 + size :]
                return packet
            data = self._sock.recv(1 << 16)
            assert data, "the gateway has closed the connection"
            self._came += data

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Liar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def strangers_inits(gateway_public: bytes, number: int) -> list[bytes]:
    """INITs by somebody who knows the gateway's public key, but is none of its clients."""
    entropy, found = SystemEntropy(), []
    for _ in range(number):
        handshake = ClientHandshake(entropy.draw(32), gateway_public, None, entropy)
        payload = InitPayload(0, "udp", PATH, time.time_ns(), NO_SESSION, NO_SESSION, 1, b"")
        found.append(handshake.start(0, "", payload).packet)
    return found


def _now_ms() -> float:
    return time.monotonic() * 1000
