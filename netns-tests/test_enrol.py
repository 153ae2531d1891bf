"""Enrolment as in docs/quickstart.md, but for the package: two hosts, no file edited by hand, and a
gateway that takes clients on and throws them out while others' traffic goes on."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.daemons import Daemon
from lab.namespace import Namespace, ip
from lab.stage import until
from lab.traffic import Traffic

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

OUTSIDE = "192.0.2.1"


class Host(Daemon):
    """A daemon whose configuration is made by jvpnctl, or copied there."""

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(namespace, "", "")
        for file in self.folder.iterdir():
            file.unlink()

    def local(self, *words: str) -> str:
        """jvpnctl on that host, which must do as it is told."""
        command = ("-m", "jvpnd.cli.main", "--socket", str(self.socket_file), *words)
        done = self.namespace.run(sys.executable, *command, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def client(self, *words: str) -> str:
        return self.local("client", *words, "--config", str(self.config_file))

    def take(self, file: Path) -> None:
        """The one file that a client needs."""
        self.config_file.write_bytes(file.read_bytes())
        self.config_file.chmod(0o600)

    def close(self) -> None:
        if self.config_file.exists():
            super().close()


class Site:
    """A gateway with one configuration, made by `init`, and two hosts that may become clients."""

    def __init__(self, gateway: Host, hosts: list[Host]) -> None:
        self.gateway, self.hosts = gateway, hosts

    @property
    def inner(self) -> str:
        """The gateway's IPv4 address in the tunnel."""
        rows = json.loads(self.gateway.namespace.run("ip", "-j", "-4", "addr").stdout)
        (own,) = (row for row in rows if row["ifname"] == "jvpn0")
        return str(own["addr_info"][0]["local"])

    def enrol(self, name: str, host: Host, *words: str) -> Path:
        file = self.gateway.folder / f"{name}.toml"
        self.gateway.client("add", name, "--output", str(file), *words)
        host.take(file)
        return file


@pytest.fixture
def site() -> Iterator[Site]:
    with Namespace("gw") as gateway, Namespace("c1") as first, Namespace("c2") as second:
        for number, client in enumerate((first, second)):
            link(gateway, client, number)
        hosts = [Host(each) for each in (gateway, first, second)]
        try:
            words = ("--public-address", OUTSIDE, "--config", str(hosts[0].config_file))
            hosts[0].local("init", "gateway", *words)
            hosts[0].start()
            yield Site(hosts[0], hosts[1:])
        finally:
            for host in reversed(hosts):
                host.close()


def link(gateway: Namespace, client: Namespace, number: int) -> None:
    ip(
        *("link", "add", "eth0", "netns", client.name, "type", "veth"),
        *("peer", "name", f"g{number}", "netns", gateway.name),
    )
    client.ip("addr", "add", f"10.{number}.0.2/24", "dev", "eth0")
    client.ip("link", "set", "eth0", "up")
    client.ip("route", "add", "default", "via", f"10.{number}.0.1")
    gateway.ip("addr", "add", f"10.{number}.0.1/24", "dev", f"g{number}")
    gateway.ip("link", "set", f"g{number}", "up")
    if number == 0:
        gateway.ip("addr", "add", f"{OUTSIDE}/32", "dev", "lo")


def pings(host: Host, address: str) -> bool:
    return host.namespace.run("ping", "-c1", "-W2", address, check=False).returncode == 0


def test_from_nothing_to_a_ping_and_thrown_out_again(site: Site) -> None:
    laptop, gateway = site.hosts[0], site.gateway
    site.enrol("laptop", laptop)
    laptop.start()
    laptop.wait_state("ATTACHED")
    until(lambda: pings(laptop, site.inner), "a ping through the tunnel")
    (row,) = json.loads(gateway.client("list", "--json"))
    assert (row["connected"], row["state"]) == (True, "ATTACHED")
    assert pings(gateway, row["addresses"][0])

    seq = laptop.last_seq()
    gateway.client("remove", "laptop")
    ended = laptop.wait_state("TERMINATED", after=seq)
    assert ended["reason"] == "POLICY_TERMINATION"  # it is told at once, and not left to a TTL
    assert gateway.status()["sessions"] == []
    gateway.wait_for(lambda e: e["reason"] == "AUTH_FAIL")  # it tries, and is refused
    assert not pings(laptop, site.inner)


def test_a_full_tunnel_reaches_the_internet_as_it_was_handed_out(site: Site) -> None:
    """By NAT: who is out there has no way back to an address in the tunnel."""
    phone, gateway = site.hosts[0], site.gateway
    with Namespace("net") as internet:
        ip(
            *("link", "add", "eth0", "netns", internet.name, "type", "veth"),
            *("peer", "name", "out", "netns", gateway.namespace.name),
        )
        internet.ip("addr", "add", "198.51.100.9/24", "dev", "eth0")
        internet.ip("link", "set", "eth0", "up")
        gateway.namespace.ip("addr", "add", "198.51.100.1/24", "dev", "out")
        gateway.namespace.ip("link", "set", "out", "up")
        assert not pings(phone, "198.51.100.9")  # nor without the tunnel
        site.enrol("phone", phone, "--full")
        phone.start()
        phone.wait_state("ATTACHED")
        until(lambda: pings(phone, "198.51.100.9"), "a ping beyond the gateway")


def test_new_keys_end_the_session_of_the_old_ones_and_a_new_file_goes_on(site: Site) -> None:
    laptop, gateway = site.hosts[0], site.gateway
    site.enrol("laptop", laptop, "--psk")
    laptop.start()
    laptop.wait_state("ATTACHED")
    before = laptop.status()["session"]
    file = gateway.folder / "new.toml"
    gateway.client("rotate", "laptop", "--output", str(file))
    laptop.wait_state("TERMINATED")
    laptop.stop()
    laptop.take(file)
    laptop.start()
    laptop.wait_state("ATTACHED")  # a daemon that was started again knows its own events only
    after = laptop.status()["session"]
    assert after["inner_addresses"] == before["inner_addresses"]
    assert after["id"] != before["id"]
    until(lambda: pings(laptop, site.inner), "a ping under the new keys")


def test_others_come_change_and_go_while_a_transfer_goes_on(site: Site) -> None:
    (laptop, phone), gateway = site.hosts, site.gateway
    site.enrol("laptop", laptop)
    laptop.start()
    laptop.wait_state("ATTACHED")
    session = laptop.status()["session"]
    with Traffic("tcp", laptop.namespace, gateway.namespace, site.inner) as tcp:
        tcp.wait_until("bytes", above=100_000)
        tcp.report()
        site.enrol("phone", phone)
        phone.start()
        phone.wait_state("ATTACHED")
        until(lambda: pings(phone, site.inner), "a ping of the second client")
        change_everything_that_can_be(site)
        gateway.client("remove", "phone")
        phone.wait_state("TERMINATED")
        reports = tcp.wait_until("bytes", above=100_000)
        assert {report["problem"] for report in reports} == {""}
    after = laptop.status()["session"]
    assert (after["id"], after["state_version"], after["epoch"]) == (
        session["id"],
        session["state_version"],
        session["epoch"],
    )
    assert [e for e in laptop.events() if e["event_type"] == "TRANSPORT_LOST"] == []


def change_everything_that_can_be(site: Site) -> None:
    """By reloads: a policy, then networks behind a client, with their routes, and back."""
    gateway, file = site.gateway, site.gateway.config_file
    text = file.read_text()
    behind = text.replace('name = "phone"', 'name = "phone"\nnetworks = ["192.168.55.0/24"]')
    file.write_text(f"{behind}\n[policy]\ndrain_ms = 400\n")
    answer = json.loads(gateway.local("reload", "--json"))
    assert answer["policy_changed"]
    assert answer["clients"] == {"added": [], "removed": [], "changed": ["phone"]}
    assert answer["needs_restart"] == []
    assert routed(site, "192.168.55.0/24")
    phone = site.hosts[1].namespace
    phone.ip("addr", "add", "192.168.55.1/32", "dev", "lo")
    ping = ("ping", "-c1", "-W2", "-I", "192.168.55.1", site.inner)
    assert phone.run(*ping, check=False).returncode == 0  # a new source, under the same keys
    file.write_text(text)
    assert gateway.process is not None
    seq = gateway.last_seq()
    os.kill(gateway.process.pid, signal.SIGHUP)
    gateway.wait_for(lambda e: e["details"].get("what") == "clients applied", after=seq)
    until(lambda: not routed(site, "192.168.55.0/24"), "the route is gone")
    assert phone.run(*ping, check=False).returncode != 0


def routed(site: Site, network: str) -> bool:
    return network in site.gateway.namespace.run("ip", "route", "show", "dev", "jvpn0").stdout


def test_a_fault_in_the_file_changes_nothing_and_what_needs_a_restart_is_named(site: Site) -> None:
    gateway, file = site.gateway, site.gateway.config_file
    text = file.read_text()
    file.write_text(f"{text}\n[policy]\ndrain_ms = -1\n")
    command = ("-m", "jvpnd.cli.main", "--socket", str(gateway.socket_file), "reload")
    done = gateway.namespace.run(sys.executable, *command, check=False)
    assert (done.returncode, "drain_ms" in done.stderr) == (2, True)
    file.write_text(text.replace("7700", "7701"))
    assert "needs a restart: listen" in gateway.local("reload")
    assert gateway.status()["policy_version"] == 1


def test_the_doctor_finds_nothing_where_nothing_is_wrong_and_then_what_is(site: Site) -> None:
    laptop, gateway = site.hosts[0], site.gateway
    site.enrol("laptop", laptop, "--networks", "10.20.0.0/16")
    laptop.start()
    laptop.wait_state("ATTACHED")
    for host in (gateway, laptop):
        assert [row for row in checks(host) if row["level"] == "fail"] == []
    laptop.namespace.ip("link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
    laptop.namespace.ip("addr", "add", "10.20.3.1/24", "dev", "lan0")
    for name in ("lan0", "lan1"):
        laptop.namespace.ip("link", "set", name, "up")
    laptop.namespace.ip("link", "set", "eth0", "mtu", "1300")
    found = {row["check"]: row for row in checks(laptop)}
    assert found["overlapping networks"]["level"] == "fail"
    assert "10.20.3.0/24 on lan0" in found["overlapping networks"]["found"]
    assert found["MTU"]["level"] == "warn"
    gateway.stop()
    with taken(gateway):
        found = {row["check"]: row for row in checks(gateway)}
    assert (found["daemon"]["level"], found["ports"]["level"]) == ("warn", "fail")


def taken(host: Host) -> socket.socket:
    """Somebody else has the gateway's UDP port."""

    def bind() -> socket.socket:
        held = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        held.bind(("::", 7700))
        return held

    return host.namespace.within(bind)


def checks(host: Host) -> list[dict[str, str]]:
    command = ("-m", "jvpnd.cli.main", "--socket", str(host.socket_file), "doctor", "--json")
    done = host.namespace.run(
        sys.executable, *command, "--config", str(host.config_file), check=False
    )
    answer = json.loads(done.stdout)
    assert (done.returncode == 0) == answer["ok"]
    rows: list[dict[str, str]] = answer["checks"]
    return rows
