"""What the doctor makes of a node of a cluster, and what it asks of a real etcd."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jvpnd.configcluster import ClusterSettings, EtcdAccess
from jvpnd.doctor import cluster
from jvpnd.doctor import etcd as look
from jvpnd.doctor.cluster import MemberFacts
from jvpnd.doctor.finding import Finding, Level
from jvpnd.enrol.keys import new_key
from jvpnd.enrol.texts import GatewayAnswers, gateway_text
from jvpnd.store.observer import READY, NodeInfo

from .etcd import Etcd, etcd, needs_etcd
from .etcdnodes import KEY, OTHER_KEY, node
from .served import served
from .test_cli import jvpnctl
from .test_store_etcd_cluster import with_users

URL = "https://10.0.0.1:2379"
OWN = NodeInfo(READY, (("udp", "203.0.113.7", 7700),), ("10.0.0.7",), 0, 0)


def levels(found: list[Finding]) -> list[str]:
    return [str(each.level) for each in found]


# --- what is made of it ---


@pytest.mark.parametrize(
    ("problem", "remedy"),
    [
        ("certificate verify failed: unable to get local issuer certificate", "ca_file"),
        ("tlsv13 alert certificate required", "etcd wants one"),
        ("wrong version number", "http://"),
        ("HTTP status 400", "https://"),
        ("Connection refused", "--listen-client-urls"),
        ("timed out", "firewall"),
    ],
)
def test_each_way_not_to_reach_etcd_has_its_remedy(problem: str, remedy: str) -> None:
    (found,) = cluster.members([MemberFacts(URL, problem)], "/jvpn/")
    assert (found.level, found.found) == (Level.FAIL, f"{URL}: {problem}")
    assert remedy in found.remedy


def test_a_member_that_is_down_is_passed_over_and_one_that_refuses_is_not() -> None:
    down, well = MemberFacts(URL, "Connection refused"), MemberFacts(URL)
    refuses = MemberFacts(URL, "permission denied", True)
    assert levels(cluster.members([down, well], "/jvpn/")) == ["warn", "ok"]
    assert levels(cluster.members([down, down], "/jvpn/")) == ["fail", "fail"]
    found = cluster.members([refuses, well], "/vpn/")
    assert levels(found) == ["fail", "ok"]
    assert "/vpn/*" in found[0].remedy


@pytest.mark.parametrize(
    ("ahead_s", "level", "words"),
    [(0.0, ["ok"], "second"), (-1.0, ["ok"], ""), (7.2, ["warn"], "7 s ahead of"),
     (-30.0, ["warn"], "30 s behind"), (None, [], "")],
)  # fmt: skip
def test_clocks_that_differ(ahead_s: float | None, level: list[str], words: str) -> None:
    found = cluster.clock([MemberFacts(URL, ahead_s=ahead_s), MemberFacts(URL, "down")])
    assert levels(found) == level
    assert all(words in each.found for each in found)


def test_a_name_is_free_perhaps_its_own_or_anothers() -> None:
    other = replace(OWN, address=("10.0.0.8",), started_ms=5)
    assert cluster.name({"gw2": OWN}, OWN, "gw1").level is Level.OK
    assert cluster.name({"gw1": replace(OWN, started_ms=5)}, OWN, "gw1").level is Level.WARN
    taken = cluster.name({"gw1": other}, OWN, "gw1")
    assert (taken.level, "10.0.0.8, udp 203.0.113.7:7700" in taken.found) == (Level.FAIL, True)
    assert cluster.running_name("", "gw1").level is Level.OK
    assert cluster.running_name("another gateway", "gw1").level is Level.FAIL


def test_a_hook_that_others_could_change_is_a_fault() -> None:
    assert cluster.hook(None, "/etc/jvpn/hook").level is Level.OK
    assert cluster.hook("/etc may be written by others", "/etc/jvpn/hook").level is Level.FAIL


# --- what etcd is asked ---


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with etcd(tmp_path_factory.mktemp("etcd")) as made:
        yield made


def settings(access: EtcdAccess, prefix: str = "/jvpn/", key: bytes = KEY) -> ClusterSettings:
    return ClusterSettings(access, (key,), prefix)


@needs_etcd
def test_etcd_is_asked_for_a_write_that_never_happens(store: Etcd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    (member,) = store.access.endpoints
    access = EtcdAccess((member, ("http", "127.0.0.1", port)))
    store.put("/jvpn/nodes/gw1", b"as it was")
    before = store.dump()
    well, down = look.members(settings(access), "gw1")
    assert (well.problem, well.url) == ("", f"http://127.0.0.1:{member[2]}")
    assert abs(well.ahead_s or 0.0) < 1
    assert (down.problem, down.refused) == ("Connection refused", False)
    look.members(settings(access), "gw2")
    assert store.dump() == before


@needs_etcd
def test_a_clock_that_is_off_is_seen_by_how_much(
    store: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = time.time
    for off_s in (100.0, -100.0):
        monkeypatch.setattr("jvpnd.doctor.etcd.time.time", lambda by=off_s: now_s() + by)
        (found,) = look.members(settings(store.access), "gw1")
        assert found.ahead_s is not None
        assert abs(found.ahead_s - off_s) <= 2


@needs_etcd
def test_a_user_who_may_not_write_there_is_refused(tmp_path: Path) -> None:
    with etcd(tmp_path) as store:
        with_users(store)
        gateway = replace(store.access, username="gateway", password="s3cret")
        (well,) = look.members(settings(gateway), "gw1")
        assert well.problem == ""
        for access, prefix, why in (
            (replace(gateway, password="guess"), "/jvpn/", "invalid user ID or password"),
            (gateway, "/other/", "permission denied"),
            (store.access, "/jvpn/", "user name is empty"),
        ):
            (found,) = look.members(settings(access, prefix), "gw1")
            assert (why in found.problem, found.refused) == (True, True)
            assert look.listed(settings(access, prefix)) is None


@needs_etcd
def test_what_is_wrong_with_tls_has_a_remedy(tmp_path: Path) -> None:
    with etcd(tmp_path, tls=True) as store:
        (member,) = store.access.endpoints
        for access, remedy in (
            (replace(store.access, ca_file=None), "ca_file"),
            (replace(store.access, certificate=None), "certificate_file"),
            (EtcdAccess((("http", *member[1:]),)), "https://"),
        ):
            (found,) = cluster.members(look.members(settings(access), "gw1"), "/jvpn/")
            assert (found.level, remedy in found.remedy) == (Level.FAIL, True), found
        assert levels(cluster.members(look.members(settings(store.access), "gw1"), "")) == ["ok"]
    with etcd(tmp_path) as plain:
        (member,) = plain.access.endpoints
        access = EtcdAccess((("https", *member[1:]),))
        (found,) = cluster.members(look.members(settings(access), "gw1"), "/jvpn/")
        assert "http://" in found.remedy, found


@needs_etcd
def test_nodes_of_another_cluster_key_are_named(store: Etcd) -> None:
    async def story() -> None:
        async with (
            node(store.access, "gw1", "/keys/") as ours,
            node(store.access, "gw2", "/keys/", (OTHER_KEY,)),
        ):
            await ours.observer.until(lambda: "gw1" in ours.observer.nodes)
            for _ in range(100):
                alive = await asyncio.to_thread(look.listed, settings(store.access, "/keys/"))
                if alive is not None and "gw2" in alive:
                    break
            assert alive is not None
            assert (alive["gw2"], alive["gw1"]) == (None, ours.observer.nodes["gw1"])
            found = cluster.nodes(alive, "gw1")
            assert (found.level, "gw2" in found.found) == (Level.FAIL, True)
            assert cluster.nodes({"gw1": OWN, "gw3": OWN}, "gw1").found == "gw3 alive"

    asyncio.run(story())


# --- the command ---


def configured(folder: Path, access: EtcdAccess, more: str = "") -> Path:
    """The configuration of a node that does not run."""
    file = folder / "jvpnd.toml"
    for name, key in (("private.key", new_key()), ("cluster.key", base64.b64encode(KEY).decode())):
        (folder / name).write_text(key)
        (folder / name).chmod(0o600)
    ((scheme, host, port),) = access.endpoints
    file.write_text(
        gateway_text(GatewayAnswers("gw1", ["10.77.0.1/24"], "203.0.113.7", 1))
        + f'[cluster]\nstore = "etcd"\nendpoints = ["{scheme}://{host}:{port}"]\n'
        f'key_file = "cluster.key"\nprefix = "/doctor/"\n{more}'
    )
    return file


def examined(file: Path) -> dict[str, dict[str, Any]]:
    socket_file = file.parent / "sock"
    done = jvpnctl("--socket", str(socket_file), "doctor", "--config", str(file), "--json")
    return {each["check"]: each for each in json.loads(done.stdout)["checks"]}


@needs_etcd
def test_the_doctor_looks_at_a_node(store: Etcd, tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    rows = examined(configured(tmp_path, store.access, f'hook = "{hook}"\n'))
    assert rows["etcd"]["level"] == rows["clock of etcd"]["level"] == "ok"
    assert rows["cluster nodes"]["found"] == "no other alive"
    assert rows["node name"]["found"] == "gw1 is free"
    assert rows["hook"]["check"] == "hook"
    (tmp_path / "cluster.key").chmod(0o640)
    row = examined(tmp_path / "jvpnd.toml")["configuration"]
    assert (row["level"], "cluster.key is open to others" in row["found"]) == ("fail", True)


@needs_etcd
def test_the_doctor_tells_of_a_gateway_with_the_same_name(store: Etcd, tmp_path: Path) -> None:
    file = configured(tmp_path, store.access)

    async def story() -> None:
        async with node(store.access, "gw1", "/doctor/") as other:
            await other.observer.until(lambda: "gw1" in other.observer.nodes)
            row = (await asyncio.to_thread(examined, file))["node name"]
            assert (row["level"], "10.0.0.7" in row["found"]) == ("fail", True)

    asyncio.run(story())

    async def status(_: object) -> Any:
        return {"state": "LISTENING"}

    async def told(_: object) -> Any:
        return {"problem": "another gateway has that name"}

    with served(tmp_path / "sock", {"status": status, "cluster": told}):
        assert examined(file)["node name"]["level"] == "fail"
