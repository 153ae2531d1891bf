"""The session table in a real etcd of one member."""

from __future__ import annotations

import asyncio
import base64
import itertools
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jvpnd.core.peer import Stored
from jvpnd.host import now_ms, wall_ms
from jvpnd.store.lanes import LANES, QUEUE
from jvpnd.store.observer import DRAINING, READY
from jvpnd.store.sealing import Sealer

from .etcd import Etcd, etcd, needs_etcd
from .etcdnodes import (
    ENDPOINTS,
    HEARD,
    KEY,
    OTHER_KEY,
    ROOT,
    A,
    B,
    C,
    Wire,
    node,
    row,
)

pytestmark = needs_etcd
_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with etcd(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture
def prefix() -> str:
    return f"/jvpn/{next(_NUMBERS)}/"


@pytest.fixture
def wire(store: Etcd) -> Iterator[Wire]:
    made = Wire(store.access)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _quick_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a thread that waits for an etcd that is away."""
    monkeypatch.setattr("jvpnd.store.etcd.CLOSE_S", 0.3)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> float:
    """Requests wait for less than they do else; so many seconds."""
    monkeypatch.setattr("jvpnd.store.etcd.WITHIN_S", 1.0)
    return 1.0


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


# --- compare-and-swap ---


def test_a_write_that_expects_another_version_is_a_conflict(store: Etcd, prefix: str) -> None:
    async def story() -> None:
        async with node(store.access, "a", prefix) as a, node(store.access, "b", prefix) as b:
            assert await a.swap(row(version=2)) is Stored.CONFLICT
            assert await a.swap(row()) is Stored.OK
            assert await a.swap(row()) is Stored.CONFLICT
            assert await b.swap(row(owner="b")) is Stored.CONFLICT
            assert await b.swap(row(version=2, owner="b")) is Stored.OK
            assert await a.swap(row(version=2)) is Stored.CONFLICT
            assert await a.version(A) == 2
            found, outcome = await a.load(A)
            assert (found["owner"], outcome) == ("b", Stored.OK)
            assert await a.load(B) == (None, Stored.OK)
            assert await a.swap(row(version=3)) is Stored.OK
            assert await b.version(A) == 3

    run(story())


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"), st.sampled_from([A, B]), st.integers(0, 3), st.integers(1, 4)
        ),
        max_size=30,
    )
)
def test_it_is_one_map_with_compare_and_swap_for_all_nodes(
    store: Etcd, writes: list[tuple[str, str, int, int]]
) -> None:
    async def story() -> None:
        prefix, model = f"/model/{next(_NUMBERS)}/", dict[str, int]()
        async with node(store.access, "a", prefix) as a, node(store.access, "b", prefix) as b:
            nodes = {"a": a, "b": b}
            for name, session_id, expected, version in writes:
                fits = model.get(session_id, 0) == expected
                outcome = await nodes[name].swap(row(session_id, version, name), expected)
                assert outcome is (Stored.OK if fits else Stored.CONFLICT)
                if fits:
                    model[session_id] = version
            for each, session_id in itertools.product((a, b), (A, B)):
                assert await each.version(session_id) == model.get(session_id)

    run(story())


def test_of_many_that_want_a_session_at_once_one_gets_it(store: Etcd, prefix: str) -> None:
    async def story() -> None:
        async with (
            node(store.access, "a", prefix) as a,
            node(store.access, "b", prefix) as b,
            node(store.access, "c", prefix) as c,
        ):
            await a.swap(row())
            for version in range(2, 30):
                wanted = [(each, n) for n, each in (("a", a), ("b", b), ("c", c))]
                outcomes = await asyncio.gather(
                    *(each.swap(row(A, version, name)) for each, name in wanted)
                )
                assert sorted(outcomes, key=str) == [Stored.CONFLICT, Stored.CONFLICT, Stored.OK]
                found, _ = await a.load(A)
                assert found["owner"] == wanted[outcomes.index(Stored.OK)][1]

    run(story())


def test_what_is_asked_of_a_session_is_done_in_order(store: Etcd, prefix: str) -> None:
    async def story() -> None:
        async with node(store.access, "a", prefix) as a:
            writes = [a.swap(row(version=version)) for version in range(1, 60)]
            found = a.load(A)
            a.table.expire([A])
            gone = a.load(A)
            assert set(await asyncio.gather(*writes)) == {Stored.OK}
            assert (await found)[0]["state_version"] == 59
            assert await gone == (None, Stored.OK)

    run(story())


def test_a_thousand_writes_at_once_are_all_done(store: Etcd, prefix: str) -> None:
    async def story() -> None:
        async with node(store.access, "a", prefix) as a:
            ids = [f"{number:032x}" for number in range(500)]
            for version in (1, 2):
                writes = [a.swap(row(session_id, version)) for session_id in ids]
                assert set(await asyncio.gather(*writes)) == {Stored.OK}
            assert not a.table.problem
        async with node(store.access, "a", prefix) as again:
            versions = {r["session_id"]: r["state_version"] for r in again.table.rows()}
            assert versions == dict.fromkeys(ids, 2)

    run(story())


def test_a_write_whose_answer_was_lost_is_done_once(
    store: Etcd, prefix: str, wire: Wire
) -> None:
    async def story() -> None:
        async with node(wire.access, "a", prefix) as a, node(store.access, "b", prefix) as b:
            await a.swap(row(C))
            for version in (1, 2):  # a new row, and one that is known
                wire.answers_to_lose = b"request_txn"
                assert await a.swap(row(A, version)) is Stored.OK
                assert wire.lost == version
                assert await b.version(A) == version
            wire.answers_to_lose = b"request_delete_range"
            a.table.expire([A])
            assert await a.version(A) is None
            assert wire.lost == 3

    run(story())


# --- out of reach ---


def test_a_store_out_of_reach_is_told_in_time_and_comes_back(
    store: Etcd, prefix: str, wire: Wire, impatient: float
) -> None:
    async def story() -> None:
        async with node(wire.access, "a", prefix, ttl_s=3) as a:
            assert await a.swap(row()) is Stored.OK
            await a.observer.until(lambda: bool(a.observer.seen_ms))
            wire.cut()
            began_s = time.monotonic()
            answers = await asyncio.gather(
                a.swap(row(version=2)), *(a.swap(row(f"{n:032x}")) for n in range(300))
            )
            assert set(answers) == {Stored.UNAVAILABLE}
            assert time.monotonic() - began_s < impatient + 9
            assert await a.load(B) == (None, Stored.UNAVAILABLE)
            assert wire.access.endpoints[0][1] in a.table.problem
            since_ms = now_ms()
            assert all(at_ms < since_ms for at_ms in a.observer.seen_ms)
            wire.mend()
            await a.observer.until(lambda: a.observer.seen_ms[-1] > since_ms)
            assert not a.table.problem
            assert await a.swap(row(version=2)) is Stored.OK

    run(story())


def test_a_full_queue_says_no_at_once(
    store: Etcd, prefix: str, wire: Wire, impatient: float, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with node(wire.access, "a", prefix) as a:
            wire.cut()
            writes = [a.swap(row()) for _ in range(QUEUE + 100)]
            assert sum(write.done() for write in writes) >= 100 - LANES
            assert "requests wait" in a.table.problem
            assert set(await asyncio.gather(*writes)) == {Stored.UNAVAILABLE}

    run(story())
    assert caplog.text.count("requests wait") < 10


def test_a_node_starts_while_etcd_is_away(
    store: Etcd, prefix: str, wire: Wire, impatient: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jvpnd.store.etcd.OPEN_S", 0.3)

    async def story() -> None:
        async with node(store.access, "b", prefix) as b:
            await b.swap(row(owner="b"))
            wire.cut()
            async with node(wire.access, "a", prefix) as a:
                assert a.table.rows() == []
                assert await a.swap(row(B)) is Stored.UNAVAILABLE
                assert a.table.problem
                known = a.swap(row(B))
                assert known.done(), "nobody waits for what is known to be away"
                assert known.result() is Stored.UNAVAILABLE
                wire.mend()
                await a.observer.until_moved((A, "b"))
                await a.observer.until(lambda: not a.table.problem)
                assert await a.swap(row(B)) is Stored.OK

    run(story())


def test_rows_go_on_when_their_lease_is_lost(store: Etcd, prefix: str) -> None:
    async def story() -> None:
        async with node(store.access, "a", prefix) as a:
            assert await a.swap(row()) is Stored.OK
            connection = store.connection()
            for lease in connection.ask("lease/leases", {}, 5)["leases"]:
                connection.ask("lease/revoke", {"ID": lease["ID"]}, 5)
            connection.close()
            assert await a.swap(row(B)) is Stored.OK
            assert await a.swap(row(A)) is Stored.OK  # the lease took the row along

    run(story())


# --- what others do ---


def test_moves_and_ends_are_told_and_own_writes_are_not(store: Etcd, prefix: str) -> None:
    async def story() -> None:
        async with node(store.access, "a", prefix) as a, node(store.access, "b", prefix) as b:
            await a.swap(row())
            await a.swap(row(B))
            await b.observer.until_moved((A, "a"), (B, "a"))
            assert await b.swap(row(version=2, owner="b")) is Stored.OK
            await a.observer.until_moved((A, "b"))
            b.table.expire([B])  # another's
            b.table.expire([A])
            await a.observer.until_moved((A, None))
            assert await a.version(B) == 1
            assert a.observer.moves == [(A, "b"), (A, None)]
            assert b.observer.moves[:2] == [(A, "a"), (B, "a")]
            assert (B, None) not in b.observer.moves

    run(story())


def test_nodes_know_each_other(store: Etcd, prefix: str) -> None:
    async def story() -> None:
        async with node(store.access, "a", prefix, ttl_s=3) as a:
            async with node(store.access, "b", prefix) as b:
                await a.observer.until(lambda: set(a.observer.nodes) == {"a", "b"})
                await b.observer.until(lambda: set(b.observer.nodes) == {"a", "b"})
                info = b.observer.nodes["a"]
                assert (info.state, info.endpoints) == (READY, tuple(ENDPOINTS))
                assert info.address == ("10.0.0.7",)
                assert abs(info.started_ms - wall_ms()) < 60_000
                await a.swap(row())
                a.table.set_state(DRAINING)
                await b.observer.until(
                    lambda: b.observer.nodes["a"].state == DRAINING
                    and b.observer.nodes["a"].sessions == 1
                )
            await a.observer.until(lambda: set(a.observer.nodes) == {"a"}, 2)  # not its lease's end

    run(story())


def test_a_node_that_is_cut_off_is_gone_after_its_time(
    store: Etcd, prefix: str, wire: Wire
) -> None:
    async def story() -> None:
        async with node(store.access, "b", prefix) as b, node(wire.access, "a", prefix, ttl_s=3):
            await b.observer.until(lambda: "a" in b.observer.nodes)
            wire.cut()
            await b.observer.until(lambda: "a" not in b.observer.nodes)
            wire.mend()
            await b.observer.until(lambda: "a" in b.observer.nodes)

    run(story())


@pytest.mark.parametrize("is_compacted", [False, True])
def test_what_happened_during_a_break_is_told_after_it(
    store: Etcd, prefix: str, wire: Wire, is_compacted: bool
) -> None:
    async def story() -> None:
        async with node(store.access, "b", prefix) as b, node(wire.access, "a", prefix) as a:
            for session_id in (A, B, C):
                await a.swap(row(session_id))
            await b.observer.until_moved((A, "a"), (B, "a"), (C, "a"))
            wire.cut()
            await b.swap(row(A, 2, "b"))
            await b.swap(row(B, 2, "b"))
            b.table.expire([B])
            assert await b.version(B) is None
            if is_compacted:
                store.compact()
            assert a.observer.moves == []
            wire.mend()
            await a.observer.until_moved((A, "b"), (B, None))
            assert (C, None) not in a.observer.moves
            assert await a.swap(row(C, 2)) is Stored.OK

    run(story())


def test_a_node_goes_on_when_etcd_starts_again_and_when_it_starts_anew(tmp_path: Path) -> None:
    async def story(store: Etcd) -> None:
        async with node(store.access, "a") as a, node(store.access, "b") as b:
            for version in range(1, 40):
                assert await a.swap(row(A, version)) is Stored.OK
            await b.observer.until_moved((A, "a"))
            store.kill()
            await asyncio.to_thread(store.start)
            assert await a.swap(row(A, 40)) is Stored.OK
            assert await b.swap(row(A, 41, "b")) is Stored.OK
            await a.observer.until_moved((A, "b"))
            store.kill()
            (tmp_path / "m0").rename(tmp_path / "lost")
            await asyncio.to_thread(store.start)
            await a.observer.until_moved((A, None))
            await b.observer.until_moved((A, None))
            assert await b.swap(row(A, 42, "b"), 0) is Stored.OK
            await a.observer.until(lambda: a.observer.moves[-1] == (A, "b"))

    with etcd(tmp_path) as store:
        run(story(store))


# --- what is in etcd ---


def test_secrets_are_sealed_in_etcd(store: Etcd, prefix: str) -> None:
    async def dumped() -> dict[str, bytes]:
        async with node(store.access, "a", prefix) as a:
            await a.swap(row())
            await a.observer.until(lambda: "a" in a.observer.nodes)
            return await asyncio.to_thread(store.dump)

    values = {key: value for key, value in asyncio.run(dumped()).items() if prefix in key}
    assert set(values) == {f"{prefix}sessions/{A}", f"{prefix}nodes/a"}
    everything = b"".join(values.values())
    assert b'"owner": "a"' in everything
    assert b'"client": "laptop"' in everything
    for secret in (bytes.fromhex(ROOT), bytes.fromhex(HEARD), KEY):
        for text in (secret, secret.hex().encode(), base64.b64encode(secret)):
            assert text not in everything
            assert text[:12] not in everything


def test_keys_can_be_changed_while_all_goes_on(
    store: Etcd, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    old, both, new = (KEY,), (OTHER_KEY, KEY), (OTHER_KEY,)

    async def story() -> None:
        async with node(store.access, "a", prefix, old) as a:
            await a.swap(row(A))
            await a.swap(row(B))
        async with node(store.access, "a", prefix, both) as a:
            assert sorted(str(r["session_id"]) for r in a.table.rows()) == [A, B]
            assert await a.swap(row(A, 2)) is Stored.OK
        async with node(store.access, "b", prefix, new) as b:
            assert await b.version(A) == 2
            assert await b.load(B) == (None, Stored.UNAVAILABLE)
            assert await b.swap(row(B, 2, "b")) is Stored.CONFLICT
            assert b.observer.moves == [(A, "a")]

    run(story())
    assert caplog.text.count(f"session {B} in etcd does not open") == 1


def test_what_no_node_wrote_is_left_alone_and_told_once(
    store: Etcd, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = Sealer([KEY])
    odd = {
        "00": b"",
        "01": b"\xff\x00{",
        "02": b"[]",
        "03": b"[" * 60_000,
        "04": b"x" * 1_000_000,
        "05": b'{"owner": "b", "state_version": 1, "sealed": "AAAA"}',
        "06": b'{"owner": "b", "state_version": 1, "sealed": 7}',
        "07": good.sealed("another", {"owner": "b", "state_version": 1}, {}),
        "08": Sealer([OTHER_KEY]).sealed("08" * 16, {"owner": "b", "state_version": 1}, {}),
        "09": good.sealed("09" * 16, {"owner": "b", "state_version": "x"}, {}),
        "0a": good.sealed("0a" * 16, {"owner": "b", "state_version": 1}, {"anchor_ms": "x"}),
    }
    for key, value in odd.items():
        store.put(f"{prefix}sessions/{key * 16}", value)
    for key in ("sessions/no id", "sessions/" + "aa" * 40, "nodes/b", "nodes/b/c", "else"):
        store.put(prefix + key, b"{}")

    async def story() -> None:
        async with node(store.access, "a", prefix) as a:
            await a.observer.until(lambda: bool(a.observer.nodes))
            assert a.table.rows() == []
            assert await a.swap(row()) is Stored.OK
            for key in odd:
                assert await a.load(key * 16) == (None, Stored.UNAVAILABLE)
                assert await a.swap(row(key * 16)) is Stored.CONFLICT
                a.table.expire([key * 16])
            assert await a.version(A) == 1
            assert not a.table.problem
            assert set(a.observer.nodes) == {"a"}
            assert a.observer.moves == []

    run(story())
    kept = store.dump()
    for key, value in odd.items():
        assert kept[f"{prefix}sessions/{key * 16}"] == value
        assert caplog.text.count(f"session {key * 16} in etcd does not open") == 1


def test_a_row_of_another_session_is_no_row(store: Etcd, prefix: str) -> None:
    """Who may write to etcd cannot give one client's session to another."""

    async def story() -> None:
        async with node(store.access, "a", prefix) as a:
            await a.swap(row())
            kept = await asyncio.to_thread(store.dump)
            value = kept[f"{prefix}sessions/{A}"]
            await asyncio.to_thread(store.put, f"{prefix}sessions/{B}", value)
            forged = value.replace(b'"owner": "a"', b'"owner": "b"')
            await asyncio.to_thread(store.put, f"{prefix}sessions/{C}", forged)
            assert await a.load(B) == (None, Stored.UNAVAILABLE)
            assert await a.load(C) == (None, Stored.UNAVAILABLE)

    run(story())


def test_times_are_the_walls_in_etcd_and_a_nodes_own_with_it(store: Etcd, prefix: str) -> None:
    async def story() -> None:
        async with node(store.access, "a", prefix) as a:
            made = row(created_ms=now_ms() - 5000, lost_since_ms=now_ms() - 100)
            await a.swap(made)
            kept = await asyncio.to_thread(store.dump)
            opened = Sealer([KEY]).opened(A, kept[f"{prefix}sessions/{A}"])
            assert opened is not None
            assert abs(opened[1]["created_ms"] - (wall_ms() - 5000)) < 5000
            found, _ = await a.load(A)
            for key in ("created_ms", "lost_since_ms", "anchor_ms"):
                assert found[key] == pytest.approx(made[key], abs=50)
            assert found["switched_at_ms"] == pytest.approx(made["switched_at_ms"], abs=50)
            assert {**found, **times(made)} == made

    def times(of: dict[str, Any]) -> dict[str, Any]:
        return {k: of[k] for k in ("created_ms", "lost_since_ms", "anchor_ms", "switched_at_ms")}

    run(story())


# --- restart ---


def test_a_restart_gives_a_node_its_own_rows(store: Etcd, prefix: str) -> None:
    async def story() -> None:
        async with node(store.access, "b", prefix) as b:
            async with node(store.access, "a", prefix) as a:
                many = [a.swap(row(f"{n:032x}")) for n in range(600)]  # more than a page
                await asyncio.gather(*many, b.swap(row(B, owner="b")))
            async with node(store.access, "a", prefix) as a:
                assert len(a.table.rows()) == 600
                assert a.observer.moves == [(B, "b")]
                assert a.table.rows() == []

    run(story())
