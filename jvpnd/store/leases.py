"""Leases of etcd: what is put under one goes when nobody renews it."""

from __future__ import annotations

import threading
import time
from typing import Final

from jvpnd.store.etcdclient import Connection

BUCKET_S: Final = 600.0
SLACK_S: Final = 1200.0  # a row outlives its session by so much at least


def grant(connection: Connection, ttl_s: int, within_s: float) -> str:
    """The id of a new lease. Raises EtcdError, ValueError for an answer that makes no sense."""
    return str(int(connection.ask("lease/grant", {"TTL": str(ttl_s)}, within_s).get("ID", "")))


def renew(connection: Connection, lease: str, within_s: float) -> bool:
    """False if it is gone. Raises as `grant`."""
    result = connection.ask("lease/keepalive", {"ID": lease}, within_s).get("result")
    return isinstance(result, dict) and int(result.get("TTL", 0)) > 0


def revoke(connection: Connection, lease: str, within_s: float) -> None:
    """What is under it goes at once. Raises EtcdError."""
    connection.ask("lease/revoke", {"ID": lease}, within_s)


class Bucket:
    """The lease of all rows that are written within ten minutes: it need not be renewed, since each
    write takes the row along into the present one."""

    def __init__(self, session_ttl_s: float) -> None:
        self._ttl_s = int(session_ttl_s + SLACK_S)
        self._lock = threading.Lock()
        self._lease = ""
        self._until_s = 0.0

    def lease(self, connection: Connection, within_s: float) -> str:
        """Raises as `grant`."""
        with self._lock:
            if not self._lease or time.monotonic() > self._until_s:
                self._lease = grant(connection, self._ttl_s, within_s)
                self._until_s = time.monotonic() + BUCKET_S
            return self._lease

    def drop(self, lease: str) -> None:
        """etcd does not know it."""
        with self._lock:
            if self._lease == lease:
                self._lease = ""
