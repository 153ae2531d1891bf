"""A look at a shell for the metrics; on the event loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from jvpnd.core.path import Path
from jvpnd.core.states import State
from jvpnd.dataplane.plane import DataPlane
from jvpnd.host import now_ms
from jvpnd.observe.measures import Measures, PathMeasure, StoreMeasure
from jvpnd.status import path_state
from jvpnd.store.meter import BOUNDS_S, StoreMeter

if TYPE_CHECKING:  # a daemon loads the shell of its own role only
    from jvpnd.client import ClientShell
    from jvpnd.gateway import GatewayShell


def client_measures(shell: ClientShell) -> Measures:
    """Of a client."""
    agent, now = shell.agent, now_ms()
    states = Counter([agent.session.state] if agent.session is not None else [])
    paths = [_path(path, path_state(agent, path), now) for path in agent.paths.values()]
    return Measures(
        sessions=_by_state(states),
        policy_version=agent.policy.version,
        control_dropped=shell.dropped,
        paths=paths,
        **_plane(shell.plane),
    )


def gateway_measures(shell: GatewayShell) -> Measures:
    """Of a gateway."""
    core = shell.core
    return Measures(
        sessions=_by_state(Counter(peer.session.state for peer in core.sessions.values())),
        policy_version=core.policy.version,
        control_dropped=_by_cause(shell.dropped),
        store=_store(shell.store_meter),
        **_plane(shell.plane),
    )


def _by_state(states: Counter[State]) -> dict[str, int]:
    """Every state but the absorbing one, so that a series does not end when the last one leaves."""
    return {str(state): states[state] for state in State if state is not State.TERMINATED}


def _by_cause(dropped: Mapping[str, int]) -> dict[str, int]:
    """A cause that names a client is one for all of them: there may be thousands."""
    causes: Counter[str] = Counter()
    for cause, count in dropped.items():
        causes[cause.partition(" for ")[0]] += count
    return dict(causes)


def _plane(plane: DataPlane) -> dict[str, Any]:
    return {
        **plane.totals(),
        "packets_dropped": plane.drops(),
        "worker_restarts": dict(plane.restarts),
    }


def _path(path: Path, state: str, now: float) -> PathMeasure:
    srtt = path.rtt.srtt_ms
    loss = {"up": path.up.rate(now), "down": path.down.rate(now), "probes": path.loss_ratio(now)}
    return PathMeasure(
        path.id,
        state,
        None if srtt is None else srtt / 1000,
        path.jitter.jitter_ms / 1000,
        {way: rate for way, rate in loss.items() if rate is not None},
    )


def _store(meter: StoreMeter) -> StoreMeasure:
    bounds = [*map(str, BOUNDS_S), "+Inf"]
    rows = list(zip(bounds, accumulate(meter.counts), strict=True))
    return StoreMeasure(rows, meter.sum_s, dict(meter.outcomes))
