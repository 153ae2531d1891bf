"""One node of a cluster in the simulated network. Its clock is its own: the core, its events and
its data plane live by that, the world and the table by another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from jvpnd.core.effects import BindSend, Effect, Emit, Load, Swap
from jvpnd.core.gateway import Gateway
from jvpnd.core.ownership import RowSeen
from jvpnd.core.peer import Stored
from jvpnd.core.sessionrow import Row

from .ends import GatewayEnd, Table
from .ends import Load as Traffic
from .invariants import LATE_MS, History
from .owners import Owners
from .plane import Ledger
from .retold import Books
from .sharedtable import PING_MS, Link
from .world import Whereabouts

BOOT_RETRY_MS = 100


class NodeEnd(GatewayEnd):
    """A gateway whose session table is behind a link. It serves once it has its rows."""

    def __init__(
        self,
        name: str,
        gateway: Gateway,
        ledger: Ledger,
        history: History,
        load: Traffic,
        link: Link,
        owners: Owners,
        ahead_ms: int,
        is_shared: bool,
        lan: Callable[[bytes, bytes], None],
    ) -> None:
        """`ahead_ms`: of its clock. `is_shared`: whether the table is that of all nodes. `lan`:
        lead a packet to the node that serves the session."""
        super().__init__(gateway, ledger, history, load, Table())
        self.books = _ClusterBooks()
        self.name, self.link, self.ahead_ms = name, link, ahead_ms
        self.awake_ms = 0  # since when it was not frozen
        self.seen_ms = 0.0  # when the table was asked last what it answered
        self.is_ready = False
        self._owners, self._is_shared, self._lan = owners, is_shared, lan
        self._ping_ms = 0
        self._early: list[tuple[bytes, RowSeen | None]] = []

    # --- the world's clock outside, the node's own within ---

    def start(self, now_ms: int) -> None:
        self.now_ms = self._next_push_ms = self.awake_ms = now_ms + self.ahead_ms
        self._ask_rows()

    def woke(self, now_ms: int) -> None:
        self.awake_ms = now_ms + self.ahead_ms

    def receive(self, now_ms: int, source: Whereabouts, data: bytes) -> None:
        if self.is_ready:
            super().receive(now_ms + self.ahead_ms, source, data)

    def loaded(self, now_ms: int) -> None:
        super().loaded(now_ms + self.ahead_ms)

    def leave(self, now_ms: int, leave: bool) -> None:
        """The operator's order; a node that has just been started knows of none."""
        self.now_ms = now_ms + self.ahead_ms
        self.gateway.leave(self.now_ms, leave)

    def terminate_all(self, now_ms: int) -> None:
        self.now_ms = now_ms + self.ahead_ms
        for session_id in list(self.gateway.sessions):
            self.gateway.terminate(self.now_ms, session_id)

    def next_timer_ms(self) -> int:
        if not self.is_ready:
            return self._ping_ms - self.ahead_ms
        return min(super().next_timer_ms(), self._ping_ms) - self.ahead_ms

    def timer(self, now_ms: int) -> None:
        self.now_ms = now_ms + self.ahead_ms
        if self.now_ms >= self._ping_ms:
            self._ping_ms = self.now_ms + PING_MS
            if self.is_ready:
                self.link.ping()
            else:
                self._ask_rows()
        if self.is_ready:
            self._slow_until_ms = self.now_ms  # its table may be: the TTLs hold all the same
            super().timer(self.now_ms)
            self._check_cut_off()

    def _check_cut_off(self) -> None:
        """Fail closed: without its table it sends for nobody."""
        ttl_ms = self.gateway.policy.store_loss_ttl_ms
        since_ms = max(self.seen_ms + ttl_ms, self.awake_ms)
        if self._is_shared and self.now_ms > since_ms + LATE_MS:
            assert not self.plane.sending, "it goes on without the table"

    # --- the table ---

    def _ask_rows(self) -> None:
        self._ping_ms = self.now_ms + 10 * BOOT_RETRY_MS
        asked_ms = self.now_ms

        def restore(end: NodeEnd, rows: list[Row] | None) -> None:
            if end.is_ready:
                return
            if rows is None:
                end._ping_ms = end.now_ms + BOOT_RETRY_MS
                return
            end._restore(asked_ms, rows)

        self.link.rows(self.name, restore)

    def _restore(self, asked_ms: int, rows: list[Row]) -> None:
        self.is_ready = True
        self.history.restored(rows)
        useless = {bytes.fromhex(each) for each in self.gateway.restore(self.now_ms, rows)}
        ids = {bytes.fromhex(str(row["session_id"])) for row in rows}
        self._owners.began(self.name, ids - useless)
        self._seen_at(asked_ms)
        for session_id, seen in self._early:
            self.heard_of(session_id, seen)

    def _seen_at(self, at_ms: float) -> None:
        self.seen_ms = max(self.seen_ms, at_ms)
        if self._is_shared:
            self.gateway.store_seen(self.now_ms, at_ms)

    def answered(self, asked_ms: float, came: bool) -> None:
        """Asked of the table at this time of the world: it was there then at the earliest."""
        if came:
            self._seen_at(asked_ms + self.ahead_ms)

    def stored(self, token: int, outcome: Stored) -> None:
        self._stored(token, outcome)

    def loaded_row(self, token: int, row: Row | None, outcome: Stored) -> None:
        if row is not None and bytes.fromhex(str(row["session_id"])) not in self.gateway.sessions:
            self.history.restored([row])  # what is told of a visitor follows from its row
        self.gateway.loaded(self.now_ms, token, row, outcome)

    def heard_of(self, session_id: bytes, seen: RowSeen | None) -> None:
        """News of a row."""
        if not self.is_ready:
            self._early.append((session_id, seen))
        elif seen is None:
            self.gateway.row_gone(self.now_ms, session_id)
        else:
            self.gateway.row_seen(self.now_ms, seen)

    # --- effects ---

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, Emit):
            self._owners.told(self.name, effect)
        super()._perform(effect)
        if isinstance(effect, BindSend):
            self._owners.bound(self.name, self.gateway, effect)

    def _perform_own(self, effect: Effect) -> None:
        if isinstance(effect, Swap):
            self.link.swap(effect.token, effect.session_id, effect.expected, effect.record)
        elif isinstance(effect, Load):
            self.link.load(effect.token, effect.session_id)

    def _check(self) -> None:
        super()._check()
        self._owners.check_node(self.name, self.gateway, self.plane.sending)

    def _answer(self, session_id: bytes, plain: bytes) -> None:
        """The LAN behind the nodes leads an answer to the one that announces the address."""
        if not self._send_data(session_id, plain):
            self._lan(session_id, plain)

    def send(self, now_ms: int, session_id: bytes, plain: bytes) -> None:
        """This came from the LAN."""
        self.now_ms = now_ms + self.ahead_ms
        self._send_data(session_id, plain)


class _ClusterBooks(Books):
    """What the table refused is told by the node that it happens to, and only if it matters."""

    def check(self, dropped: Mapping[str, int]) -> None:
        told: Counter[str] = self._told
        told["OWNERSHIP"] = self._did["not stored"]
        super().check(dropped)
