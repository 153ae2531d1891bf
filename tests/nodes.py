"""Two nodes of a cluster on one bench: a shared table, whose answers a test may hold back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from jvpnd.core import keys
from jvpnd.core.effects import Effect, Emit, Load, Send, Swap
from jvpnd.core.gateway import Gateway, Stored
from jvpnd.core.messages import Cause, ReattachRequest, reason_from_wire
from jvpnd.core.nodes import Sharing, node_tag
from jvpnd.core.noise import public_key
from jvpnd.core.ownership import RowSeen
from jvpnd.core.packets import decode_reject, encode_request
from jvpnd.core.path import PathInfo
from jvpnd.core.peer import ClientEntry, Peer
from jvpnd.core.policy import Policy
from jvpnd.core.sessionrow import Row, version_of
from jvpnd.core.ticket import Ticket
from jvpnd.core.wire import PacketType

from .simulation.ends import Identity
from .test_gateway import CLIENT_SECRET, HOME, SECRET, Dice

ENTRY = ClientEntry("laptop", public_key(CLIENT_SECRET), ("10.77.0.2/24",))


@dataclass
class SharedTable:
    """Rows by SessionID. `answer`: what is said instead of the truth; `applies`: and yet done."""

    rows: dict[bytes, Row] = field(default_factory=dict)
    answer: Stored | None = None
    applies: bool = False

    def swap(self, effect: Swap) -> Stored:
        held = self.rows.get(effect.session_id)
        fits = (version_of(held) if held is not None else 0) == effect.expected
        if fits and (self.answer is None or self.applies):
            self.rows[effect.session_id] = effect.record
        return self.answer or (Stored.OK if fits else Stored.CONFLICT)


class Node:
    """One gateway. With `holds` the table's answers wait in `held` until they are let go."""

    def __init__(self, name: str, table: SharedTable, seed: int, sharing: Sharing) -> None:
        self.name, self.table = name, table
        self.core = Gateway(name, SECRET, [ENTRY], Policy(), Dice(seed), sharing=sharing)
        self.core.store_seen(0, 0)
        self.effects: list[Effect] = []  # all but what the table answered
        self.holds = False
        self.held: list[Callable[[float], None]] = []
        self.now_ms = 1_000.0

    def give(self, packet: bytes) -> list[bytes]:
        """What it answers."""
        self.core.packet_received(self.now_ms, HOME, packet)
        return self.settle()

    def settle(self) -> list[bytes]:
        answers = []
        while effects := self.core.drain():
            for effect in effects:
                if isinstance(effect, Swap | Load):
                    self.held.append(self._asked(effect))
                    if not self.holds:
                        self.held.pop()(self.now_ms)
                    continue
                self.effects.append(effect)
                if isinstance(effect, Send):
                    answers.append(effect.data)
        return answers

    def _asked(self, effect: Swap | Load) -> Callable[[float], None]:
        """The table has decided; its answer is on the way."""
        if isinstance(effect, Swap):
            outcome = self.table.swap(effect)
            return lambda now_ms: self.core.store_result(now_ms, effect.token, outcome)
        read = Stored.OK if self.table.answer is None else self.table.answer
        row = self.table.rows.get(effect.session_id) if read is Stored.OK else None
        return lambda now_ms: self.core.loaded(now_ms, effect.token, row, read)

    def answered(self) -> list[bytes]:
        """The oldest answer of the table arrives."""
        self.held.pop(0)(self.now_ms)
        return self.settle()

    def hear(self, session_id: bytes) -> None:
        """The news of the row as it is now."""
        row = self.table.rows[session_id]
        created = row["created_ms"]
        assert isinstance(created, float)
        words = str(row["owner"]), str(row["client"]), str(row["state"])
        self.core.row_seen(self.now_ms, RowSeen(session_id, *words, version_of(row), created))
        self.settle()

    def events(self, kind: str) -> list[Emit]:
        return [e for e in self.effects if isinstance(e, Emit) and e.event_type == kind]

    def ownership(self) -> list[tuple[str, object]]:
        return [(str(e.reason), e.details.get("what")) for e in self.events("OWNERSHIP")]

    def did(self, kind: type) -> list[Effect]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def peer(self) -> Peer:
        (peer,) = self.core.sessions.values()
        return peer


class Nodes:
    """`a`, where the one client has its session, and `b`."""

    def __init__(self, sharing: Sharing = Sharing.STORE) -> None:
        self.table = SharedTable()
        self.a, self.b = Node("a", self.table, 1, sharing), Node("b", self.table, 2, sharing)
        self.agent = Identity("laptop", CLIENT_SECRET, public_key(SECRET)).agent(Policy(), Dice(3))
        self.agent.path_added(1_000, PathInfo("p", "udp", "p", "-", "-", node_tag("a")))
        for _ in range(2):  # the handshake, and the probe that confirms it
            for packet in self.client_sent():
                for answer in self.a.give(packet):
                    self.agent.packet_received(1_000, "p", answer)
        self.first = self.a.peer()
        assert self.first.session.id is not None
        self.id, self.next_index = self.first.session.id, self.first.next_index

    def client_sent(self) -> list[bytes]:
        return [effect.data for effect in self.agent.drain() if isinstance(effect, Send)]

    def request(
        self, attempt: int, next_index: int | None = None, node: str = "a", age_ms: int = 0
    ) -> bytes:
        """A REATTACH_REQUEST as the client would make it, so long after its INIT."""
        session = self.first.session
        index = self.next_index if next_index is None else next_index
        ticket = Ticket(self.id, 0, index, node_tag(node))
        known = session.epoch, session.state_version, age_ms
        body = ReattachRequest(attempt, b"n" * 32, *known, 77, "udp", 1, Cause.RETRY)
        sealed = ticket.seal(keys.ticket_key(SECRET), b"t" * 24)
        return encode_request(sealed, keys.proof_key(session.root), b"x" * 24, body.encode())

    def owner(self) -> object:
        return self.table.rows[self.id]["owner"]


def refused(answers: list[bytes]) -> str | None:
    """The reason of the one answer, which is a refusal."""
    (answer,) = answers
    reject = decode_reject(answer)
    return reason_from_wire(reject.code) if reject is not None else None


def accepted(answers: list[bytes]) -> bool:
    return [answer[0] for answer in answers] == [PacketType.REATTACH_ACK]
