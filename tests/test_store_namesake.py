"""Two gateways with one name, in a real etcd: the second does not start, or both say so."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from typing import Any

import pytest

from jvpnd.store.namesake import Namesake
from jvpnd.store.observer import READY, NodeInfo
from jvpnd.store.sqlite import StoreError

from .etcd import Etcd, etcd, needs_etcd
from .etcdnodes import ENDPOINTS, Node, Wire, node

pytestmark = needs_etcd
_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with etcd(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture
def prefix() -> str:
    return f"/jvpn/name{next(_NUMBERS)}/"


@pytest.fixture
def wire(store: Etcd) -> Iterator[Wire]:
    made = Wire(store.access)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jvpnd.store.etcd.CLOSE_S", 0.5)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


async def started_ms(of: Node, name: str = "a") -> int:
    await of.observer.until(lambda: name in of.observer.nodes)
    return of.observer.nodes[name].started_ms


def test_a_name_that_another_gateway_has_is_refused_at_the_start(store: Etcd, prefix: str) -> None:
    async def story() -> None:
        async with node(store.access, "a", prefix, ttl_s=3) as first:
            began = await started_ms(first)
            with pytest.raises(StoreError) as told:
                async with node(store.access, "a", prefix, ttl_s=3, address="10.0.0.8"):
                    pytest.fail("it has started")
            assert "node = 'a'" in str(told.value)
            assert "at 10.0.0.7, udp 192.0.2.1:7700, tls *:443" in str(told.value)
            assert first.table.namesake.problem == ""
            assert await started_ms(first) == began

    run(story())


def test_a_node_that_was_killed_and_has_another_address_now_waits_for_its_old_lease(
    store: Etcd, prefix: str, wire: Wire
) -> None:
    async def story() -> None:
        async with node(store.access, "b", prefix) as b:
            async with node(wire.access, "a", prefix, ttl_s=3):
                await started_ms(b)
                wire.cut()
            assert b.observer.nodes["a"].address == ("10.0.0.7",)
            async with node(store.access, "a", prefix, ttl_s=3, address="10.0.0.8") as a:
                await b.observer.until(
                    lambda: "a" in b.observer.nodes
                    and b.observer.nodes["a"].address == ("10.0.0.8",)
                )
                assert a.table.namesake.problem == ""

    run(story())


def test_a_node_that_was_killed_starts_again_in_its_place_at_once(
    store: Etcd, prefix: str, wire: Wire
) -> None:
    async def story() -> None:
        async with node(store.access, "b", prefix) as b:
            async with node(wire.access, "a", prefix, ttl_s=600):
                before = await started_ms(b)
                wire.cut()
            async with asyncio.timeout(20), node(store.access, "a", prefix) as a:
                await b.observer.until(
                    lambda: "a" in b.observer.nodes
                    and b.observer.nodes["a"].started_ms != before
                )
                assert a.table.namesake.problem == ""

    run(story())


def test_of_two_copies_of_one_gateway_each_says_so_and_the_one_that_stays_is_listed(
    store: Etcd, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with (
            node(store.access, "b", prefix) as b,
            node(store.access, "a", prefix, ttl_s=3) as first,
        ):
            began = await started_ms(first)
            async with node(store.access, "a", prefix, ttl_s=3) as second:
                for each in (first, second):
                    namesake = each.table.namesake
                    await each.observer.until(lambda it=namesake: it.problem != "")  # type: ignore[misc]
                    assert "node = 'a': another gateway of this cluster" in namesake.problem
            await b.observer.until(
                lambda: "a" in b.observer.nodes and b.observer.nodes["a"].started_ms == began
            )
            assert b.observer.nodes["a"] == NodeInfo(
                READY, tuple(ENDPOINTS), ("10.0.0.7",), 0, began
            )

    run(story())
    errors = [each for each in caplog.records if "another gateway" in each.message]
    assert len(errors) == 2  # once for each


def test_what_was_there_before_is_no_other_gateway_and_one_that_is_gone_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [5_000.0]
    monkeypatch.setattr("jvpnd.store.namesake.now_ms", lambda: clock[0])
    own = NodeInfo(READY, tuple(ENDPOINTS), ("10.0.0.7",), 0, 1_000)
    other = replace(own, started_ms=900)
    namesake = Namesake("a", own, 3)
    for nodes, is_listed, is_problem in (
        ({"b": other}, False, False),
        ({"a": other}, False, False),  # a former life
        ({"a": own}, True, False),
        ({"a": replace(own, sessions=7)}, True, False),
        ({"a": other}, False, True),
        ({"a": own}, True, True),
    ):
        namesake.nodes_changed(nodes)
        assert (namesake.is_listed, namesake.problem != "") == (is_listed, is_problem), nodes
    clock[0] += 6_001
    assert namesake.problem == ""
