"""Daemons that are killed, restarted, upgraded: who is inside the tunnel does not notice."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from lab.daemons import Daemon, Pair
from lab.namespace import Namespace
from lab.stage import Stage, Watch, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

HOW = [signal.SIGTERM, signal.SIGKILL]


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


# --- a service manager that keeps descriptors ---


class Manager:
    """Starts a daemon as systemd does one with FileDescriptorStoreMax=: what it hands over is kept,
    and given to the next start."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.kept: dict[str, list[int]] = {}
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(daemon.folder / "manager"))
        self.notify.settimeout(20)

    def start(self) -> None:
        """Until READY=1."""
        names = [name for name, fds in self.kept.items() for _ in fds]
        fds = [fd for fds in self.kept.values() for fd in fds]
        moved = " ".join(f"{at}<&{fd}" for at, fd in enumerate(fds, start=3))
        script = f'LISTEN_PID=$$ exec "$@" {moved}'
        command = (sys.executable, "-m", "jvpnd", "--config", str(self.daemon.config_file))
        with self.daemon.log_file.open("a") as log:
            self.daemon.process = subprocess.Popen(
                self.daemon.namespace.argv(
                    *("bash", "-c", script, "bash", *command),
                    *("--runtime-dir", str(self.daemon.runtime)),
                ),
                pass_fds=fds,
                stdout=log,
                stderr=log,
                text=True,
                env={
                    **os.environ,
                    "NOTIFY_SOCKET": self.notify.getsockname(),
                    "JVPN_FDSTORE": "8",
                    "LISTEN_FDS": str(len(fds)),
                    "LISTEN_FDNAMES": ":".join(names),
                },
            )
        while "READY=1" not in self._take():
            pass

    def _take(self) -> list[str]:
        data, fds, _, _ = socket.recv_fds(self.notify, 4096, 8)
        words = data.decode().splitlines()
        name = next((w.removeprefix("FDNAME=") for w in words if w.startswith("FDNAME=")), "")
        if "FDSTOREREMOVE=1" in words:
            self.close(name)
        if "FDSTORE=1" in words:
            self.kept.setdefault(name, []).extend(fds)
        return words

    def close(self, name: str) -> None:
        for fd in self.kept.pop(name, ()):
            os.close(fd)

    def end(self) -> None:
        for name in list(self.kept):
            self.close(name)
        self.notify.close()


@pytest.fixture(params=[1, 2], ids=["one lane", "two lanes"])
def managed(stage: Stage, request: pytest.FixtureRequest) -> Iterator[tuple[Watch, Manager]]:
    """A pair whose gateway is run by a service manager."""
    stage.strike()
    stage.heal()
    with Pair(stage.lab.client, stage.lab.gateway) as pair:
        pair.gateway.use_lanes(request.param)
        manager = Manager(pair.gateway)
        try:
            manager.start()
            pair.client.start()
            pair.client.wait_state("ATTACHED")
            with stage.watch(pair) as watch:
                yield watch, manager
            pair.gateway.stop(signal.SIGKILL)
        finally:
            manager.end()


@pytest.mark.parametrize("how", HOW)
def test_what_comes_while_the_daemon_is_away_is_delivered_afterwards(
    managed: tuple[Watch, Manager], how: signal.Signals
) -> None:
    watch, manager = managed
    host = watch.pair.gateway.namespace
    before = what_is_there(host)
    watch.pair.gateway.stop(how)
    assert what_is_there(host) == before
    sent = asked(host)
    command = ("ping", "-n", "-q", "-i", "0.05", "-c", "10", "-W", "20", "10.77.0.2")
    ping = subprocess.Popen(host.argv(*command), stdout=subprocess.PIPE, text=True)
    until(lambda: asked(host) >= sent + 10, "the kernel has queued them")
    manager.start()
    assert "10 received" in ping.communicate(timeout=60)[0]
    assert what_is_there(host) == before
    watch.assert_flows()
    assert watch.pair.client.status()["session"]["id"] == watch.session


def asked(namespace: Namespace) -> int:
    """Echo requests that the host has sent."""
    head, values = [
        line.split() for line in namespace.run("cat", "/proc/net/snmp").stdout.splitlines()
        if line.startswith("Icmp:")
    ]
    return int(values[head.index("OutEchos")])
