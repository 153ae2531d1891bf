"""The tunnel without what it is fast by: each feature is off at one end, or at both."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from bench.link import Link
from lab.daemons import INNER, ONLY_ETH0, Daemon, Pair, disabling
from lab.namespace import Namespace
from lab.transfer import transfer

from jvpnd.core.offloads import DISABLED, FEATURES, with_implied

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SIZE = 4_000_000  # bytes of TCP each way
DATAGRAM = 1500  # no packet of the tunnel is longer
# Every feature is off at each end once, while the other end has it; then everything.
NEXT = zip(FEATURES, FEATURES[1:] + FEATURES[:1], strict=True)
CASES: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    *(((one,), (other,)) for one, other in NEXT),
    (FEATURES, ()),
    ((), FEATURES),
    (FEATURES, FEATURES),
]


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with Link() as link:
        yield link


def udp_calls(host: Namespace) -> tuple[int, int]:
    """How often datagrams were received from sockets, and sent: a batch counts once."""
    rows = [line.split() for line in host.run("cat", "/proc/net/snmp").stdout.splitlines()]
    names, values = (row for row in rows if row[0] == "Udp:")
    found = dict(zip(names, values, strict=True))
    return int(found["InDatagrams"]), int(found["OutDatagrams"])


def has_vnet_header(host: Namespace) -> bool:
    shown = json.loads(host.run("ip", "-d", "-j", "link", "show", "jvpn0").stdout)
    return bool(shown[0]["linkinfo"]["info_data"]["vnet_hdr"])


def device_features(host: Namespace) -> dict[str, bool]:
    lines = host.run("ethtool", "-k", "jvpn0").stdout.splitlines()
    rows = [line.strip().split(": ") for line in lines if ": " in line]
    return {name: value.startswith("on") for name, value in rows}


def assert_off(daemon: Daemon, wanted: tuple[str, ...], calls: tuple[int, int]) -> None:
    """What is off is off in the status, in the kernel, and in how the sockets were used."""
    status, host = daemon.status(), daemon.namespace
    features, off = status["offloads"], with_implied(wanted)
    assert set(features) == set(FEATURES)
    for name, is_on in features.items():
        assert name not in off or not is_on
        assert (status["offloads_off"].get(name) == DISABLED) == (name in off)
        assert is_on == (name not in status["offloads_off"])
    assert has_vnet_header(host) == features["vnet"]
    device = device_features(host)
    assert device["tx-tcp-segmentation"] == device["tx-tcp6-segmentation"] == features["tso"]
    assert device["tx-udp-segmentation"] == features["uso"]
    received, sent = calls
    if not features["udp_gro"]:
        assert received > SIZE / DATAGRAM
    if not features["udp_gso"]:
        assert sent > SIZE / DATAGRAM
    elif features["tso"]:
        assert sent < SIZE / DATAGRAM


@pytest.mark.parametrize(
    ("at_client", "at_gateway"),
    CASES,
    ids=lambda names: "all" if names == FEATURES else "-".join(names) or "none",
)
def test_the_tunnel_carries_everything_without(
    link: Link, at_client: tuple[str, ...], at_gateway: tuple[str, ...]
) -> None:
    pair = Pair(
        link.client,
        link.gateway,
        client_policy=disabling(*at_client),
        gateway_policy=disabling(*at_gateway),
        routes=ONLY_ETH0,
    )
    with pair:
        pair.start()
        hosts = link.client, link.gateway
        before = [udp_calls(host) for host in hosts]
        assert transfer(*hosts, INNER["gateway"][0], SIZE) == []
        after = [udp_calls(host) for host in hosts]
        assert transfer(*hosts, INNER["gateway"][1], 500_000) == []
        ends = zip((pair.client, pair.gateway), (at_client, at_gateway), strict=True)
        for (daemon, off), first, last in zip(ends, before, after, strict=True):
            assert_off(daemon, off, (last[0] - first[0], last[1] - first[1]))
        suite = pair.client.status()["session"]["suite"]
        (row,) = pair.gateway.status()["sessions"]
        assert row["suite"] == suite
        has_aes = all(d.status()["offloads"]["aes"] for d in (pair.client, pair.gateway))
        assert suite == ("AES_256_GCM" if has_aes else "CHACHA20_POLY1305")
        for daemon in (pair.client, pair.gateway):
            dropped = daemon.status()["traffic"]["dropped"]
            unasked = {"no_route", "no_binding", "size probe of a stranger"}  # which the client was
            assert set(dropped) <= unasked, dropped


def test_status_says_in_words_what_is_off_and_which_cipher_runs(link: Link) -> None:
    policy = disabling("vnet", "aes")
    with Pair(link.client, link.gateway, gateway_policy=policy, routes=ONLY_ETH0) as pair:
        pair.start()
        at_gateway = pair.gateway.ctl("status").stdout
        at_client = pair.client.ctl("status").stdout
    assert "disabled by [debug]: vnet tso uso aes\n" in at_gateway
    assert "ciphers    CHACHA20_POLY1305 1\n" in at_gateway
    assert "disabled" not in at_client
    assert "cipher    CHACHA20_POLY1305\n" in at_client
