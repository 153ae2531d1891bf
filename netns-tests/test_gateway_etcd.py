"""A gateway whose sessions are in etcd."""

from __future__ import annotations

import base64
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.daemons import Daemon, Pair
from lab.stage import Stage, until

from tests.etcd import Etcd, needs_etcd

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    needs_etcd,
]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture
def store(stage: Stage, tmp_path: Path) -> Iterator[Etcd]:
    """Inside the gateway's namespace."""

    def started() -> Etcd:
        made = Etcd(tmp_path)
        made.start()
        return made

    made = stage.lab.gateway.within(started)
    yield made
    made.close()


@pytest.fixture
def pair(stage: Stage, store: Etcd) -> Iterator[Pair]:
    with Pair(stage.lab.client, stage.lab.gateway) as pair:
        share(pair.gateway, store)
        pair.start()
        pair.gateway.wait_for(lambda e: e["event_type"] == "SESSION_CREATED")
        yield pair


def share(gateway: Daemon, store: Etcd) -> None:
    """Configure the gateway to have its sessions there."""
    key_file = gateway.folder / "cluster.key"
    key_file.write_text(base64.b64encode(os.urandom(32)).decode() + "\n")
    key_file.chmod(0o600)
    ((scheme, host, port),) = store.access.endpoints
    more = f'[cluster]\nstore = "etcd"\nendpoints = ["{scheme}://{host}:{port}"]\n'
    text = gateway.config_file.read_text()
    gateway.config_file.write_text(f'{text}{more}key_file = "cluster.key"\nnode_ttl_s = 3\n')


def held(stage: Stage, store: Etcd) -> set[str]:
    """The keys in etcd."""
    return set(stage.lab.gateway.within(store.dump))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_gateway_that_is_started_again_finds_its_sessions_in_etcd(
    stage: Stage, store: Etcd, pair: Pair, how: signal.Signals
) -> None:
    session = pair.client.status()["session"]["id"]
    assert held(stage, store) == {f"/jvpn/sessions/{session}", "/jvpn/nodes/gw1"}
    assert not (pair.gateway.runtime / "sessions.db").exists()
    seq = pair.client.last_seq()
    pair.gateway.stop(how)
    if how is signal.SIGTERM:
        assert held(stage, store) == {f"/jvpn/sessions/{session}"}
    pair.gateway.start()
    pair.client.wait_state("ATTACHED", after=seq)
    assert pair.client.status()["session"]["id"] == session


def test_a_session_that_has_ended_is_known_to_have_for_a_while(
    stage: Stage, store: Etcd, pair: Pair
) -> None:
    session = pair.client.status()["session"]["id"]
    done = pair.gateway.ctl("terminate", session)
    assert done.returncode == 0, done.stderr

    def state() -> str:
        row = stage.lab.gateway.within(store.dump)[f"/jvpn/sessions/{session}"]
        return str(json.loads(row)["state"])

    until(lambda: state() == "TERMINATED", "etcd has it")


def test_an_etcd_that_is_away_is_told_until_it_is_back(
    stage: Stage, store: Etcd, pair: Pair
) -> None:
    def told() -> bool:
        return "Connection refused" in pair.gateway.ctl("status").stdout

    store.kill()
    until(told, "the problem is told")
    stage.lab.gateway.within(store.start)
    until(lambda: not told(), "all is well again")
