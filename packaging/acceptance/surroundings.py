"""The story's part about what is around the tunnel: low ports, name servers, the boot."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bootguard import BootGuard
from inside import CONFIG, active, confined, drop_in_of, main_pid
from lab.stage import until
from lab.topology import OUTSIDE
from names import Resolved, name_server

if TYPE_CHECKING:
    from story import Story

INNER = "10.77.0.1"
BEYOND = "198.51.100.1"  # somewhere on the internet: the host reaches it through the tunnel
STREAMS = ("quic", "tls")
TOLD = [INNER, "~.", "yes"]  # systemd-resolved, of the tunnel


class Surroundings:
    def __init__(self, story: Story) -> None:
        self._story = story
        self._client, self._gateway = story.client, story.gateway

    def low_ports(self) -> None:
        """QUIC and TLS on port 443 under the unit, in the same session"""
        kept = {machine: machine.read(CONFIG) for machine in self._story.both}
        where = [f'transport = "{kind}"\naddress = "{OUTSIDE[4]}"\n' for kind in STREAMS]
        listens = "".join(f"\n[[listen]]\n{there}" for there in where)
        self._gateway.write(CONFIG, kept[self._gateway] + listens)
        self._gateway.run("systemctl", "restart", "jvpnd")
        for kind, there in zip(STREAMS, where, strict=True):
            only = f'[policy]\nallowed_transports = ["{kind}"]\n'
            config = kept[self._client].replace("[policy]\n", only)
            first, *_, rest = re.split(r"\[\[gateway\.endpoint\]\]\n(?:\w.*\n)+\n*", config)
            config = f"{first}[[gateway.endpoint]]\n{there}\n{rest}"
            self._client.write(CONFIG, config)
            self._client.run("systemctl", "restart", "jvpnd")
            session = self._story.attached()["session"]
            assert session["id"] == self._story.session
            assert kind in session["binding"]["path"], session
            until(lambda: "1 received" in self._story.ping(BEYOND), "a ping through the tunnel")
            for machine in self._story.both:
                assert len(confined(machine)) >= 3  # the relay, too
        for machine, config in kept.items():
            machine.write(CONFIG, config)
            machine.run("systemctl", "restart", "jvpnd")
        self._story.attached()

    def names(self) -> None:
        """[dns] and the real systemd-resolved: set for the link, and gone with it at stop"""
        self._client.run("resolvectl", "dns", self._story.lab.a.device, "10.1.0.1")
        self._client.run("systemctl", "stop", "jvpnd")
        resolved = Resolved(self._client)
        before = resolved.told()
        self._client.write(CONFIG, self._client.read(CONFIG) + f'\n[dns]\nservers = ["{INNER}"]\n')
        self._client.run("systemctl", "start", "jvpnd")
        self._story.attached()
        with name_server(self._gateway, INNER):
            resolved.wait_for("jvpn0", TOLD)
            resolved.check_finds("one.example", "jvpn0")
        self._client.run("systemctl", "stop", "jvpnd")
        assert resolved.told() == before
        self._client.run("systemctl", "start", "jvpnd")

    def names_after_a_crash(self) -> None:
        """the same after kill -9: set again by the next daemon, gone where there is none"""
        resolved = Resolved(self._client)
        resolved.wait_for("jvpn0", TOLD)
        before = main_pid(self._client)
        self._client.run("kill", "-9", before)
        until(lambda: main_pid(self._client) not in ("0", before), "a new daemon")
        until(lambda: active(self._client) == "active", "ready")
        self._story.attached()
        resolved.wait_for("jvpn0", TOLD)
        with name_server(self._gateway, INNER):
            resolved.check_finds("two.example", "jvpn0")
        with drop_in_of(self._client, "[Service]\nRestart=no\n"):
            self._story.attached()
            resolved.wait_for("jvpn0", TOLD)
            self._client.run("kill", "-9", main_pid(self._client))
            until(lambda: active(self._client) == "failed", "the end")
            assert resolved.of_link("jvpn0") == []
            assert resolved.of_link(self._story.lab.a.device)[0] == "10.1.0.1"
        config = self._client.read(CONFIG)
        self._client.write(CONFIG, config[: config.index("\n[dns]\n")])
        self._client.run("systemctl", "start", "jvpnd")
        assert self._story.attached()["session"]["id"] == self._story.session

    def guarded_boot(self) -> list[str]:
        """reboot of the client while a program sends from early on: nothing gets out"""
        guard = BootGuard(self._story.lab, self._client)
        try:
            figures = guard.reboot(self._story.attached)
            until(lambda: "1 received" in self._story.ping(INNER), "a ping through the tunnel")
            guard.prove()
            self._story.attached()
        finally:
            guard.close()
        return figures
