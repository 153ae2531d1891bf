"""The session table of a cluster: etcd, in which every node finds every session.

All that waits for the network is done in threads of its own; what they find out is told in the
event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from jvpnd.configcluster import ClusterSettings
from jvpnd.core.ownership import RowSeen
from jvpnd.core.sessionrow import Row
from jvpnd.host import wall_ms
from jvpnd.store.contact import Contact
from jvpnd.store.etcdclient import Connection, Login
from jvpnd.store.etcdrows import EtcdRows
from jvpnd.store.jobs import ExpireJob, Job, LoadJob, SwapJob
from jvpnd.store.lanes import LANES, WITHIN_S, Lane
from jvpnd.store.leases import Bucket
from jvpnd.store.mirror import Mirror
from jvpnd.store.namesake import Namesake
from jvpnd.store.nodes import EtcdNodes, Registration
from jvpnd.store.observer import READY, NodeInfo, StoreObserver
from jvpnd.store.sealing import Sealer
from jvpnd.store.shared import Shared
from jvpnd.store.table import Loaded, Written
from jvpnd.store.watching import Watch

CLOSE_S: Final = 2.0  # a thread that still waits for etcd then is left to itself
OPEN_S: Final = 5.0  # then the node starts without having heard from etcd
NAME_S: Final = 30.0  # a name that is taken is waited for no longer


class EtcdTable:
    """Rows by SessionID (hex), for all nodes."""

    def __init__(
        self,
        settings: ClusterSettings,
        node: str,
        endpoints: Sequence[tuple[str, str, int]],
        session_ttl_ms: int,
    ) -> None:
        """`endpoints`: (transport, address, port) where clients reach this node. `session_ttl_ms`:
        a row that is written no more goes some time after it."""
        assert settings.etcd is not None
        self._observer: StoreObserver | None = None
        self._untold: list[Callable[[StoreObserver], None]] = []  # since nobody observes yet
        self._node = node
        self._state = READY
        self._rows: list[Row] = []
        self._is_opening = True
        self._is_read = asyncio.Event()
        sealer, login, access = Sealer(settings.keys), Login(), settings.etcd
        where = f"etcd ({', '.join(f'{s}://{host}:{port}' for s, host, port in access.endpoints)})"
        self._contact = Contact(where, self._seen)
        self._mirror = Mirror()
        nodes, rows = EtcdNodes(settings.prefix, sealer), EtcdRows(settings.prefix, sealer)
        shared = Shared(node, rows, self._mirror, self._contact, self._moved)
        bucket = Bucket(session_ttl_ms / 1000)
        self._lanes = [Lane(n, shared, bucket, Connection(access, login)) for n in range(LANES)]
        watch = Watch(
            shared,
            nodes,
            settings.prefix,
            Connection(access, login),
            settings.node_ttl_s,
            self._nodes_changed,
            self._first_read,
        )
        self._registration = Registration(
            node,
            self._info,
            settings.node_ttl_s,
            nodes,
            self._contact,
            Connection(access, login),
            lambda: self.namesake.is_listed,
        )
        self._threads: list[Lane | Watch | Registration] = [*self._lanes, watch]
        self._own = NodeInfo(READY, tuple(endpoints), settings.address, 0, wall_ms())
        self.namesake = Namesake(node, self._own, settings.node_ttl_s)
        self._name_s = min(settings.node_ttl_s + 2.0, NAME_S)

    async def open(self) -> None:
        """Begin, and wait for what etcd holds, but not for long: it may come up after us. Raises
        StoreError."""
        self._contact.open()
        for each in self._threads:
            each.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OPEN_S):
                await self._is_read.wait()
        await self.namesake.free(self._name_s)
        self._threads.append(self._registration)
        self._registration.start()
        self._is_opening = False

    async def close(self) -> None:
        """Finish what waits, and take the node out of etcd; sessions stay. Then nothing is told.
        To close it again does nothing."""
        await asyncio.to_thread(self._close)
        await asyncio.sleep(0)  # answers that are on their way
        self._contact.close()

    def _close(self) -> None:
        until_s = time.monotonic() + CLOSE_S
        for each in self._threads:
            each.stop()
        for each in self._threads:
            each.join(max(0.0, until_s - time.monotonic()))

    @property
    def problem(self) -> str:
        """Why it cannot be written at present, "" if all is well."""
        return self._contact.problem

    def observe(self, observer: StoreObserver) -> None:
        """Tell this one what other nodes do, from the opening on; now and whenever it happens."""
        self._observer = observer
        for news in self._untold:
            news(observer)
        self._untold.clear()

    def set_state(self, state: str) -> None:
        """What the others are told of this node: READY or DRAINING."""
        self._state = state
        self._registration.tell_now()

    # --- the table ---

    def swap(self, session_id: str, expected: int, row: Row, done: Written) -> None:
        """Write if the stored state_version is `expected` (0: there must be no row)."""
        self._put(SwapJob(session_id, _until_s(), expected, row, done))

    def load(self, session_id: str, done: Loaded) -> None:
        """The row of a session, whoever owns it; None with OK if there is none. UNAVAILABLE too if
        it does not open."""
        self._put(LoadJob(session_id, _until_s(), done))

    def rows(self) -> list[Row]:
        """What this node held when it was opened; once."""
        rows, self._rows = self._rows, []
        return rows

    def expire(self, session_ids: Sequence[str]) -> None:
        """Forget sessions of this node that have ended; others' stay."""
        for session_id in session_ids:
            self._put(ExpireJob(session_id, _until_s(), self._node))

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Writes are put together as they come."""
        return contextlib.nullcontext()

    def _put(self, job: Job) -> None:
        """Where etcd is known to be out of reach, whoever asks is told so at once: a client that
        had to wait would take it for silence. So is etcd asked, whether that is still true."""
        if self._contact.is_failing:
            job.give_up()
            self._registration.tell_now()
            return
        self._lanes[hash(job.session_id) % LANES].put(job)

    # --- from the threads ---

    def _info(self) -> NodeInfo:
        count = self._mirror.count_of(self._node)
        return replace(self._own, state=self._state, sessions=count)

    def _moved(self, session_id: str, seen: RowSeen | None) -> None:
        if seen is not None:
            self._tell(lambda observer: observer.row_seen(seen))
        else:
            self._tell(lambda observer: observer.row_gone(bytes.fromhex(session_id)))

    def _nodes_changed(self, nodes: dict[str, NodeInfo]) -> None:
        self._contact.tell(partial(self._tell_nodes, nodes))

    def _first_read(self, own: list[Row]) -> None:
        self._contact.tell(partial(self._read, own))

    def _tell(self, news: Callable[[StoreObserver], None]) -> None:
        self._contact.tell(partial(self._pass_on, news))

    # --- in the loop ---

    def _seen(self, at_ms: float) -> None:
        self._pass_on(lambda observer: observer.store_seen(at_ms))

    def _pass_on(self, news: Callable[[StoreObserver], None]) -> None:
        if self._observer is None:
            self._untold.append(news)
        else:
            news(self._observer)

    def _tell_nodes(self, nodes: dict[str, NodeInfo]) -> None:
        self.namesake.nodes_changed(nodes)
        self._pass_on(lambda observer: observer.nodes_changed(nodes))

    def _read(self, own: list[Row]) -> None:
        self._rows = own if self._is_opening else []  # who comes too late has started without them
        self._is_read.set()


def _until_s() -> float:
    return time.monotonic() + WITHIN_S
