"""Who looks after a host's name servers, and what that one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from jvpnd.net.dnsmanagers import (
    Manager,
    choose,
    first_prefix,
    resolvconf_command,
    resolved_commands,
)

STUB = Path("/run/systemd/resolve/stub-resolv.conf")
PLAIN = Path("/etc/resolv.conf")
BOTH = {"resolvectl", "resolvconf"}


@pytest.mark.parametrize(
    ("target", "servers", "is_live", "commands", "manager"),
    [
        (STUB, ["127.0.0.53"], True, BOTH, "resolved"),
        (Path("/run/systemd/resolve/resolv.conf"), ["192.0.2.1"], True, BOTH, "resolved"),
        (PLAIN, ["127.0.0.53"], True, BOTH, "resolved"),  # a copy of the stub
        (PLAIN, ["192.0.2.1", "127.0.0.53"], True, BOTH, "resolvconf"),
        (STUB, [], False, BOTH, "resolvconf"),  # it has gone
        (STUB, ["127.0.0.53"], True, {"resolvconf"}, "resolvconf"),
        (PLAIN, ["192.0.2.1"], True, {"resolvectl"}, "file"),
        (PLAIN, [], False, set(), "file"),
        (Path("/run/systemd/resolve-not/resolv.conf"), [], True, {"resolvectl"}, "file"),
    ],
)
def test_the_manager_is_the_one_that_resolv_conf_leads_to(
    target: Path, servers: list[str], is_live: bool, commands: set[str], manager: Manager
) -> None:
    def which(name: str) -> str | None:
        return f"/usr/bin/{name}" if name in commands else None

    assert choose(target, servers, is_live, which) == manager


def test_a_resolvconf_that_is_resolveds_own_is_none(tmp_path: Path) -> None:
    (tmp_path / "resolvectl").touch()
    (tmp_path / "resolvconf").symlink_to("resolvectl")
    assert choose(PLAIN, [], True, lambda name: str(tmp_path / name)) == "file"


def test_resolved_is_told_of_all_names_or_of_some() -> None:
    assert resolved_commands("jvpn0", ["10.77.0.1", "fd77::1"], []) == [
        ("resolvectl", "dns", "jvpn0", "10.77.0.1", "fd77::1"),
        ("resolvectl", "domain", "jvpn0", "~."),
        ("resolvectl", "default-route", "jvpn0", "yes"),
    ]
    assert resolved_commands("jvpn0", ["10.77.0.1"], ["corp.example", "lan"])[1:] == [
        ("resolvectl", "domain", "jvpn0", "corp.example", "lan"),
        ("resolvectl", "default-route", "jvpn0", "no"),
    ]


def test_resolvconf_is_told_of_servers_and_search() -> None:
    command, text = resolvconf_command("jvpn0", ["10.77.0.1", "fd77::1"], ["corp.example", "lan"])
    assert command[:2] == ("resolvconf", "-a")
    assert command[3:] == ("-m", "0", "-x")
    assert command[2].endswith("jvpn0.jvpn")
    assert text == "nameserver 10.77.0.1\nnameserver fd77::1\nsearch corp.example lan\n"


def test_the_name_comes_early_in_debians_order() -> None:
    order = ["# a comment", "lo.inet6", "lo.@(dnsmasq|pdnsd)", "tun*", "tap*", "*"]
    assert first_prefix(order) == "tun."
    assert first_prefix(["lo", "*"]) == ""
