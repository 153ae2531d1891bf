"""Every transport under one session: only an HTTP proxy leads out; paths that are closed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from lab import proxy
from lab.daemons import ALL, Event, Pair
from lab.firewall import NOTHING, blocked, reset
from lab.stage import Stage, Watch, transitions, until
from lab.story import BACK, DIED, FULL, fate, wait_to

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ONE_TRANSPORT = ("tls",)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture
def walled(stage: Stage) -> Iterator[Stage]:
    """The routers forward nothing: what gets out goes through a proxy on them."""
    stage.heal()
    with blocked(stage.lab, NOTHING):
        yield stage


def through(stage: Stage, url: str, **options: object) -> Pair:
    policies = {"client_policy": FULL, "gateway_policy": FULL}
    return Pair(stage.lab.client, stage.lab.gateway, proxy=url, **policies, **options)  # type: ignore[arg-type]


def assert_tls_works(watch: Watch) -> None:
    assert watch.transport() == "tls"
    assert fate(watch).lost == 0
    watch.assert_flows()
    watch.assert_same_session()
    assert watch.story("client") == watch.story("gateway") == []


def why_closed(pair: Pair) -> dict[str, str]:
    """What `jvpnctl paths` says of paths without a connection."""
    rows = pair.client.ask("paths")
    return {row["id"]: row["why"] for row in rows if row["state"] == "closed"}


# --- proxies ---


@pytest.mark.parametrize("password", [False, True])
def test_a_proxy_is_the_only_way_out(walled: Stage, password: bool) -> None:
    url = proxy.URL_WITH_PASSWORD if password else proxy.URL
    with proxy.proxies(walled.lab, password), through(walled, url, transports=ALL) as pair:
        pair.start()
        assert transitions(pair.client.events())[-1] == "BIRTH -> ATTACHED HANDSHAKE_OK"
        with walled.watch(pair) as watch:
            assert_tls_works(watch)
            # The proxy is on the router: the gateway sees its address, not the client's.
            (row,) = pair.gateway.status()["sessions"]
            assert row["binding"]["remote"].startswith("172.16.")
        assert proxy.PASSWORD not in pair.client.log + str(pair.client.status())


def test_the_proxy_of_the_environment_is_used(walled: Stage) -> None:
    with proxy.proxies(walled.lab, True), through(walled, "", transports=ALL) as pair:
        pair.client.environment["https_proxy"] = proxy.URL_WITH_PASSWORD
        pair.start()
        with walled.watch(pair) as watch:
            assert_tls_works(watch)
        assert proxy.PASSWORD not in pair.client.log + str(pair.client.status())


def test_a_session_through_a_proxy_moves_to_the_other_uplink(walled: Stage) -> None:
    with proxy.proxies(walled.lab), through(walled, proxy.URL, transports=ONE_TRANSPORT) as pair:
        pair.start()
        until(lambda: len(pair.client.status()["paths"]) == 2, "both uplinks are connected")
        with walled.watch(pair) as watch:
            bound = watch.bound()
            walled.uplink(bound).set_down()
            wait_to(watch, BACK)
            assert watch.bound() != bound
            assert watch.transport() == "tls"
            assert watch.story("client") == [DIED, BACK]
            assert watch.story("gateway") == [DIED, BACK]
            watch.assert_flows()
            watch.assert_same_session()


@pytest.mark.parametrize(
    ("password", "port", "told"),
    [
        (True, 443, "the proxy refused: 407"),  # it is not given one
        (False, 563, "the proxy refused: 403"),  # clients may go somewhere else only
    ],
)
def test_a_proxy_that_refuses_is_told(
    walled: Stage, password: bool, port: int, told: str
) -> None:
    with (
        proxy.proxies(walled.lab, password, port),
        through(walled, proxy.URL, transports=ONE_TRANSPORT) as pair,
    ):
        pair.gateway.start()
        pair.client.start()
        until(lambda: len(why_closed(pair)) == 2, "both uplinks have tried")
        until(lambda: all(why.startswith(told) for why in why_closed(pair).values()), told)
        assert told in pair.client.ctl("paths").stdout
        assert told in pair.client.log
        assert pair.client.status()["state"] != "ATTACHED"


def test_a_proxy_that_is_not_there_is_told_and_used_once_it_is(walled: Stage) -> None:
    with through(walled, proxy.URL, transports=ONE_TRANSPORT) as pair:
        pair.gateway.start()
        pair.client.start()
        until(lambda: any("no connection over" in why for why in why_closed(pair).values()), "it")
        with proxy.proxies(walled.lab):
            pair.client.wait_state("ATTACHED", timeout_s=40)
            with walled.watch(pair) as watch:
                assert_tls_works(watch)


# --- what `jvpnctl paths` shows ---


def test_paths_without_a_connection_are_shown_with_the_reason(stage: Stage) -> None:
    stage.heal()
    with (
        blocked(stage.lab, reset(443), only=[stage.lab.a]),
        Pair(stage.lab.client, stage.lab.gateway, transports=("udp", "tls")) as pair,
    ):
        pair.start()
        (path,) = until(
            lambda: [p for p, why in why_closed(pair).items() if why != "connecting"],
            "the uplink behind the firewall has no connection",
        )
        assert path == "up-a/tls/203.0.113.7:443"
        why = why_closed(pair)[path]
        assert why == "no connection over up-a (10.1.0.2) to 203.0.113.7:443: Connection refused"
        table = pair.client.ctl("paths").stdout
        (line,) = (line for line in table.splitlines() if line.startswith(path))
        assert "closed" in line.split()
        assert line.endswith(why)
        assert told_once(pair.client.log, why)
        other = "up-b/tls/203.0.113.7:443"
        until(lambda: state_of(pair, other) == "up", "the other uplink has one")
    stage.heal()


def state_of(pair: Pair, path_id: str) -> str:
    rows: list[Event] = pair.client.ask("paths")
    return next((str(row["state"]) for row in rows if row["id"] == path_id), "")


def told_once(log: str, why: str) -> bool:
    """However often it is tried again."""
    return log.count(why) == 1
