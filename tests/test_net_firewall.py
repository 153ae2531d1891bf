"""Which firewalls of others are told of, and with which command; on nft's own listings."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from jvpnd.net import firewall
from jvpnd.net.firewall import forward_chains, obstacle

DOCKER = """table ip filter {
	chain DOCKER-USER {
		counter packets 0 bytes 0 return
	}

	chain FORWARD {
		type filter hook forward priority filter; policy drop;
		counter packets 12 bytes 1008 jump DOCKER-USER
		oifname "docker0" counter packets 0 bytes 0 jump DOCKER
	}
}
"""
UFW = """table ip6 filter {
	chain ufw6-before-forward {
	}

	chain FORWARD {
		type filter hook forward priority filter; policy drop;
		counter packets 0 bytes 0 jump ufw6-before-forward
	}
}
"""
FIREWALLD = """table inet firewalld {
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		iifname "lo" accept
		jump filter_FORWARD_POLICIES
		ct state invalid drop
		reject with icmpx admin-prohibited
	}
}
"""
OPEN = """table inet mine {
	chain forward {
		type filter hook forward priority filter; policy accept;
		ip saddr 192.0.2.1 drop
	}
}
"""


def chain(family: str, table: str, name: str, policy: str) -> dict[str, Any]:
    facts = {"family": family, "table": table, "name": name, "handle": 1}
    return {"chain": {**facts, "type": "filter", "hook": "forward", "prio": 0, "policy": policy}}


async def told(monkeypatch: pytest.MonkeyPatch, listed: list[Any], text: str) -> tuple[str, ...]:
    """What is found where nft lists these chains, and says this of each table."""

    async def nft(*arguments: str) -> str:
        return json.dumps({"nftables": listed}) if "chains" in arguments else text

    monkeypatch.setattr(firewall, "_nft", nft)
    return await firewall.obstacles("jvpn0")


@pytest.mark.parametrize(
    ("family", "table", "name", "text", "command"),
    [
        *(
            ("ip", "filter", "FORWARD", DOCKER, each)
            for each in (
                "iptables -I DOCKER-USER -i jvpn0 -j ACCEPT",
                "iptables -I DOCKER-USER -o jvpn0 -j ACCEPT",
            )
        ),
        ("ip6", "filter", "FORWARD", UFW, "ufw route allow in on jvpn0 && ufw route allow out on"),
        ("inet", "firewalld", "filter_FORWARD", FIREWALLD, "--zone=trusted --add-interface=jvpn0"),
        (
            *("inet", "mine", "forward", "table inet mine {\n}\n"),
            "nft insert rule inet mine forward iifname jvpn0 accept",
        ),
    ],
)
def test_the_command_is_the_firewalls_own(
    family: str, table: str, name: str, text: str, command: str
) -> None:
    (sentence,) = obstacle("jvpn0", family, table, name, text)
    assert f"nft table {family} {table}" in sentence
    assert command in sentence


def test_who_speaks_of_the_interface_has_thought_of_it() -> None:
    rules = ('iifname "jvpn0" accept', 'oifname { "eth0", "jvpn0" } accept', 'iif "jvpn*" drop')
    for rule in rules:
        assert obstacle("jvpn0", "ip", "filter", "FORWARD", f"{DOCKER}\n{rule}\n") == []
    assert obstacle("jvpn0", "ip", "filter", "FORWARD", f'{DOCKER}\niifname "jvpn1" accept\n')


def test_chains_of_other_hooks_and_of_our_own_are_not_looked_at() -> None:
    rows = [
        {"metainfo": {"version": "1.0.6"}},
        chain("ip", "filter", "FORWARD", "drop"),
        chain("inet", "jvpn_forward_6a76", "forward", "accept"),
        chain("bridge", "filter", "FORWARD", "drop"),
        {"chain": {"family": "ip", "table": "filter", "name": "DOCKER", "handle": 3}},
        {"chain": {**chain("ip", "filter", "INPUT", "drop")["chain"], "hook": "input"}},
    ]
    assert forward_chains({"nftables": rows}) == [("ip", "filter", "FORWARD", True)]


@pytest.mark.parametrize(
    ("family", "table", "name", "policy", "text", "found"),
    [
        ("ip", "filter", "FORWARD", "drop", DOCKER, 1),
        ("inet", "firewalld", "filter_FORWARD", "accept", FIREWALLD, 1),
        ("inet", "mine", "forward", "accept", OPEN, 0),
    ],
)
def test_a_drop_is_found_as_policy_and_as_last_rule(
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    table: str,
    name: str,
    policy: str,
    text: str,
    found: int,
) -> None:
    listed = [chain(family, table, name, policy)]
    assert len(asyncio.run(told(monkeypatch, listed, text))) == found
