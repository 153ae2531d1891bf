"""What the core asks its shell to do. Values only: the shell performs them in the order given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from jvpnd.core.reasons import Reason
from jvpnd.core.wire import Suite

Address: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a gateway heard a packet: its own listening socket and the sender's address."""

    socket_id: int
    remote: Address
    transport: str = "udp"

    def __str__(self) -> str:
        return host_port(*self.remote)


def host_port(host: str, port: int) -> str:
    """An address and a port as people write them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# A client names the path it sends over, a gateway the origin it answers to.
Destination: TypeAlias = str | Origin


@dataclass(frozen=True, slots=True)
class Send:
    """Send one packet."""

    to: Destination
    data: bytes


@dataclass(frozen=True, slots=True)
class BindSend:
    """From now on DATA of this session goes here under this key, and nowhere else."""

    session_id: bytes
    index: int
    suite: Suite
    key: bytes = field(repr=False)
    to: Destination


@dataclass(frozen=True, slots=True)
class ReleaseSend:
    """The session may send no more DATA."""

    session_id: bytes


@dataclass(frozen=True, slots=True)
class BindReceive:
    """Accept DATA with this receiver index under this key; `to` is where it should come from."""

    session_id: bytes
    index: int
    suite: Suite
    key: bytes = field(repr=False)
    to: Destination


@dataclass(frozen=True, slots=True)
class ReleaseReceive:
    """Accept DATA with this receiver index no more."""

    index: int


@dataclass(frozen=True, slots=True)
class Expect:
    """DATA with this index may come before its key: hold a little of it (early data)."""

    index: int


@dataclass(frozen=True, slots=True)
class Unexpect:
    """The announced index will not be used."""

    index: int


@dataclass(frozen=True, slots=True)
class PauseTun:
    """Leave the TUN unread (the kernel queues) or read it again."""

    paused: bool


@dataclass(frozen=True, slots=True)
class SessionUp:
    """A session is attached for the first time: these inner addresses and networks are its own."""

    session_id: bytes
    addresses: tuple[str, ...]
    networks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworksChanged:
    """These networks are the session's own from now on, besides its inner addresses."""

    session_id: bytes
    networks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SessionDown:
    """The session has ended: forget its inner routes."""

    session_id: bytes


@dataclass(frozen=True, slots=True)
class SaveTimestamp:
    """Keep this across restarts: the next handshake timestamp must be above it."""

    value: int


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep this row of the client's session across restarts, in place of the one before, and before
    anything else is done."""

    row: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a gateway can be reached. No `address`: the one by which the client knows it. `node`:
    the tag of the node of a cluster that is there."""

    transport: str
    address: str
    port: int
    node: int = 0


@dataclass(frozen=True, slots=True)
class Learned:
    """The gateway told its endpoints."""

    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Seek:
    """Paths that need a connection first: open all that the policy allows, or again only those
    that are kept warm."""

    wanted: bool


@dataclass(frozen=True, slots=True)
class Vouch:
    """A packet from there was authentic: it is no stranger's connection."""

    origin: Origin


@dataclass(frozen=True, slots=True)
class Swap:
    """Write the record if the stored state_version is still `expected` (0: it must be new).

    The shell answers through `Gateway.store_result(now_ms, token, outcome)`.
    """

    token: int
    session_id: bytes
    expected: int
    record: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Load:
    """Read the session's record, which another node may have written.

    The shell answers through `Gateway.loaded(now_ms, token, record, outcome)`.
    """

    token: int
    session_id: bytes


@dataclass(frozen=True, slots=True)
class Emit:
    """One event for the audit trail (docs/events.md)."""

    event_type: str
    reason: Reason | None = None
    session_id: bytes | None = None
    client: str | None = None
    from_state: str | None = None
    to_state: str | None = None
    state_version: int | None = None
    details: Mapping[str, object] = field(default_factory=dict)


Effect: TypeAlias = (
    Send
    | BindSend
    | ReleaseSend
    | BindReceive
    | ReleaseReceive
    | Expect
    | Unexpect
    | PauseTun
    | SessionUp
    | NetworksChanged
    | SessionDown
    | SaveTimestamp
    | Keep
    | Learned
    | Seek
    | Vouch
    | Swap
    | Load
    | Emit
)
