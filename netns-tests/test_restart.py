"""Daemons that are killed, restarted, upgraded: who is inside the tunnel does not notice."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterator

import pytest
from lab.daemons import Daemon
from lab.namespace import Namespace
from lab.stage import Stage, Watch

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

HOW = [signal.SIGTERM, signal.SIGKILL]
ALL = ("udp", "tcp", "tls")


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture
def watch(stage: Stage) -> Iterator[Watch]:
    """A fresh pair, with traffic in the tunnel."""
    stage.strike()
    stage.heal()
    pair = stage.pair()
    with stage.watch(pair) as watch:
        yield watch
    stage.strike()


def restart(daemon: Daemon, how: signal.Signals) -> None:
    daemon.stop(how)
    daemon.start()


def what_is_there(namespace: Namespace) -> tuple[str, str, str]:
    """The interface's number, its addresses, and the routes."""
    return (
        namespace.run("cat", "/sys/class/net/jvpn0/ifindex").stdout,
        namespace.run("ip", "-br", "addr", "show", "jvpn0").stdout,
        namespace.run("ip", "route").stdout,
    )


def session_rows(daemon: Daemon) -> list[str]:
    with sqlite3.connect(f"file:{daemon.runtime}/sessions.db?mode=ro", uri=True) as database:
        return [row for (row,) in database.execute("SELECT session_id FROM sessions")]


@pytest.mark.parametrize("how", HOW)
def test_a_gateway_that_is_restarted_keeps_its_sessions(watch: Watch, how: signal.Signals) -> None:
    epoch = watch.pair.client.status()["session"]["epoch"]
    restart(watch.pair.gateway, how)
    attached = watch.wait_attached()
    assert attached["session_id"] == watch.session
    watch.assert_flows()
    status = watch.pair.client.status()["session"]
    assert (status["id"], status["inner_addresses"]) == (watch.session, watch.addresses)
    assert status["epoch"] > epoch
    assert watch.story("client")[-2:] == [
        "ATTACHED -> RECOVERING TRANSPORT_DEAD",
        "RECOVERING -> ATTACHED TRANSPORT_SWITCH_OK",
    ]
    died = next(e for e in watch.events("client") if e["reason"] == "TRANSPORT_DEAD")
    assert died["details"]["why"] == "gateway started again"


@pytest.mark.parametrize("how", HOW)
def test_a_client_that_is_restarted_keeps_its_session(watch: Watch, how: signal.Signals) -> None:
    restart(watch.pair.client, how)
    attached = watch.pair.client.wait_state("ATTACHED")
    assert attached["session_id"] == watch.session
    watch.assert_flows()
    status = watch.pair.client.status()["session"]
    assert (status["id"], status["inner_addresses"]) == (watch.session, watch.addresses)
    (row,) = watch.pair.gateway.status()["sessions"]
    assert row["id"] == watch.session


def test_a_killed_daemon_leaves_interface_addresses_and_routes(watch: Watch) -> None:
    for daemon in (watch.pair.client, watch.pair.gateway):
        host = daemon.namespace
        before = what_is_there(host)
        daemon.stop(signal.SIGKILL)
        assert "10.77.0." in host.run("ip", "addr", "show", "jvpn0").stdout
        daemon.start()
        assert what_is_there(host) == before
    watch.pair.client.wait_state("ATTACHED")
    watch.assert_flows()
