"""Key schedule: everything is derived from the root with keyed BLAKE2b and a label.

A root comes out of each handshake (or REKEY). Each binding epoch has keys of its own, so a stale
owner or transport cannot make a packet that is accepted, and no nonce repeats across epochs.
"""

from __future__ import annotations

import hashlib
import struct

from jvpnd.core.dataclass import dataclass
from jvpnd.core.wire import KEY_LEN


def derive(key: bytes, label: str, *context: bytes | int) -> bytes:
    """32 bytes from `key`, bound to the label and to every context field (lengths included)."""
    digest = hashlib.blake2b(key=key, digest_size=KEY_LEN)
    for field in (b"jvp1 " + label.encode(), *context):
        raw = struct.pack("<Q", field) if isinstance(field, int) else field
        digest.update(struct.pack("<H", len(raw)))
        digest.update(raw)
    return digest.digest()


def root_secret(noise_keys: tuple[bytes, bytes], handshake_hash: bytes, kem_secret: bytes) -> bytes:
    """The root: safe while either the Noise exchange or ML-KEM-768 holds (hybrid)."""
    return derive(noise_keys[0] + noise_keys[1], "root", kem_secret, handshake_hash)


def proof_key(root: bytes) -> bytes:
    """Seals REATTACH_REQUEST: whoever makes one knows the root."""
    return derive(root, "proof")


def ack_key(root: bytes, attempt: int, client_nonce: bytes) -> bytes:
    """Seals the one REATTACH_ACK of an attempt."""
    return derive(root, "ack", attempt, client_nonce)


def notice_key(root: bytes, epoch: int) -> bytes:
    """Seals what a gateway says under an epoch whose counters it no longer knows."""
    return derive(root, "notice", epoch)


def reset_key(gateway_secret: bytes, session_id: bytes) -> bytes:
    """Proves a reject, even by a gateway that has lost the session: it needs no stored state."""
    return derive(gateway_secret, "reset", session_id)


def ticket_key(gateway_secret: bytes) -> bytes:
    """Seals tickets; the same after a restart, because it comes from the static key."""
    return derive(gateway_secret, "ticket")


@dataclass(frozen=True, slots=True)
class DirectionKeys:
    """Keys of one direction in one epoch: DATA (data plane) and CONTROL (core)."""

    data: bytes
    control: bytes


def client_to_gateway(root: bytes, epoch: int, client_nonce: bytes) -> DirectionKeys:
    """Known to the client before the answer, which is what allows early data."""
    return DirectionKeys(
        derive(root, "data c2g", epoch, client_nonce),
        derive(root, "control c2g", epoch, client_nonce),
    )


def gateway_to_client(
    root: bytes, epoch: int, client_nonce: bytes, gateway_nonce: bytes
) -> DirectionKeys:
    """Needs the gateway's nonce: nobody but the owner that accepted this attempt can send."""
    return DirectionKeys(
        derive(root, "data g2c", epoch, client_nonce, gateway_nonce),
        derive(root, "control g2c", epoch, client_nonce, gateway_nonce),
    )
