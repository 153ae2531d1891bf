"""The session table in an etcd of three members, with TLS, with users."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jvpnd.core.peer import Stored
from jvpnd.store.etcdclient import Connection, Login
from jvpnd.store.lanes import WITHIN_S

from .etcd import Etcd, etcd, needs_etcd
from .etcdnodes import A, B, node, row

pytestmark = needs_etcd


@pytest.fixture(autouse=True)
def _quick_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a thread that waits for an etcd that is away."""
    monkeypatch.setattr("jvpnd.store.etcd.CLOSE_S", 0.3)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with etcd(tmp_path_factory.mktemp("etcd"), members=3) as cluster:
        yield cluster


@pytest.mark.parametrize("dead", [0, 1, 2])  # one of them leads
def test_one_member_of_three_may_die(three: Etcd, dead: int) -> None:
    async def story() -> None:
        prefix = f"/{dead}/"
        async with node(three.access, "a", prefix) as a, node(three.access, "b", prefix) as b:
            for version in range(1, 10):
                assert await a.swap(row(A, version)) is Stored.OK
            three.kill(dead)
            began_s = time.monotonic()
            for version in range(10, 30):
                assert await a.swap(row(A, version)) is Stored.OK
            assert time.monotonic() - began_s < 2 * WITHIN_S
            assert await b.swap(row(A, 30, "b")) is Stored.OK
            await a.observer.until_moved((A, "b"))
            await a.observer.until(lambda: set(a.observer.nodes) == {"a", "b"})
            await asyncio.to_thread(three.start, dead)

    asyncio.run(story())


def test_without_a_majority_nothing_is_written(
    three: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jvpnd.store.etcd.WITHIN_S", 1.0)

    async def story() -> None:
        async with node(three.access, "a", "/minority/", ttl_s=3) as a:
            assert await a.swap(row()) is Stored.OK
            await a.observer.until(lambda: bool(a.observer.seen_ms))
            three.kill(0)
            three.kill(1)
            assert await a.swap(row(version=2)) is Stored.UNAVAILABLE
            assert a.table.problem
            count = len(a.observer.seen_ms)
            assert await a.swap(row(B)) is Stored.UNAVAILABLE
            assert len(a.observer.seen_ms) == count
            await asyncio.to_thread(three.start, 0, 1)
            await a.observer.until(lambda: len(a.observer.seen_ms) > count)
            assert not a.table.problem
            version = await a.version(A)  # the write may have been done, or not
            assert version in (1, 2)
            assert await a.swap(row(A, version + 1)) is Stored.OK

    asyncio.run(story())


def test_over_tls_both_ends_show_a_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jvpnd.store.etcd.OPEN_S", 0.3)
    monkeypatch.setattr("jvpnd.store.etcd.WITHIN_S", 0.5)

    async def story(store: Etcd) -> None:
        async with node(store.access, "a") as a, node(store.access, "b") as b:
            assert await a.swap(row()) is Stored.OK
            await b.observer.until_moved((A, "a"))
        strangers = replace(store.access, ca_file=None), replace(store.access, certificate=None)
        for access, why in zip(strangers, ("certificate verify failed", "ssl"), strict=True):
            async with node(access) as stranger:
                assert await stranger.swap(row(B)) is Stored.UNAVAILABLE
                assert why in stranger.table.problem

    with etcd(tmp_path, tls=True) as store:
        asyncio.run(story(store))


def test_a_user_who_may_only_write_there_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jvpnd.store.etcd.OPEN_S", 0.3)

    async def story(store: Etcd) -> None:
        gateway = replace(store.access, username="gateway", password="s3cret")
        async with node(gateway, "a", ttl_s=3) as a, node(gateway, "b") as b:
            assert await a.swap(row()) is Stored.OK
            await b.observer.until_moved((A, "a"))
            # Its tokens are gone then.
            store.kill()
            await asyncio.to_thread(store.start)
            assert await a.swap(row(A, 2)) is Stored.OK
            assert await b.swap(row(A, 3, "b")) is Stored.OK
            await a.observer.until_moved((A, "b"))
            count = len(a.observer.seen_ms)
            await a.observer.until(lambda: len(a.observer.seen_ms) > count)
            assert not a.table.problem
        for access, prefix, why in (
            (replace(gateway, password="guess"), "/jvpn/", "invalid user ID or password"),
            (gateway, "/other/", "permission denied"),
            (store.access, "/jvpn/", "user name is empty"),
        ):
            async with node(access, "c", prefix) as c:
                assert why in c.table.problem
                assert c.observer.seen_ms == []

    with etcd(tmp_path) as store:
        with_users(store)
        asyncio.run(story(store))


def with_users(store: Etcd) -> None:
    """A user gateway for what is under /jvpn/, besides root."""
    first, behind = (base64.b64encode(text).decode() for text in (b"/jvpn/", b"/jvpn0"))
    permission = {"permType": "READWRITE", "key": first, "range_end": behind}
    with contextlib.closing(Connection(store.access, Login())) as connection:
        for path, body in (
            ("auth/user/add", {"name": "root", "password": "toor"}),
            ("auth/role/add", {"name": "root"}),
            ("auth/user/grant", {"user": "root", "role": "root"}),
            ("auth/user/add", {"name": "gateway", "password": "s3cret"}),
            ("auth/role/add", {"name": "sessions"}),
            ("auth/role/grant", {"name": "sessions", "perm": permission}),
            ("auth/user/grant", {"user": "gateway", "role": "sessions"}),
            ("auth/enable", {}),
        ):
            connection.ask(path, body, 5)
