"""Telemetry as a whole: what is configured is started, tapped into the event log, and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from jvpnd import __version__
from jvpnd.configtelemetry import TelemetrySettings
from jvpnd.observe.audit import AuditFile
from jvpnd.observe.log import EventLog
from jvpnd.observe.measures import Measures
from jvpnd.observe.sink import Output, Sink
from jvpnd.observe.trouble import Change

if TYPE_CHECKING:
    from jvpnd.observe.exporters.prometheus import ScrapeServer

_log = logging.getLogger("jvpnd")

STOP_TIMEOUT_S: Final = 2.0
LOOK_TIMEOUT_S: Final = 1.0  # of a scrape that waits for the event loop
LOOK_EVERY_S: Final = 1.0  # scrapes in a shorter time see the same: looking costs the loop time


class Telemetry:
    """Make, start and stop it on the event loop; before the first event, so that none is missed."""

    def __init__(
        self,
        settings: TelemetrySettings,
        node: str,
        role: str,
        events: EventLog,
        clock_ms: Callable[[], int],
    ) -> None:
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._is_stopped = False
        self._sinks: list[Sink] = []
        self._server: ScrapeServer | None = None
        self._audit: AuditFile | None = None
        self._measure: Callable[[], Measures] | None = None
        self._look_lock = threading.Lock()
        self._looked: tuple[float, Measures] | None = None
        if settings.audit is not None:
            file, size, keep = settings.audit.file, settings.audit.max_bytes, settings.audit.keep
            self._audit = AuditFile(file, size, keep, node, clock_ms)
            self._add("audit", self._audit)
        # Most daemons have none of these: what is not imported does not hold up a restart.
        if settings.journald is not None:
            from jvpnd.observe.exporters.journald import Journald

            self._add("journald", Journald(settings.journald))
        if settings.syslog is not None:
            from jvpnd.observe.exporters.syslog import Syslog

            to = settings.syslog
            self._add("syslog", Syslog(to.transport, to.address, to.port))
        if settings.prometheus is not None:
            from jvpnd.observe.exporters.metrics import Metrics  # an extra
            from jvpnd.observe.exporters.prometheus import ScrapeServer

            metrics = Metrics(node, role, __version__, self._look)
            events.tap(metrics.take)
            self._server = ScrapeServer(settings.prometheus, metrics.render, self._tell)

    def start(self) -> None:
        for sink in self._sinks:
            sink.start()

    def serve(self, measure: Callable[[], Measures]) -> None:
        """Answer scrapes; `measure` looks at the shell, on the event loop."""
        if self._server is not None:
            self._measure = measure
            self._server.start()

    def hang_up(self) -> None:
        """Answer no scrape any more: the shell is about to stop."""
        self._measure = None
        if self._server is not None:
            self._server.stop()

    async def stop(self) -> None:
        """Let what is queued be written, for a bounded time."""
        await asyncio.gather(
            *(asyncio.to_thread(sink.stop, STOP_TIMEOUT_S) for sink in self._sinks)
        )
        self._is_stopped = True

    def status(self) -> dict[str, Any]:
        """By exporter; empty where nothing is configured."""
        rows = {sink.name: sink.status() for sink in self._sinks}
        if self._server is not None:
            rows[self._server.name] = self._server.status()
        if self._audit is not None:
            rows["audit"] |= {"file": str(self._audit.file), "head": self._audit.head}
        return rows

    def _add(self, name: str, output: Output) -> None:
        sink = Sink(name, output, self._tell)
        self._events.tap(sink.offer)
        self._sinks.append(sink)

    # --- from any thread ---

    def _tell(self, change: Change) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(self._report, change)

    def _report(self, change: Change) -> None:
        if self._is_stopped:
            return
        details: dict[str, object] = {"exporter": change.name}
        if change.why:
            _log.warning("telemetry: %s is degraded: %s", change.name, change.why)
            self._events.append("TELEMETRY_DEGRADED", details={**details, "why": change.why})
        else:
            _log.info("telemetry: %s works again, %d events lost", change.name, change.lost)
            self._events.append("TELEMETRY_RECOVERED", details={**details, "lost": change.lost})

    def _look(self) -> Measures:
        """Of now, or of just now. TimeoutError if the event loop has more to do."""
        with self._look_lock:
            now = time.monotonic()
            if self._looked is None or now - self._looked[0] >= LOOK_EVERY_S:
                answer = asyncio.run_coroutine_threadsafe(self._measured(), self._loop)
                try:
                    self._looked = now, answer.result(LOOK_TIMEOUT_S)
                finally:
                    answer.cancel()
            return self._looked[1]

    async def _measured(self) -> Measures:
        if self._measure is None:
            raise TimeoutError("the daemon is stopping")
        return replace(self._measure(), exporters=self.status())
