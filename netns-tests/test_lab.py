"""The laboratory itself: were its network or its checks to lie, no other test would say anything.

The wire between two hosts has tests of its own (test_lab_wire.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.capture import Datagram, Listener, Sender, forge, parse
from lab.daemons import Daemon, client_config, key_pair
from lab.namespace import Namespace
from lab.stage import until
from lab.topology import OUTSIDE, Lab, Uplink
from lab.traffic import BLOCK, TCP_PORT, Traffic
from lab.wire import Conditions

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

PORT = 9000
WAIT_S = 5.0  # bounds a hang
QUIET_S = 0.3  # how long nothing may come to be sure that nothing will
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
VERSIONS = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def built() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def stranger(built: Lab) -> Namespace:
    return built.stranger()


@pytest.fixture
def lab(built: Lab) -> Lab:
    """As it was when it was built."""
    for uplink in (built.a, built.b):
        uplink.wire.set_both(Conditions())
        uplink.change_address(2)
        uplink.router.nft("table ip lab_nat\ndelete table ip lab_nat\n")
        uplink.router.run("conntrack", "-F")
    return built


@pytest.fixture
def agent(lab: Lab) -> Iterator[Daemon]:
    """A client whose gateway is not there."""
    daemon = Daemon(lab.client, client_config(key_pair()[1], OUTSIDE[4]), key_pair()[0])
    try:
        yield daemon
    finally:
        daemon.close()


@pytest.fixture
def ends(lab: Lab) -> Iterator[Ends]:
    ends = Ends(lab)
    try:
        yield ends
    finally:
        ends.close()


class Ends:
    """UDP sockets: servers on the gateway's outside addresses, and one client for each uplink."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._servers = {v: self._server(v) for v in FAMILIES}
        self._clients: dict[tuple[str, int], socket.socket] = {}

    def _server(self, version: int) -> socket.socket:
        server = self._socket(self.lab.gateway, version)
        self.lab.gateway.within(lambda: server.bind((OUTSIDE[version], PORT)))
        return server

    @staticmethod
    def _socket(namespace: Namespace, version: int) -> socket.socket:
        sock = namespace.within(lambda: socket.socket(FAMILIES[version], socket.SOCK_DGRAM))
        sock.settimeout(WAIT_S)
        return sock

    def client(self, uplink: Uplink, version: int = 4) -> socket.socket:
        """Always the same socket, so that its flow is always the same one."""
        if (uplink.device, version) not in self._clients:
            sock = self._socket(self.lab.client, version)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, uplink.device.encode())
            self._clients[uplink.device, version] = sock
        return self._clients[uplink.device, version]

    def send(self, uplink: Uplink, text: bytes, version: int = 4) -> None:
        self.client(uplink, version).sendto(text, (OUTSIDE[version], PORT))

    def seen(self, uplink: Uplink, text: bytes, version: int = 4) -> tuple[str, int]:
        """Send over an uplink; where the gateway sees it come from."""
        self.send(uplink, text, version)
        data, source = self._servers[version].recvfrom(2048)
        assert data == text
        return str(source[0]), int(source[1])

    def answer(self, target: tuple[str, int], text: bytes) -> None:
        version = 6 if ":" in target[0] else 4
        self._servers[version].sendto(text, target)

    def assert_nothing_comes(self, sock: socket.socket | None = None) -> None:
        sock = sock or self._servers[4]
        sock.settimeout(QUIET_S)
        with pytest.raises(TimeoutError):
            print("came after all:", sock.recv(2048))
        sock.settimeout(WAIT_S)

    def close(self) -> None:
        for sock in (*self._servers.values(), *self._clients.values()):
            sock.close()


def namespaces_of(pid: int) -> set[str]:
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in listed.splitlines() if line.startswith(f"jv{pid}-")}


def configuration(namespace: Namespace) -> list[str]:
    """Addresses and routes, without what the kernel counts or gives by itself."""
    shown = ("-4 addr", "-4 route", "-6 addr show scope global", "-6 route show default")
    return sorted(
        line.strip()
        for what in shown
        for line in namespace.run("ip", *what.split()).stdout.splitlines()
        if "valid_lft" not in line
    )


# --- the network ---


@VERSIONS
def test_each_uplink_leads_to_the_gateway_and_back_over_its_own_wire(
    ends: Ends, version: int
) -> None:
    lab = ends.lab
    for uplink, other in ((lab.a, lab.b), (lab.b, lab.a)):
        with (
            Listener(uplink.router, "wan", PORT) as here,
            Listener(other.router, "wan", PORT) as there,
        ):
            source = ends.seen(uplink, b"out", version)
            n = uplink.number
            assert source[0] == (f"10.{n}.0.2" if version == 4 else f"fd0{n}::2")
            ends.answer(source, b"back")
            assert ends.client(uplink, version).recv(64) == b"back"
            assert [datagram.payload for datagram in here.heard()] == [b"out", b"back"]
            assert there.heard() == []


def test_the_first_uplink_is_preferred(lab: Lab) -> None:
    for address in OUTSIDE.values():
        assert "dev up-a" in lab.client.run("ip", "route", "get", address).stdout


def test_conditions_of_the_lab_hold_on_both_wires_both_ways() -> None:
    with Lab(Conditions(delay_ms=40)) as lab:
        for uplink in (lab.a, lab.b):
            ping = ("ping", "-n", "-c", "2", "-i", "0.2", "-I", uplink.device, OUTSIDE[4])
            summary = lab.client.run(*ping).stdout.splitlines()[-1]  # rtt min/avg/max/mdev = ...
            assert float(summary.split()[3].split("/")[0]) >= 80


def test_a_silent_uplink_is_silent_alone_and_nobody_tells(ends: Ends) -> None:
    lab = ends.lab
    before = configuration(lab.client)
    ends.seen(lab.a, b"neighbours are known")  # else it would only wait for one
    lab.a.silence()
    ends.send(lab.a, b"lost")
    ends.assert_nothing_comes()
    assert ends.seen(lab.b, b"other")[0] == "10.2.0.2"
    assert configuration(lab.client) == before
    (link,) = json.loads(lab.client.run("ip", "-j", "link", "show", "up-a").stdout)
    assert (link["operstate"], "LOWER_UP" in link["flags"]) == ("UP", True)
    lab.a.wire.set_both(Conditions())
    assert ends.seen(lab.a, b"again")[0] == "10.1.0.2"


def test_one_way_silence(ends: Ends) -> None:
    uplink = ends.lab.a
    source = ends.seen(uplink, b"out")
    uplink.wire.set(a_to_b=Conditions(silent=True))
    ends.send(uplink, b"lost")
    ends.answer(source, b"back")
    assert ends.client(uplink).recv(64) == b"back"
    ends.assert_nothing_comes()


def test_a_link_that_was_down_comes_back_as_it_was(ends: Ends) -> None:
    lab = ends.lab
    before = configuration(lab.client)
    lab.a.set_down()
    for option in ("-4", "-6"):
        assert "up-a" not in lab.client.run("ip", option, "route").stdout
    assert ends.seen(lab.b, b"other")[0] == "10.2.0.2"
    lab.a.set_up()
    assert configuration(lab.client) == before
    assert ends.seen(lab.a, b"again")[0] == "10.1.0.2"


@VERSIONS
def test_a_new_lease_has_another_address_and_no_longer_the_old_one(
    ends: Ends, version: int
) -> None:
    uplink = ends.lab.a
    uplink.change_address(77)
    source, _ = ends.seen(uplink, b"out", version)
    assert source == ("10.1.0.77" if version == 4 else "fd01::77")
    left = " ".join(configuration(ends.lab.client))
    assert "10.1.0.2/" not in left
    assert "fd01::2/" not in left
    assert left.count("default via 10.1.0.1") == left.count("default via fd01::1") == 1


# --- address translation ---


def test_rebinding_changes_the_port_that_the_gateway_sees(ends: Ends) -> None:
    """The client's socket stays; its old outer port leads nowhere any more."""
    uplink = ends.lab.a
    uplink.translate("20000-29999")
    old = ends.seen(uplink, b"first")
    assert old[0] == "172.16.1.1"
    assert 20000 <= old[1] <= 29999
    assert ends.seen(uplink, b"a mapping lasts") == old
    uplink.rebind("40000-49999")
    new = ends.seen(uplink, b"after")
    assert new[0] == "172.16.1.1"
    assert 40000 <= new[1] <= 49999
    assert ends.seen(uplink, b"a mapping lasts") == new
    ends.answer(old, b"to the old port")
    ends.answer(new, b"to the new port")
    assert ends.client(uplink).recv(64) == b"to the new port"
    ends.assert_nothing_comes(ends.client(uplink))


def test_translation_is_of_one_uplink_and_ipv4(ends: Ends) -> None:
    ends.lab.a.translate()
    assert ends.seen(ends.lab.b, b"other")[0] == "10.2.0.2"
    assert ends.seen(ends.lab.a, b"six", 6)[0] == "fd01::2"


# --- the attacker's tools ---

PORTS = st.integers(0, 65535)
V4 = st.ip_addresses(v=4).map(str)


@given(V4, PORTS, V4, PORTS, st.binary(max_size=200), st.binary(max_size=8))
def test_what_is_forged_parses_as_it_was_meant(
    source: str, source_port: int, target: str, target_port: int, payload: bytes, padding: bytes
) -> None:
    """Short Ethernet frames are padded: that is not payload."""
    datagram = Datagram((source, source_port), (target, target_port), payload)
    assert parse(forge(datagram) + padding) == datagram


@given(st.binary(max_size=100), st.sampled_from([b"", b"\x45", b"\x4f", b"\x40", b"\x60"]))
def test_no_packet_breaks_the_parser(packet: bytes, first: bytes) -> None:
    parse(first + packet)


def test_no_truncated_packet_breaks_the_parser() -> None:
    whole = forge(Datagram(("192.0.2.1", 1), ("192.0.2.2", 2), b"text"))
    headers = 20 + 8
    for length in range(len(whole)):
        found = parse(whole[:length])
        assert (found is None) == (length < headers)
        assert found is None or found.payload == b"text"[: length - headers]


@VERSIONS
def test_a_listener_hears_both_ways_of_its_port_and_nothing_else(ends: Ends, version: int) -> None:
    uplink = ends.lab.a
    with Listener(uplink.router, "lan", PORT) as ear:
        source = ends.seen(uplink, b"out", version)
        ends.client(uplink, version).sendto(b"elsewhere", (OUTSIDE[version], PORT + 1))
        ends.answer(source, b"back")
        ends.client(uplink, version).recv(64)
        ear.wait_for(lambda d: d.payload == b"back")
        gateway = (OUTSIDE[version], PORT)
        assert ear.heard() == [
            Datagram(source, gateway, b"out"),
            Datagram(gateway, source, b"back"),
        ]


def test_a_stranger_sends_as_itself_and_as_somebody_else(ends: Ends, stranger: Namespace) -> None:
    victim = ends.seen(ends.lab.a, b"hello")
    with Sender(stranger) as sender:
        counts = sender.send((OUTSIDE[4], PORT), [b"mine"] * 3)
        assert (counts.sent, counts.sent_bytes, counts.answers) == (3, 12, 0)
        server = ends._servers[4]
        assert {server.recvfrom(64)[1][0] for _ in range(3)} == {"192.0.2.66"}
        sender.send_forged([Datagram(victim, (OUTSIDE[4], PORT), b"forged")])
        assert server.recvfrom(64) == (b"forged", victim)


def test_a_sender_counts_what_is_answered(ends: Ends, stranger: Namespace) -> None:
    server = ends._servers[4]
    with Sender(stranger) as sender:
        sender._ask(target=(OUTSIDE[4], PORT), payloads=[b"ask".hex()], per_s=10, total=2)
        for _ in range(2):
            _, source = server.recvfrom(64)
            server.sendto(b"answered", source)
        counts = sender.counts()
    assert (counts.answers, counts.answer_bytes) == (2, 16)


# --- traffic ---


def total(reports: list[dict[str, Any]], what: str) -> int:
    return int(sum(report[what] for report in reports))


def test_an_echo_on_a_good_wire_loses_nothing(lab: Lab) -> None:
    with Traffic("echo", lab.client, lab.gateway, OUTSIDE[4], "200") as echo:
        reports = echo.wait_until("sent", above=100)
    assert total(reports, "sent") == total(reports, "received")


def test_an_echo_tells_of_loss_and_of_the_gap(lab: Lab) -> None:
    with Traffic("echo", lab.client, lab.gateway, OUTSIDE[4], "200") as echo:
        echo.wait_until("received", above=50)
        for uplink in (lab.a, lab.b):
            uplink.silence()
        echo.wait_until("sent", above=120)  # those before the silence are told of
        start = time.monotonic()
        assert echo.report()["received"] == 0
        time.sleep(QUIET_S)
        least_ms = 1000 * (time.monotonic() - start - 0.001)
        assert echo.report()["longest_gap_ms"] >= least_ms
        for uplink in (lab.a, lab.b):
            uplink.wire.set_both(Conditions())
        echo.wait_until("received", above=10)


@VERSIONS
def test_one_tcp_connection_goes_on_after_a_silence(lab: Lab, version: int) -> None:
    with Traffic("tcp", lab.client, lab.gateway, OUTSIDE[version]) as tcp:
        tcp.wait_until("bytes", above=100_000)
        lab.a.silence()
        deadline = time.monotonic() + WAIT_S
        while tcp.report()["bytes"]:
            assert time.monotonic() < deadline, "text comes through a silent wire"
            time.sleep(0.05)
        lab.a.wire.set_both(Conditions())
        reports = tcp.wait_until("bytes", above=100_000, timeout_s=20)
    assert {report["problem"] for report in reports} == {""}


def shifted(connection: socket.socket) -> None:
    connection.sendall(BLOCK[1:])


def flipped(connection: socket.socket) -> None:
    """One bit, far behind a good beginning."""
    connection.sendall(BLOCK[:-1] + bytes([BLOCK[-1] ^ 1]))


def closed(connection: socket.socket) -> None:
    connection.sendall(BLOCK)
    connection.shutdown(socket.SHUT_WR)


def reset(connection: socket.socket) -> None:
    linger = (1).to_bytes(4, sys.byteorder) + bytes(4)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.close()


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (shifted, "wrong content"),
        (flipped, "wrong content"),
        (closed, "closed by the other end"),
        (reset, "reset by peer"),
    ],
)
def test_a_tcp_client_tells_of_each_harm(
    lab: Lab, harm: Callable[[socket.socket], None], told: str
) -> None:
    server = lab.gateway.within(lambda: socket.create_server((OUTSIDE[4], TCP_PORT)))
    server.settimeout(WAIT_S)
    with server:
        client = lab.client.popen(
            *(sys.executable, "-m", "lab.traffic", "tcp", OUTSIDE[4]),
            stdin=subprocess.PIPE,
            env={"PYTHONPATH": str(Path(__file__).parent)},
        )

        def problem() -> str:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write("\n")
            client.stdin.flush()
            return str(json.loads(client.stdout.readline())["problem"])

        connection, _ = server.accept()
        with connection:
            assert problem() == ""
            harm(connection)
            until(lambda: told in problem(), f"{told} is told")


# --- daemons ---


def test_a_daemon_that_does_not_come_up_is_reported_with_its_log(agent: Daemon) -> None:
    with agent.config_file.open("a") as file:
        file.write("nonsense = 1\n")
    with pytest.raises(AssertionError, match="nonsense"):
        agent.start()
    agent.close()
    assert not agent.folder.exists()


def test_an_event_that_does_not_come_is_reported(agent: Daemon) -> None:
    agent.start()
    with pytest.raises(AssertionError, match="no such event"):
        agent.wait_state("ATTACHED", timeout_s=QUIET_S)
    assert agent.stop(signal.SIGKILL) == -signal.SIGKILL


# --- the end ---


def alive(namespaces: set[str]) -> list[int]:
    found: list[int] = []
    for name in namespaces:
        listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
        found += map(int, listed.stdout.split())
    return found


def test_a_closed_lab_leaves_no_namespace_no_process_no_link() -> None:
    before = namespaces_of(os.getpid())
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
    with Lab() as lab:
        Listener(lab.a.router, "lan", PORT)
        Sender(lab.stranger())
        Traffic("echo", lab.client, lab.gateway, OUTSIDE[4], "10")
        processes = alive(namespaces_of(os.getpid()) - before)
        assert len(processes) == 6  # two wires, a listener, a sender, an echo's two ends
    assert namespaces_of(os.getpid()) == before
    assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]
    assert subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout == links


_FORGETFUL = """
import sys, time
from lab.namespace import sweep
from lab.topology import Lab, OUTSIDE
from lab.traffic import Traffic
lab = Lab()
echo = Traffic("echo", lab.client, lab.gateway, OUTSIDE[4], "10")
print("built", flush=True)
sys.stdin.readline()
sweep()
print("swept", flush=True)
sys.stdin.readline()
"""


def test_a_sweep_takes_what_was_not_closed_and_only_its_own(lab: Lab) -> None:
    others = namespaces_of(os.getpid())
    with subprocess.Popen(
        [sys.executable, "-c", _FORGETFUL],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    ) as forgetful:
        assert forgetful.stdin is not None
        assert forgetful.stdout is not None
        assert forgetful.stdout.readline() == "built\n"
        left = [os.pidfd_open(pid) for pid in alive(namespaces_of(forgetful.pid))]
        assert len(left) == 4  # two wires, an echo's two ends
        forgetful.stdin.write("\n")
        forgetful.stdin.flush()
        assert forgetful.stdout.readline() == "swept\n"
        assert not namespaces_of(forgetful.pid)
        for handle in left:
            ended = select.select([handle], [], [], WAIT_S)[0]
            with contextlib.suppress(ProcessLookupError):  # a failure leaves none either
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)
            assert ended
    assert namespaces_of(os.getpid()) == others
    assert alive(others)
