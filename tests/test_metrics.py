"""The metrics: what they count, and that docs, dashboard and alert rules know them all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jvpnd.observe.exporters.metrics import Metrics
from jvpnd.observe.log import EventLog
from jvpnd.observe.measures import Measures, PathMeasure, StoreMeasure

DOCS = Path(__file__).parent.parent / "docs"
EXPORTER = {"written": 7, "dropped": 3, "queued": 1, "degraded": "full"}
SEEN = Measures(
    sessions={"ATTACHED": 2, "DEGRADED": 0},
    policy_version=4,
    tx_packets=10,
    tx_bytes=1000,
    rx_packets=20,
    rx_bytes=2000,
    packets_dropped={"bad_tag": 5},
    control_dropped={"handshake rate": 6},
    worker_restarts={"uplink": 1, "downlink": 0},
    paths=(PathMeasure("wlan0/udp/gw", "bound", 0.02, 0.001, {"up": 0.1, "probes": 0.0}),),
    store=StoreMeasure([("0.001", 3), ("+Inf", 4)], 0.5, {"ok": 3, "conflict": 1}),
    exporters={"audit": EXPORTER, "prometheus": {"scrapes": 1, "failed": 0, "degraded": None}},
)
Rows = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def rows(metrics: Metrics) -> Rows:
    """Samples by name and labels, as a scraper reads them."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture
def log() -> EventLog:
    return EventLog("gw1", lambda: 1)


@pytest.fixture
def metrics(log: EventLog) -> Metrics:
    found = Metrics("gw1", "gateway", "0.1", lambda: SEEN)
    log.tap(found.take)
    return found


def change(log: EventLog, origin: str, to: str, reason: str, **details: object) -> None:
    log.append("STATE_CHANGE", "ab" * 16, "laptop", origin, to, reason, 2, 1, details)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return rows(metrics).get((name, tuple(sorted(labels.items()))))


def test_a_switch_is_counted_by_what_led_to_it_and_its_time_goes_into_the_histogram(
    log: EventLog, metrics: Metrics
) -> None:
    change(log, "ATTACHED", "RECOVERING", "TRANSPORT_DEAD")
    change(
        log, "RECOVERING", "ATTACHED", "TRANSPORT_SWITCH_OK", recovery_ms=40.0, outage_ms=300.0
    )
    change(log, "ATTACHED", "RECOVERING", "RECOVERY_START")
    change(log, "RECOVERING", "VOLATILE", "TRANSPORT_SWITCH_DENIED")
    dead = {"cause": "TRANSPORT_DEAD"}
    assert value(metrics, "jvpn_switches_total", **dead) == 1
    assert value(metrics, "jvpn_switches_total", cause="RECOVERY_START") is None
    assert value(metrics, "jvpn_recovery_seconds_sum", **dead) == 0.04
    assert value(metrics, "jvpn_recovery_seconds_bucket", le="0.025", **dead) == 0
    assert value(metrics, "jvpn_recovery_seconds_bucket", le="0.05", **dead) == 1
    assert value(metrics, "jvpn_outage_seconds_sum") == 0.3
    assert (
        value(metrics, "jvpn_transitions_total", to="VOLATILE", reason="TRANSPORT_SWITCH_DENIED")
        == 1
    )


def test_a_gateway_counts_switches_though_it_does_not_know_how_long_they_took(
    log: EventLog, metrics: Metrics
) -> None:
    change(log, "ATTACHED", "RECOVERING", "NAT_REBIND")
    change(log, "RECOVERING", "ATTACHED", "TRANSPORT_SWITCH_OK", remote="x")
    assert value(metrics, "jvpn_switches_total", cause="NAT_REBIND") == 1
    assert value(metrics, "jvpn_recovery_seconds_count", cause="NAT_REBIND") is None
    assert value(metrics, "jvpn_outage_seconds_count") == 0


def test_births_ends_refusals_and_security_are_counted_by_reason(
    log: EventLog, metrics: Metrics
) -> None:
    log.append("SESSION_CREATED", "ab" * 16, reason="HANDSHAKE_OK")
    change(log, "BIRTH", "TERMINATED", "HANDSHAKE_FAIL")
    change(log, "ATTACHED", "TERMINATED", "TTL_SESSION_EXPIRED")
    log.append("TRANSPORT_SWITCH_DENIED", reason="RATE_LIMITED")
    log.append("REATTACH_RESULT", reason="FRESHNESS_INVALID")
    log.append("SECURITY_EVENT", reason="SEC_REPLAY_ATTEMPT")
    log.append("OWNERSHIP", reason="OWNER_MOVED", details={"what": "lost", "owner": "gw2"})
    log.append("OWNERSHIP", reason="SEC_OWNERSHIP_ANOMALY", details={"store": "unavailable"})
    assert value(metrics, "jvpn_handshakes_total", reason="HANDSHAKE_OK") == 1
    assert value(metrics, "jvpn_handshakes_total", reason="HANDSHAKE_FAIL") == 1
    assert value(metrics, "jvpn_sessions_ended_total", reason="TTL_SESSION_EXPIRED") == 1
    assert value(metrics, "jvpn_sessions_ended_total", reason="HANDSHAKE_FAIL") is None
    assert value(metrics, "jvpn_switch_denials_total", reason="RATE_LIMITED") == 1
    assert value(metrics, "jvpn_reattach_results_total", reason="FRESHNESS_INVALID") == 1
    assert value(metrics, "jvpn_security_events_total", reason="SEC_REPLAY_ATTEMPT") == 1
    assert value(metrics, "jvpn_events_total", type="STATE_CHANGE") == 2
    assert value(metrics, "jvpn_ownership_total", change="lost") == 1
    assert value(metrics, "jvpn_ownership_total", change="anomaly") == 1


def test_what_the_shell_knows_is_looked_up(metrics: Metrics) -> None:
    path = {"path": "wlan0/udp/gw"}
    assert value(metrics, "jvpn_info", node="gw1", role="gateway", version="0.1") == 1
    assert value(metrics, "jvpn_sessions", state="ATTACHED") == 2
    assert value(metrics, "jvpn_sessions", state="DEGRADED") == 0
    assert value(metrics, "jvpn_policy_version") == 4
    assert value(metrics, "jvpn_data_bytes_total", direction="received") == 2000
    assert value(metrics, "jvpn_data_packets_total", direction="sent") == 10
    assert value(metrics, "jvpn_data_dropped_total", cause="bad_tag") == 5
    assert value(metrics, "jvpn_control_dropped_total", cause="handshake rate") == 6
    assert value(metrics, "jvpn_worker_restarts_total", worker="uplink") == 1
    assert value(metrics, "jvpn_path_rtt_seconds", **path) == 0.02
    assert value(metrics, "jvpn_path_loss_ratio", direction="up", **path) == 0.1
    assert value(metrics, "jvpn_path_loss_ratio", direction="down", **path) is None
    assert value(metrics, "jvpn_path_state", state="bound", **path) == 1
    assert value(metrics, "jvpn_store_write_seconds_bucket", le="0.001") == 3
    assert value(metrics, "jvpn_store_write_seconds_count") == 4
    assert value(metrics, "jvpn_store_writes_total", outcome="conflict") == 1
    assert value(metrics, "jvpn_telemetry_dropped_total", exporter="audit") == 3
    assert value(metrics, "jvpn_telemetry_degraded", exporter="audit") == 1
    assert value(metrics, "jvpn_telemetry_degraded", exporter="prometheus") == 0


def test_what_alerts_watch_is_there_before_the_first_event(metrics: Metrics) -> None:
    assert value(metrics, "jvpn_switch_denials_total", reason="RATE_LIMITED") == 0
    assert value(metrics, "jvpn_security_events_total", reason="SEC_REPLAY_ATTEMPT") == 0
    assert value(metrics, "jvpn_ownership_total", change="let go") == 0


def test_a_session_that_ends_in_recovery_leaves_nothing_behind(
    log: EventLog, metrics: Metrics
) -> None:
    change(log, "ATTACHED", "RECOVERING", "TRANSPORT_DEAD")
    change(log, "RECOVERING", "TERMINATED", "SESSION_NOT_FOUND")
    assert metrics._causes == {}


def test_a_daemon_that_is_busy_is_a_scrape_that_fails(log: EventLog) -> None:
    def ask() -> Measures:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        Metrics("gw1", "gateway", "0.1", ask).render()


# --- docs ---


def names(log: EventLog, metrics: Metrics) -> set[str]:
    """Of all series, each with one event that makes it appear."""
    test_births_ends_refusals_and_security_are_counted_by_reason(log, metrics)
    test_a_switch_is_counted_by_what_led_to_it_and_its_time_goes_into_the_histogram(log, metrics)
    return {name for name, _ in rows(metrics) if not name.endswith("_created")}


def test_the_dashboard_asks_for_metrics_that_there_are(log: EventLog, metrics: Metrics) -> None:
    board = json.loads((DOCS / "grafana-dashboard.json").read_text())
    asked = set()

    def visit(panels: list[dict[str, Any]]) -> None:
        for panel in panels:
            visit(panel.get("panels", []))
            for target in panel.get("targets", []):
                asked.update(re.findall(r"\bjvpn_\w+", target["expr"]))

    visit(board["panels"])
    assert len(asked) > 15
    assert asked <= names(log, metrics), asked - names(log, metrics)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)


def test_the_alert_rules_ask_for_metrics_that_there_are(log: EventLog, metrics: Metrics) -> None:
    text = (DOCS / "alerts.yml").read_text()
    asked = set(re.findall(r"\bjvpn_\w+", text))
    assert len(asked) > 8
    assert asked <= names(log, metrics), asked - names(log, metrics)
    alerts = re.findall(r"- alert: (\w+)", text)
    assert len(alerts) == len(set(alerts)) > 8
    assert text.count("severity:") == text.count("summary:") == len(alerts)


def test_the_docs_have_a_line_for_each_metric_and_no_other(
    log: EventLog, metrics: Metrics
) -> None:
    documented = set(
        re.findall(r"^\| `(jvpn_\w+)` \|", (DOCS / "observability.md").read_text(), re.MULTILINE)
    )
    found = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names(log, metrics)}
    assert documented == found
