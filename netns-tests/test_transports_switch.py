"""Every transport under one session: from each to each other, and what policies make of them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

import pytest
from lab.daemons import ALL, INNER, PORT, Event, Pair
from lab.firewall import UDP, blocked
from lab.stage import Stage, Watch, until
from lab.story import (
    BACK,
    DENIED,
    DIED,
    FULL,
    HEALED,
    KEPT,
    ORDERED,
    fate,
    forget,
    of_type,
    wait_to,
)
from lab.transfer import transfer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

CALM_MS = 500
CALM = f"stability_window_ms = {CALM_MS}\n"
TOUR = (
    *("udp", "tcp", "udp", "tls", "udp", "quic", "tcp"),
    *("tls", "tcp", "quic", "tls", "quic", "udp"),
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


def ordered(pair: Pair, path: str) -> None:
    done = pair.client.ctl("switch", path)
    assert done.returncode == 0, done.stderr


def transports_of(pair: Pair) -> set[str]:
    """Of all paths, those without a connection too."""
    return {row["transport"] for row in pair.client.status()["paths"]}


def results(watch: Watch, side: str) -> set[str | None]:
    """Reasons that answers to reattach requests had."""
    return {e["reason"] for e in of_type(watch, side, "REATTACH_RESULT")}


# --- each to each ---


def test_a_session_goes_from_each_transport_to_each_other_without_a_loss(stage: Stage) -> None:
    steps = list(itertools.pairwise(TOUR))
    assert set(steps) == {(a, b) for a in ALL for b in ALL if a != b}
    policy = FULL + "warm_connections = 8\n"
    pair = stage.pair(paths=8, transports=ALL, client_policy=policy, gateway_policy=FULL)
    with stage.watch(pair) as watch:
        for source, target in steps:
            # A loaded machine may starve a relay, or fill a socket: one of three tries is clean.
            tries = (moves_cleanly(watch, source, target) for _ in range(3))
            assert any(tries), f"{source} to {target}: {watch.events('client')}"


def moves_cleanly(watch: Watch, source: str, target: str) -> bool:
    """Order it; whether it was one step at both ends and no packet was lost."""
    pair = watch.pair
    if watch.transport() != source:
        ordered(pair, f"up-a/{source}/")
        until(lambda: watch.transport() == source, f"it goes over {source}")
        forget(watch)
    watch.begin()
    ordered(pair, f"up-a/{target}/")
    wait_to(watch, BACK)
    moved = watch.transport() == target
    told = watch.story("client") == watch.story("gateway") == [ORDERED, BACK]
    lost = fate(watch, more=30).lost
    watch.assert_flows()
    watch.assert_same_session()
    return moved and told and not lost


# --- one alone ---


@pytest.mark.parametrize("transport", ["tcp", "tls", "quic"])
def test_one_transport_alone_carries_everything(stage: Stage, transport: str) -> None:
    pair = stage.pair(transports=(transport,), client_policy=FULL, gateway_policy=FULL)
    with stage.watch(pair) as watch:
        assert watch.transport() == transport
        assert transports_of(pair) == {transport}
        for address in INNER["gateway"]:
            assert transfer(stage.lab.client, stage.lab.gateway, address, 2_000_000) == []
        stage.uplink(watch.bound()).set_down()
        wait_to(watch, BACK)
        assert watch.transport() == transport
        assert watch.story("client") == watch.story("gateway") == [DIED, BACK]
        watch.assert_flows()
        watch.assert_same_session()


# --- policies ---


def test_a_gateway_that_allows_only_udp_refuses_politely(stage: Stage) -> None:
    """Though it listens on TCP, and the client is connected there."""
    stage.strike()
    pair = stage.pair(
        paths=4,  # a probe is answered everywhere
        transports=("udp", "tcp"),
        client_policy=FULL + CALM,
        gateway_policy=FULL + 'allowed_transports = ["udp"]\n',
    )
    with stage.watch(pair) as watch:
        assert watch.transport() == "udp"
        bound = watch.binding()["path"]
        ordered(pair, "up-a/tcp")
        wait_to(watch, HEALED)
        assert watch.story("client") == [ORDERED, KEPT, HEALED]
        assert watch.story("gateway") == []
        assert results(watch, "client") == results(watch, "gateway") == {"POLICY_DENY"}
        assert watch.binding()["path"] == bound
        assert fate(watch).lost == 0
        watch.assert_flows()
        watch.begin()
        with blocked(stage.lab, UDP):  # it must rather stand still
            wait_to(watch, DENIED)
            assert results(watch, "client") == {"POLICY_DENY"}
        pair.client.wait_state("ATTACHED", after=watch.seq(), timeout_s=30)
        assert watch.transport() == "udp"
        watch.assert_flows(timeout_s=60)
        watch.assert_same_session()


def test_a_client_that_prefers_what_the_gateway_forbids_asks_ever_more_seldom(
    stage: Stage,
) -> None:
    stage.strike()
    prefers = f'{FULL}{CALM}allowed_transports = ["tcp", "udp"]\n'
    pair = stage.pair(
        paths=4,
        transports=("udp", "tcp"),
        client_policy=prefers,
        gateway_policy=FULL + 'allowed_transports = ["udp"]\n',
    )
    with stage.watch(pair) as watch:
        assert watch.transport() == "udp"
        five = lambda: next((s for s in asked(pair).values() if len(s) == 5), None)  # noqa: E731
        steady = until(five, "it has asked five times for one path", timeout_s=60)
        for ms, doublings in zip(steady, (0, 0, 1, 2, 3), strict=True):
            assert ms >= CALM_MS << doublings
        assert results(watch, "gateway") == {"POLICY_DENY"}
        assert fate(watch).lost == 0
        watch.assert_flows()
        watch.assert_same_session()


def asked(pair: Pair) -> dict[str, list[int]]:
    """For how long each path had been steady when the session wanted to go home to it."""
    found: dict[str, list[int]] = {}
    for event in pair.client.events():
        if event["details"].get("why") == "failback":
            found.setdefault(event["details"]["to_path"], []).append(event["details"]["steady_ms"])
    return found


def test_a_transport_that_is_learned_and_forbidden_is_not_used(stage: Stage) -> None:
    stage.strike()
    pair = stage.pair(
        paths=4,
        transports=ALL,
        client_transports=("udp",),
        client_policy=FULL + 'allowed_transports = ["udp", "tcp"]\n',
        gateway_policy=FULL,
    )
    with stage.watch(pair) as watch:
        assert transports_of(pair) == {"udp", "tcp"}
        with blocked(stage.lab, f"{UDP}\ntcp dport {PORT} drop"):
            pair.client.wait_state("RECOVERING", after=watch.seq())
            wanted: Any = lambda e: e["event_type"] == "REATTACH_ATTEMPT"  # noqa: E731
            last: Event = pair.client.wait_for(wanted, after=watch.seq())
            assert last["details"]["path"].split("/")[1] in ("udp", "tcp")
            assert transports_of(pair) == {"udp", "tcp"}
        wait_to(watch, BACK, timeout_s=40)
        watch.assert_flows(timeout_s=60)
        assert transports_of(pair) == {"udp", "tcp"}
    until(lambda: pair.client.status()["state"] == "ATTACHED", "it is well")
