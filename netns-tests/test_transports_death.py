"""Every transport under one session: connections, relays and workers that die under it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from lab.daemons import ALL, PORT, Daemon, Pair
from lab.firewall import blocked, reset
from lab.gauge import relay, workers
from lab.stage import Stage, Watch, until
from lab.story import BACK, DIED, FULL, ORDERED, fate, moves, wait_to

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

GAP_MS = 3 * 300


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


def preferring(first: str) -> str:
    """A policy by which this transport comes first; nothing goes home while a test looks."""
    order = [first, *(each for each in ALL if each != first)]
    names = ", ".join(f'"{each}"' for each in order)
    steady = "warm_connections = 8\nstability_window_ms = 60000\n"
    return f"{FULL}{steady}allowed_transports = [{names}]\n"


def attached_over(stage: Stage, transport: str) -> Pair:
    """New daemons, every path connected, the session bound to this transport."""
    stage.strike()
    pair = stage.pair(
        paths=8,
        transports=ALL,
        client_policy=preferring(transport),
        gateway_policy=FULL,
    )
    if pair.client.status()["session"]["binding"]["transport"] != transport:
        target = f"up-a/{transport}/"
        done = pair.client.ctl("switch", target)
        assert done.returncode == 0, done.stderr
        until(lambda: bound_to(pair).startswith(target), "the session is where it is wanted")
    return pair


def bound_to(pair: Pair) -> str:
    session = pair.client.status()["session"]
    return str(session["binding"]["path"]) if session["binding"] else ""


def states(pair: Pair) -> dict[str, str]:
    return {row["id"]: row["state"] for row in pair.client.status()["paths"]}


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def assert_moved_from(watch: Watch, path: str, why: str) -> None:
    """By a death that was noticed at once; nothing else is different."""
    wait_to(watch, BACK)
    assert bound_to(watch.pair) != path
    assert watch.story("client") == [DIED, BACK]
    (death,) = moves(watch)
    assert death["path"] == path
    assert death["why"].startswith(why)
    assert fate(watch).longest_gap_ms < GAP_MS
    watch.assert_flows()
    watch.assert_same_session()


def assert_comes_back(watch: Watch, path: str) -> None:
    """Connected again, listed, and fit to be used. Nobody tells a QUIC client that a gateway has
    forgotten it: it takes QUIC's idle time."""
    answers = f"{path} is connected again"
    until(lambda: states(watch.pair).get(path) == "up", answers, timeout_s=60)
    watch.begin()
    done = watch.pair.client.ctl("switch", path)
    assert done.returncode == 0, done.stderr
    wait_to(watch, BACK)
    assert bound_to(watch.pair) == path
    assert watch.story("client") == watch.story("gateway") == [ORDERED, BACK]
    watch.assert_flows()
    watch.assert_same_session()


# --- a connection ---


def test_a_connection_that_is_reset_is_left_at_once_and_made_again(stage: Stage) -> None:
    with stage.watch(attached_over(stage, "tcp")) as watch:
        path, uplink = bound_to(watch.pair), stage.uplink(watch.bound())
        with blocked(stage.lab, reset(PORT), only=[uplink]):
            assert_moved_from(watch, path, "connection lost: ECONNRESET")
            assert watch.story("gateway") == [DIED, BACK]
            until(lambda: states(watch.pair)[path] == "closed", "it is listed as closed")
        assert_comes_back(watch, path)


# --- a relay ---


@pytest.mark.parametrize("transport", ["tls", "quic"])
@pytest.mark.parametrize("side", ["client", "gateway"])
def test_a_relay_that_is_killed_takes_its_connections_with_it_and_no_more(
    stage: Stage, transport: str, side: str
) -> None:
    with stage.watch(attached_over(stage, transport)) as watch:
        path, daemon = bound_to(watch.pair), _daemon(watch.pair, side)
        pid = relay(daemon, transport)
        kill(pid)
        silent = (transport, side) == ("quic", "gateway")
        why = "silent while another path answers" if silent else "connection lost: "
        assert_moved_from(watch, path, why)
        assert transport not in bound_to(watch.pair)  # both its connections are gone
        assert_comes_back(watch, path)
        assert relay(daemon, transport) not in (pid, None)


def _daemon(pair: Pair, side: str) -> Daemon:
    return {"client": pair.client, "gateway": pair.gateway}[side]


# --- a worker ---


@pytest.mark.parametrize("role", ["uplink", "downlink"])
@pytest.mark.parametrize("side", ["client", "gateway"])
def test_a_worker_that_is_killed_ends_the_streams_that_it_had(
    stage: Stage, side: str, role: str
) -> None:
    """It may have written or read a packet in part; the session goes on over something else."""
    with stage.watch(attached_over(stage, "tcp")) as watch:
        path, daemon = bound_to(watch.pair), _daemon(watch.pair, side)
        (pid,) = (pid for pid, its_role in workers(daemon).items() if its_role == role)
        kill(pid)
        wait_to(watch, BACK)
        until(lambda: pid not in workers(daemon) and len(workers(daemon)) == 2, "it runs again")
        watch.assert_flows()
        until(lambda: states(watch.pair).get(path) in ("up", "bound"), "it is connected again")
        watch.assert_flows()
        watch.assert_same_session()
        assert set(watch.story("client")) <= {DIED, BACK, *_WHILE_WORKERLESS}


_WHILE_WORKERLESS = (
    "ATTACHED -> RECOVERING NAT_REBIND",
    "ATTACHED -> VOLATILE VOLATILITY_SIGNAL",
    "VOLATILE -> RECOVERING TRANSPORT_DEAD",
    "VOLATILE -> ATTACHED HEALTH_RECOVERED",
)
