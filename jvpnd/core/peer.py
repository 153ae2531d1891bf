"""What a gateway holds of its clients: who they may be, births under way, and live sessions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from jvpnd.core.channel import Channel, ControlChannel
from jvpnd.core.constants import REBINDS_PER_MINUTE
from jvpnd.core.effects import Origin
from jvpnd.core.handshake import EpochKeys
from jvpnd.core.loss import ArrivalWindow
from jvpnd.core.messages import Probe, ProbeReply
from jvpnd.core.reasons import Reason
from jvpnd.core.session import MINUTE_MS, Session
from jvpnd.core.sessionrow import Row
from jvpnd.core.wire import Suite

REMEMBERED_REQUESTS = 32
REMEMBERED_ROOTS = 4


class Stored(Enum):
    """What the session table said to a Swap."""

    OK = "ok"
    CONFLICT = "conflict"
    UNAVAILABLE = "unavailable"


# (now_ms, what the table said), None if there was nothing to write any more
Follow: TypeAlias = Callable[[float, Stored | None], None]
# (now_ms, the row if there is one, how the reading came out)
Loaded: TypeAlias = Callable[[float, Row | None, Stored], None]
# The peer as its row should be, asked for when it can be written; None: not any more.
Future: TypeAlias = Callable[[], "Peer | None"]


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
    not_before_ms: float = 0  # the table refused it: when to try again


@dataclass(slots=True)
class Peer:
    """A session with what the gateway needs to serve it. There may be thousands: lists, since an
    empty deque takes as much as all the rest."""

    session: Session
    entry: ClientEntry
    origin: Origin
    path_number: int
    transport: str
    keys: EpochKeys
    channel: Channel
    next_index: int
    anchor_ms: float  # when the INIT of the root came: proof ages count from it
    heard_ms: float
    timestamp: int
    issue: int = 0
    stored_version: int = 0
    confirmed: bool = True  # whether the client was heard under the present epoch
    # Before the last rekeys, or of some that came to nothing: what is late proves itself by them.
    other_roots: list[bytes] = field(default_factory=list, repr=False)
    is_restored: bool = False  # from the session table, and bound to nothing yet
    is_visiting: bool = False  # of another node until the table has it as ours
    owner: str = ""  # the node that it was of before
    is_fenced: bool = False  # another node's from now on: nothing of it is sent or written
    ended: Reason | None = None  # why, once it has
    unstable_ms: float = 0
    hinted_ms: float = float("-inf")
    swapping: bool = False
    writes: list[tuple[Future, Follow]] = field(default_factory=list)
    draining: dict[int, tuple[Channel, float]] = field(default_factory=dict)
    requests: list[tuple[bytes, Origin]] = field(default_factory=list)  # the newest
    rebound_ms: list[float] = field(default_factory=list)  # in the last minute
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
        self.rebound_ms = [at for at in self.rebound_ms if now_ms - at < MINUTE_MS]
        return len(self.rebound_ms) < REBINDS_PER_MINUTE

    def note_root(self, root: bytes) -> None:
        """It is not, or no longer, the session's."""
        if root != self.session.root:
            self.other_roots.append(root)
            del self.other_roots[:-REMEMBERED_ROOTS]

    def remember(self, tag: bytes, origin: Origin) -> None:
        """This request was decided."""
        self.requests.append((tag, origin))
        del self.requests[:-REMEMBERED_REQUESTS]

    def remembers(self, tag: bytes) -> Origin | None:
        """From where exactly this request came before, if it did."""
        return next((origin for seen, origin in self.requests if seen == tag), None)
