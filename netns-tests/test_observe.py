"""What an operator sees of real daemons: events by filter, the report, and top."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from lab.daemons import Daemon, Event
from lab.gauge import workers
from lab.schema import assert_valid
from lab.stage import Stage, Watch, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

OFTEN = "max_switches_per_minute = 600\nswitch_cooldown_ms = 0\n"


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture
def watch(stage: Stage) -> Iterator[Watch]:
    with stage.watch(stage.pair(client_policy=OFTEN, gateway_policy=OFTEN)) as watch:
        yield watch


def told(daemon: Daemon, *arguments: str) -> str:
    done = daemon.ctl(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def events(daemon: Daemon, *arguments: str) -> list[Event]:
    return [json.loads(line) for line in told(daemon, "--json", "events", *arguments).splitlines()]


def switch(watch: Watch) -> None:
    """By order, to the other uplink."""
    seq = watch.pair.client.last_seq()
    told(watch.pair.client, "switch", "--best")
    watch.pair.client.wait_state("ATTACHED", after=seq)


def test_top_shows_each_session_its_rates_and_the_paths(watch: Watch) -> None:
    client, gateway = watch.pair.client, watch.pair.gateway
    looks = {
        daemon: json.loads(told(daemon, "top", "--once", "--json")) for daemon in (client, gateway)
    }
    for look in looks.values():
        (session,) = look["sessions"]
        assert session["id"] == watch.session
        assert session["rates"] == look["rates"]
        assert session["rates"]["tx_bytes_per_s"] > 0
        assert session["rates"]["rx_packets_per_s"] > 0
        assert look["states"] == {"ATTACHED": 1}
    assert looks[client]["paths"][0]["state"] == "bound"
    assert looks[client]["paths_in_all"] == 2
    assert looks[gateway]["paths"] == []
    page = told(gateway, "top", "--once")
    assert "laptop" in page
    assert "bit/s" in page


def test_top_goes_on_while_sessions_come_and_go(watch: Watch) -> None:
    gateway = watch.pair.gateway
    command = (sys.executable, "-m", "jvpnd.cli.main", "--socket", str(gateway.socket_file))
    seen: list[dict[str, Any]] = []
    from jvpnd.control.client import ControlClient

    with ControlClient(gateway.socket_file) as control:
        looks = control.stream("top", False, interval_ms=200, rows=20)
        seen.append(next(looks))
        subprocess.run([*command, "terminate", watch.session], check=True, capture_output=True)
        deadline = time.monotonic() + 30
        while watch.session in ids(seen[-1]) or not ids(seen[-1]):
            assert time.monotonic() < deadline
            seen.append(next(looks))
    assert ids(seen[0]) == [watch.session]
    assert len(ids(seen[-1])) == 1  # the one that came after it
    watch.pair.client.wait_state("ATTACHED", after=watch.seq())


def ids(look: dict[str, Any]) -> list[str]:
    return [session["id"] for session in look["sessions"]]


def test_the_report_counts_what_was_done(watch: Watch) -> None:
    client, gateway = watch.pair.client, watch.pair.gateway
    before = {daemon: report(daemon) for daemon in (client, gateway)}
    for _ in range(3):
        switch(watch)
    for daemon, old in before.items():
        new = report(daemon)
        row = new["by_reason"]["RECOVERY_START"]
        done = old["by_reason"].get("RECOVERY_START", {"count": 0})["count"]
        assert row["count"] - done == 3
        assert row["recovery_ms"]["worst"] >= row["recovery_ms"]["median"] >= 0
    assert new["by_reason"]["RECOVERY_START"]["outage_ms"] is None  # a gateway cannot know
    assert report(client)["by_reason"]["RECOVERY_START"]["outage_ms"]["worst"] == 0
    assert report(client, watch.session)["sessions"] == 1
    assert report(client, "--since", "1d", "--client", "nobody")["all"]["count"] == 0
    assert "RECOVERY_START" in told(client, "report")


def report(daemon: Daemon, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(told(daemon, "report", "--json", *arguments))
    return found


def test_events_by_type_reason_client_and_age(watch: Watch) -> None:
    switch(watch)
    gateway = watch.pair.gateway
    changes = events(gateway, "--type", "STATE_CHANGE", "--reason", "TRANSPORT_SWITCH_OK")
    assert {(e["event_type"], e["reason"]) for e in changes} == {
        ("STATE_CHANGE", "TRANSPORT_SWITCH_OK")
    }
    assert events(gateway, "--client", "laptop", "--since", "1d")
    assert events(gateway, "--client", "phone") == []
    old = int(time.time() * 1000) - 1000
    assert all(event["ts_ms"] >= old - 60_000 for event in events(gateway, "--since", "1s"))


def test_a_follower_with_a_filter_sees_nothing_else(watch: Watch) -> None:
    client = watch.pair.client
    options = ("--type", "WORKER_RESTARTED", "--type", "REKEY", "-n", "1")
    command = (sys.executable, "-m", "jvpnd.cli.main", "--socket", str(client.socket_file))
    with subprocess.Popen(
        [*command, "--json", "events", "--follow", *options], stdout=subprocess.PIPE, text=True
    ) as following:
        try:
            assert following.stdout is not None
            switch(watch)  # full of events of other types
            pid = next(pid for pid, role in workers(client).items() if role == "uplink")
            os.kill(pid, signal.SIGKILL)
            for line in following.stdout:
                event = json.loads(line)
                assert event["event_type"] in ("WORKER_RESTARTED", "REKEY")
                if event["seq"] > watch.seq() and event["event_type"] == "WORKER_RESTARTED":
                    break
            following.send_signal(signal.SIGINT)
            assert following.wait(20) == 0
        finally:
            following.kill()
    watch.assert_flows()


def test_every_event_of_these_daemons_is_as_the_schema_says(watch: Watch) -> None:
    client = watch.pair.client
    told(client, "switch", "--best")
    until(lambda: client.status()["state"] == "ATTACHED", "attached")
    for daemon in (client, watch.pair.gateway):
        assert_valid(events(daemon))
        assert_valid(json.loads(told(daemon, "--json", "timeline"))["sessions"][0]["entries"])
