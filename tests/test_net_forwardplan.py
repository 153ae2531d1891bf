"""The gateway's nft table as text, and for which neighbours it answers."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.net.forwardplan import (
    Forwarding,
    Lan,
    forward_rules,
    forward_table,
    neighbours,
    without_forward_table,
)

OWN = ("10.77.0.1/24", "fd77::1/64")
LANS: list[Lan] = [
    ("eth1", ipaddress.ip_network("192.168.50.0/24")),
    ("eth1", ipaddress.ip_network("fd50::/64")),
    ("eth2", ipaddress.ip_network("192.168.0.0/16")),
]


def test_the_table_is_replaced_in_one_transaction() -> None:
    rules = forward_rules("jvpn0", Forwarding(), OWN)
    table = forward_table("jvpn0")
    assert rules.startswith(f"add table {table}\ndelete table {table}\ntable {table} {{\n")
    assert rules.count("table") == 3


def test_two_gateways_of_a_host_have_tables_of_their_own() -> None:
    assert forward_table("jvpn0") != forward_table("jvpn1")


def test_with_nothing_to_do_there_is_no_table() -> None:
    rules = forward_rules("jvpn0", Forwarding(mss_clamp=False), OWN)
    assert rules == without_forward_table("jvpn0")


def test_translation_is_of_the_tunnels_own_networks_and_not_back_into_it() -> None:
    rules = forward_rules("jvpn0", Forwarding(nat=True), OWN)
    assert 'ip saddr 10.77.0.0/24 oifname != { "jvpn0" } masquerade\n' in rules
    assert 'ip6 saddr fd77::/64 oifname != { "jvpn0" } masquerade\n' in rules
    rules = forward_rules("jvpn0", Forwarding(nat=True), OWN, {"eth1"})
    assert rules.count('oifname != { "jvpn0", "eth1" } masquerade') == 2


def test_in_a_cluster_what_was_translated_elsewhere_is_reset_and_nothing_else() -> None:
    rules = forward_rules("jvpn0", Forwarding(nat=True, cluster=True), OWN, {"eth1"})
    orphans = "ct state new tcp flags & (syn | rst) == 0 counter reject with tcp reset"
    for source in ("ip saddr 10.77.0.0/24", "ip6 saddr fd77::/64"):
        match = f'{source} oifname != {{ "jvpn0", "eth1" }}'
        assert f'iifname "jvpn0" {match} {orphans}\n' in rules
        assert f"{match} masquerade\n" in rules
    assert rules.count("reject") == 2
    for settings in (Forwarding(nat=True), Forwarding(cluster=True)):
        assert "reject" not in forward_rules("jvpn0", settings, OWN)


@pytest.mark.parametrize("allowed", [True, False])
def test_the_wall_stands_only_where_it_is_wanted(allowed: bool) -> None:
    rules = forward_rules("jvpn0", Forwarding(client_to_client=allowed), OWN)
    wall = 'iifname "jvpn0" oifname "jvpn0" counter reject with icmpx admin-prohibited'
    assert (wall in rules) is not allowed


def test_a_client_is_answered_for_on_each_lan_that_its_address_lies_in() -> None:
    clients = ["192.168.50.7", "fd50::7", "10.77.0.2"]
    everywhere = neighbours(Forwarding(proxy_neighbours=True), LANS, clients)
    assert everywhere == {("192.168.50.7", "eth1"), ("fd50::7", "eth1"), ("192.168.50.7", "eth2")}
    chosen = neighbours(Forwarding(proxy_neighbours=("eth1",)), LANS, clients)
    assert chosen == {("192.168.50.7", "eth1"), ("fd50::7", "eth1")}
    assert neighbours(Forwarding(), LANS, clients) == frozenset()


@given(st.lists(st.ip_addresses().map(str), max_size=20, unique=True))
def test_nobody_is_answered_for_outside_the_lans(clients: list[str]) -> None:
    for address, interface in neighbours(Forwarding(proxy_neighbours=True), LANS, clients):
        parsed = ipaddress.ip_address(address)
        assert any(parsed in network for each, network in LANS if each == interface)
        assert address in clients
