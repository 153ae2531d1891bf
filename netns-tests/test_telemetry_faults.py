"""Full disks, dead collectors, blocked sockets and slow scrapers, under load: telemetry suffers and
the tunnel does not; it is told once; and the audit trail says what it lacks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lab.collectors import Collector, Journal
from lab.daemons import Daemon
from lab.gauge import workers
from lab.namespace import Namespace
from lab.stage import Stage, Watch, until
from lab.story import FULL, fate, forget

from jvpnd.control.client import ControlClient, NotRunning
from jvpnd.observe.sink import QUEUE
from jvpnd.observe.verify import trail_in, verify

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SYSLOG_PORT, METRICS_PORT = 6514, 9477
DISK_MIB = 64
ORDERS_PER_S = 1000
SIDES = ("client", "gateway")
Told = list[tuple[str, dict[str, Any]]]


@dataclass
class Host:
    """One daemon's telemetry: a small disk of its own, a journal, a collector."""

    folder: Path
    journal: Journal
    collector: Collector

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    def config(self) -> str:
        return (
            f'[audit]\nfile = "{self.disk}/audit.jsonl"\nmax_bytes = 1048576\nkeep = 40\n'
            f'[export.journald]\nsocket = "{self.folder}/journal"\n'
            f'[export.syslog]\ntransport = "tcp"\naddress = "127.0.0.1"\nport = {SYSLOG_PORT}\n'
            f'[export.prometheus]\nlisten = "127.0.0.1:{METRICS_PORT}"\n'
        )

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[None]:
        ballast = self.disk / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(65536))
        try:
            yield
        finally:
            ballast.unlink()


@contextlib.contextmanager
def host(stage: Stage, side: str) -> Iterator[Host]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jvpn-lab-")))
        disk = folder / "disk"
        disk.mkdir()
        mount = ("mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "jvpn-lab", str(disk))
        subprocess.run(mount, check=True)
        stack.callback(subprocess.run, ("umount", "-l", str(disk)), check=True)
        journal = Journal(folder / "journal")
        stack.callback(journal.close)
        collector = Collector(getattr(stage.lab, side), SYSLOG_PORT)
        stack.callback(collector.close)
        yield Host(folder, journal, collector)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture(scope="module")
def hosts(stage: Stage) -> Iterator[dict[str, Host]]:
    with host(stage, "client") as client, host(stage, "gateway") as gateway:
        yield {"client": client, "gateway": gateway}
        stage.strike()  # before their disks go


@pytest.fixture
def watch(stage: Stage, hosts: dict[str, Host]) -> Iterator[Watch]:
    policies = {f"{side}_policy": FULL + hosts[side].config() for side in SIDES}
    with stage.watch(stage.pair(**policies)) as watch:
        for side in SIDES:
            until(lambda: not trouble(getattr(watch.pair, side)), "nothing is degraded")  # noqa: B023
        yield watch


def telemetry(daemon: Daemon) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = daemon.status()["telemetry"]
    return found


def trouble(daemon: Daemon) -> dict[str, str]:
    rows = telemetry(daemon)
    return {name: row["degraded"] for name, row in rows.items() if row["degraded"]}


def make_events(daemon: Daemon, count: int) -> None:
    """So many events at least, at a rate that leaves control time to answer probes: the fault is
    to be telemetry's, not a flood of orders."""
    begin = time.monotonic()
    with ControlClient(daemon.socket_file) as control:
        for number in range(count):
            time.sleep(max(0.0, begin + number / ORDERS_PER_S - time.monotonic()))
            table = {"max_switches_per_minute": 500 + number % 2, "switch_cooldown_ms": 0}
            control.ask("policy_apply", table=table)


def assert_unnoticed(watch: Watch) -> None:
    """No echo was lost, TCP carries on, nothing happened to the session."""
    seen = fate(watch)
    assert seen.sent > 60
    assert seen.lost == 0, seen
    watch.assert_flows()
    watch.assert_same_session()
    assert (watch.story("client"), watch.story("gateway")) == ([], [])


def assert_whole(host: Host, dropped: int = 0) -> None:
    """The audit trail holds, and lacks just what it says."""
    verdict = verify(trail_in(host.disk))
    assert verdict.finding is None, verdict
    assert verdict.dropped == dropped


def scraper_in(namespace: Namespace) -> socket.socket:
    """A connection to the daemon's metrics that takes little at a time."""

    def connect() -> socket.socket:
        scraper = socket.socket()
        scraper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        scraper.settimeout(10)
        scraper.connect(("127.0.0.1", METRICS_PORT))
        return scraper

    return namespace.within(connect)


def scrape(namespace: Namespace) -> str:
    with scraper_in(namespace) as scraper:
        scraper.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        return scraper.makefile("rb").read().decode()


def value_of(text: str, series: str) -> float:
    """0 where there is no such series yet."""
    rows = [line.rpartition(" ") for line in text.splitlines()]
    return next((float(value) for name, _, value in rows if name == series), 0.0)


def runs(host: Host) -> int:
    """How many starts of the daemon the trail tells of."""
    return sum(file.read_text().count('"what":"opened"') for file in trail_in(host.disk))


def told(found: Told) -> list[str]:
    return [kind for kind, _ in found]


def since(source: Callable[[], Told]) -> Callable[[], Told]:
    """What comes to a list from now on."""
    before = len(source())
    return lambda: source()[before:]


@pytest.mark.parametrize("side", SIDES)
def test_a_full_disk(watch: Watch, hosts: dict[str, Host], side: str) -> None:
    daemon, host = getattr(watch.pair, side), hosts[side]
    of_audit = since(lambda: host.journal.of("audit"))
    before = telemetry(daemon)["audit"]["dropped"]
    forget(watch)
    with host.full_disk():
        make_events(daemon, QUEUE + 2000)
        until(lambda: trouble(daemon).get("audit"), "the disk is full")
        until(lambda: telemetry(daemon)["audit"]["dropped"] > before, "events are lost")
        assert_unnoticed(watch)
        assert set(trouble(daemon)) == {"audit"}
        ((kind, details),) = of_audit()
        assert (kind, details["why"]) == ("TELEMETRY_DEGRADED", "No space left on device")
    until(lambda: len(of_audit()) == 2, "it is told that the disk is well")
    kind, details = of_audit()[1]
    lost = telemetry(daemon)["audit"]["dropped"] - before
    assert (kind, details["lost"]) == ("TELEMETRY_RECOVERED", lost)
    assert lost > 0
    assert_unnoticed(watch)
    until(lambda: telemetry(daemon)["audit"]["queued"] == 0, "all is written")
    assert_whole(host, dropped=lost)


@pytest.mark.parametrize("side", SIDES)
def test_an_audit_file_that_is_removed(watch: Watch, hosts: dict[str, Host], side: str) -> None:
    daemon, host = getattr(watch.pair, side), hosts[side]
    of_audit = since(lambda: host.journal.of("audit"))
    make_events(daemon, 1)
    forget(watch)
    (host.disk / "audit.jsonl").unlink()
    make_events(daemon, 10)
    until(lambda: len(of_audit()) == 2, "it is told of, and over")
    assert "removed" in of_audit()[0][1]["why"]
    assert of_audit()[1][1]["lost"] == 0
    assert_unnoticed(watch)
    *older, newest = trail_in(host.disk)
    if older:
        finding = verify([*older, newest]).finding
        assert finding is not None
        assert (finding.file, finding.line) == (str(newest), 1)
        assert "missing" in finding.problem
    for file in older:  # the hole stays, and is not what other tests are about
        file.unlink()
    assert not verify([newest]).is_complete
    assert_whole(host)


@pytest.mark.parametrize("side", SIDES)
def test_a_collector_that_accepts_and_never_reads(
    watch: Watch, hosts: dict[str, Host], side: str
) -> None:
    daemon, host = getattr(watch.pair, side), hosts[side]
    of_syslog = since(lambda: host.journal.of("syslog"))
    forget(watch)
    with host.collector.deaf():
        make_events(daemon, 3000)
        until(lambda: trouble(daemon).get("syslog"), "the collector is given up")
        assert_unnoticed(watch)
        assert set(trouble(daemon)) == {"syslog"}
        assert told(of_syslog()) == ["TELEMETRY_DEGRADED"]
    until(lambda: len(of_syslog()) == 2, "it is told that the collector reads", timeout_s=40)
    assert told(of_syslog())[1] == "TELEMETRY_RECOVERED"
    newest = daemon.last_seq()
    until(lambda: host.collector.sequence[-1] >= newest, "the collector has the newest event")
    assert_unnoticed(watch)


@pytest.mark.parametrize("side", SIDES)
def test_a_collector_that_goes_and_refuses(
    watch: Watch, hosts: dict[str, Host], side: str
) -> None:
    daemon, host = getattr(watch.pair, side), hosts[side]
    of_syslog = since(lambda: host.journal.of("syslog"))
    make_events(daemon, 1)
    forget(watch)
    with host.collector.refusing():
        first = daemon.last_seq()
        make_events(daemon, 50)
        until(lambda: trouble(daemon).get("syslog"), "the collector refuses")
        assert_unnoticed(watch)
        assert told(of_syslog()) == ["TELEMETRY_DEGRADED"]
        assert of_syslog()[0][1]["why"] == "Connection refused"
        last = daemon.last_seq()
    until(lambda: len(of_syslog()) == 2, "it is told that the collector is back", timeout_s=60)
    until(lambda: host.collector.sequence[-1] > last, "the collector has the newest event")
    assert {*range(first + 1, last + 1)} <= set(host.collector.sequence), "it has what was queued"
    assert_unnoticed(watch)


@pytest.mark.parametrize("side", SIDES)
def test_a_journal_that_does_not_read(watch: Watch, hosts: dict[str, Host], side: str) -> None:
    daemon, host = getattr(watch.pair, side), hosts[side]
    of_journal = since(lambda: host.journal.of("journald"))
    forget(watch)
    with host.journal.blocked():
        make_events(daemon, 2000)
        until(lambda: trouble(daemon).get("journald"), "the journal is given up")
        assert_unnoticed(watch)
        assert set(trouble(daemon)) == {"journald"}
    until(lambda: len(of_journal()) == 2, "it is told that the journal reads", timeout_s=40)
    assert told(of_journal()) == ["TELEMETRY_DEGRADED", "TELEMETRY_RECOVERED"]
    assert of_journal()[1][1]["lost"] == 0
    assert_unnoticed(watch)


@pytest.mark.parametrize("side", SIDES)
def test_scrapers_that_do_not_ask_and_do_not_read(
    watch: Watch, hosts: dict[str, Host], side: str
) -> None:
    daemon, host = getattr(watch.pair, side), hosts[side]
    namespace = getattr(watch.pair, side).namespace
    of_scrapes = since(lambda: host.journal.of("prometheus"))
    forget(watch)
    with contextlib.ExitStack() as stack:
        for number in range(12):
            scraper = stack.enter_context(scraper_in(namespace))
            if number % 2:
                scraper.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        until(lambda: telemetry(daemon)["prometheus"]["failed"] >= 6, "the idle ones are given up")
        assert_unnoticed(watch)
        assert told(of_scrapes()) == ["TELEMETRY_DEGRADED"]

    until(lambda: scrape(namespace) and len(of_scrapes()) == 2, "scrapes work again", timeout_s=40)
    text = scrape(namespace)
    assert text.startswith("HTTP/1.1 200 OK\r\n")
    assert 'jvpn_sessions{state="ATTACHED"} 1.0' in text
    assert "jvpn_data_bytes_total" in text
    well = 'jvpn_telemetry_degraded{exporter="prometheus"} 0.0'
    until(lambda: well in scrape(namespace), "a later look tells so, too")
    if side == "client":
        assert 'jvpn_path_state{path="up-' in text
    else:
        assert 'jvpn_store_writes_total{outcome="ok"}' in text
    assert_unnoticed(watch)


def test_metrics_count_switches_their_latency_traffic_and_workers_that_die(watch: Watch) -> None:
    client, gateway = watch.pair.client, watch.pair.gateway

    def seen(daemon: Daemon, series: str) -> float:
        return value_of(scrape(daemon.namespace), series)

    ordered = 'jvpn_switches_total{cause="RECOVERY_START"}'
    latency = 'jvpn_recovery_seconds_count{cause="RECOVERY_START"}'
    died = 'jvpn_worker_restarts_total{worker="downlink"}'
    sent = 'jvpn_data_bytes_total{direction="sent"}'
    names, sides = (ordered, sent), (client, gateway)
    before = {(side, name): seen(side, name) for side in sides for name in names}
    latencies = seen(client, latency)
    assert client.ctl("switch", "--best").returncode == 0
    watch.wait_attached()
    until(lambda: seen(client, latency) == latencies + 1, "the latency is counted")
    for side in sides:
        assert seen(side, ordered) == before[side, ordered] + 1
        until(lambda: seen(side, sent) > before[side, sent], "traffic is counted")  # noqa: B023
    for side in sides:
        watch.begin()
        (pid,) = [pid for pid, role in workers(side).items() if role == "downlink"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: seen(side, died) == 1, "the death is counted")  # noqa: B023
        watch.assert_flows()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("side", SIDES)
def test_the_trail_goes_on_after_a_daemon_died_while_it_wrote(
    watch: Watch, hosts: dict[str, Host], side: str, number: signal.Signals
) -> None:
    daemon, host = getattr(watch.pair, side), hosts[side]
    before, runs_before = verify(trail_in(host.disk)).lines, runs(host)

    def busy() -> None:
        with contextlib.suppress(NotRunning):
            make_events(daemon, 100_000)

    writer = threading.Thread(target=busy)
    writer.start()
    until(lambda: telemetry(daemon)["audit"]["written"] > 200, "it writes")
    daemon.stop(number)
    writer.join()
    daemon.start()
    until(lambda: watch.pair.client.status()["state"] == "ATTACHED", "the client is back")
    make_events(daemon, 10)
    until(lambda: telemetry(daemon)["audit"]["written"] > 10, "it writes again")
    done = daemon.ctl("audit", "verify", str(host.disk), "--json")
    assert done.returncode == 0, done.stdout
    verdict = json.loads(done.stdout)
    assert verdict["lines"] > before
    assert runs(host) == runs_before + 1
