"""The session table in SQLite: what is written is there after any end, and nothing else is."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.core.peer import Stored
from jvpnd.store.sqlite import SCHEMA, SqliteTable, StoreError

A, B = "aa" * 16, "bb" * 16


def row(session_id: str = A, version: int = 1, **more: object) -> dict[str, object]:
    return {"session_id": session_id, "state_version": version, **more}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


def swap(table: SqliteTable, session_id: str, expected: int, new: dict[str, object]) -> Stored:
    told: list[Stored] = []
    table.swap(session_id, expected, new, told.append)
    (outcome,) = told
    return outcome


def load(table: SqliteTable, session_id: str) -> tuple[object, Stored]:
    told: list[tuple[object, Stored]] = []
    table.load(session_id, lambda found, outcome: told.append((found, outcome)))
    (answer,) = told
    return answer


def held(path: Path, owner: str = "me") -> list[object]:
    table = SqliteTable(path, owner)
    rows = sorted((r["session_id"], r["state_version"]) for r in table.rows())
    table.close()
    return list(rows)


def test_a_write_that_expects_another_version_is_a_conflict(path: Path) -> None:
    table = SqliteTable(path, "me")
    assert swap(table, A, 1, row(A, 2)) is Stored.CONFLICT
    assert swap(table, A, 0, row(A, 1)) is Stored.OK
    assert swap(table, A, 0, row(A, 1)) is Stored.CONFLICT
    assert swap(table, A, 1, row(A, 2)) is Stored.OK
    assert swap(table, A, 1, row(A, 3)) is Stored.CONFLICT
    assert [r["state_version"] for r in table.rows()] == [2]
    table.close()


@given(
    st.lists(
        st.tuples(st.sampled_from([A, B]), st.integers(0, 3), st.integers(1, 4)), max_size=30
    )
)
def test_it_is_a_map_with_compare_and_swap(writes: list[tuple[str, int, int]]) -> None:
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    file = folder / f"jvpn-test-{os.getpid()}.db"
    file.unlink(missing_ok=True)
    model: dict[str, int] = {}
    table = SqliteTable(file, "me")
    try:
        for session_id, expected, version in writes:
            fits = model.get(session_id, 0) == expected
            outcome = swap(table, session_id, expected, row(session_id, version))
            assert outcome is (Stored.OK if fits else Stored.CONFLICT)
            if fits:
                model[session_id] = version
        assert {r["session_id"]: r["state_version"] for r in table.rows()} == model
    finally:
        table.close()
        for end in ("", "-wal", "-shm"):
            Path(f"{file}{end}").unlink(missing_ok=True)


def test_a_row_is_loaded_by_its_session(path: Path) -> None:
    table = SqliteTable(path, "me")
    swap(table, A, 0, row(A, 3))
    assert load(table, A) == (row(A, 3), Stored.OK)
    assert load(table, B) == (None, Stored.OK)
    table.close()


def test_what_was_written_is_there_after_kill_9(path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from jvpnd.store.sqlite import SqliteTable\n"
        f"table = SqliteTable(Path({str(path)!r}), 'me')\n"
        f"table.swap({A!r}, 0, {{'session_id': {A!r}, 'state_version': 7}}, print)\n"
        "sys.stdout.flush(); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"Stored.OK\n"
        process.send_signal(signal.SIGKILL)
    assert held(path) == [(A, 7)]


def test_what_ended_is_forgotten(path: Path) -> None:
    table = SqliteTable(path, "me")
    for session_id in (A, B):
        swap(table, session_id, 0, row(session_id))
    table.expire([A, "unknown"])
    table.close()
    assert held(path) == [(B, 1)]


def test_a_client_keeps_one_row(path: Path) -> None:
    table = SqliteTable(path, "me")
    table.keep(row(A, 1))
    table.keep(row(B, 5))
    table.close()
    assert held(path) == [(B, 5)]


def test_it_is_readable_by_its_owner_alone(path: Path) -> None:
    SqliteTable(path, "me").close()
    assert path.stat().st_mode & 0o777 == 0o600


def rewritten(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as database:
        database.execute(statement)
    database.close()


def of_another_program(path: Path) -> None:
    rewritten(path, "PRAGMA application_id = 1")


def of_a_newer_version(path: Path) -> None:
    rewritten(path, f"PRAGMA user_version = {SCHEMA + 1}")


def of_before_a_reboot(path: Path) -> None:
    rewritten(path, "UPDATE facts SET value = 'another boot' WHERE name = 'boot'")


def rubbish(path: Path) -> None:
    path.write_bytes(os.urandom(20_000))


def torn(path: Path) -> None:
    """Pages in the middle are overwritten."""
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xa5" * 6_000)


def readable_by_others(path: Path) -> None:
    path.chmod(0o644)


def a_symbolic_link(path: Path) -> None:
    other = path.with_name("other")
    path.rename(other)
    path.symlink_to(other)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (of_another_program, "another program's"),
        (of_a_newer_version, "a newer version (2, here 1)"),
        (of_before_a_reboot, "before a reboot"),
        (rubbish, "not a database"),
        (torn, "malformed"),
        (readable_by_others, "this user's alone"),
        (a_symbolic_link, "this user's alone"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_file_that_is_not_ours_is_set_aside_and_said_so(
    path: Path, spoil: object, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = SqliteTable(path, "me")
    for number in range(200):
        swap(table, f"{number:032x}", 0, row(f"{number:032x}", text="x" * 200))
    table.close()
    spoil(path)  # type: ignore[operator]
    assert held(path) == []
    assert why in caplog.text
    assert "is set aside as" in caplog.text
    assert path.with_name("sessions.db.aside").exists()
    assert held(path) == []  # the new one is a good one
    assert caplog.text.count("is set aside as") == 1


def test_the_table_of_another_daemon_is_set_aside(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = SqliteTable(path, "gateway aaaa")
    swap(table, A, 0, row())
    table.close()
    assert held(path, "gateway bbbb") == []
    assert "another key or role" in caplog.text


@pytest.mark.parametrize("lose", [Path.unlink, lambda path: path.rename(path.with_name("x"))])
def test_a_lost_file_is_noticed_by_the_next_write(
    path: Path, lose: object, caplog: pytest.LogCaptureFixture
) -> None:
    table = SqliteTable(path, "me")
    swap(table, A, 0, row())
    lose(path)  # type: ignore[operator]
    assert [swap(table, A, 1, row(A, 2)) for _ in range(3)] == [Stored.UNAVAILABLE] * 3
    assert "No such file" in table.problem
    assert caplog.text.count("cannot be used") == 1
    table.close()


def test_a_file_in_the_place_of_ours_is_not_written(path: Path) -> None:
    table = SqliteTable(path, "me")
    path.unlink()
    path.write_bytes(b"")
    assert swap(table, A, 0, row()) is Stored.UNAVAILABLE
    table.keep(row())
    assert "replaced" in table.problem
    assert path.read_bytes() == b""
    table.close()


def test_a_damaged_row_is_left_out(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = SqliteTable(path, "me")
    for session_id in (A, B):
        swap(table, session_id, 0, row(session_id))
    table.close()
    rewritten(path, f"UPDATE sessions SET row = '{{' WHERE session_id = '{A}'")
    assert held(path) == [(B, 1)]
    assert f"session {A} is damaged" in caplog.text


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere/sessions.db: .*No such file"):
        SqliteTable(tmp_path / "nowhere" / "sessions.db", "me")


def test_several_writes_are_one(path: Path) -> None:
    table = SqliteTable(path, "me")

    def half_done() -> None:
        with table.together():
            swap(table, A, 0, row())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half_done()
    assert table.rows() == []
    table.close()
