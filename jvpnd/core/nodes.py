"""The gateways of a cluster, as their clients know them: a tag each, and probes that any node
answers, whoever owns the session.

NODE_PROBE: type u8, three zero bytes, ticket, sequence u32, MAC 16 bytes. NODE_REPLY: type u8,
state u8, two zero bytes, sequence u32, MAC 16 bytes. Both MACs are under the session's reset key,
which every node can compute from the ticket: to answer costs a node no look at any table.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from enum import Enum, IntEnum

from jvpnd.core.ticket import TICKET_LEN
from jvpnd.core.wire import PacketType

NO_NODE = 0
"""The tag of a node that is not known, or of a gateway that is alone."""

_MAC_LEN = 16
_PROBE = struct.Struct(f"<Bxxx{TICKET_LEN}sI")
_REPLY = struct.Struct("<BBxxI")
PROBE_LEN = _PROBE.size + _MAC_LEN
REPLY_LEN = _REPLY.size + _MAC_LEN


class Sharing(Enum):
    """What a gateway has in common with others of the same key."""

    ALONE = "alone"
    STICKY = "sticky"  # nothing: a session stays with the node where it was born
    STORE = "store"  # the session table: a session is taken over by whoever is asked


class NodeState(IntEnum):
    """Whether a node takes sessions."""

    READY = 1
    DRAINING = 2
    NO_STORE = 3


@dataclass(frozen=True, slots=True)
class NodeProbe:
    """A NODE_PROBE that is still to be believed."""

    ticket: bytes
    sequence: int
    packet: bytes

    def is_proven(self, reset_key: bytes) -> bool:
        """Whether somebody made it who has the session's reset key."""
        made = _mac(reset_key, self.packet[: _PROBE.size])
        return hmac.compare_digest(made, self.packet[_PROBE.size :])


def node_tag(name: str) -> int:
    """Four bytes that stand for a node's name, never NO_NODE."""
    digest = hashlib.blake2b(b"jvp1 node " + name.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") or 1


def node_probe(ticket: bytes, sequence: int, reset_key: bytes) -> bytes:
    """A whole NODE_PROBE packet."""
    front = _PROBE.pack(PacketType.NODE_PROBE, ticket, sequence)
    return front + _mac(reset_key, front)


def decode_node_probe(packet: bytes) -> NodeProbe | None:
    if len(packet) != PROBE_LEN:
        return None
    _, ticket, sequence = _PROBE.unpack_from(packet)
    return NodeProbe(ticket, sequence, packet)


def node_reply(probe: NodeProbe, state: NodeState, reset_key: bytes) -> bytes:
    """A whole NODE_REPLY packet: it answers exactly this probe."""
    front = _REPLY.pack(PacketType.NODE_REPLY, state, probe.sequence)
    return front + _mac(reset_key, front, probe.packet)


def reply_sequence(packet: bytes) -> int | None:
    """Which probe a NODE_REPLY says that it answers."""
    if len(packet) != REPLY_LEN:
        return None
    sequence: int = _REPLY.unpack_from(packet)[2]
    return sequence


def read_node_reply(packet: bytes, probe: bytes, reset_key: bytes) -> NodeState | None:
    """What the node says of itself in answer to `probe`, None if it is forged."""
    front = packet[: _REPLY.size]
    if not hmac.compare_digest(_mac(reset_key, front, probe), packet[_REPLY.size :]):
        return None
    state = packet[1]
    return NodeState(state) if state in tuple(NodeState) else None


def _mac(key: bytes, *parts: bytes) -> bytes:
    digest = hashlib.blake2b(key=key, digest_size=_MAC_LEN, person=b"jvp1 node")
    for part in parts:
        digest.update(part)
    return digest.digest()
