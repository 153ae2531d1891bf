"""A gateway among others: what the shared table tells goes to the core, and traffic follows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from jvpnd.config import Client
from jvpnd.core.effects import Endpoint, host_port
from jvpnd.core.gateway import Gateway
from jvpnd.core.nodes import node_tag
from jvpnd.core.ownership import RowSeen
from jvpnd.core.states import State
from jvpnd.dataplane.plane import DataPlane
from jvpnd.host import now_ms
from jvpnd.net.ownership import OwnedAddresses
from jvpnd.store.etcd import EtcdTable
from jvpnd.store.observer import DRAINING, READY, NodeInfo

_log = logging.getLogger("jvpnd")

# A session that a node gives away is served so long still: what is on its way here gets there, and
# its new owner has its routes by then. The client hears both for drain_ms. Who loses a session that
# it did not give away stops at once.
LEAVE_S: Final = 0.1
TOMBSTONE_S: Final = 60.0  # so long an ended session can still be told from one that never was


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """A session of another node, by the table's last word."""

    client: str
    owner: str


class Cluster:
    """One node's view. Is told by the table (store/observer.py), and by the gateway's shell."""

    def __init__(
        self,
        node: str,
        core: Gateway,
        pump: Callable[[], None],
        plane: DataPlane,
        table: EtcdTable | None,
        traffic: OwnedAddresses,
        clients: Iterable[Client],
    ) -> None:
        """`table`: None where each node has its own, which is not told of here. `clients`: as the
        configuration lists them."""
        self._node = node
        self._core = core
        self._pump = pump
        self._plane = plane
        self._table = table
        self.traffic = traffic
        self._clients = {client.name: client for client in clients}
        self._nodes: dict[str, NodeInfo] = {}
        self._elsewhere: dict[bytes, _Elsewhere] = {}
        self._newest: dict[str, bytes] = {}  # of them, by client
        self._news: dict[bytes, asyncio.TimerHandle] = {}  # of sessions that have moved just now
        self._seen_ms: float | None = None

    def listen(self) -> None:
        """Be told what other nodes do, and have done since it was opened."""
        if self._table is not None:
            self._table.observe(self)

    # --- the table tells ---

    def row_seen(self, seen: RowSeen) -> None:
        """Another node has written a session's row."""
        self._forget_news(seen.session_id)
        if self._core.is_leaving and seen.session_id in self._core.sessions:
            loop = asyncio.get_running_loop()
            self._news[seen.session_id] = loop.call_later(LEAVE_S, self._act_on, seen)
        else:
            self._act_on(seen)

    def _forget_news(self, session_id: bytes) -> None:
        """There is newer."""
        if (waiting := self._news.pop(session_id, None)) is not None:
            waiting.cancel()

    def _act_on(self, seen: RowSeen) -> None:
        self._news.pop(seen.session_id, None)
        self._core.row_seen(now_ms(), seen)
        self._pump()
        if seen.session_id in self._core.sessions:  # it has come back since
            return
        if seen.state == State.TERMINATED:
            self._let_go(seen.session_id)
        else:
            self._elsewhere[seen.session_id] = _Elsewhere(seen.client, seen.owner)
            self._newest[seen.client] = seen.session_id
            self._follow(self._elsewhere[seen.session_id])

    def row_gone(self, session_id: bytes) -> None:
        self._forget_news(session_id)
        self._core.row_gone(now_ms(), session_id)
        self._pump()
        self._let_go(session_id)

    def nodes_changed(self, nodes: dict[str, NodeInfo]) -> None:
        """These are alive."""
        before, self._nodes = self._nodes, nodes
        others = [(name, info) for name, info in nodes.items() if name != self._node]
        self._core.nodes_seen(
            Endpoint(transport, address, port, node_tag(name))
            for name, info in others
            for transport, address, port in info.endpoints
            if address
        )
        for session_id in self._newest.values():
            its = self._elsewhere[session_id]
            if _address_of(before, its.owner) != _address_of(nodes, its.owner):
                self._follow(its)

    def store_seen(self, at_ms: float) -> None:
        """The table has answered what was asked at `at_ms`."""
        self._seen_ms = at_ms
        self._core.store_seen(now_ms(), at_ms)
        self._pump()
        self._plane.allow_until(at_ms + self._core.policy.store_loss_ttl_ms)

    # --- the gateway tells ---

    @property
    def shares(self) -> bool:
        """Whether there is a table that other nodes read."""
        return self._table is not None

    def session_up(self, client: str, inner: Sequence[str]) -> None:
        """Its addresses and networks are served here from now on."""
        session_id = self._newest.pop(client, None)
        if session_id is not None:
            del self._elsewhere[session_id]
        self.traffic.own((), inner)

    def relist(self, clients: Iterable[Client]) -> None:
        """The configuration lists these now."""
        before, self._clients = self._clients, {client.name: client for client in clients}
        for name, client in before.items():
            if name in self._newest and self._clients.get(name) != client:
                self.traffic.forget(client.address, client.networks)
                self._follow(self._elsewhere[self._newest[name]])

    def session_down(self, inner: Sequence[str]) -> None:
        """They are not served here any more; perhaps elsewhere, which is told after."""
        self.traffic.forget((), inner)

    def ended(self, session_id: str) -> None:
        """Its row says so; it stays for a while, for the other nodes."""
        assert self._table is not None
        asyncio.get_running_loop().call_later(TOMBSTONE_S, self._table.expire, [session_id])

    # --- traffic ---

    def _follow(self, its: _Elsewhere) -> None:
        """Send what is for a client of another node there."""
        client = self._clients.get(its.client)
        if client is not None:
            via = _address_of(self._nodes, its.owner)
            self.traffic.lend(client.address, client.networks, via, its.owner)

    def _let_go(self, session_id: bytes) -> None:
        its = self._elsewhere.pop(session_id, None)
        if its is None or self._newest.get(its.client) != session_id:
            return
        del self._newest[its.client]
        client = self._clients.get(its.client)
        if client is not None:
            self.traffic.forget(client.address, client.networks)

    # --- the operator ---

    def leave(self, leave: bool) -> None:
        """Give the sessions away, or take some again."""
        self._core.leave(now_ms(), leave)
        if self._table is not None:
            self._table.set_state(DRAINING if leave else READY)
        self._pump()

    @property
    def problem(self) -> str:
        """What is wrong with this node's place in the cluster, "" if all is well."""
        return "" if self._table is None else self._table.namesake.problem

    @property
    def notes(self) -> list[str]:
        """What the operator should know."""
        return [*([self.problem] if self.problem else []), *self.traffic.notes]

    def status(self) -> dict[str, Any]:
        """As `jvpnctl cluster status --json` prints it."""
        seen_ms = None if self._seen_ms is None else round(now_ms() - self._seen_ms)
        return {
            "node": self._node,
            "draining": self._core.is_leaving,
            "sessions": len(self._core.sessions),
            "problem": self.problem,
            "store": {
                "kind": "none" if self._table is None else "etcd",
                "problem": "" if self._table is None else self._table.problem,
                "seen_ms": seen_ms,
            },
            "nodes": [self._shown(name, info) for name, info in sorted(self._nodes.items())],
            "traffic": self.traffic.counts,
        }

    def _shown(self, name: str, info: NodeInfo) -> dict[str, Any]:
        return {
            "name": name,
            "is_self": name == self._node,
            "state": info.state,
            "sessions": info.sessions,
            "address": list(info.address),
            "endpoints": [f"{t} {host_port(a or '*', p)}" for t, a, p in info.endpoints],
        }


def _address_of(nodes: Mapping[str, NodeInfo], name: str) -> tuple[str, ...]:
    info = nodes.get(name)
    return info.address if info is not None else ()
