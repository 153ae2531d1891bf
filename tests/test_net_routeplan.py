"""Marks, priorities and plans: pure consequences of the interface name and the mode."""

from __future__ import annotations

from socket import AF_INET, AF_INET6

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.net.routeplan import TABLE_MAIN, Plan, Route, fwmark_of, plan, priorities_of

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=15)


def test_the_mark_of_a_name_never_changes() -> None:
    # on file in every running kernel: a new value would orphan rules of the version before
    assert fwmark_of("jvpn0") == 0x6A76FCE0
    assert fwmark_of("jvpn1") == 0x6A76ECC1
    assert priorities_of("jvpn0") == (25760, 25761)


@given(NAMES)
def test_marks_and_priorities_stay_in_their_range(name: str) -> None:
    assert fwmark_of(name) & 0xFFFF0000 == 0x6A760000
    first, second = priorities_of(name)
    assert 20000 <= first < second < 30000


def test_full_mode_asks_main_first_then_the_tunnel_in_both_families() -> None:
    wanted = plan("jvpn0", "full", inner={AF_INET, AF_INET6})
    mark = fwmark_of("jvpn0")
    for family in (AF_INET, AF_INET6):
        first, second = sorted(
            (rule for rule in wanted.rules if rule.family == family), key=lambda r: r.priority
        )
        assert (first.table, first.fwmark) == (TABLE_MAIN, None)
        assert (second.table, second.fwmark) == (mark, mark)
    assert wanted.routes == {
        Route(AF_INET, "0.0.0.0/0", mark),
        Route(AF_INET6, "::/0", mark),
    }


def test_full_mode_closes_a_family_that_the_tunnel_does_not_carry() -> None:
    wanted = plan("jvpn0", "full", inner={AF_INET})
    assert Route(AF_INET6, "::/0", fwmark_of("jvpn0"), unreachable=True) in wanted.routes


def test_full_mode_leaves_a_family_alone_that_the_host_does_not_have() -> None:
    wanted = plan("jvpn0", "full", inner={AF_INET}, families=[AF_INET])
    assert {rule.family for rule in wanted.rules} == {AF_INET}
    assert {route.family for route in wanted.routes} == {AF_INET}


def test_split_mode_routes_the_networks_and_nothing_else() -> None:
    wanted = plan("jvpn0", "split", ["10.20.3.4/16", "10.20.0.0/16", "fd00:1::/32"])
    assert wanted == Plan(
        routes=frozenset(
            {Route(AF_INET, "10.20.0.0/16", TABLE_MAIN), Route(AF_INET6, "fd00:1::/32", TABLE_MAIN)}
        )
    )


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0"])
def test_split_mode_refuses_a_default_route(network: str) -> None:
    with pytest.raises(ValueError, match="need mode full"):
        plan("jvpn0", "split", [network])


def test_mode_none_wants_nothing() -> None:
    assert plan("jvpn0", "none", ["10.0.0.0/8"]) == Plan()


def test_excluded_networks_ask_main_as_a_whole_and_never_the_tunnel() -> None:
    mark = fwmark_of("jvpn0")
    excluded = ["172.17.0.0/16", "fd20::/32"]
    wanted = plan("jvpn0", "full", exclude=excluded, inner={AF_INET, AF_INET6})
    base = plan("jvpn0", "full", inner={AF_INET, AF_INET6})
    more = sorted(wanted.rules - base.rules, key=lambda rule: rule.family)
    assert [(rule.family, rule.table, rule.to) for rule in more] == [
        (AF_INET, TABLE_MAIN, "172.17.0.0/16"),
        (AF_INET6, TABLE_MAIN, "fd20::/32"),
    ]
    tunnel = priorities_of("jvpn0")[1]
    assert all(rule.priority < tunnel and rule.fwmark is None for rule in more)
    assert wanted.routes - base.routes == {
        Route(AF_INET, "172.17.0.0/16", mark, unreachable=True),
        Route(AF_INET6, "fd20::/32", mark, unreachable=True),
    }
    assert base.rules < wanted.rules
    assert base.routes < wanted.routes


def test_excluded_networks_of_a_family_that_the_host_lacks_are_left_out() -> None:
    assert plan("jvpn0", "full", exclude=["fd20::/32"], families=[AF_INET]) == plan(
        "jvpn0", "full", families=[AF_INET]
    )
