"""The metrics, in a registry of their own: counted from events, or looked up at a scrape.

Imported only where they are wanted: prometheus-client is an extra. docs/observability.md has a line
for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from jvpnd.core.reasons import Reason
from jvpnd.core.states import State
from jvpnd.observe.log import Event
from jvpnd.observe.measures import Measures, PathMeasure, StoreMeasure

OWNERSHIP_CHANGES: Final = ("taken over", "lost", "let go")
ANOMALY: Final = "anomaly"  # the table does not agree with us, or cannot be reached
# From what a planned switch costs to what max_recovery_window_ms allows by default, and beyond.
LATENCY_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 8.0, 15.0, 60.0)
_Ask = Callable[[], Measures]


class Metrics:
    """`take` is called on the event loop, `render` in any thread."""

    def __init__(self, node: str, role: str, version: str, ask: _Ask) -> None:
        """`ask` gets a look at the shell from the event loop, or raises TimeoutError."""
        self._registry = registry = CollectorRegistry()
        info = Gauge("jvpn_info", "1", ("node", "role", "version"), registry=registry)
        info.labels(node, role, version).set(1)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self._events = counter("jvpn_events", "Events, by type", "type")
        self._changes = counter("jvpn_transitions", "State transitions", "to", "reason")
        self._switches = counter(
            "jvpn_switches", "Switches of transport that succeeded, by what led to them", "cause"
        )
        self._denials = counter("jvpn_switch_denials", "Switches that were not tried", "reason")
        self._reattaches = counter(
            "jvpn_reattach_results", "What the gateway decided on requests to reattach", "reason"
        )
        self._handshakes = counter(
            "jvpn_handshakes", "Handshakes that made a session, or were given up", "reason"
        )
        self._ends = counter("jvpn_sessions_ended", "Sessions that ended", "reason")
        self._security = counter("jvpn_security_events", "Security events", "reason")
        self._ownership = counter(
            "jvpn_ownership", "Sessions that came from other nodes, or went; doubts", "change"
        )
        self._recovery = Histogram(
            "jvpn_recovery_seconds",
            "Time in RECOVERING of switches that succeeded",
            ("cause",),
            registry=registry,
            buckets=LATENCY_S,
        )
        self._outage = Histogram(
            "jvpn_outage_seconds",
            "Time without a transport until a switch that succeeded; 0 for a planned one",
            registry=registry,
            buckets=LATENCY_S,
        )
        # A series that begins with its first event has no increase that an alert could see.
        for reason in (Reason.RATE_LIMITED, Reason.POLICY_DENY):
            self._denials.labels(reason)
        for reason in (each for each in Reason if each.startswith("SEC_")):
            self._security.labels(reason)
        for change in (*OWNERSHIP_CHANGES, ANOMALY):
            self._ownership.labels(change)
        self._causes: dict[str, str] = {}  # of sessions in RECOVERING, by SessionID
        registry.register(_Looked(ask))

    def render(self) -> bytes:
        """The text format, version 0.0.4."""
        return generate_latest(self._registry)

    def take(self, event: Event) -> None:
        """Count one event."""
        kind, reason = event["event_type"], event["reason"] or ""
        self._events.labels(kind).inc()
        if kind == "STATE_CHANGE":
            self._take_change(event, reason)
        elif kind == "SESSION_CREATED":
            self._handshakes.labels(reason or "HANDSHAKE_OK").inc()
        elif kind == "TRANSPORT_SWITCH_DENIED":
            self._denials.labels(reason).inc()
        elif kind == "REATTACH_RESULT":
            self._reattaches.labels(reason).inc()
        elif kind == "SECURITY_EVENT":
            self._security.labels(reason).inc()
        elif kind == "OWNERSHIP":
            what = event["details"].get("what")
            self._ownership.labels(what if what in OWNERSHIP_CHANGES else ANOMALY).inc()

    def _take_change(self, event: Event, reason: str) -> None:
        origin, to, session = event["from"], event["to"], event["session_id"] or ""
        self._changes.labels(to, reason).inc()
        cause = self._causes.pop(session, "") if origin == State.RECOVERING else ""
        if to == State.RECOVERING:
            self._causes[session] = reason
        elif to == State.TERMINATED:
            (self._handshakes if origin == State.BIRTH else self._ends).labels(reason).inc()
        elif to == State.ATTACHED and origin == State.RECOVERING:
            self._switches.labels(cause).inc()
            self._observe(event["details"], cause)

    def _observe(self, details: Mapping[str, Any], cause: str) -> None:
        """Only a client knows how long it took."""
        if "recovery_ms" in details:
            self._recovery.labels(cause).observe(details["recovery_ms"] / 1000)
        if "outage_ms" in details:
            self._outage.observe(details["outage_ms"] / 1000)


class _Looked(Collector):
    """What a scrape looks up."""

    def __init__(self, ask: _Ask) -> None:
        self._ask = ask

    def describe(self) -> list[Metric]:
        return []  # nothing to look up yet when it is registered

    def collect(self) -> Iterator[Metric]:
        seen = self._ask()
        yield _gauge("jvpn_sessions", "Sessions, by state", "state", seen.sessions)
        yield GaugeMetricFamily("jvpn_policy_version", "Policy in force", seen.policy_version)
        packets = {"sent": seen.tx_packets, "received": seen.rx_packets}
        yield _counter("jvpn_data_packets", "Inner packets", "direction", packets)
        octets = {"sent": seen.tx_bytes, "received": seen.rx_bytes}
        yield _counter("jvpn_data_bytes", "Bytes of inner packets", "direction", octets)
        dropped = "jvpn_data_dropped", "Packets that the data plane dropped", "cause"
        yield _counter(*dropped, seen.packets_dropped)
        refused = "jvpn_control_dropped", "Packets and connections that control refused", "cause"
        yield _counter(*refused, seen.control_dropped)
        restarts = "jvpn_worker_restarts", "Data plane workers that died", "worker"
        yield _counter(*restarts, seen.worker_restarts)
        yield from _of_paths(seen.paths)
        if seen.store is not None:
            yield from _of_store(seen.store)
        yield from _of_exporters(seen.exporters)


def _of_paths(paths: Sequence[PathMeasure]) -> Iterator[Metric]:
    rtt = GaugeMetricFamily("jvpn_path_rtt_seconds", "Smoothed round trip", labels=("path",))
    jitter = GaugeMetricFamily("jvpn_path_jitter_seconds", "RFC 3550 jitter", labels=("path",))
    loss = GaugeMetricFamily("jvpn_path_loss_ratio", "Loss", labels=("path", "direction"))
    state = GaugeMetricFamily("jvpn_path_state", "1: its state", labels=("path", "state"))
    for path in paths:
        state.add_metric((path.path, path.state), 1)
        jitter.add_metric((path.path,), path.jitter_s)
        if path.rtt_s is not None:
            rtt.add_metric((path.path,), path.rtt_s)
        for direction, ratio in path.loss.items():
            loss.add_metric((path.path, direction), ratio)
    yield from (rtt, jitter, loss, state)


def _of_store(store: StoreMeasure) -> Iterator[Metric]:
    yield HistogramMetricFamily(
        "jvpn_store_write_seconds",
        "Writes to the session table",
        buckets=list(store.cumulative),
        sum_value=store.sum_s,
    )
    yield _counter("jvpn_store_writes", "Writes, by outcome", "outcome", store.outcomes)


def _of_exporters(exporters: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    def of(key: str) -> dict[str, float]:
        return {name: float(row[key]) for name, row in exporters.items() if key in row}

    label = "exporter"
    written = "jvpn_telemetry_written", "Events that an exporter passed on", label
    yield _counter(*written, of("written"))
    yield _counter("jvpn_telemetry_dropped", "Events that an exporter lost", label, of("dropped"))
    yield _gauge("jvpn_telemetry_queued", "Events that wait", label, of("queued"))
    degraded = {name: float(row["degraded"] is not None) for name, row in exporters.items()}
    yield _gauge("jvpn_telemetry_degraded", "1: it does not work", label, degraded)


def _counter(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family
