"""Every transport under one session: networks that block some of them, later or from the start."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from lab.daemons import ALL, INNER, Pair
from lab.firewall import UDP, blocked, only_tcp
from lab.stage import Stage, Watch, transitions, until
from lab.story import BACK, DIED, FULL, ORDERED, fate, forget, moves, wait_to
from lab.traffic import Traffic

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

BORN = "BIRTH -> ATTACHED HANDSHAKE_OK"
WARM_GAP_MS = 3 * 300  # what the user may notice, and three times that for a loaded machine
COLD_GAP_MS = 3 * 1500
STABILITY_MS = 3000  # the default


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture
def fresh(stage: Stage) -> Iterator[Stage]:
    """Daemons that remember nothing of another test."""
    stage.strike()
    yield stage
    stage.strike()


def open_transports(pair: Pair) -> set[str]:
    """Of the paths that are connected."""
    rows = pair.client.status()["paths"]
    return {row["transport"] for row in rows if row["state"] != "closed"}


def wait_open(pair: Pair, *transports: str) -> None:
    """Until just these are connected; while a session begins all are."""
    until(lambda: open_transports(pair) == set(transports), f"{transports} are open, no others")


def connections(pair: Pair) -> int:
    """That the gateway has accepted and not closed."""
    return int(pair.gateway.status()["connections"]["open"])


def assert_home(watch: Watch, gateway: list[str]) -> None:
    """Nobody ordered it, and no packet was lost by it."""
    wait_to(watch, BACK, timeout_s=30)
    assert watch.transport() == "udp"
    (why,) = moves(watch)
    assert why["why"] == "failback"
    assert why["steady_ms"] >= STABILITY_MS
    assert watch.story("client") == [ORDERED, BACK]
    assert watch.story("gateway") == gateway
    assert fate(watch).lost == 0
    watch.assert_flows()
    watch.assert_same_session()


# --- UDP is blocked under a session ---


def test_blocked_udp_is_left_for_a_warm_connection_and_gone_back_to(fresh: Stage) -> None:
    pair = fresh.pair(paths=6, transports=ALL, client_policy=FULL, gateway_policy=FULL)
    wait_open(pair, "udp", "quic", "tcp")  # four connections are kept warm
    with fresh.watch(pair) as watch:
        assert watch.transport() == "udp"
        with blocked(fresh.lab, UDP):
            wait_to(watch, BACK)
            assert watch.transport() == "tcp"
            (death,) = moves(watch)
            assert death["why"] == "silent while another path answers"
            assert watch.story("client") == watch.story("gateway") == [DIED, BACK]
            assert fate(watch).longest_gap_ms < WARM_GAP_MS
            watch.assert_flows()
            watch.assert_same_session()
            forget(watch)
        assert_home(watch, [ORDERED, BACK])


def test_blocked_udp_is_left_though_nothing_else_was_connected(fresh: Stage) -> None:
    policy = FULL + "warm_connections = 0\n"
    pair = fresh.pair(transports=ALL, client_policy=policy, gateway_policy=FULL)
    wait_open(pair, "udp")
    until(lambda: connections(pair) == 0, "the gateway has no connection")
    with fresh.watch(pair) as watch:
        assert watch.transport() == "udp"
        with blocked(fresh.lab, UDP):
            wait_to(watch, BACK)
            assert watch.transport() in ("tcp", "tls")
            assert watch.story("client") == watch.story("gateway") == [DIED, BACK]
            assert fate(watch).longest_gap_ms < COLD_GAP_MS
            watch.assert_flows()
            watch.assert_same_session()
            forget(watch)
        assert_home(watch, [ORDERED, BACK])
        wait_open(pair, "udp")
        until(lambda: connections(pair) == 0, "the gateway has no connection")


# --- from the start ---


def test_a_client_starts_where_only_https_passes(fresh: Stage) -> None:
    lab = fresh.lab
    with blocked(lab, only_tcp(443)), Pair(lab.client, lab.gateway, transports=ALL) as pair:
        pair.start()
        with fresh.watch(pair) as watch:
            assert watch.transport() == "tls"
            assert transitions(pair.client.events())[-1] == BORN
            assert fate(watch).lost == 0
            watch.assert_flows()
            watch.assert_same_session()


def test_a_client_that_knows_only_udp_keeps_trying_where_it_is_blocked(fresh: Stage) -> None:
    lab = fresh.lab
    options = {"transports": ALL, "client_transports": ("udp",)}
    with Pair(lab.client, lab.gateway, **options) as pair:
        client = pair.client
        with blocked(lab, only_tcp(443)):
            pair.gateway.start()
            client.start()
            seq = client.wait_state("TERMINATED")["seq"]
            client.wait_state("TERMINATED", timeout_s=30, after=seq)  # it has begun anew
            assert set(transitions(client.events())) == {"BIRTH -> TERMINATED HANDSHAKE_FAIL"}
            wait_open(pair, "udp")
            until(lambda: client.status()["state"] == "BIRTH", "it tries again")
        client.wait_state("ATTACHED", timeout_s=40)
        with Traffic("echo", lab.client, lab.gateway, INNER["gateway"][0], "50") as echo:
            echo.wait_until("received", above=5)


def test_a_client_that_knows_only_udp_is_told_of_the_others(fresh: Stage) -> None:
    """In the handshake; so it gets away where it could not have begun."""
    pair = fresh.pair(
        paths=6,
        transports=ALL,
        client_transports=("udp",),
        client_policy=FULL,
        gateway_policy=FULL,
    )
    wait_open(pair, "udp", "quic", "tcp")
    with fresh.watch(pair) as watch:
        assert watch.transport() == "udp"
        with blocked(fresh.lab, only_tcp(443)):
            wait_to(watch, BACK)
            assert watch.transport() == "tls"
            assert watch.story("client") == watch.story("gateway") == [DIED, BACK]
            assert fate(watch).longest_gap_ms < COLD_GAP_MS
            watch.assert_flows()
            watch.assert_same_session()
            forget(watch)
        assert_home(watch, [ORDERED, BACK])
