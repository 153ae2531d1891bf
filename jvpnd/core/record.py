"""A gateway's session as a row of the session table, and back.

The row is written before what it says takes effect. It holds what a gateway needs to serve the
session again after a restart: no key that sends, so that no nonce can be used twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jvpnd.core import keys
from jvpnd.core.channel import RestoredChannel
from jvpnd.core.effects import Origin
from jvpnd.core.handshake import EpochKeys
from jvpnd.core.keys import DirectionKeys
from jvpnd.core.peer import ClientEntry, Peer
from jvpnd.core.sessionrow import (
    MISFITS,
    Row,
    bytes_of,
    number_of,
    row_of_session,
    session_of_row,
)
from jvpnd.core.wire import KEY_LEN

_NO_KEY = b""


def row_of(peer: Peer, node: str) -> Row:
    """What the table holds of a session that `node` owns."""
    epoch = peer.keys
    return {
        **row_of_session(peer.session),
        "client_key": peer.entry.public_key.hex(),
        "owner": node,
        "anchor_ms": peer.anchor_ms,
        "timestamp": peer.timestamp,
        "issue": peer.issue,
        "next_index": peer.next_index,
        "index": epoch.index,
        "peer_index": epoch.peer_index,
        "heard_key": epoch.receive.control.hex(),
        "socket_id": peer.origin.socket_id,
        "remote": list(peer.origin.remote),
        "transport": peer.transport,
        "path_number": peer.path_number,
        "ended": peer.ended,
    }


def client_key(row: Row) -> bytes | None:
    """Whose session it is, None if the row does not say."""
    try:
        return bytes_of(row, "client_key", KEY_LEN)
    except MISFITS:
        return None


def peer_of(row: Row, entry: ClientEntry | None, draw: Callable[[int], bytes]) -> Peer | None:
    """The session of a row, bound to nothing, or None if the row makes no sense.

    `entry`: the client as the configuration has it now; None if it is listed no more. `draw`:
    random bytes for the nonces of notices.
    """
    try:
        return _peer_of(row, entry, draw)
    except MISFITS:
        return None


def _peer_of(
    row: Mapping[str, Any], entry: ClientEntry | None, draw: Callable[[int], bytes]
) -> Peer:
    session = session_of_row(row)
    held = EpochKeys(
        session.epoch,
        number_of(row, "index"),
        number_of(row, "peer_index"),
        DirectionKeys(_NO_KEY, _NO_KEY),
        DirectionKeys(_NO_KEY, bytes_of(row, "heard_key", KEY_LEN)),
    )
    notice_key = keys.notice_key(session.root, session.epoch)
    if entry is None:
        public_key = bytes_of(row, "client_key", KEY_LEN)
        entry = ClientEntry(session.client, public_key, session.addresses)
    host, port = row["remote"]
    transport = str(row["transport"])
    return Peer(
        session,
        entry,
        Origin(number_of(row, "socket_id"), (str(host), int(port)), transport),
        number_of(row, "path_number"),
        transport,
        held,
        RestoredChannel(held.peer_index, notice_key, held.index, held.receive.control, draw),
        number_of(row, "next_index"),
        float(row["anchor_ms"]),
        0.0,
        number_of(row, "timestamp"),
        number_of(row, "issue"),
        stored_version=session.state_version,
        is_restored=True,
    )
