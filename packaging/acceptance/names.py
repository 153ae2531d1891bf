"""Names looked up through the tunnel by the system's own systemd-resolved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lab.stage import until
from machine import Machine

SERVER = "/root/nameserver.py"
ANSWER = "192.0.2.53"  # to whatever is asked
NAMESERVER = f"""\
import socket, struct, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], 53))
while True:
    query, source = sock.recvfrom(4096)
    end = query.index(0, 12) + 5
    is_a = query[end - 4:end - 2] == bytes((0, 1))
    head = query[:2] + struct.pack(">5H", 0x8580, 1, is_a, 0, 0)
    record = struct.pack(">4HH", 0xC00C, 1, 1, 0, 0) + struct.pack(">H", 4)
    answer = record + socket.inet_aton("{ANSWER}") if is_a else b""
    sock.sendto(head + query[12:end] + answer, source)
"""


@contextmanager
def name_server(machine: Machine, address: str) -> Iterator[None]:
    """It answers at `address`, a name server that knows one answer."""
    machine.write(SERVER, NAMESERVER)
    machine.run("systemd-run", "--unit=nameserver", "python3", SERVER, address)
    try:
        until(lambda: f"{address}:53 " in machine.run("ss", "-lnu"), "a name server")
        yield
    finally:
        machine.run("systemctl", "stop", "nameserver")


class Resolved:
    """What systemd-resolved of a machine has been told, and what it finds."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        assert machine.run("systemctl", "is-active", "systemd-resolved") == "active\n"
        machine.run("test", "-L", "/etc/resolv.conf")

    def told(self) -> str:
        """Servers, domains and default routes, link by link."""
        asked = ("dns", "domain", "default-route")
        return "".join(self._machine.run("resolvectl", what) for what in asked)

    def of_link(self, link: str) -> list[str]:
        """What it was told of one link, without the link's name and number."""
        lines = [line for line in self.told().splitlines() if f"({link})" in line]
        return [line.partition(":")[2].strip() for line in lines]

    def wait_for(self, link: str, told: list[str]) -> None:
        until(lambda: self.of_link(link) == told, f"{link}: {told}")

    def check_finds(self, name: str, link: str) -> None:
        """By its own command, and as any program asks."""
        said = self._machine.run("resolvectl", "query", "--cache=no", name)
        assert ANSWER in said, said
        assert f"link: {link}" in said, said
        assert ANSWER in self._machine.run("getent", "ahostsv4", name)
