"""The thread that hears what the other nodes write into etcd.

It reads everything once, then follows what changes. After a break it goes on where it was; where
etcd has forgotten what was between (compaction), it reads everything again, and tells differences.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from jvpnd.core.sessionrow import MISFITS, Row
from jvpnd.store.etcdclient import OUT_OF_RANGE, Connection, EtcdError, Refused, TooLarge
from jvpnd.store.etcdrows import decoded, encoded
from jvpnd.store.nodes import EtcdNodes
from jvpnd.store.observer import NodeInfo
from jvpnd.store.shared import Shared

PAGE: Final = 256  # keys that are read at a time
_READ_S: Final = 5.0  # for a page
_RETRY_S: Final = 0.5
_PAUSE_S: Final = 0.1  # before all is read again
_NONSENSE: Final = (*MISFITS, IndexError)


class _Compacted(Exception):  # noqa: N818 - not an error
    """What was between is not to be had: all has to be read again."""


class Watch:
    """Keeps the mirror, and the nodes, up to date."""

    def __init__(
        self,
        shared: Shared,
        nodes: EtcdNodes,
        prefix: str,
        connection: Connection,
        silence_s: float,
        nodes_changed: Callable[[dict[str, NodeInfo]], None],
        first_read: Callable[[list[Row]], None],
    ) -> None:
        """`silence_s`: then the stream is opened anew, it may be dead. `nodes_changed` and
        `first_read`, which gets this node's rows, are called from the thread."""
        self._shared = shared
        self._nodes = nodes
        self._prefix = prefix
        self._connection = connection
        self._silence_s = silence_s
        self._nodes_changed = nodes_changed
        self._first_read: Callable[[list[Row]], None] | None = first_read
        self._alive: dict[str, NodeInfo] = {}
        self._revision: int | None = None  # all up to it is known
        self._newest = 0  # that was ever heard of
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jvpn-etcd-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """With the next event, as that this node's own key goes, or silence, it ends."""
        self._closing.set()

    def join(self, within_s: float) -> None:
        self._thread.join(within_s)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                if self._revision is None:
                    self._read_all()
                self._follow()
            except (_Compacted, TooLarge):
                self._revision = None
                self._closing.wait(_PAUSE_S)
            except (EtcdError, *_NONSENSE) as error:
                self._shared.contact.deaf(_words(error))
                self._closing.wait(_RETRY_S)
        self._connection.close()

    # --- everything ---

    def _read_all(self) -> None:
        """Raises EtcdError or one of _NONSENSE."""
        mine: list[Row] = []
        sessions: set[str] = set()
        alive: dict[str, NodeInfo] = {}
        for kv in self._kvs():
            key = decoded(kv["key"])
            if (session_id := self._shared.rows.session_id(key)) is not None:
                sessions.add(session_id)
                row = self._heard_of(session_id, kv)
                if row is not None and self._first_read is not None:
                    mine.append(row)
            elif (node := self._nodes.node(key)) is not None:
                info = self._nodes.info(node, kv)
                if info is not None:
                    alive[node] = info
        assert self._revision is not None
        for session_id in self._shared.mirror.missing_from(sessions):
            if self._shared.mirror.gone(session_id, self._revision):
                self._shared.moved(session_id, None)
        self._set_alive(alive)
        if self._first_read is not None:
            self._first_read(mine)
            self._first_read = None

    def _kvs(self) -> Iterator[dict[str, Any]]:
        """All that is there, as of one revision, which is `_revision` afterwards."""
        body: dict[str, Any] = {
            "key": encoded(self._prefix),
            "range_end": encoded(after(self._prefix)),
            "limit": str(PAGE),
        }
        revision = 0
        while True:
            try:
                answer = self._connection.ask("kv/range", body, _READ_S)
            except TooLarge:
                if body["limit"] == "1":
                    raise EtcdError("a value that is too large") from None
                body["limit"] = "1"
                continue
            if revision == 0:
                revision = int(answer["header"]["revision"])
                self._check_age(revision)
            kvs = answer.get("kvs", [])
            yield from kvs
            if not answer.get("more"):
                self._revision = revision
                return
            body["key"] = encoded(base64.b64decode(kvs[-1]["key"]) + b"\0")
            body["revision"] = str(revision)

    def _check_age(self, revision: int) -> None:
        """Revisions only rise, unless all of etcd was put back to a former state, or begun anew."""
        if revision < self._newest:
            for session_id in self._shared.mirror.clear():
                self._shared.moved(session_id, None)
        self._newest = revision

    def _heard_of(self, session_id: str, kv: Mapping[str, Any]) -> Row | None:
        """A row as it is now; returned if it is this node's, and news."""
        known = self._shared.mirror.get(session_id)
        if known is not None and known.revision >= int(kv["mod_revision"]):
            return None
        found = self._shared.rows.found(session_id, kv)
        if found is None:
            return None
        is_other = self._shared.mirror.put(session_id, found.known)
        if found.known.owner == self._shared.node:
            return found.row
        if is_other:
            self._shared.moved(session_id, found.seen())
        return None

    def _set_alive(self, alive: dict[str, NodeInfo]) -> None:
        if alive != self._alive:
            self._alive = alive
            self._nodes_changed(dict(alive))

    # --- what changes ---

    def _follow(self) -> None:
        """Until the stream ends. Raises _Compacted, EtcdError or one of _NONSENSE."""
        assert self._revision is not None
        create = {
            "key": encoded(self._prefix),
            "range_end": encoded(after(self._prefix)),
            "start_revision": str(self._revision + 1),
            "progress_notify": True,
        }
        stream = self._connection.follow("watch", {"create_request": create}, self._silence_s)
        try:
            for message in stream:
                if self._closing.is_set():
                    return
                if message.get("canceled"):
                    self._cancelled(message)
                if int(message["header"].get("revision", 0)) < self._revision:
                    self._check_history()
                self._shared.contact.hears()
                self._take(message)
        except Refused as refusal:
            if refusal.code == OUT_OF_RANGE:
                raise _Compacted from None
            raise

    def _check_history(self) -> None:
        """The member is behind, which it will make up for, or etcd has another history now."""
        body = {"key": encoded(self._prefix), "count_only": True}
        answer = self._connection.ask("kv/range", body, _READ_S)
        if int(answer["header"]["revision"]) < (self._revision or 0):
            raise _Compacted

    def _cancelled(self, message: Mapping[str, Any]) -> None:
        if int(message.get("compact_revision", 0)) > 0:
            raise _Compacted
        raise EtcdError(f"the watch was cancelled: {str(message.get('cancel_reason', ''))[:200]}")

    def _take(self, message: Mapping[str, Any]) -> None:
        alive = dict(self._alive)
        for event in message.get("events", []):
            kv, is_gone = event["kv"], event.get("type") == "DELETE"
            key, revision = decoded(kv["key"]), int(kv["mod_revision"])
            if (session_id := self._shared.rows.session_id(key)) is not None:
                if not is_gone:
                    self._heard_of(session_id, kv)
                elif self._shared.mirror.gone(session_id, revision):
                    self._shared.moved(session_id, None)
            elif (node := self._nodes.node(key)) is not None:
                info = None if is_gone else self._nodes.info(node, kv)
                alive.pop(node, None)
                if info is not None:
                    alive[node] = info
            # Events of one revision come together: all up to it is known now.
            self._revision = self._newest = revision
        if "events" not in message and "created" not in message:  # progress
            self._revision = max(self._revision or 0, int(message["header"]["revision"]))
        self._set_alive(alive)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, EtcdError) else f"its answer is odd: {error!r}"


def after(prefix: str) -> str:
    """The first key behind all that begin with `prefix`, which ends in ASCII."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
