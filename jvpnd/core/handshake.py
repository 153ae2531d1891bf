"""The hybrid handshake: Noise IKpsk2 with an ML-KEM-768 exchange in its payloads.

Both halves are here side by side, because they must agree on every byte.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

from jvpnd.core import keys
from jvpnd.core.channel import ControlChannel
from jvpnd.core.constants import MAX_PENDING_INITS
from jvpnd.core.dataclass import dataclass, field
from jvpnd.core.entropy import Entropy
from jvpnd.core.messages import InitPayload, Welcome, decode_init, decode_welcome
from jvpnd.core.noise import Initiator, Responder, public_key
from jvpnd.core.packets import COOKIE_LEN, Init, Response, stealth_key
from jvpnd.core.packets import decode_init as decode_init_packet
from jvpnd.core.wire import PacketType

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

PROLOGUE = b"JVP/1"
NO_PSK = bytes(32)
NO_COOKIE = bytes(COOKIE_LEN)


@dataclass(frozen=True, slots=True)
class EpochKeys:
    """What an end holds of one binding epoch."""

    epoch: int
    index: int  # receiver index of this end
    peer_index: int
    send: keys.DirectionKeys = field(repr=False)
    receive: keys.DirectionKeys = field(repr=False)

    def channel(self) -> ControlChannel:
        return ControlChannel(self.peer_index, self.send.control, self.index, self.receive.control)


@dataclass(frozen=True, slots=True)
class PendingInit:
    """An INIT on its way."""

    index: int
    path_id: str
    attempt: int
    sent_ms: float
    packet: bytes


@dataclass(frozen=True, slots=True)
class Established:
    """The outcome of a handshake at the client."""

    root: bytes = field(repr=False)
    welcome: Welcome
    epoch_keys: EpochKeys
    asked_ms: float  # when the INIT was sent


class Handshake(Protocol):
    """A client's: given from outside, so that the rest of the core never holds the static key."""

    def start(
        self, now_ms: float, path_id: str, payload: InitPayload, cookie: bytes
    ) -> PendingInit: ...

    def finish(self, pending: PendingInit, response: Response) -> Established | None: ...


class ClientHandshake:
    """Makes INITs and reads their answers."""

    def __init__(self, secret: bytes, gateway_public: bytes, psk: bytes | None, entropy: Entropy):
        self._secret = secret
        self._open: OrderedDict[int, tuple[Initiator, MLKEM768PrivateKey]] = OrderedDict()
        self._gateway_public = gateway_public
        self._psk = psk or NO_PSK
        self._entropy = entropy
        self._stealth = stealth_key(gateway_public)

    def start(
        self,
        now_ms: float,
        path_id: str,
        payload: InitPayload,
        cookie: bytes = NO_COOKIE,
    ) -> PendingInit:
        """A fresh INIT; `payload.kem_public` is filled in here."""
        # here, since a restart needs no handshake, and waits for what it imports
        from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

        kem = MLKEM768PrivateKey.from_seed_bytes(self._entropy.draw(64))
        body = InitPayload(
            payload.capabilities,
            payload.transport,
            payload.path_number,
            payload.timestamp,
            payload.session_id,
            payload.supersedes,
            payload.attempt,
            kem.public_key().public_bytes_raw(),
        )
        noise = Initiator(
            self._secret, self._gateway_public, self._entropy.draw(32), self._psk, PROLOGUE
        )
        index = int.from_bytes(self._entropy.draw(4), "little")
        packet = Init(index, noise.write_message(body.encode()), cookie).encode(self._stealth)
        self._open[index] = noise, kem
        if len(self._open) > MAX_PENDING_INITS:
            self._open.popitem(last=False)
        return PendingInit(index, path_id, payload.attempt, now_ms, packet)

    def finish(self, pending: PendingInit, response: Response) -> Established | None:
        """None if the answer is forged, malformed or under another pre-shared key."""
        if pending.index not in self._open:
            return None
        noise, kem = self._open[pending.index]
        body = noise.read_response(response.body)
        welcome = decode_welcome(body) if body is not None else None
        if welcome is None:
            return None
        del self._open[pending.index]
        secret = kem.decapsulate(welcome.kem_ciphertext)
        digest = noise.handshake_hash
        root = keys.root_secret(noise.split(), digest, secret)
        epoch = EpochKeys(
            pending.attempt,
            pending.index,
            welcome.index,
            keys.client_to_gateway(root, pending.attempt, digest),
            keys.gateway_to_client(root, pending.attempt, digest, digest),
        )
        return Established(root, welcome, epoch, pending.sent_ms)


@dataclass(frozen=True, slots=True)
class OpenedInit:
    """An authenticated INIT at the gateway."""

    client_public: bytes
    client_index: int
    payload: InitPayload
    noise: Responder = field(repr=False)


class GatewayHandshake:
    """Reads INITs and makes their answers."""

    def __init__(self, secret: bytes, entropy: Entropy) -> None:
        self._secret = secret
        self._entropy = entropy
        self._stealth = stealth_key(public_key(secret))

    def decode(self, packet: bytes) -> Init | None:
        """Framing and stealth MAC only: costs no key exchange."""
        return decode_init_packet(packet, self._stealth)

    def open(self, init: Init) -> OpenedInit | None:
        """None if the Noise message or its payload is bad."""
        noise = Responder(self._secret, PROLOGUE)
        body = noise.read_message(init.noise)
        payload = decode_init(body) if body is not None else None
        if payload is None or noise.remote_static is None:
            return None
        return OpenedInit(noise.remote_static, init.index, payload, noise)

    def respond(
        self, opened: OpenedInit, psk: bytes | None, welcome: Welcome, kem_secret: bytes
    ) -> tuple[bytes, bytes, EpochKeys]:
        """(packet, root, keys of the epoch asked for)."""
        body = opened.noise.write_response(
            welcome.encode(), self._entropy.draw(32), psk or NO_PSK
        )
        digest = opened.noise.handshake_hash
        root = keys.root_secret(opened.noise.split(), digest, kem_secret)
        attempt = opened.payload.attempt
        epoch = EpochKeys(
            attempt,
            welcome.index,
            opened.client_index,
            keys.gateway_to_client(root, attempt, digest, digest),
            keys.client_to_gateway(root, attempt, digest),
        )
        packet = Response(opened.client_index, body).encode(PacketType.HANDSHAKE_RESPONSE)
        return packet, root, epoch
