"""Another gateway that uses this node's name: each would take the other's rows for its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from jvpnd.core.effects import host_port
from jvpnd.host import now_ms
from jvpnd.store.observer import NodeInfo
from jvpnd.store.sqlite import StoreError

_log = logging.getLogger("jvpnd")


class Namesake:
    """Looks at what is registered under this node's name. Both write their key again and again, so
    each sees the other."""

    def __init__(self, node: str, own: NodeInfo, ttl_s: int) -> None:
        """`own`: as this node says of itself; `ttl_s`: after that a node that is silent is gone."""
        self._node = node
        self._own = own
        self._ttl_ms = ttl_s * 1000
        self._holder: NodeInfo | None = None
        self._was_listed = False  # before that, what is there is of this node's former life
        self._other: NodeInfo | None = None
        self._seen_ms = 0.0  # the other
        self._news = asyncio.Event()

    def nodes_changed(self, nodes: Mapping[str, NodeInfo]) -> None:
        """These are alive."""
        holder = self._holder = nodes.get(self._node)
        self._news.set()
        if holder is None:
            return
        if holder.started_ms == self._own.started_ms:
            self._was_listed = True
        elif self._was_listed:
            is_new = not self.problem
            self._other, self._seen_ms = holder, now_ms()
            if is_new:
                _log.error("%s", self.problem)

    @property
    def is_listed(self) -> bool:
        """Whether what is registered is this node, alive; may be asked from any thread."""
        holder = self._holder
        return holder is not None and holder.started_ms == self._own.started_ms

    @property
    def problem(self) -> str:
        """Who else has the name, "" if nobody has been seen lately."""
        if self._other is None or now_ms() - self._seen_ms > 2 * self._ttl_ms:
            return ""
        return self._told(self._other)

    async def free(self, within_s: float) -> None:
        """Until no gateway elsewhere has the name. What stands there may be this node before a
        change of its addresses, so its lease is waited for. Raises StoreError."""
        try:
            async with asyncio.timeout(within_s):
                while self._is_elsewhere():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            assert self._holder is not None
            raise StoreError(self._told(self._holder)) from None

    def _is_elsewhere(self) -> bool:
        holder, own = self._holder, self._own
        return holder is not None and (
            (holder.endpoints, holder.address) != (own.endpoints, own.address)
        )

    def _told(self, other: NodeInfo) -> str:
        return (
            f"node = '{self._node}': another gateway of this cluster has that name, {place(other)} "
            "(allowed: a name of its own for each)"
        )


def place(info: NodeInfo) -> str:
    """Where a node is, for people."""
    ends = (f"{t} {host_port(a or '*', p)}" for t, a, p in info.endpoints)
    return f"at {', '.join((*info.address, *ends)) or 'an unknown address'}"
