"""One reattach attempt of a client: its request, its early keys, and the reading of its answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from jvpnd.core import keys
from jvpnd.core.entropy import Entropy
from jvpnd.core.handshake import EpochKeys
from jvpnd.core.messages import (
    Cause,
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
from jvpnd.core.path import Path
from jvpnd.core.reasons import Reason
from jvpnd.core.session import Session


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the gateway gave at the last attach, to be shown at the next."""

    ticket: bytes
    next_index: int
    reset_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Proof:
    """By what a request is proven: a root of the session, when the INIT of that root was sent, and
    the ticket that came with it or later."""

    root: bytes = field(repr=False)
    anchor_ms: float
    credentials: Credentials


@dataclass(frozen=True, slots=True)
class Attempt:
    """An outstanding REATTACH_REQUEST. Every request is an attempt of its own."""

    number: int
    path_id: str
    sent_ms: float
    deadline_ms: float
    index: int
    packet: bytes
    client_nonce: bytes
    send: keys.DirectionKeys = field(repr=False)
    proof: Proof


def make_attempt(
    session: Session,
    proof: Proof,
    path: Path,
    cause: Cause,
    now_ms: float,
    wait_ms: float,
    entropy: Entropy,
) -> Attempt:
    """The next attempt over `path`."""
    session.attempt += 1
    nonce = entropy.draw(32)
    index = int.from_bytes(entropy.draw(4), "little")
    request = ReattachRequest(
        session.attempt,
        nonce,
        session.epoch,
        session.state_version,
        max(0, int(now_ms - proof.anchor_ms)),
        index,
        path.info.transport,
        path.number,
        cause,
    )
    packet = encode_request(
        proof.credentials.ticket,
        keys.proof_key(proof.root),
        entropy.draw(XNONCE_LEN),
        request.encode(),
    )
    send = keys.client_to_gateway(proof.root, session.attempt, nonce)
    return Attempt(
        session.attempt,
        path.id,
        now_ms,
        now_ms + wait_ms,
        index,
        packet,
        nonce,
        send,
        proof,
    )


def read_ack(attempt: Attempt, packet: bytes) -> tuple[EpochKeys, ReattachAck] | None:
    """The new epoch's keys, None if the ACK is forged or of another attempt."""
    response = decode_response(packet)
    if response is None or response.index != attempt.index:
        return None
    root, credentials = attempt.proof.root, attempt.proof.credentials
    key = keys.ack_key(root, attempt.number, attempt.client_nonce)
    body = unseal(key, response.body, clear_part(packet))
    ack = decode_ack(body) if body is not None else None
    if ack is None or ack.attempt != attempt.number:
        return None
    receive = keys.gateway_to_client(
        root, attempt.number, attempt.client_nonce, ack.gateway_nonce
    )
    epoch = EpochKeys(
        attempt.number, attempt.index, credentials.next_index, attempt.send, receive
    )
    return epoch, ack


def read_reject(attempt: Attempt, packet: bytes) -> tuple[Reason, int] | None:
    """(why, the tag of the node to ask instead) of a proven refusal of exactly this request; a hint
    without proof is None."""
    reject = decode_reject(packet)
    if reject is None or reject.tag != request_tag(attempt.packet):
        return None
    if not reject.is_proven(attempt.proof.credentials.reset_key):
        return None
    word = reason_from_wire(reject.code)
    return (Reason(word), reject.node) if word is not None else None
