"""What is asked and told of a machine with the package in it, again and again."""

from __future__ import annotations

import re

from machine import Machine

CONFIG = "/etc/jvpn/jvpnd.toml"


class drop_in_of:  # noqa: N801 - reads as what it does
    """More lines of the unit, for a while."""

    def __init__(self, machine: Machine, text: str) -> None:
        self._machine, self._text = machine, text

    def __enter__(self) -> None:
        folder = "/etc/systemd/system/jvpnd.service.d"
        self._machine.run("mkdir", "-p", folder)
        self._machine.write(f"{folder}/acceptance.conf", self._text)
        self._machine.run("systemctl", "daemon-reload")
        self._machine.run("systemctl", "restart", "jvpnd")

    def __exit__(self, *_: object) -> None:
        self._machine.run("rm", "-r", "/etc/systemd/system/jvpnd.service.d")
        self._machine.run("systemctl", "daemon-reload")


def apt(machine: Machine, what: str, command: str = "install") -> str:
    quiet = ("-y", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0")
    env = ("env", "DEBIAN_FRONTEND=noninteractive")
    return machine.run(*env, "apt-get", command, *quiet, what)


def active(machine: Machine) -> str:
    return machine.run("systemctl", "is-active", "jvpnd", check=False).strip()


def main_pid(machine: Machine) -> str:
    return machine.run("systemctl", "show", "--property=MainPID", "--value", "jvpnd").strip()


def started(machine: Machine, unit: str) -> int:
    """When its process was started, in us since the boot."""
    name = "--property=ExecMainStartTimestampMonotonic"
    return int(machine.run("systemctl", "show", name, "--value", unit))


def confined(machine: Machine) -> list[str]:
    """The daemon's workers and relays, which hold nothing that could be of use."""
    main = main_pid(machine)
    workers = machine.run("pgrep", "-P", main, "-f", "jvpnd/helper.py").split()
    for pid in workers:
        text = machine.run("cat", f"/proc/{pid}/status")
        status = dict(re.findall(r"^(\w+):\s+(.*)$", text, re.M))
        for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(status[kind], 16) == 0, status
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), status
    return workers
