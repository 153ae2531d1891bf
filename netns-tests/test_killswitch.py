"""The kill switch: what leaves a host, by captures on every uplink, whatever happens."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from lab.daemons import ALL, Daemon, Pair
from lab.leaks import Offers, Tap
from lab.namespace import Namespace, ip
from lab.stage import until
from lab.topology import OUTSIDE, Lab

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ON = '[routes]\nmode = "full"\nkill_switch = true\n'
OFF = '[routes]\nmode = "full"\n'
PORTS = ("udp/7700", "tcp/7700", "tcp/443", "udp/443")
# Ends soon, so that DEGRADED and TERMINATED are seen.
SHORT = "transport_loss_ttl_ms = 4000\nmax_recovery_window_ms = 1000\n"


class Watched:
    """A client with a network behind it, taps on its uplinks, and traffic of every kind."""

    def __init__(
        self, lab: Lab, routes: str, transports: tuple[str, ...] = ALL, version: int = 4
    ) -> None:
        """`version` of IP outside the tunnel."""
        with contextlib.ExitStack() as stack:
            self.lab = lab
            self.behind = stack.enter_context(network_behind(lab.client))
            allowed = [f"{OUTSIDE[version]}/{port}" for port in PORTS]
            self.taps = [Tap(up.router, "lan", allowed) for up in (lab.a, lab.b)]
            for tap in self.taps:
                stack.callback(tap.close)
            self.pair = stack.enter_context(
                Pair(
                    lab.client,
                    lab.gateway,
                    version,
                    client_policy=SHORT,
                    gateway_policy=SHORT,
                    routes=routes,
                    transports=transports,
                )
            )
            self.client = self.pair.client
            self._stack = stack.pop_all()
            self._offers: list[Offers] = []

    def offer(self) -> None:
        self._offers = [Offers(self.lab.client, "up-a", "up-b"), Offers(self.behind)]
        for offers in self._offers:
            self._stack.callback(offers.close)

    def leaks(self) -> list[str]:
        return sorted({leak for tap in self.taps for leak in tap.seen()[1]})

    def nothing_leaks(self, why: str) -> None:
        """While everything is tried some more times."""
        for offers in self._offers:
            offers.wait_rounds(3)
        assert self.leaks() == [], why

    def close(self) -> None:
        self._stack.close()
        self.lab.client.run("nft", "flush", "ruleset")

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def network_behind(client: Namespace) -> Iterator[Namespace]:
    """A host that has the client as its router."""
    client.sysctl("net.ipv4.ip_forward", "1")
    client.sysctl("net.ipv6.conf.all.forwarding", "1")
    with Namespace("behind") as host:
        ip(
            *("link", "add", "home", "netns", client.name, "type", "veth"),
            *("peer", "name", "eth0", "netns", host.name),
        )
        for space, device, number in ((client, "home", 1), (host, "eth0", 2)):
            space.ip("addr", "add", f"10.99.0.{number}/24", "dev", device)
            space.ip("addr", "add", f"fd99::{number}/64", "dev", device, "nodad")
            space.ip("link", "set", device, "up")
        host.ip("route", "add", "default", "via", "10.99.0.1")
        host.ip("-6", "route", "add", "default", "via", "fd99::1")
        yield host


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def test_nothing_but_transport_leaves_whatever_happens(lab: Lab) -> None:
    with Watched(lab, ON) as watched:
        pair, client = watched.pair, watched.client
        pair.gateway.start()
        assert kill_switch(client, "on").returncode == 0
        watched.offer()
        watched.nothing_leaks("at boot, before the daemon")
        client.start()
        client.wait_state("ATTACHED")
        assert client.status()["kill_switch"] == {"configured": True, "on": True}
        watched.nothing_leaks("while attached")

        seq, cut = client.last_seq(), lab.uplink(client.status()["session"]["binding"]["uplink"])
        cut.set_down()
        client.wait_state("ATTACHED", after=seq)
        watched.nothing_leaks("with a link cut")
        cut.set_up()
        watched.nothing_leaks("with the link back")

        seq = client.last_seq()
        pair.gateway.stop(signal.SIGKILL)
        for state in ("RECOVERING", "DEGRADED", "TERMINATED"):
            client.wait_state(state, after=seq, timeout_s=30)
            watched.nothing_leaks(f"while {state}")
        seq = client.last_seq()
        pair.gateway.start()
        client.wait_state("ATTACHED", after=seq, timeout_s=30)

        for how in (signal.SIGKILL, signal.SIGTERM):
            client.stop(how)
            watched.nothing_leaks(f"after {how.name}")
            client.start()
            client.wait_state("ATTACHED")
            watched.nothing_leaks(f"started again after {how.name}")
        assert all(tap.seen()[0] > 0 for tap in watched.taps)  # they do see what passes


def test_without_it_the_taps_see_the_same_traffic(lab: Lab) -> None:
    """Of every kind: so the test above can fail."""
    with Watched(lab, OFF) as watched:
        watched.pair.start()
        watched.client.stop()
        watched.offer()
        wanted = {
            *("198.51.100.9/udp/53", "198.51.100.9/tcp/80", "198.51.100.9/icmp/8"),
            *("2001:db8:99::9/udp/53", "2001:db8:99::9/tcp/80", "2001:db8:99::9/icmp/128"),
            *("10.1.0.1/udp/53", "fd01::1/udp/53", "224.0.0.251/udp/53", "ff02::fb/udp/53"),
        }
        until(lambda: wanted <= set(watched.leaks()), "the taps see it all")


def test_over_ipv6_neighbours_are_found_while_it_is_on(lab: Lab) -> None:
    with Watched(lab, ON, version=6) as watched:
        watched.pair.gateway.start()
        assert kill_switch(watched.client, "on").returncode == 0
        lab.client.ip("neigh", "flush", "all")
        watched.offer()
        watched.client.start()
        watched.client.wait_state("ATTACHED")
        watched.nothing_leaks("over IPv6")
        lab.client.run("ping", "-c1", "-W5", "fd77::1")


def test_a_network_behind_that_is_excluded_is_served_through_the_tunnel(lab: Lab) -> None:
    """As Docker's are: with addresses translated into the tunnel."""
    with Watched(lab, f'{ON}exclude = ["10.99.0.0/24"]\n', ("udp",)) as watched:
        lab.client.nft(
            "table ip docker {\nchain post {\ntype nat hook postrouting priority srcnat;\n"
            "ip saddr 10.99.0.0/24 masquerade\n}\n}\n"
        )
        watched.pair.start()
        watched.offer()
        ping = ("ping", "-c1", "-W1")
        for host, target in ((watched.behind, "10.77.0.1"), (lab.client, "10.99.0.2")):
            until(lambda: host.run(*ping, target, check=False).returncode == 0, target)  # noqa: B023
        watched.nothing_leaks("with a network behind")
        watched.client.stop()
        watched.nothing_leaks("with a network behind and no daemon")


def test_rules_of_others_that_send_packets_elsewhere_do_not_open_it(lab: Lab) -> None:
    """A mark that another program sets moves packets to an uplink after their first routing."""
    with Watched(lab, ON, ("udp",)) as watched:
        watched.pair.start()
        client = lab.client
        client.nft(
            "table inet other {\nchain marks {\n"
            "type route hook output priority mangle;\n"
            "meta mark 0 meta mark set 5\n"
            "}\n}\n"
        )
        client.ip("rule", "add", "fwmark", "5", "table", "5", "priority", "100")
        client.ip("route", "add", "default", "via", "10.1.0.1", "table", "5")
        try:
            watched.offer()
            watched.nothing_leaks("with a mark of somebody else's")
        finally:
            client.ip("rule", "del", "fwmark", "5", "table", "5")
            client.ip("route", "del", "default", "table", "5")


def test_it_comes_back_when_others_flush_all_rules(lab: Lab) -> None:
    with Watched(lab, ON, ("udp",)) as watched:
        watched.pair.start()
        client = watched.client
        for _ in range(3):
            lab.client.run("nft", "flush", "ruleset")
            until(lambda: client.status()["kill_switch"]["on"], "on again")
        assert "somebody removed the kill switch" in client.log


def test_off_is_a_way_out_until_the_next_start(lab: Lab) -> None:
    with Watched(lab, ON, ("udp",)) as watched:
        watched.pair.start()
        client = watched.client
        assert kill_switch(client, "status").stdout == "kill switch: on (configured for jvpn0)\n"
        assert kill_switch(client, "off").returncode == 0
        until(lambda: "off until the next start" in client.log, "the daemon knows")
        lab.client.run("nft", "add", "table", "inet", "noise")  # a change that makes it look
        assert client.status()["kill_switch"] == {"configured": True, "on": False}
        told = client.ctl("status").stdout
        assert "OFF: packets may leave beside the tunnel" in told
        assert kill_switch(client, "status").stdout == "kill switch: off (configured for jvpn0)\n"
        client.stop()
        client.start()
        assert client.status()["kill_switch"]["on"]


def test_a_daemon_without_it_takes_off_the_one_that_is_left_and_nothing_else(lab: Lab) -> None:
    with Watched(lab, ON, ("udp",)) as watched:
        client = watched.client
        lab.client.nft("table inet jvpn_kill_6a760000 {\n}\n")  # of another interface
        client.start()
        client.stop()
        assert "jvpn_kill_6a76fce0" in rules(client)
        client.config_file.write_text(client.config_file.read_text().replace(ON, OFF))
        client.start()
        assert "jvpn_kill_6a76fce0" not in rules(client)
        assert "jvpn_kill_6a760000" in rules(client)
        assert client.status()["kill_switch"] == {"configured": False, "on": False}


def test_without_nft_the_daemon_does_not_start(lab: Lab) -> None:
    with Watched(lab, ON, ("udp",)) as watched:
        client = watched.client
        client.environment["PATH"] = str(client.folder)
        (client.folder / "ip").symlink_to(shutil.which("ip") or "")
        assert refuses_to_start(client) == 3
        assert client.log.endswith(
            "jvpnd: the kill switch cannot be put on: the nft command is missing "
            "(package nftables)\n"
        )
        assert "jvpn0" not in lab.client.run("ip", "link").stdout


def test_at_boot_a_configuration_without_one_changes_nothing(lab: Lab) -> None:
    with Watched(lab, OFF, ("udp",)) as watched:
        client, before = watched.client, rules(watched.client)
        done = kill_switch(client, "on", "--boot")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        done = kill_switch(watched.pair.gateway, "on", "--boot")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert kill_switch(client, "on").returncode == 2
        client.config_file.unlink()
        assert kill_switch(client, "on", "--boot").returncode == 0
        assert rules(client) == before
        client.config_file.write_text('[interface]\nname = "jvpn0"\n')  # for its end


def test_at_boot_it_is_on_whatever_else_is_wrong_with_the_file(lab: Lab) -> None:
    with Watched(lab, ON, ("udp",)) as watched:
        client = watched.client
        with client.config_file.open("a") as file:
            file.write("[policy2]\n")
        (client.folder / "private.key").unlink()
        assert kill_switch(client, "on", "--boot").returncode == 0
        assert "jvpn_kill_6a76fce0" in rules(client)


def kill_switch(daemon: Daemon, word: str, *options: str) -> subprocess.CompletedProcess[str]:
    """`jvpnctl kill-switch` where the daemon is."""
    command = (sys.executable, "-m", "jvpnd.cli.main", "kill-switch", word, *options)
    config = () if word == "off" else ("--config", str(daemon.config_file))
    return daemon.namespace.run(*command, *config, check=False)


def rules(daemon: Daemon) -> str:
    return daemon.namespace.run("nft", "list", "ruleset").stdout


def refuses_to_start(daemon: Daemon) -> int:
    """Its exit status."""
    with pytest.raises(AssertionError, match="did not come up"):
        daemon.start()
    assert daemon.process is not None
    return daemon.process.wait(20)
