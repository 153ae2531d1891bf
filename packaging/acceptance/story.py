"""What a user does with the package, from the installation to the removal, and what has to hold.

Each step's first line says what it shows; it returns the figures that it measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from inside import CONFIG, active, apt, confined, drop_in_of, main_pid, started
from lab.stage import until
from lab.topology import OUTSIDE, Lab
from lab.traffic import Traffic
from machine import Machine
from surroundings import BEYOND, INNER, Surroundings

GAP_MS = 500  # without an echo, over a restart or an upgrade
CRASH_GAP_MS = 1000  # after kill -9, the 0.1 s of the unit's RestartSec among it
EXPOSURE = 2.0
ECHO_HZ = "100"

# More happens here within a minute than a session allows by itself.
POLICY = "\n[policy]\nmax_switches_per_minute = 60\n"

Step = Callable[[], list[str] | None]

# In a router: what goes beside the tunnel.
COUNT_BESIDE = f"""\
table ip seen {{
  counter beside {{ }}
  chain forward {{
    type filter hook forward priority 0;
    ip daddr {BEYOND} counter name beside
  }}
}}
"""


class Story:
    def __init__(
        self, lab: Lab, client: Machine, gateway: Machine, package: Path, newer: Path
    ) -> None:
        self.lab, self.client, self.gateway = lab, client, gateway
        self.both = (client, gateway)
        self.package, self.newer = package, newer
        self.around = Surroundings(self)
        self.session = ""

    def steps(self) -> Iterator[Step]:
        yield self.boot
        yield self.install
        yield self.manuals
        yield self.enrol
        yield self.reload
        yield self.reach
        yield self.group
        yield self.exposure
        yield self.around.low_ports
        yield self.around.names
        yield self.around.names_after_a_crash
        yield self.lose_link
        for machine in self.both:
            yield self.restart(machine)
        for machine in self.both:
            yield self.kill(machine)
        for machine in self.both:
            yield self.upgrade(machine)
        yield self.hang
        yield self.stop
        yield self.instance
        yield self.credential
        yield self.around.guarded_boot
        for machine in self.both:
            yield self.reboot(machine)
        yield self.remove
        yield self.purge

    def boot(self) -> list[str]:
        """two systems boot, with systemd as PID 1"""
        self.lab.gateway.ip("addr", "add", f"{BEYOND}/32", "dev", "lo")
        return [f"{machine.name} {machine.boot():.1f} s" for machine in self.both]

    def install(self) -> None:
        """apt install ./jvpn.deb: nothing starts by itself, and byte code is there"""
        for machine in self.both:
            apt(machine, machine.copy(self.package))
            assert active(machine) == "inactive"
            assert machine.run("systemctl", "is-enabled", "jvpnd", check=False) == "disabled\n"
            assert list((machine.root / "usr/lib/jvpn/jvpnd/__pycache__").glob("daemon.*.pyc"))

    def manuals(self) -> None:
        """manual pages and completion"""
        for page in ("8 jvpnd", "1 jvpnctl", "5 jvpnd.toml"):
            assert "Jumping VPN" in self.client.run("man", "-P", "cat", *page.split()), page
        words = ("_JVPNCTL_COMPLETE=bash_complete", "COMP_WORDS=jvpnctl sta", "COMP_CWORD=1")
        assert "plain,status" in self.client.run("env", *words, "jvpnctl")
        self.client.run("bash", "-n", "/usr/share/bash-completion/completions/jvpnctl")

    def enrol(self) -> list[str]:
        """the quick start's commands, and jvpnctl status says ATTACHED"""
        init = ("jvpnctl", "init", "gateway", "--public-address", OUTSIDE[4])
        self.gateway.run(*init)
        self.gateway.write(CONFIG, self.gateway.read(CONFIG) + POLICY)
        self.gateway.run("systemctl", "enable", "--now", "jvpnd")
        add = ("jvpnctl", "client", "add", "laptop", "--full", "--kill-switch", "--output")
        self.gateway.run(*add, "/root/laptop.toml")
        file = self.gateway.read("/root/laptop.toml")
        self.client.write(CONFIG, file + POLICY, 0o600)
        self.client.run("jvpnd", "--check")
        self.client.run("systemctl", "enable", "--now", "jvpnd")
        assert active(self.client) == "active"
        status = self.attached()
        self.session = status["session"]["id"]
        assert "ATTACHED" in self.client.run("jvpnctl", "status")
        return [status["session"]["binding"]["path"]]

    def reload(self) -> None:
        """systemctl reload jvpnd: another policy, the same session, the same process"""
        for machine in self.both:
            before = main_pid(machine)
            config = machine.read(CONFIG).replace("per_minute = 60", "per_minute = 61")
            machine.write(CONFIG, config)
            machine.run("systemctl", "reload", "jvpnd")
            assert main_pid(machine) == before
        shown = self.gateway.run("jvpnctl", "policy", "show")  # a session has the gateway's policy
        assert re.search(r"max_switches_per_minute\W+61\b", shown), shown
        assert self.attached()["session"]["id"] == self.session

    def reach(self) -> None:
        """ping through the tunnel; the whole host goes through it, and nothing beside it"""
        (inner6,) = re.findall(r'"(fd[0-9a-f:]+)/64"', self.gateway.read(CONFIG))
        for uplink in (self.lab.a, self.lab.b):
            uplink.router.nft(COUNT_BESIDE)
        for target in (INNER, inner6, BEYOND):
            self.client.run("ping", "-c", "3", "-i", "0.2", "-W", "5", target)
        assert self.beside() == 0

    def group(self) -> None:
        """a member of the group jvpn may use jvpnctl, another user may not"""
        self.client.run("useradd", "--groups", "jvpn", "member")
        self.client.run("useradd", "other")
        ask = ("jvpnctl", "status")
        assert "ATTACHED" in self.client.run("runuser", "-u", "member", "--", *ask)
        refused = self.client.run("runuser", "-u", "other", "--", *ask, check=False)
        assert "ATTACHED" not in refused, refused

    def exposure(self) -> list[str]:
        """systemd-analyze security; workers are confined"""
        said = self.client.run("systemd-analyze", "security", "jvpnd", "--no-pager")
        (level,) = re.findall(r"Overall exposure level for jvpnd.service: ([\d.]+)", said)
        assert float(level) <= EXPOSURE, said
        for machine in self.both:
            assert len(confined(machine)) >= 2
        return [level]

    def lose_link(self) -> list[str]:
        """the link in use goes down: the other carries on, in the same session"""
        bound = self.lab.uplink(self.attached()["session"]["binding"]["uplink"])
        with self.traffic(GAP_MS) as figures:
            bound.set_down()
            until(lambda: self.attached()["session"]["binding"]["uplink"] != bound.device, "a move")
        bound.set_up()
        return figures

    def restart(self, machine: Machine) -> Step:
        def step() -> list[str]:
            with self.traffic(GAP_MS) as figures:
                machine.run("systemctl", "restart", "jvpnd")
            return figures

        step.__doc__ = f"systemctl restart jvpnd on the {machine.name}, under TCP"
        return step

    def kill(self, machine: Machine) -> Step:
        def step() -> list[str]:
            before = main_pid(machine)
            with self.traffic(CRASH_GAP_MS) as figures:
                machine.run("kill", "-9", before)
                until(lambda: main_pid(machine) not in ("0", before), "a new daemon")
                until(lambda: active(machine) == "active", "ready")
            return figures

        step.__doc__ = f"kill -9 of jvpnd on the {machine.name}, under TCP"
        return step

    def upgrade(self, machine: Machine) -> Step:
        def step() -> list[str]:
            ours = '# changed\nJVPND_OPTIONS=""\n'
            machine.write("/etc/default/jvpn", ours)
            before, file = main_pid(machine), machine.copy(self.newer)
            with self.traffic(GAP_MS) as figures:
                apt(machine, file)
            assert main_pid(machine) != before
            assert machine.read("/etc/default/jvpn") == ours
            return figures

        step.__doc__ = f"the package is upgraded on the {machine.name}, under TCP"
        return step

    def hang(self) -> list[str]:
        """a daemon that is stopped dead is ended by the watchdog, and the session goes on"""
        drop_in = "[Service]\nWatchdogSec=3\nTimeoutAbortSec=1\n"
        with drop_in_of(self.client, drop_in):
            before = main_pid(self.client)
            with self.traffic(30000) as figures:
                self.client.run("kill", "-STOP", before)
                until(lambda: main_pid(self.client) not in ("0", before), "a new daemon", 30)
                until(lambda: active(self.client) == "active", "ready")
            assert "watchdog" in self.client.run("journalctl", "-b", "-u", "jvpnd").lower()
        return figures

    def stop(self) -> None:
        """systemctl stop leaves nothing but the kill switch; the next start has the session"""
        for machine in self.both:
            machine.run("systemctl", "stop", "jvpnd")
            assert "jvpn0" not in machine.run("ip", "-br", "link")
            for family in ("-4", "-6"):
                rules = machine.run("ip", family, "rule").splitlines()
                assert all(r.split(":")[0] in ("0", "32766", "32767") for r in rules), rules
        changed = {self.client: "conf.all.src_valid_mark", self.gateway: "ip_forward"}
        for machine, key in changed.items():
            assert machine.run("sysctl", "-n", f"net.ipv4.{key}") == "0\n", key
        assert "1 received" not in self.ping(BEYOND)
        assert self.beside() == 0
        self.client.run("jvpnctl", "kill-switch", "off")
        assert "1 received" in self.ping(BEYOND)
        assert self.beside() > 0, "it goes another way: nothing was proven"
        for machine in (self.gateway, self.client):
            machine.run("systemctl", "start", "jvpnd")
        assert self.attached()["session"]["id"] == self.session
        assert "jvpn" in self.client.run("nft", "list", "tables")

    def instance(self) -> None:
        """a second instance, jvpnd@office, beside the first"""
        config = self.gateway.read(CONFIG)
        for ours, its in (("7700", "7800"), ("jvpn0", "jvpn1"), ("10.77.", "10.78.")):
            config = config.replace(ours, its)
        config = re.sub(r"fd[0-9a-f:]+::", "fd78::", config)
        self.gateway.write("/etc/jvpn/office.toml", config)
        self.gateway.run("systemctl", "enable", "--now", "jvpnd@office")
        socket = "/run/jvpn/office/control.sock"
        told = json.loads(self.gateway.run("jvpnctl", "--socket", socket, "--json", "status"))
        assert told["role"] == "gateway"
        self.gateway.run("systemctl", "disable", "--now", "jvpnd@office")
        links = self.gateway.run("ip", "-br", "link")
        assert "jvpn1" not in links, links
        assert "jvpn0" in links, links
        assert self.gateway.run("sysctl", "-n", "net.ipv4.ip_forward") == "1\n"
        self.client.run("ping", "-c", "1", "-W", "5", INNER)

    def credential(self) -> None:
        """the private key comes as a credential, and lies in /etc/jvpn no more"""
        config = self.client.read(CONFIG)
        (line, key) = next(re.finditer(r'^private_key = "(.+)"$', config, re.M)).group(0, 1)
        self.client.write("/root/kept.key", f"{key}\n", 0o600)
        inside = 'private_key_file = "/run/credentials/jvpnd.service/private.key"'
        self.client.write(CONFIG, config.replace(line, inside))
        with drop_in_of(self.client, "[Service]\nLoadCredential=private.key:/root/kept.key\n"):
            assert self.attached()["session"]["id"] == self.session
        self.client.write(CONFIG, config)
        self.client.run("systemctl", "restart", "jvpnd")

    def reboot(self, machine: Machine) -> Step:
        def step() -> list[str]:
            took = machine.reboot()
            until(lambda: active(machine) == "active", "jvpnd after the boot")
            self.attached()
            until(lambda: "1 received" in self.ping(INNER), "a ping through the tunnel")
            if machine is self.client:
                guard, daemon = (started(machine, unit) for unit in ("jvpn-kill-switch", "jvpnd"))
                assert 0 < guard < daemon
            return [f"up after {took:.1f} s"]

        step.__doc__ = f"reboot of the {machine.name}: it comes back by itself"
        return step

    def remove(self) -> None:
        """apt remove: the host is as it was, keys and configuration stay"""
        for machine in self.both:
            apt(machine, "jvpn", command="remove")
            assert "jvpn0" not in machine.run("ip", "-br", "link")
            assert len(machine.run("ip", "rule").splitlines()) == 3
            for gone in ("/usr/lib/jvpn", "/usr/sbin/jvpnd", "/run/jvpn"):
                machine.run("test", "!", "-e", gone)
            machine.run("test", "-s", CONFIG)
            tables = machine.run("nft", "list", "tables")
            assert "jvpn" not in tables, tables

    def purge(self) -> None:
        """apt purge: removes the keys, and says so"""
        for machine in self.both:
            said = apt(machine, "jvpn", command="purge")
            assert "removing the keys and configuration in /etc/jvpn" in said, said
            for gone in ("/etc/jvpn", "/etc/default/jvpn", "/var/log/jvpn"):
                machine.run("test", "!", "-e", gone)

    def traffic(self, allowed_ms: float) -> Load:
        return Load(self, allowed_ms)

    def attached(self) -> dict[str, Any]:
        """The client's status once it is attached."""

        def look() -> dict[str, Any] | None:
            said = self.client.run("jvpnctl", "--json", "status", check=False)
            status: dict[str, Any] = json.loads(said) if said.startswith("{") else {}
            return status if status.get("state") == "ATTACHED" else None

        found: dict[str, Any] = until(look, "ATTACHED")
        return found

    def ping(self, target: str) -> str:
        return self.client.run("ping", "-c", "1", "-W", "1", target, check=False)

    def beside(self) -> int:
        """Packets for BEYOND that the routers have seen outside the tunnel."""
        listing = ("nft", "list", "counter", "ip", "seen", "beside")
        seen = [uplink.router.run(*listing).stdout for uplink in (self.lab.a, self.lab.b)]
        return sum(int(number) for text in seen for number in re.findall(r"packets (\d+)", text))


class Load:
    """A TCP transfer and an echo through the tunnel, which have to outlive what is done meanwhile,
    in the same session; entered, it is the list of figures."""

    def __init__(self, story: Story, allowed_ms: float) -> None:
        self._story, self._allowed_ms, self._figures = story, allowed_ms, list[str]()

    def __enter__(self) -> list[str]:
        lab = self._story.lab
        self._tcp = Traffic("tcp", lab.client, lab.gateway, INNER)
        self._echo = Traffic("echo", lab.client, lab.gateway, INNER, ECHO_HZ)
        self._tcp.wait_until("bytes", 1_000_000)
        self._echo.wait_until("received", 10)
        return self._figures

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                self._judge()
        finally:
            self._echo.close()
            self._tcp.close()

    def _judge(self) -> None:
        reports = self._echo.wait_until("received", 50)
        gap = max(report["longest_gap_ms"] for report in reports)
        lost = sum(report["sent"] - report["received"] for report in reports)
        after = self._tcp.wait_until("bytes", 1_000_000)[-1]
        assert not after["problem"], after
        assert self._story.attached()["session"]["id"] == self._story.session
        self._figures += [f"gap {gap:.0f} ms", f"{lost} lost"]
        assert gap <= self._allowed_ms, f"{gap} ms without an echo"
