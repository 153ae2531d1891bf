"""The uplink model: what the kernel says in, the usable uplinks out."""

from __future__ import annotations

from dataclasses import replace
from socket import AF_INET, AF_INET6

from hypothesis import given
from hypothesis import strategies as st

from jvpnd.net.uplinks import Address, DefaultRoute, Link, LinkTable, Uplink

TENTATIVE, DEPRECATED, SECONDARY, DADFAILED = 0x40, 0x20, 0x01, 0x08
ETH = Link(2, "eth0", 1500, running=True)
V4 = Address(2, AF_INET, "192.0.2.5", 24, 0, 0x80)
V6 = Address(2, AF_INET6, "2001:db8::5", 64, 0, 0)
V4_ROUTE = DefaultRoute(2, AF_INET, 100, "192.0.2.1", None)
V6_ROUTE = DefaultRoute(2, AF_INET6, 1024, "fe80::1", None)


def table(
    *addresses: Address,
    routes: tuple[DefaultRoute, ...] = (V4_ROUTE, V6_ROUTE),
    interfaces: list[str] | None = None,
    link: Link = ETH,
) -> LinkTable:
    made = LinkTable(interfaces, ignore=["jvpn0"])
    made.set_link(link)
    for address in addresses:
        made.set_address(address)
    made.set_routes(routes)
    return made


def sources(made: LinkTable) -> tuple[str | None, str | None]:
    uplink = made.uplinks()["eth0"]
    return uplink.ipv4, uplink.ipv6


def test_a_running_link_with_address_and_default_route_is_an_uplink() -> None:
    assert table(V4, V6).uplinks() == {
        "eth0": Uplink("eth0", 2, 1500, "192.0.2.5", "2001:db8::5"),
    }


def test_a_link_without_carrier_or_address_is_none() -> None:
    assert table(V4, link=replace(ETH, running=False)).uplinks() == {}
    assert table().uplinks() == {}


def test_a_family_without_a_default_route_is_left_out() -> None:
    assert sources(table(V4, V6, routes=(V4_ROUTE,))) == ("192.0.2.5", None)
    assert table(V4, V6, routes=()).uplinks() == {}


def test_a_named_interface_needs_no_default_route_and_others_are_left_out() -> None:
    assert sources(table(V4, V6, routes=(), interfaces=["eth0"])) == ("192.0.2.5", "2001:db8::5")
    assert table(V4, V6, interfaces=["wlan0"]).uplinks() == {}


def test_our_own_tun_is_never_an_uplink() -> None:
    assert table(V4, link=replace(ETH, name="jvpn0")).uplinks() == {}


def test_addresses_that_cannot_be_a_source_are_passed_over() -> None:
    for flags in (TENTATIVE, DEPRECATED, DADFAILED):
        assert sources(table(V4, replace(V6, flags=flags))) == ("192.0.2.5", None)
    for local in ("169.254.7.7", "127.0.0.9", "224.0.0.9"):
        assert table(replace(V4, local=local)).uplinks() == {}
    assert table(replace(V4, scope=253)).uplinks() == {}


def test_the_source_is_what_the_kernel_would_choose() -> None:
    other = replace(V4, local="198.51.100.5")
    assert sources(table(other, V4))[0] == "192.0.2.5"  # the gateway's subnet
    preferred = replace(V4_ROUTE, source="198.51.100.5")
    assert sources(table(V4, other, routes=(preferred,)))[0] == "198.51.100.5"
    secondary = replace(V4, local="192.0.2.6", flags=SECONDARY)
    assert sources(table(secondary, V4))[0] == "192.0.2.5"
    unique_local = replace(V6, local="fd00::5")
    assert sources(table(unique_local, V6))[1] == "2001:db8::5"
    temporary = replace(V6, local="2001:db8::77", flags=SECONDARY)
    assert sources(table(temporary, V6))[1] == "2001:db8::5"


def test_a_new_equal_address_does_not_move_the_path() -> None:
    made = table(V4)
    made.set_address(replace(V4, local="192.0.2.4"))
    made.set_address(replace(V4, flags=0))
    assert sources(made)[0] == "192.0.2.5"
    made.remove_address(V4)
    assert sources(made)[0] == "192.0.2.4"


def test_the_better_of_two_default_routes_of_a_link_counts() -> None:
    other = replace(V4, local="198.51.100.5")
    worse = DefaultRoute(2, AF_INET, 200, "198.51.100.1", None)
    for routes in ((V4_ROUTE, worse), (worse, V4_ROUTE)):
        assert sources(table(other, V4, routes=routes))[0] == "192.0.2.5"


def test_a_link_that_went_down_comes_back_only_with_fresh_routes() -> None:
    made = table(V4)
    made.set_link(replace(ETH, running=False))
    assert made.uplinks() == {}
    assert made.routes_stale
    made.set_link(ETH)
    assert made.uplinks() == {}
    made.set_routes([V4_ROUTE])
    assert list(made.uplinks()) == ["eth0"]
    assert not made.routes_stale


def test_a_removed_address_asks_for_fresh_routes() -> None:
    made = table(V4)
    made.remove_address(V4)
    assert made.uplinks() == {}
    assert made.routes_stale


def test_a_removed_link_takes_its_addresses_with_it() -> None:
    made = table(V4)
    made.remove_link(2)
    made.set_link(ETH)
    made.set_routes([V4_ROUTE])
    assert made.uplinks() == {}


LINKS = st.builds(Link, st.integers(1, 4), st.sampled_from("abcd"), st.just(1500), st.booleans())
ADDRESSES = st.builds(
    Address,
    st.integers(1, 4),
    st.just(AF_INET),
    st.sampled_from(["192.0.2.1", "192.0.2.2", "127.0.0.1"]),
    st.just(24),
    st.sampled_from([0, 253]),
    st.sampled_from([0, TENTATIVE, SECONDARY]),
)
ROUTES = st.builds(
    DefaultRoute,
    st.integers(1, 4),
    st.just(AF_INET),
    st.integers(0, 3),
    st.none() | st.just("192.0.2.254"),
    st.none() | st.just("192.0.2.2"),
)
STEPS = st.one_of(
    st.tuples(st.just("set_link"), LINKS),
    st.tuples(st.just("remove_link"), st.integers(1, 4)),
    st.tuples(st.just("set_address"), ADDRESSES),
    st.tuples(st.just("remove_address"), ADDRESSES),
    st.tuples(st.just("set_routes"), st.lists(ROUTES, max_size=6)),
)


@given(st.lists(STEPS, max_size=40))
def test_an_uplink_always_runs_and_owns_its_source(steps: list[tuple[str, object]]) -> None:
    made = LinkTable(None, ignore=["d"])
    links: dict[int, Link] = {}
    owned: dict[tuple[int, str], Address] = {}
    for name, value in steps:
        getattr(made, name)(value)
        if isinstance(value, Link):
            links[value.index] = value
        elif isinstance(value, int):
            links.pop(value, None)
            owned = {key: each for key, each in owned.items() if key[0] != value}
        elif isinstance(value, Address):
            if name == "set_address":
                owned[value.index, value.local] = value
            else:
                owned.pop((value.index, value.local), None)
        for uplink in made.uplinks().values():
            assert links[uplink.index].running
            assert uplink.name != "d"
            assert uplink.ipv4 is not None
            assert owned[uplink.index, uplink.ipv4].usable
