"""The failure matrix: hosts that sleep, and clocks that are set."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.daemons import INNER, Daemon, Pair
from lab.gauge import stopped, workers
from lab.stage import Stage, Watch, until
from lab.story import (
    BACK,
    FULL,
    LATE,
    ORDERED,
    REBOUND,
    RETRIED,
    SILENT,
    WINDOW,
    fate,
    moves,
    of_type,
    wait_to,
)
from lab.traffic import Traffic

from jvpnd.dataplane.pulse import HUNG_LOOKS, LOOK_S

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

QUICK = (
    FULL + "heartbeat_idle_ms = 200\nvolatile_after_ms = 600\nvolatile_to_degraded_ms = 1000\n"
    "max_recovery_window_ms = 600\nstability_window_ms = 500\n"
)
MORTAL = QUICK + "transport_loss_ttl_ms = 1200\n"


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


def asleep(daemon: Daemon) -> contextlib.AbstractContextManager[None]:
    """The whole daemon gets no turn: to it this is a suspend, time goes on and nothing runs."""
    assert daemon.process is not None
    return stopped(daemon.process.pid, *workers(daemon))


def assert_went(watch: Watch, client: list[str], gateway: list[str]) -> None:
    watch.assert_flows(timeout_s=60)  # TCP may be in a back-off of its own
    watch.assert_same_session()
    assert watch.story("client") == client
    assert watch.story("gateway") == gateway


# --- sleep ---


@pytest.mark.parametrize("side", ["client", "gateway"])
def test_a_nap_is_not_noticed(stage: Stage, side: str) -> None:
    """Longer than ten heartbeats, shorter than volatile_after_ms; queues keep what was sent."""
    pair = stage.pair(client_policy=FULL, gateway_policy=FULL)
    with stage.watch(pair) as watch:
        with asleep(getattr(pair, side)):
            time.sleep(1.1)  # the nap's length is the test
        seen = fate(watch)
        assert seen.longest_gap_ms > 1000
        assert seen.lost == 0
        assert_went(watch, [], [])


@pytest.mark.parametrize("side", ["client", "gateway"])
def test_a_worker_that_slept_with_its_host_did_not_hang(stage: Stage, side: str) -> None:
    pair = stage.pair(client_policy=FULL, gateway_policy=FULL)
    with stage.watch(pair) as watch:
        daemon: Daemon = getattr(pair, side)
        before = workers(daemon)
        with asleep(daemon):
            time.sleep(2 * HUNG_LOOKS * LOOK_S)  # the sleep's length is the test
        watch.assert_flows(timeout_s=60)
        watch.assert_same_session()
        assert workers(daemon) == before
        assert of_type(watch, side, "WORKER_RESTARTED") == []


def test_a_stalled_control_process_stalls_nobody_else(stage: Stage) -> None:
    """The workers have the keys and the descriptors: traffic goes on, and wakes nobody up."""
    pair = stage.pair(client_policy=FULL, gateway_policy=FULL)
    with stage.watch(pair) as watch:
        assert pair.client.process is not None
        with stopped(pair.client.process.pid):
            time.sleep(2.5)  # longer than volatile_after_ms
        seen = fate(watch)
        assert seen.lost == 0
        assert seen.longest_gap_ms < 1000
        assert_went(watch, [], [])
        (resumed,) = of_type(watch, "client", "AUDIT_EVENT")
        assert resumed["details"]["what"] == "resumed"
        assert resumed["details"]["stalled_ms"] > 2000


def test_longer_than_the_gateways_patience_only(stage: Stage) -> None:
    """The gateway has lost its client, which slept too short a time to doubt: the gateway asks."""
    pair = stage.pair(client_policy=FULL, gateway_policy=QUICK)
    with stage.watch(pair) as watch:
        with asleep(pair.client):
            wait_to(watch, SILENT, "gateway")
        wait_to(watch, BACK)
        assert_went(watch, [REBOUND, BACK], [LATE, SILENT, BACK])


def test_longer_than_the_gateways_recovery_window(stage: Stage) -> None:
    """The client knows that it slept, and asks to be bound again at once."""
    pair = stage.pair(client_policy=QUICK, gateway_policy=QUICK)
    with stage.watch(pair) as watch:
        with asleep(pair.client):
            wait_to(watch, WINDOW, "gateway")
        wait_to(watch, BACK)
        (why,) = moves(watch)
        assert why["why"] == "resumed"
        assert_went(watch, [ORDERED, BACK], [LATE, SILENT, WINDOW, RETRIED, BACK])


def succeeded(watch: Watch) -> None:
    """Another session, which names the old one, carries the same connections on."""
    created = watch.pair.client.wait_for(
        lambda e: e["event_type"] == "SESSION_CREATED", after=watch.seq()
    )
    assert created["details"]["supersedes"] == watch.session != created["session_id"]
    inner = watch.addresses
    watch.begin()
    assert (watch.session, watch.addresses) == (created["session_id"], inner)
    assert_went(watch, [], [])


def test_longer_than_the_transport_loss_ttl(stage: Stage) -> None:
    pair = stage.pair(client_policy=MORTAL, gateway_policy=MORTAL)
    with stage.watch(pair) as watch:
        with asleep(pair.client):
            for uplink in (stage.lab.a, stage.lab.b):
                uplink.silence()  # a host that is suspended does not hear the farewell
            ended = pair.gateway.wait_state("TERMINATED", after=watch.seq("gateway"))
            stage.heal()
        assert ended["reason"] == "TTL_TRANSPORT_LOSS_EXPIRED"
        pair.client.wait_state("TERMINATED", after=watch.seq())
        assert watch.story("client") == [ORDERED, "RECOVERING -> TERMINATED SESSION_EXPIRED"]
        succeeded(watch)


def test_longer_than_the_session_ttl(stage: Stage) -> None:
    policy = QUICK + "session_ttl_ms = 3000\ntransport_loss_ttl_ms = 3000\n"
    pair = stage.pair(client_policy=policy, gateway_policy=policy)
    watch = Watch(pair)
    with asleep(pair.client):
        ended = pair.gateway.wait_state("TERMINATED", after=watch.seq("gateway"))
        until(lambda: time.time() * 1000 - ended["ts_ms"] > 200, "it is over for the client too")
    assert ended["reason"] == "TTL_SESSION_EXPIRED"
    pair.client.wait_state("TERMINATED", after=watch.seq())
    assert watch.story("client")[-1].endswith("-> TERMINATED TTL_SESSION_EXPIRED")
    until(lambda: of_type(watch, "client", "SESSION_CREATED"), "it has a successor")
    (created,) = of_type(watch, "client", "SESSION_CREATED")
    assert created["details"]["supersedes"] == watch.session != created["session_id"]
    with Traffic("echo", stage.lab.client, stage.lab.gateway, INNER["gateway"][0], "50") as echo:
        echo.wait_until("received", above=5)


def test_a_gateway_that_slept_loses_no_session(stage: Stage) -> None:
    """Its clients have called it dead meanwhile; both hold to the same session."""
    pair = stage.pair(client_policy=QUICK, gateway_policy=QUICK)
    with stage.watch(pair) as watch:
        with asleep(pair.gateway):
            wait_to(watch, SILENT)
        wait_to(watch, BACK)
        watch.assert_flows(timeout_s=60)
        watch.assert_same_session()
        assert watch.story("client")[:2] == [LATE, SILENT]
        assert watch.story("client")[-1] == BACK


# --- the wall clock ---


class Clock:
    """The wall clock of one daemon, and no other of its clocks, is what is said here."""

    def __init__(self, daemon: Daemon) -> None:
        (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
        self._file = daemon.folder / "clock"
        self.set(0)
        daemon.environment |= {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Else it takes the monotonic time-outs of locks for wall time: with a clock that was
            # set back they are over at once, and threads spin for the interpreter's lock.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }

    def set(self, off_s: int) -> None:
        """So far from the machine's time."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{off_s:+d}s\n")
        new.rename(self._file)  # never half a line


def seconds_off(daemon: Daemon) -> float:
    return float(daemon.events()[-1]["ts_ms"] / 1000 - time.time())


@pytest.mark.parametrize("side", ["client", "gateway"])
def test_setting_the_wall_clock_changes_nothing(stage: Stage, side: str) -> None:
    """An hour ahead, two hours back; new keys are agreed on and paths change meanwhile. Then the
    daemon is started anew, with a clock that is still behind its own last handshake."""
    stage.strike()
    stage.heal()
    policy = QUICK + "rekey_after_ms = 1000\n"
    with Pair(stage.lab.client, stage.lab.gateway, 4, policy, policy) as pair:
        daemon: Daemon = getattr(pair, side)
        clock = Clock(daemon)
        pair.start()
        with stage.watch(pair) as watch:
            for off_s in (3600, -7200):
                watch.begin()
                clock.set(off_s)
                until(lambda: of_type(watch, "client", "REKEY"), "a rekey")
                switched(stage, watch)
                assert abs(seconds_off(daemon) - off_s) < 60
                assert fate(watch).lost == 0
            watch.assert_same_session()
            daemon.stop()
            daemon.lose_table()
            daemon.start()
            pair.client.wait_for(
                lambda e: e["event_type"] == "SESSION_CREATED",
                after=0 if side == "client" else watch.seq(),
            )
            assert abs(seconds_off(daemon) + 7200) < 60
            watch.begin()
            assert_went(watch, [], [])


def switched(stage: Stage, watch: Watch) -> None:
    """The operator moves the session, and it stays the same."""
    goal = stage.other(watch.bound()).device
    done = watch.pair.client.ctl("switch", goal)
    assert done.returncode == 0, done.stderr
    wait_to(watch, BACK)
    assert watch.bound() == goal
    assert watch.story("client") == watch.story("gateway") == [ORDERED, BACK]
