"""Daemons that are killed, restarted, upgraded: who is inside the tunnel does not notice."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from lab.daemons import INNER, Daemon, Pair, client_config, key_pair
from lab.namespace import Namespace
from lab.stage import Stage, Watch, until
from lab.story import KEPT, ORDERED, of_type, wait_to
from lab.topology import OUTSIDE

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
        namespace.run("ip", "-o", "addr", "show", "jvpn0").stdout,
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
    story = watch.story("client")
    assert story[-2].endswith(" -> RECOVERING TRANSPORT_DEAD")  # from VOLATILE, if it was slow
    assert story[-1] == "RECOVERING -> ATTACHED TRANSPORT_SWITCH_OK"
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


# --- connections end with the gateway ---


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("transport", ["tcp", "tls", "quic"])
def test_a_client_that_has_only_connections_connects_again(
    stage: Stage, transport: str, how: signal.Signals
) -> None:
    """No notice reaches it: it notices their end, and asks where it left off."""
    stage.strike()
    pair = stage.pair(transports=(transport,))
    with stage.watch(pair) as watch:
        pair.gateway.stop(how)
        died = watch.pair.client.wait_for(
            lambda e: e["to"] == "RECOVERING", after=watch.seq()
        )
        assert died["reason"] == "TRANSPORT_DEAD"
        pair.gateway.start()
        watch.wait_attached()
        watch.assert_flows()
        assert watch.transport() == transport
        status = pair.client.status()["session"]
        assert (status["id"], status["inner_addresses"]) == (watch.session, watch.addresses)


# --- the table is lost ---


def test_a_gateway_whose_table_is_no_database_sets_it_aside_and_works(watch: Watch) -> None:
    gateway = watch.pair.gateway
    gateway.stop(signal.SIGKILL)
    table = gateway.runtime / "sessions.db"
    gateway.lose_table()
    table.write_bytes(os.urandom(8192))
    table.chmod(0o600)
    gateway.start()
    assert f"the session table {table} is set aside as {table}.aside" in gateway.log
    ended = watch.pair.client.wait_state("TERMINATED", after=watch.seq())
    assert ended["reason"] == "SESSION_NOT_FOUND"
    attached = watch.pair.client.wait_state("ATTACHED", after=ended["seq"])
    assert attached["session_id"] != watch.session
    watch.assert_flows()
    watch.begin()
    restart(gateway, signal.SIGKILL)  # the new one is as good as any
    attached = watch.wait_attached()
    assert attached["session_id"] == watch.session
    watch.assert_flows()


@contextlib.contextmanager
def phone(stage: Stage) -> Iterator[tuple[Pair, Daemon]]:
    """A gateway with two clients; the second, on a host of its own, was not started yet."""
    keys = key_pair()
    host = elsewhere(stage)
    with Pair(stage.lab.client, stage.lab.gateway, others={"phone": keys[1]}) as pair:
        config = client_config(pair.gateway_keys[1], OUTSIDE[4])
        other = Daemon(host, config, keys[0])
        try:
            pair.start()
            yield pair, other
        finally:
            other.close()


_hosts: dict[Stage, Namespace] = {}


def elsewhere(stage: Stage) -> Namespace:
    """A host on another network; it goes with the lab."""
    if stage not in _hosts:
        _hosts[stage] = stage.lab.stranger()
    return _hosts[stage]


def test_a_gateway_that_loses_its_table_binds_nothing_new_and_leaves_the_rest_alone(
    stage: Stage,
) -> None:
    stage.strike()
    with phone(stage) as (pair, other), stage.watch(pair) as watch:
        assert "nothing new is bound" not in pair.gateway.ctl("status").stdout
        pair.gateway.lose_table()
        bound = watch.binding()
        goal = stage.other(watch.bound()).device
        assert pair.client.ctl("switch", goal).returncode == 0
        wait_to(watch, KEPT)
        assert watch.story("client")[:2] == [ORDERED, KEPT]
        refused = of_type(watch, "client", "REATTACH_RESULT")[-1]
        assert refused["reason"] == "STORE_UNAVAILABLE"
        assert watch.binding() == bound
        watch.assert_flows()
        (told, *_) = of_type(watch, "gateway", "OWNERSHIP")
        assert told["reason"] == "SEC_OWNERSHIP_ANOMALY"
        assert told["details"]["store"] == "unavailable"
        other.start()
        ended = other.wait_state("TERMINATED", timeout_s=30)  # when nobody answered
        assert ended["reason"] == "SESSION_NOT_FOUND"
        assert of_type(watch, "gateway", "SESSION_CREATED") == []
        (row,) = pair.gateway.status()["sessions"]
        assert row["id"] == watch.session
        assert "No such file" in pair.gateway.status()["store"]["problem"]
        assert "nothing new is bound" in pair.gateway.ctl("status").stdout
        watch.assert_flows()
        watch.assert_same_session()


# --- more than one, and other than before ---


@pytest.mark.parametrize("how", HOW)
def test_every_client_is_kept(stage: Stage, how: signal.Signals) -> None:
    stage.strike()
    with phone(stage) as (pair, other), stage.watch(pair) as watch:
        other.start()
        theirs = other.wait_state("ATTACHED")["session_id"]
        seq = other.last_seq()
        command = ("ping", "-n", "-q", "-w", "20", "-c", "1", INNER["gateway"][0])
        restart(pair.gateway, how)
        watch.wait_attached()
        other.wait_state("ATTACHED", after=seq)
        watch.assert_flows()
        assert other.namespace.run(*command, check=False).returncode == 0
        found = {row["client"]: row["id"] for row in pair.gateway.status()["sessions"]}
        assert found == {"laptop": watch.session, "phone": theirs}


def configure(daemon: Daemon, pattern: str, text: str) -> None:
    """Change the configuration, for the next start."""
    changed, count = re.subn(pattern, text, daemon.config_file.read_text())
    assert count == 1
    daemon.config_file.write_text(changed)


@pytest.mark.parametrize("side", ["client", "gateway"])
def test_the_number_of_lanes_may_change_meanwhile(watch: Watch, side: str) -> None:
    """A device with one queue cannot get more, nor the other way round: it is made anew."""
    daemon: Daemon = getattr(watch.pair, side)
    for lanes in (2, 1):
        watch.begin()
        daemon.stop(signal.SIGKILL)
        text = re.sub(r"^lanes = .*\n", "", daemon.config_file.read_text())
        daemon.config_file.write_text(f"lanes = {lanes}\n{text}")
        daemon.start()
        watch.pair.client.wait_state("ATTACHED", after=0 if side == "client" else watch.seq())
        watch.assert_flows()
        assert len(daemon.status()["lanes"]) == lanes
        assert watch.pair.client.status()["session"]["id"] == watch.session


def test_a_device_and_rules_under_another_name_go_at_the_next_start(stage: Stage) -> None:
    stage.strike()
    host = stage.lab.client
    before = host.run("ip", "rule").stdout
    with Pair(host, stage.lab.gateway, routes=FULL) as pair:
        pair.start()
        until(lambda: way(host, BEYOND[0]) == "jvpn0", "everything is routed into the tunnel")
        session = pair.client.status()["session"]["id"]
        pair.client.stop(signal.SIGKILL)
        configure(pair.client, 'name = "jvpn0"', 'name = "jvpn9"')
        pair.client.start()
        assert pair.client.wait_state("ATTACHED")["session_id"] == session
        until(lambda: way(host, BEYOND[0]) == "jvpn9", "everything is routed into the tunnel")
        assert "jvpn0" not in host.run("ip", "-br", "link").stdout
        rules = host.run("ip", "rule").stdout
        assert len(rules.splitlines()) == len(before.splitlines()) + 2
        pair.client.stop()
        assert host.run("ip", "rule").stdout == before


# --- nothing leaks while a client is away ---


FULL = '[routes]\nmode = "full"\n'
BEYOND = ("198.51.100.9", "2001:db8:9::9")  # reached by no uplink


def way(namespace: Namespace, address: str) -> str:
    """The interface by which the host's own packets to an address leave."""
    words = namespace.run("ip", "route", "get", address).stdout.split()
    return words[words.index("dev") + 1]


class Tap:
    """Every frame that leaves an interface, but for ARP and neighbour discovery's like."""

    def __init__(self, namespace: Namespace, device: str) -> None:
        script = (
            "import socket, sys, select\n"
            "s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)\n"
            f"s.bind(({device!r}, 3))\n"
            "print('ready', flush=True)\n"
            "while True:\n"
            "    ready = select.select([s, sys.stdin], [], [])[0]\n"
            "    if s in ready:\n"
            "        data, address = s.recvfrom(65535)\n"
            "        if address[2] == socket.PACKET_OUTGOING: print(data.hex(), flush=True)\n"
            "    elif not sys.stdin.readline(): break\n"
            "    else: print('', flush=True)\n"
        )
        self._process = namespace.popen(sys.executable, "-c", script, stdin=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def left(self) -> list[bytes]:
        """What has left since the last time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found = []
        while line := self._process.stdout.readline().strip():
            found.append(bytes.fromhex(line))
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def is_to(packet: bytes, address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    raw = socket.inet_pton(family, address)
    at = 24 if ":" in address else 16
    return packet[at : at + len(raw)] == raw


def test_between_kill_and_start_of_a_client_nothing_leaves_beside_the_tunnel(stage: Stage) -> None:
    stage.strike()
    host = stage.lab.client
    with contextlib.ExitStack() as stack:
        pair = stack.enter_context(Pair(host, stage.lab.gateway, routes=FULL))
        pair.start()
        until(lambda: all(way(host, a) == "jvpn0" for a in BEYOND), "all is routed into the tunnel")
        taps = []
        for device in ("up-a", "up-b"):
            taps.append(Tap(host, device))
            stack.callback(taps[-1].close)
        sender = host.popen(sys.executable, "-c", SENDER, *BEYOND)
        stack.callback(sender.wait)
        stack.callback(sender.kill)
        pair.client.stop(signal.SIGKILL)
        assert [way(host, address) for address in BEYOND] == ["jvpn0", "jvpn0"]
        time.sleep(1)  # a leak would show by now
        pair.client.start()
        pair.client.wait_state("ATTACHED")
        assert [way(host, address) for address in BEYOND] == ["jvpn0", "jvpn0"]
        left = [packet for tap in taps for packet in tap.left()]
        assert any(is_to(packet, OUTSIDE[4]) for packet in left), "the transport's own was seen"
        assert not [p for p in left for address in BEYOND if is_to(p, address)]


SENDER = (
    "import socket, sys, time\n"
    "while True:\n"
    "    for to in sys.argv[1:]:\n"
    "        family = socket.AF_INET6 if ':' in to else socket.AF_INET\n"
    "        with socket.socket(family, socket.SOCK_DGRAM) as s:\n"
    "            try: s.sendto(b'x', (to, 9))\n"
    "            except OSError: pass\n"
    "    time.sleep(0.005)\n"
)


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
