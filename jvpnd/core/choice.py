"""Which path to take: pure functions of what is known of the paths, the policy and the time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from jvpnd.core.constants import EVIDENCE_MS, MIN_EVIDENCE, MORE_EVIDENCE, TRIAL_PROBES
from jvpnd.core.path import Path, PathInfo
from jvpnd.core.policy import Policy


def candidates(paths: Iterable[Path], bound: Path | None, policy: Policy) -> list[Path]:
    """The paths that the policy allows, at most max_candidates: the bound one, then the preferred
    one of each transport, then the second of each."""
    allowed = [p for p in paths if policy.allows(p.info.transport, p.info.uplink)]
    allowed.sort(key=lambda p: (_preference(p, policy), p.added_ms, p.id))
    seen: Counter[str] = Counter()
    turns = {}
    for path in allowed:
        turns[path.id] = seen[path.info.transport]
        seen[path.info.transport] += 1
    allowed.sort(key=lambda p: (p is not bound, turns[p.id]))
    return allowed[: policy.max_candidates]


def warm(infos: Iterable[PathInfo], policy: Policy) -> list[PathInfo]:
    """Of paths that need a connection those to keep connected, at most warm_connections: the
    preferred transport over each uplink, then the next one over each."""
    allowed = [info for info in infos if policy.allows(info.transport, info.uplink)]
    allowed.sort(key=lambda info: (policy.preference(info.transport, info.uplink), info.id))
    seen: Counter[str] = Counter()
    turns = {}
    for info in allowed:
        turns[info.id] = seen[info.uplink]
        seen[info.uplink] += 1
    allowed.sort(key=lambda info: turns[info.id])
    return allowed[: policy.warm_connections]


def is_preferred(path: Path, bound: Path, policy: Policy) -> bool:
    """Whether the policy prefers `path`, where both are healthy."""
    return _preference(path, policy) < _preference(bound, policy)


def _preference(path: Path, policy: Policy) -> tuple[int, int]:
    return policy.preference(path.info.transport, path.info.uplink)


def ranked(paths: Iterable[Path], policy: Policy, now_ms: float) -> list[Path]:
    """Candidates, best first. Health comes before what the policy prefers.

    Paths whose node turns the session away, that died within the cooldown, that were not heard of
    late or do not answer now, or that are below the loss floor go to the end rather than away: a
    bad path is better than none. Of those that are well the ones to the session's own node come
    first.
    """

    def key(path: Path) -> tuple[object, ...]:
        loss = path.loss_ratio(now_ms)
        died = path.died_ms is not None and now_ms - path.died_ms < policy.switch_cooldown_ms
        return (
            path.turns_away,
            died,
            not path.is_fresh(now_ms, policy) or path.overdue(now_ms) > 1,
            policy.loss_floor > 0 and loss > policy.loss_floor,
            path.is_elsewhere,
            _preference(path, policy),
            round(loss, 2),
            path.rtt.srtt_ms if path.rtt.srtt_ms is not None else float("inf"),
            path.added_ms,
            path.id,
        )

    return sorted(candidates(paths, None, policy), key=key)


def rescue(bound: Path, others: Iterable[Path], policy: Policy, now_ms: float) -> Path | None:
    """The best path that mends what is wrong with `bound`, by the improvement factor at least."""
    wrong = bound.violations(policy)
    order = ranked(others, policy, now_ms)
    return next((path for path in order if _mends(path, wrong, policy, now_ms)), None)


def _mends(path: Path, wrong: dict[str, float], policy: Policy, now_ms: float) -> bool:
    if not path.is_fresh(now_ms, policy) or path.violations(policy) or path.turns_away:
        return False
    lost, heard = path.probes.evidence(now_ms - EVIDENCE_MS, now_ms - path.rtt.rto_ms)
    if heard < MIN_EVIDENCE + MORE_EVIDENCE * lost:
        return False
    loss = lost / (lost + heard)
    if policy.loss_floor and loss > policy.loss_floor:
        return False
    has = {
        "loss_up": loss,
        "loss_down": loss,
        "loss_either": loss,
        "rtt_ms": path.rtt.srtt_ms or 0.0,
        "jitter_ms": path.jitter.jitter_ms,
    }
    return all(has[name] * policy.improvement_factor <= value for name, value in wrong.items())


def home(bound: Path, others: Iterable[Path], policy: Policy, now_ms: float) -> Path | None:
    """The best path that the policy prefers to `bound`, by its uplink or its transport, and that is
    fit."""
    better = (p for p in others if is_preferred(p, bound, policy))
    fit = (p for p in ranked(better, policy, now_ms) if p.is_fresh(now_ms, policy))
    return next((p for p in fit if not p.violations(policy) and not p.turns_away), None)


def trial_ms(policy: Policy) -> int:
    """The last part of a stability window, in which a path is probed as if it were busy."""
    return min(policy.stability_window_ms, TRIAL_PROBES * policy.heartbeat_active_ms)
