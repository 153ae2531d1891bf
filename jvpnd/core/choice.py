"""Which path to take: pure functions of what is known of the paths, the policy and the time."""

from __future__ import annotations

from collections.abc import Iterable

from jvpnd.core.constants import EVIDENCE_MS, MIN_EVIDENCE, MORE_EVIDENCE, TRIAL_PROBES
from jvpnd.core.path import Path
from jvpnd.core.policy import Policy


def candidates(paths: Iterable[Path], bound: Path | None, policy: Policy) -> list[Path]:
    """The paths that the policy allows, at most max_candidates: the bound one, then by tier."""

    def key(path: Path) -> tuple[bool, int, float, str]:
        return path is not bound, policy.tier(path.info.uplink), path.added_ms, path.id

    allowed = (p for p in paths if policy.allows(p.info.transport, p.info.uplink))
    return sorted(allowed, key=key)[: policy.max_candidates]


def ranked(paths: Iterable[Path], policy: Policy, now_ms: float) -> list[Path]:
    """Candidates, best first. Health comes before what the policy prefers.

    Paths that died within the cooldown, that were not heard of late, or that are below the loss
    floor go to the end rather than away: a bad path is better than none.
    """

    def key(path: Path) -> tuple[bool, bool, bool, int, float, float, float, str]:
        loss = path.loss_ratio(now_ms)
        died = path.died_ms is not None and now_ms - path.died_ms < policy.switch_cooldown_ms
        return (
            died,
            not path.is_fresh(now_ms, policy),
            policy.loss_floor > 0 and loss > policy.loss_floor,
            policy.tier(path.info.uplink),
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
    if not path.is_fresh(now_ms, policy) or path.violations(policy):
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
    """The best path on an uplink that the policy prefers to that of `bound`, and that is fit."""
    tier = policy.tier(bound.info.uplink)
    better = (p for p in others if policy.tier(p.info.uplink) < tier)
    fit = (p for p in ranked(better, policy, now_ms) if p.is_fresh(now_ms, policy))
    return next((p for p in fit if not p.violations(policy)), None)


def trial_ms(policy: Policy) -> int:
    """The last part of a stability window, in which a path is probed as if it were busy."""
    return min(policy.stability_window_ms, TRIAL_PROBES * policy.heartbeat_active_ms)
