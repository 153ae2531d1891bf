"""What a gateway holds of its clients: who they may be, births under way, and live sessions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from jvpnd.core.channel import ControlChannel
from jvpnd.core.constants import REBINDS_PER_MINUTE
from jvpnd.core.effects import Origin
from jvpnd.core.handshake import EpochKeys
from jvpnd.core.loss import ArrivalWindow
from jvpnd.core.messages import Probe, ProbeReply
from jvpnd.core.session import MINUTE_MS, Session
from jvpnd.core.states import State
from jvpnd.core.wire import Suite

REMEMBERED_REQUESTS = 32


class Stored(Enum):
    """What the session table said to a Swap."""

    OK = "ok"
    CONFLICT = "conflict"
    UNAVAILABLE = "unavailable"


Follow: TypeAlias = Callable[[float, Stored], None]  # (now_ms, what the table said)


@dataclass(frozen=True, slots=True)
class ClientEntry:
    """A client as the configuration lists it."""

    name: str
    public_key: bytes
    addresses: tuple[str, ...]
    networks: tuple[str, ...] = ()
    psk: bytes | None = field(default=None, repr=False)


@dataclass(slots=True)
class Offer:
    """An answered INIT that the client has not confirmed yet: a birth, or a rekey of `peer`."""

    entry: ClientEntry
    origin: Origin
    path_number: int
    transport: str
    keys: EpochKeys
    channel: ControlChannel
    root: bytes = field(repr=False)
    suite: Suite
    session_id: bytes
    supersedes: bytes
    next_index: int
    timestamp: int
    made_ms: float
    confirming: bool = False


@dataclass(slots=True)
class Peer:
    """A session with what the gateway needs to serve it."""

    session: Session
    entry: ClientEntry
    origin: Origin
    path_number: int
    transport: str
    keys: EpochKeys
    channel: ControlChannel
    next_index: int
    anchor_ms: float  # when the INIT of the root came: proof ages count from it
    heard_ms: float
    timestamp: int
    issue: int = 0
    stored_version: int = 0
    confirmed: bool = True  # whether the client was heard under the present epoch
    unstable_ms: float = 0
    hinted_ms: float = float("-inf")
    swapping: bool = False
    writes: deque[tuple[Mapping[str, object], Follow]] = field(default_factory=deque)
    draining: dict[int, tuple[ControlChannel, float]] = field(default_factory=dict)
    requests: deque[tuple[bytes, Origin]] = field(
        default_factory=lambda: deque(maxlen=REMEMBERED_REQUESTS)
    )
    rebound_ms: deque[float] = field(default_factory=lambda: deque(maxlen=REBINDS_PER_MINUTE))
    arrivals: dict[int, ArrivalWindow] = field(default_factory=dict)  # probes, by path number

    def answer(self, probe: Probe) -> ProbeReply:
        """Note that this probe came, and tell of it and of those before."""
        window = self.arrivals.get(probe.path_number)
        if window is None:
            window = self.arrivals[probe.path_number] = ArrivalWindow(probe.sequence)
        window.note(probe.sequence)
        about = self.arrivals.get(probe.about)
        return ProbeReply(
            probe.path_number,
            probe.about,
            probe.sequence,
            window.before(probe.sequence),
            about.newest if about else 0,
            about.mask if about else 0,
        )

    def may_rebind(self, now_ms: float) -> bool:
        """Whether the gateway bears one more, confirmed by the client or not."""
        full = len(self.rebound_ms) == REBINDS_PER_MINUTE
        return not full or now_ms - self.rebound_ms[0] >= MINUTE_MS

    def remembers(self, tag: bytes) -> Origin | None:
        """From where exactly this request came before, if it did."""
        return next((origin for seen, origin in self.requests if seen == tag), None)

    def record(
        self, node: str, state: State, version: int, epoch: int, attempt: int
    ) -> Mapping[str, object]:
        """The row of the session table: all that another owner would need to go on."""
        session = self.session
        assert session.id is not None
        return {
            "session_id": session.id.hex(),
            "client": session.client,
            "owner": node,
            "state": str(state),
            "state_version": version,
            "epoch": epoch,
            "attempt": attempt,
            "root": session.root.hex(),
            "suite": int(session.suite),
            "addresses": list(session.addresses),
            "created_ms": session.created_ms,
            "timestamp": self.timestamp,
            "issue": self.issue,
            "next_index": self.next_index,
        }
