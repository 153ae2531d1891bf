"""The reattach ticket: opaque to everybody but the gateway, renewed at each attach."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import nacl.bindings
import nacl.exceptions

_BODY = struct.Struct("<16sQII")
_NONCE_LEN = nacl.bindings.crypto_secretbox_NONCEBYTES
TICKET_LEN = _NONCE_LEN + nacl.bindings.crypto_secretbox_MACBYTES + _BODY.size


@dataclass(frozen=True, slots=True)
class Ticket:
    """Which session, the how manieth ticket of it, the receiver index of the next epoch, and the
    tag of the node that owned the session when it was issued."""

    session_id: bytes
    issue: int
    next_index: int
    node: int

    def seal(self, key: bytes, nonce: bytes) -> bytes:
        """TICKET_LEN bytes; `nonce` is 24 fresh random bytes."""
        body = _BODY.pack(self.session_id, self.issue, self.next_index, self.node)
        return nonce + nacl.bindings.crypto_secretbox(body, nonce, key)


def open_ticket(sealed: bytes, key: bytes) -> Ticket | None:
    """The ticket inside, None if it was not sealed with this gateway's key."""
    if len(sealed) != TICKET_LEN:
        return None
    nonce, box = sealed[:_NONCE_LEN], sealed[_NONCE_LEN:]
    try:
        body = nacl.bindings.crypto_secretbox_open(box, nonce, key)
    except nacl.exceptions.CryptoError:
        return None
    return Ticket(*_BODY.unpack(body))
