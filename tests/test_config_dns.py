"""[dns]: what is taken, and the one line for what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from jvpnd.configdns import DnsSettings, dns_of
from jvpnd.configfile import ConfigError, read


def parsed(folder: Path, text: str) -> DnsSettings:
    file = folder / "jvpnd.toml"
    file.write_text(text)
    return dns_of(read(file))


def test_without_the_table_names_are_none_of_our_business(tmp_path: Path) -> None:
    assert parsed(tmp_path, "") == DnsSettings((), ())


def test_servers_and_domains_come_out_in_one_spelling(tmp_path: Path) -> None:
    text = '[dns]\nservers = ["10.77.0.1", "FD77::0:1"]\ndomains = ["Corp.Example.", "lan"]\n'
    assert parsed(tmp_path, text) == DnsSettings(("10.77.0.1", "fd77::1"), ("corp.example", "lan"))


@pytest.mark.parametrize(
    ("lines", "key", "problem", "allowed"),
    [
        ("", "servers", "is missing", "10.77.0.1"),
        ("servers = []", "servers", "is empty", "10.77.0.1"),
        ('servers = ["10.77.0.1", "10.77.0.1"]', "servers", "there twice", "each once"),
        ('servers = ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"]', "servers", "4 of", "at most 3"),
        ('servers = ["ns.example"]', "servers", "'ns.example' is not an address", "10.77.0.1"),
        ('servers = ["fe80::1"]', "servers", "cannot be asked through", "10.77.0.1"),
        ('servers = ["0.0.0.0"]', "servers", "cannot be asked through", "10.77.0.1"),
        ('servers = ["1.1.1.1"]\ndomains = ["~corp"]', "domains", "not a domain", "corp.example"),
        ('servers = ["1.1.1.1"]\ndomains = ["a b"]', "domains", "not a domain", "corp.example"),
        ('servers = ["1.1.1.1"]\ndomains = ["a\\nb"]', "domains", "not a domain", "corp.example"),
        ('servers = ["1.1.1.1"]\ndomains = ["."]', "domains", "not a domain", "corp.example"),
        ('servers = ["1.1.1.1"]\ndomains = ["a", "A."]', "domains", "a is there twice", "once"),
        ('servers = ["1.1.1.1"]\nsearch = []', "search", "unknown key", "servers, domains"),
    ],
)
def test_what_is_wrong_is_told(
    tmp_path: Path, lines: str, key: str, problem: str, allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(tmp_path, f"[dns]\n{lines}\n")
    error = caught.value
    assert error.key == f"dns.{key}"
    assert problem in error.problem
    assert allowed in error.allowed


def test_domains_are_not_without_number(tmp_path: Path) -> None:
    many = ", ".join(f'"d{n}.example"' for n in range(33))
    with pytest.raises(ConfigError, match="33 of them"):
        parsed(tmp_path, f'[dns]\nservers = ["1.1.1.1"]\ndomains = [{many}]\n')
