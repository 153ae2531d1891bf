"""The session table of one node: SQLite in the runtime directory, which is memory.

It survives the daemon, however that ends, and goes at a reboot, so keys never reach a disk. What
is not a table of ours, or of this boot, is set aside. While it runs the file belongs to one daemon;
once the file is lost or cannot be written every write says so, and nothing new is bound.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from jvpnd.core.peer import Stored
from jvpnd.core.sessionrow import Row
from jvpnd.store.table import Loaded, Written

_log = logging.getLogger("jvpnd")

SCHEMA: Final = 1  # PRAGMA user_version
_APPLICATION: Final = 0x4A56504E  # PRAGMA application_id: "JVPN"
_BUSY_S: Final = 2.0  # how long to wait for a daemon that is ending
_CACHE_KIB: Final = 256  # the file is memory already
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_CREATE: Final = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE sessions (
  session_id TEXT PRIMARY KEY, state_version INTEGER NOT NULL, row TEXT NOT NULL
) WITHOUT ROWID;
"""


class StoreError(Exception):
    """The session table cannot be opened at all; the message says what and why."""


class _Unfit(Exception):  # noqa: N818 - why a file is set aside
    """The file is no table that this daemon may use."""


class SqliteTable:
    """Rows by SessionID; a write names the state_version that it expects to replace."""

    def __init__(self, path: Path, owner: str) -> None:
        """Open or create the table at `path`. `owner`: what a daemon and its next start have in
        common; another's table is set aside. Raises StoreError."""
        self._path = path
        self._failed = ""
        facts = {"owner": owner, "boot": _BOOT_ID.read_text().strip()}
        try:
            try:
                self._database = _open(path, facts)
            except (_Unfit, sqlite3.DatabaseError) as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                _set_aside(path, error)
                self._database = _open(path, facts)
            self._inode = os.stat(path).st_ino
        except (OSError, sqlite3.Error, _Unfit) as error:
            raise StoreError(
                f"cannot use the session table {path}: {error} "
                "(allowed: a directory of root's on a file system with room)"
            ) from error

    @property
    def problem(self) -> str:
        """Why it cannot be written at present, "" if all is well."""
        return self._failed

    def swap(self, session_id: str, expected: int, row: Row, done: Written) -> None:
        """Write if the stored state_version is `expected` (0: there must be no row)."""
        done(self._swap(session_id, expected, row))

    def _swap(self, session_id: str, expected: int, row: Row) -> Stored:
        version, text = row["state_version"], json.dumps(row)
        try:
            self._require_file()
            if expected == 0:
                result = self._database.execute(
                    "INSERT OR IGNORE INTO sessions VALUES (?, ?, ?)", (session_id, version, text)
                )
            else:
                result = self._database.execute(
                    "UPDATE sessions SET state_version = ?, row = ?"
                    " WHERE session_id = ? AND state_version = ?",
                    (version, text, session_id, expected),
                )
        except (OSError, sqlite3.Error) as error:
            self._fail(error)
            return Stored.UNAVAILABLE
        self._failed = ""
        return Stored.OK if result.rowcount == 1 else Stored.CONFLICT

    def load(self, session_id: str, done: Loaded) -> None:
        """The row of a session; None with OK if there is none that makes sense."""
        try:
            found = self._database.execute(
                "SELECT row FROM sessions WHERE session_id = ?", (session_id,)
            ).fetchone()
        except sqlite3.Error as error:
            self._fail(error)
            done(None, Stored.UNAVAILABLE)
        else:
            done(_parsed(found[0]) if found else None, Stored.OK)

    def keep(self, row: Row) -> None:
        """This row in place of all others: a client has one session."""
        try:
            self._require_file()
            with self.together():
                self._database.execute("DELETE FROM sessions")
                self._database.execute(
                    "INSERT INTO sessions VALUES (?, ?, ?)",
                    (row["session_id"], row["state_version"], json.dumps(row)),
                )
        except (OSError, sqlite3.Error) as error:
            self._fail(error)
        else:
            self._failed = ""

    def rows(self) -> list[Row]:
        """Everything that is held. What is no JSON object is left out, and told of in the log."""
        found: list[Row] = []
        try:
            for session_id, text in self._database.execute("SELECT session_id, row FROM sessions"):
                row = _parsed(text)
                if row is None:
                    _log.warning("%s: the row of session %s is damaged", self._path, session_id)
                else:
                    found.append(row)
        except sqlite3.Error as error:
            self._fail(error)
        return found

    def expire(self, session_ids: Sequence[str]) -> None:
        """Forget sessions that have ended."""
        try:
            with self.together():
                self._database.executemany(
                    "DELETE FROM sessions WHERE session_id = ?", [(each,) for each in session_ids]
                )
        except sqlite3.Error as error:
            self._fail(error)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Several writes as one: quicker, and all or none."""
        if self._database.in_transaction:
            yield
            return
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def close(self) -> None:
        """The file stays, for the next daemon."""
        self._database.close()

    def _require_file(self) -> None:
        """A file that was deleted can still be written, for nobody."""
        if os.stat(self._path).st_ino != self._inode:
            raise OSError("it was replaced by another file")

    def _fail(self, error: Exception) -> None:
        problem = str(error)
        if problem != self._failed:
            self._failed = problem
            _log.error("the session table %s cannot be used: %s", self._path, problem)


def _open(path: Path, facts: dict[str, str]) -> sqlite3.Connection:
    with contextlib.suppress(FileNotFoundError):
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise _Unfit("it is not a file of this user's alone (mode 0600)")
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
    try:
        # Nobody else reads it, and what has to survive is this process, not the host.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        application, version = (
            database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("application_id", "user_version")
        )
        if application == 0 and not database.execute("SELECT 1 FROM sqlite_master").fetchone():
            _create(database, facts)
        elif application != _APPLICATION:
            raise _Unfit("it is another program's database")
        elif version != SCHEMA:
            which = "a newer" if version > SCHEMA else "an older"
            raise _Unfit(f"it has the schema of {which} version ({version}, here {SCHEMA})")
        else:
            _check(database, facts)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = OFF")
        database.execute(f"PRAGMA cache_size = {-_CACHE_KIB}")
    except BaseException:
        database.close()
        raise
    return database


def _create(database: sqlite3.Connection, facts: dict[str, str]) -> None:
    # One transaction: a daemon that is killed in it leaves an empty file.
    database.execute("BEGIN IMMEDIATE")
    for statement in _CREATE.split(";"):
        database.execute(statement)
    database.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
    database.execute(f"PRAGMA application_id = {_APPLICATION}")
    database.execute(f"PRAGMA user_version = {SCHEMA}")
    database.execute("COMMIT")


def _check(database: sqlite3.Connection, facts: dict[str, str]) -> None:
    if (said := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise _Unfit(f"it is damaged: {said}")
    held = dict(database.execute("SELECT name, value FROM facts"))
    if held.get("boot") != facts["boot"]:
        raise _Unfit("it is from before a reboot")
    if held.get("owner") != facts["owner"]:
        raise _Unfit("it is of a daemon with another key or role")


def _set_aside(path: Path, why: Exception) -> None:
    aside = path.with_name(path.name + ".aside")
    _log.warning(
        "the session table %s is set aside as %s, and its sessions are lost: %s", path, aside, why
    )
    os.replace(path, aside)
    for end in ("-wal", "-shm", "-journal"):
        path.with_name(path.name + end).unlink(missing_ok=True)


def _parsed(text: Any) -> Row | None:
    try:
        row = json.loads(text)
    except (TypeError, ValueError):
        return None
    return row if isinstance(row, dict) else None
