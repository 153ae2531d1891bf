"""The threads that read and write rows in etcd.

A session is always one lane's, so that what is done to it stays in order. What waits in a lane goes
as one transaction, each part of which succeeds or fails by itself.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from jvpnd.core.peer import Stored
from jvpnd.core.sessionrow import Row, number_of
from jvpnd.host import now_ms
from jvpnd.store.etcdclient import NOT_FOUND, Connection, EtcdError, Refused
from jvpnd.store.jobs import ExpireJob, Job, LoadJob, Operation, SwapJob, delete_if, put_if, read
from jvpnd.store.leases import Bucket
from jvpnd.store.mirror import Known
from jvpnd.store.shared import Shared

_log = logging.getLogger("jvpnd")

LANES: Final = 4
QUEUE: Final = 4096  # of each lane: all that a gateway may have, after a restart
BATCH: Final = 32  # etcd takes at most 128 operations in a transaction
WITHIN_S: Final = 4.0  # from the call to the answer of a store that is away
LEAST_S: Final = 1.0  # of it for the asking
NONSENSE: Final = (KeyError, TypeError, ValueError, AttributeError, IndexError)
"""What reading an answer raises that makes no sense."""


class Lane:
    """One thread with its queue and its connection."""

    def __init__(
        self, number: int, shared: Shared, bucket: Bucket, connection: Connection
    ) -> None:
        self._shared = shared
        self._bucket = bucket
        self._connection = connection
        self._queue: queue.Queue[Job | None] = queue.Queue(QUEUE)
        self._next: Job | None = None  # taken, but not for the batch that is under way
        self._closing = False
        name = f"jvpn-etcd-{number}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End when all that waits is done."""
        self._closing = True
        with contextlib.suppress(queue.Full):  # then it is awake
            self._queue.put_nowait(None)

    def join(self, within_s: float) -> None:
        self._thread.join(within_s)

    def put(self, job: Job) -> None:
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            self._shared.contact.failed(f"more than {QUEUE} requests wait")
            job.give_up()

    def _run(self) -> None:
        while batch := self._take():
            try:
                self._do(batch)
            except Exception:  # a fault of ours: whoever waits is answered, and the lane goes on
                _log.exception("etcd: a batch of %d requests failed", len(batch))
                self._give_up(batch)
        self._connection.close()

    def _take(self) -> list[Job]:
        """What waits, one job of a session at most; nothing: it is over."""
        first, self._next = self._next, None
        if first is None:
            if self._closing and self._queue.empty():
                return []
            first = self._queue.get()
            if first is None:
                return []
        batch = {first.session_id: first}
        while len(batch) < BATCH:
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._closing = True
                break
            if job.session_id in batch:
                self._next = job
                break
            batch[job.session_id] = job
        return list(batch.values())

    def _do(self, batch: Sequence[Job]) -> None:
        now_s, is_away = time.monotonic(), bool(self._shared.contact.problem)
        late = [job for job in batch if is_away and job.until_s <= now_s]
        jobs = [job for job in batch if not is_away or job.until_s > now_s]
        self._give_up(late)
        if not jobs:
            return
        # Who has waited for long behind others gets an answer too, while there are answers.
        until_s = max(min(job.until_s for job in jobs), now_s + LEAST_S)
        asked_ms = now_ms()
        try:
            self._learn(jobs, until_s)
            answers = self._transact(jobs, until_s)
        except (EtcdError, *NONSENSE) as error:
            told = str(error) if isinstance(error, EtcdError) else f"its answer is odd: {error!r}"
            self._shared.contact.failed(told)
            self._give_up(jobs)
        else:
            self._shared.contact.reached(asked_ms)
            for answer in answers:
                self._shared.contact.tell(answer)

    def _give_up(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._shared.mirror.doubt(job.session_id)
            self._shared.contact.tell(job.give_up)

    # --- reading first ---

    def _learn(self, jobs: Sequence[Job], until_s: float) -> None:
        """Read the rows that are to be written and that are not known well enough."""
        its = self._shared
        unknown = [
            job.session_id
            for job in jobs
            if not isinstance(job, LoadJob) and job.basis(its.mirror.get(job.session_id)) is None
        ]
        if unknown:
            body = {"success": [read(its.rows.key(session_id)) for session_id in unknown]}
            answer = self._connection.ask("kv/txn", body, until_s - time.monotonic())
            revision = int(answer["header"]["revision"])
            for session_id, response in zip(unknown, answer["responses"], strict=True):
                self._note(session_id, response["response_range"], revision)

    def _note(
        self, session_id: str, answer: dict[str, Any], revision: int
    ) -> tuple[Row | None, Stored]:
        """What a read says of a session; UNAVAILABLE: its row does not open."""
        its, kvs = self._shared, answer.get("kvs")
        if not kvs:
            if its.mirror.gone(session_id, revision):
                its.moved(session_id, None)
            return None, Stored.OK
        found = its.rows.found(session_id, kvs[0])
        if found is None:
            return None, Stored.UNAVAILABLE
        if its.mirror.put(session_id, found.known) and found.known.owner != its.node:
            its.moved(session_id, found.seen())
        return found.row, Stored.OK

    # --- the transaction ---

    def _transact(self, jobs: Sequence[Job], until_s: float) -> list[Callable[[], None]]:
        """The answers, to be called in the loop. Raises EtcdError or one of NONSENSE."""
        answers: list[Callable[[], None]] = []
        parts: list[_Part] = []
        for job in jobs:
            basis, value = 0, ""
            if not isinstance(job, LoadJob):
                fits = job.basis(self._shared.mirror.get(job.session_id))
                if fits is None:
                    answers.append(_conflict(job))
                    continue
                basis = fits
            if isinstance(job, SwapJob):
                value = self._shared.rows.value(job.session_id, job.row)
            parts.append(_Part(job, self._shared.rows.key(job.session_id), basis, value))
        if parts:
            answer = self._ask(parts, until_s)
            revision = int(answer["header"]["revision"])
            for part, response in zip(parts, answer["responses"], strict=True):
                answers.append(self._answer(part, response, revision))
        return answers

    def _ask(self, parts: Sequence[_Part], until_s: float) -> dict[str, Any]:
        bucket = self._bucket
        writes = any(isinstance(part.job, SwapJob) for part in parts)
        while True:
            lease = bucket.lease(self._connection, until_s - time.monotonic()) if writes else ""
            body = {"success": [part.operation(lease) for part in parts]}
            try:
                return self._connection.ask("kv/txn", body, until_s - time.monotonic())
            except Refused as refusal:
                if not (writes and refusal.code == NOT_FOUND):
                    raise
                bucket.drop(lease)

    def _answer(
        self, part: _Part, response: dict[str, Any], revision: int
    ) -> Callable[[], None]:
        its, job = self._shared, part.job
        if isinstance(job, LoadJob):
            there = response["response_range"]
            return partial(job.done, *self._note(job.session_id, there, revision))
        done = response["response_txn"]
        if not done.get("succeeded"):
            there = done["responses"][0]["response_range"]
            kv = (there.get("kvs") or [{}])[0]
            if not part.value or kv.get("value") != part.value:
                self._note(job.session_id, there, revision)
                return _conflict(job)
            revision = int(kv["mod_revision"])  # it was done when it was asked for before
        if isinstance(job, ExpireJob):
            its.mirror.gone(job.session_id, revision)
            return _nothing
        version = number_of(job.row, "state_version")
        its.mirror.put(job.session_id, Known(version, revision, its.node))
        return partial(job.done, Stored.OK)


@dataclass(frozen=True, slots=True)
class _Part:
    """A job as it is asked for, once or again."""

    job: Job
    key: str
    basis: int
    value: str

    def operation(self, lease: str) -> Operation:
        if isinstance(self.job, LoadJob):
            return read(self.key)
        if isinstance(self.job, SwapJob):
            return put_if(self.key, self.basis, self.value, lease)
        return delete_if(self.key, self.basis)


def _conflict(job: SwapJob | ExpireJob) -> Callable[[], None]:
    return partial(job.done, Stored.CONFLICT) if isinstance(job, SwapJob) else _nothing


def _nothing() -> None:
    """Nobody waits for it."""
