"""The kill switch while a system boots, seen from its routers.

A program tries to send everything everywhere from early on; the uplinks come up as they do on a
host, by a service behind network-pre.target.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import lab
from lab.leaks import Tap
from lab.stage import until
from lab.topology import OUTSIDE, Lab
from machine import Machine

UNITS = Path("/etc/systemd/system")
EAGER = """\
[Unit]
DefaultDependencies=no
Before=jvpn-kill-switch.service

[Service]
Environment=PYTHONPATH=/root
ExecStart=/bin/sh -c 'sleep infinity | python3 -m lab.leaks offer {devices}'

[Install]
WantedBy=sysinit.target
"""
UPLINKS = """\
[Unit]
DefaultDependencies=no
Wants=network-pre.target network.target
After=network-pre.target
Before=network.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=ip -batch /root/lease4
ExecStart=ip -6 -batch /root/lease6

[Install]
WantedBy=multi-user.target
"""
ORDER = ("eager", "jvpn-kill-switch", "uplinks", "jvpnd")


class BootGuard:
    """`reboot` with everything set up for it; `close` takes it away again."""

    def __init__(self, lab_: Lab, client: Machine) -> None:
        self._lab, self._client = lab_, client
        self._both = (lab_.a, lab_.b)
        allowed = [f"{OUTSIDE[4]}/{protocol}/7700" for protocol in ("udp", "tcp")]
        self._taps = [Tap(uplink.router, "lan", allowed) for uplink in self._both]
        shutil.copytree(Path(lab.__file__).parent, client.root / "root/lab")
        leases = [line for uplink in self._both for line in uplink.lease()]
        six = [line.removeprefix("-6 ") for line in leases if line.startswith("-6 ")]
        four = [line for line in leases if not line.startswith("-6 ")]
        client.write("/root/lease4", "\n".join(four) + "\n")
        client.write("/root/lease6", "\n".join(six) + "\n")
        devices = " ".join(uplink.device for uplink in self._both)
        client.write(f"{UNITS}/eager.service", EAGER.format(devices=devices))
        client.write(f"{UNITS}/uplinks.service", UPLINKS)
        client.run("systemctl", "enable", "eager", "uplinks")

    def reboot(self, attached: Callable[[], object]) -> list[str]:
        """Boot, and judge what has left until `attached` returns."""
        took = self._client.reboot(self._forget)
        attached()
        # each is one that systemd started before it began the next
        begun = [self._begun(unit) for unit in ORDER]
        assert begun == sorted(begun), dict(zip(ORDER, begun, strict=True))
        assert begun[0] > 0
        transport, leaks = self._seen()
        assert transport > 0, "the taps see nothing"
        assert not leaks, set(leaks)
        return [f"up after {took:.1f} s", f"{transport} packets of the tunnel, and no other"]

    def prove(self) -> None:
        """Without kill switch and tunnel the same program, which has run on, does get out."""
        self._client.run("systemctl", "stop", "jvpnd")
        assert not self._seen()[1], "leaks while it is stopped"
        self._client.run("jvpnctl", "kill-switch", "off")
        wanted = ("198.51.100.9/udp/53", "2001:db8:99::9/udp/53", "198.51.100.9/tcp/80")
        until(lambda: set(wanted) <= set(self._seen()[1]), "what was held back")
        self._client.run("systemctl", "start", "jvpnd")

    def close(self) -> None:
        self._client.run("systemctl", "disable", "--now", "eager", "uplinks", check=False)
        for tap in self._taps:
            tap.close()

    def _forget(self) -> None:
        """A host that boots has no rules, and no link is up; our namespace outlives the boot."""
        self._lab.client.run("nft", "flush", "ruleset")
        for uplink in self._both:
            uplink.set_down()

    def _begun(self, unit: str) -> int:
        name = "--property=ExecMainStartTimestampMonotonic"
        return int(self._client.run("systemctl", "show", name, "--value", unit))

    def _seen(self) -> tuple[int, list[str]]:
        seen = [tap.seen() for tap in self._taps]
        return sum(count for count, _ in seen), [leak for _, leaks in seen for leak in leaks]
