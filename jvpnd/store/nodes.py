"""The nodes in etcd, `{prefix}nodes/{node}`: what this one says of itself, under a lease that goes
with it, and what the others say."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

from jvpnd.core.sessionrow import MISFITS, number_of
from jvpnd.host import now_ms
from jvpnd.store import leases
from jvpnd.store.contact import Contact
from jvpnd.store.etcdclient import NOT_FOUND, Connection, EtcdError, Refused
from jvpnd.store.etcdrows import encoded
from jvpnd.store.observer import DRAINING, READY, NodeInfo
from jvpnd.store.sealing import Sealer

_RETRY_S: Final = 0.5
_REVOKE_S: Final = 1.0


class EtcdNodes:
    """Makes values of nodes and nodes of values."""

    def __init__(self, prefix: str, sealer: Sealer) -> None:
        self.prefix = f"{prefix}nodes/"
        self._sealer = sealer

    def key(self, node: str) -> str:
        return encoded(self.prefix + node)

    def node(self, key: str) -> str | None:
        """Whose key it is, None for one that is no node's."""
        name = key.removeprefix(self.prefix)
        return name if name != key and re.fullmatch("[A-Za-z0-9._-]{1,64}", name) else None

    def value(self, node: str, info: NodeInfo) -> str:
        """All of it can be read by anyone; that a node has written it is sealed."""
        return encoded(self._sealer.sealed(node, asdict(info), {}))

    def info(self, node: str, kv: Mapping[str, Any]) -> NodeInfo | None:
        """None if no node has written it."""
        try:
            opened = self._sealer.opened(node, base64.b64decode(kv.get("value", "")))
            return None if opened is None else _info(opened[0])
        except MISFITS:
            return None


def _info(said: Mapping[str, Any]) -> NodeInfo:
    """Raises one of MISFITS."""
    if said["state"] not in (READY, DRAINING):
        raise ValueError("state")
    return NodeInfo(
        said["state"],
        tuple((str(t), str(a), int(p)) for t, a, p in said["endpoints"]),
        tuple(map(str, said["address"])),
        number_of(said, "sessions"),
        number_of(said, "started_ms"),
    )


class Registration:
    """The thread that keeps this node's key; so it asks etcd three times in each `ttl_s`."""

    def __init__(
        self,
        node: str,
        info: Callable[[], NodeInfo],
        ttl_s: int,
        nodes: EtcdNodes,
        contact: Contact,
        connection: Connection,
        is_listed: Callable[[], bool],
    ) -> None:
        """`info`: of this node; `is_listed`: whether it is what the key says by the latest news.
        Both are called at any time and from the thread."""
        self._node = node
        self._info = info
        self._ttl_s = ttl_s
        self._nodes = nodes
        self._contact = contact
        self._connection = connection
        self._is_listed = is_listed
        self._lease = ""
        self._told: NodeInfo | None = None
        self._closing = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jvpn-etcd-node", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def tell_now(self) -> None:
        """What `info` says has changed."""
        self._wake.set()

    def stop(self) -> None:
        """The node goes at once, unless etcd is out of reach; then when its lease ends."""
        self._closing = True
        self._wake.set()

    def join(self, within_s: float) -> None:
        self._thread.join(within_s)

    @property
    def _each_s(self) -> float:
        return self._ttl_s / 3

    def _run(self) -> None:
        while not self._closing:
            wait_s = self._each_s if self._keep() else _RETRY_S
            self._wake.wait(wait_s)
            self._wake.clear()
        if self._lease:
            try:
                leases.revoke(self._connection, self._lease, _REVOKE_S)
            except EtcdError as error:
                self._contact.failed(str(error))
        self._connection.close()

    def _keep(self) -> bool:
        """Renew the lease, and write what has changed. Whether that went well."""
        asked_ms = now_ms()
        try:
            if self._lease and not leases.renew(self._connection, self._lease, self._each_s):
                self._lease = ""
            if not self._lease:
                self._told = None
                self._lease = leases.grant(self._connection, self._ttl_s, self._each_s)
            self._write(self._info())
        except Refused as refusal:
            if refusal.code == NOT_FOUND:  # the lease has gone: the next time there is a new one
                self._lease = ""
            else:
                self._contact.failed(str(refusal))
            return False
        except (EtcdError, *MISFITS) as error:
            self._contact.failed(str(error))
            return False
        self._contact.reached(asked_ms)
        return True

    def _write(self, info: NodeInfo) -> None:
        if info != self._told or not self._is_listed():
            body = {
                "key": self._nodes.key(self._node),
                "value": self._nodes.value(self._node, info),
                "lease": self._lease,
            }
            self._connection.ask("kv/put", body, self._each_s)
            self._told = info
