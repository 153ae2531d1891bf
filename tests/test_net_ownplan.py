"""Which way a client's addresses take from a node, by who owns the session."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.net.ownplan import (
    METRIC_LENT,
    METRIC_OWNED,
    NOBODY,
    Holding,
    HostRoute,
    addresses_in,
    canonical,
    networks_of,
    shortened,
)

VIA = ("192.168.50.2", "fd50::2", "192.168.51.2")


def test_what_is_owned_goes_into_the_tunnel() -> None:
    own = Holding("own", "a")
    assert own.route_to("10.77.0.2/32") == HostRoute("10.77.0.2/32", None, METRIC_OWNED)
    assert own.route_to("fd60::/64") == HostRoute("fd60::/64", None, METRIC_OWNED)


def test_what_is_lent_goes_to_the_first_address_of_its_version() -> None:
    lent = Holding("lend", "b", VIA)
    assert lent.route_to("10.77.0.2/32") == HostRoute("10.77.0.2/32", VIA[0], METRIC_LENT)
    assert lent.route_to("fd77::2/128") == HostRoute("fd77::2/128", VIA[1], METRIC_LENT)


def test_where_no_way_is_known_there_is_no_route() -> None:
    assert NOBODY.route_to("10.77.0.2/32") is None
    assert Holding("lend", "b").route_to("10.77.0.2/32") is None
    assert Holding("lend", "b", VIA[:1]).route_to("fd77::2/128") is None


def test_ours_win_against_what_routing_daemons_know() -> None:
    """bird gives its routes the metric 32, FRR 20; and the two ways never share one."""
    assert METRIC_OWNED < METRIC_LENT < 20


def test_networks_are_as_the_kernel_writes_them_and_each_one_once() -> None:
    assert networks_of(["10.77.0.2", "FD77:0::2"], ["192.168.60.9/24", "10.77.0.2/32"]) == [
        "10.77.0.2/32",
        "fd77::2/128",
        "192.168.60.0/24",
    ]
    assert canonical(["FD50:0::2"]) == ("fd50::2",)


@pytest.mark.parametrize("text", ["10.77.0.2/24", "10.77.0.0/24", "eth1", ""])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        networks_of([text], [])
    with pytest.raises(ValueError, match="does not appear to be"):
        canonical([text])


@given(st.lists(st.ip_addresses(), max_size=20, unique=True))
def test_addresses_come_out_as_they_went_in(addresses: list[ipaddress.IPv4Address]) -> None:
    texts = [str(each) for each in addresses]
    assert addresses_in(networks_of(texts, ["192.168.60.0/24", "fd60::/64"])) == texts


def test_a_line_of_the_log_has_one_network_and_the_number_of_the_others() -> None:
    assert shortened(["10.77.0.2/32"]) == "10.77.0.2/32"
    assert shortened(["10.77.0.2/32", "fd77::2/128", "fd77::3/128"]) == "10.77.0.2/32 and 2 more"
