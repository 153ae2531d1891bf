"""Telemetry as the daemon has it: configured, tapped into the log, asked, and stopped."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from jvpnd.configtelemetry import Audit, Collector, TelemetrySettings
from jvpnd.observe import telemetry as module
from jvpnd.observe.log import EventLog
from jvpnd.observe.measures import Measures
from jvpnd.observe.telemetry import Telemetry
from jvpnd.observe.verify import trail_in, verify

SEEN = Measures({"ATTACHED": 1}, 1, 0, 0, 0, 0, {}, {}, {})


def run(
    settings: TelemetrySettings, story: Callable[[Telemetry, EventLog], Awaitable[None]]
) -> EventLog:
    """Telemetry from start to stop with this in between."""

    async def life() -> EventLog:
        log = EventLog("gw1", lambda: 1_700_000_000_000)
        telemetry = Telemetry(settings, "gw1", "gateway", log, lambda: 1_700_000_000_000)
        telemetry.start()
        try:
            await story(telemetry, log)
        finally:
            telemetry.hang_up()
            await telemetry.stop()
        return log

    return asyncio.run(life())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def kinds(log: EventLog) -> list[str]:
    return [event["event_type"] for event in log.recent()]


def test_nothing_is_configured_and_nothing_runs() -> None:
    async def story(telemetry: Telemetry, log: EventLog) -> None:
        log.append("REKEY")
        telemetry.serve(lambda: SEEN)
        assert telemetry.status() == {}

    assert kinds(run(TelemetrySettings(), story)) == ["REKEY"]


def test_all_that_happened_up_to_the_stop_is_in_the_audit_file(tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "audit.jsonl"

    async def story(telemetry: Telemetry, log: EventLog) -> None:
        for _ in range(100):
            log.append("REKEY")
        await until(lambda: telemetry.status()["audit"]["written"] > 0)
        log.append("SESSION_TERMINATED")

    run(TelemetrySettings(Audit(file)), story)
    verdict = verify(trail_in(file.parent))
    assert verdict.finding is None
    assert verdict.lines == 103
    assert json.loads(file.read_text().splitlines()[-1])["event_type"] == "SESSION_TERMINATED"


def test_status_tells_where_the_trail_is_and_its_head(tmp_path: Path) -> None:
    file, told = tmp_path / "audit.jsonl", {}

    async def story(telemetry: Telemetry, log: EventLog) -> None:
        log.append("REKEY")
        await until(lambda: telemetry.status()["audit"]["written"] == 1)
        told.update(telemetry.status()["audit"])

    run(TelemetrySettings(Audit(file)), story)
    assert told == {
        "written": 1,
        "dropped": 0,
        "queued": 0,
        "degraded": None,
        "file": str(file),
        "head": verify([file]).head,
    }


def test_trouble_is_an_event_when_it_begins_and_when_it_is_over_and_in_the_trail(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "log"
    folder.write_text("in the way")

    async def story(telemetry: Telemetry, log: EventLog) -> None:
        log.append("REKEY")
        await until(lambda: "TELEMETRY_DEGRADED" in kinds(log))
        folder.unlink()
        await until(lambda: "TELEMETRY_RECOVERED" in kinds(log))

    log = run(TelemetrySettings(Audit(folder / "audit.jsonl")), story)
    assert kinds(log) == ["REKEY", "TELEMETRY_DEGRADED", "TELEMETRY_RECOVERED"]
    degraded, recovered = log.recent()[1:]
    assert degraded["details"] == {"exporter": "audit", "why": "File exists"}
    assert recovered["details"] == {"exporter": "audit", "lost": 0}
    assert verify([folder / "audit.jsonl"]).lines == 5


def test_one_exporter_that_is_dead_is_nothing_to_the_others(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = TelemetrySettings(
        Audit(tmp_path / "audit.jsonl"),
        journald=str(tmp_path / "no journal"),
        syslog=Collector("tcp", "127.0.0.1", port),
    )

    async def story(telemetry: Telemetry, log: EventLog) -> None:
        for _ in range(10):
            log.append("REKEY")
        await until(lambda: kinds(log).count("TELEMETRY_DEGRADED") == 2)
        await until(lambda: telemetry.status()["audit"]["written"] == 12)
        status = telemetry.status()
        assert status["journald"]["degraded"] == "No such file or directory"
        assert status["syslog"]["degraded"] == "Connection refused"
        assert status["audit"]["degraded"] is None

    log = run(settings, story)
    assert {e["details"]["exporter"] for e in log.recent()[10:]} == {"journald", "syslog"}
    assert verify(trail_in(tmp_path)).finding is None


async def scraped(path: Path) -> tuple[str, str]:
    """(status, body)."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return head.split(" ")[1], body


def test_a_scrape_looks_at_the_shell_on_the_event_loop(tmp_path: Path) -> None:
    path, looks = tmp_path / "metrics.sock", []

    def measure() -> Measures:
        looks.append(asyncio.get_running_loop())
        return SEEN

    async def story(telemetry: Telemetry, log: EventLog) -> None:
        telemetry.serve(measure)
        await until(path.exists)
        log.append("SECURITY_EVENT", reason="AUTH_FAIL")
        status, body = await scraped(path)
        assert status == "200"
        assert 'jvpn_sessions{state="ATTACHED"} 1.0' in body
        assert 'jvpn_security_events_total{reason="AUTH_FAIL"} 1.0' in body
        assert (await scraped(path))[0] == "200"
        assert telemetry.status()["prometheus"]["failed"] == 0

    run(TelemetrySettings(prometheus=str(path)), story)
    assert len(looks) <= 2, "scrapes in a row look once a second at most"


def test_a_scrape_of_a_busy_loop_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_TIMEOUT_S", 0.05)
    path = tmp_path / "metrics.sock"

    async def story(telemetry: Telemetry, log: EventLog) -> None:
        telemetry.serve(lambda: SEEN)
        await until(path.exists)
        with socket.socket(socket.AF_UNIX) as scraper:
            scraper.settimeout(10)
            scraper.connect(str(path))
            scraper.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            answer = scraper.recv(100)  # and the loop does nothing else meanwhile
        assert b" 503 " in answer
        await until(lambda: "TELEMETRY_DEGRADED" in kinds(log))

    run(TelemetrySettings(prometheus=str(path)), story)
