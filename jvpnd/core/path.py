"""A path (uplink x endpoint x transport): what its probes say, and which of several to take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from jvpnd.core.constants import FRESH_MS
from jvpnd.core.policy import Policy
from jvpnd.core.rtt import Jitter, LossWindow, RttEstimator


@dataclass(frozen=True, slots=True)
class PathInfo:
    """The facts that the shell knows of a path."""

    id: str
    transport: str
    uplink: str
    local: str
    remote: str


@dataclass(slots=True)
class Path:
    """One candidate way to the gateway, with its health."""

    info: PathInfo
    number: int  # names the path to the gateway; never used again in this client's life
    added_ms: float
    loss: LossWindow
    rtt: RttEstimator = field(default_factory=RttEstimator)
    jitter: Jitter = field(default_factory=Jitter)
    heard_ms: float | None = None
    proven_ms: float | None = None  # when the newest probe that was answered had been sent
    died_ms: float | None = None
    probed_ms: float | None = None
    unanswered: int = 0  # probes in a row
    unanswered_since_ms: float = 0  # when the first of them was sent

    @property
    def id(self) -> str:
        return self.info.id

    def probe_sent(self, sequence: int, now_ms: float) -> None:
        self.loss.sent(sequence, now_ms)
        self.probed_ms = now_ms
        if self.unanswered == 0:
            self.unanswered_since_ms = now_ms
        self.unanswered += 1

    def probe_answered(self, sequence: int, now_ms: float) -> bool:
        """False for a reply to nothing that is outstanding."""
        rtt_ms = self.loss.answered(sequence, now_ms)
        if rtt_ms is None:
            return False
        self.rtt.sample(rtt_ms)
        self.jitter.sample(rtt_ms)
        self.unanswered = 0
        self.proven_ms = max(self.proven_ms or 0, now_ms - rtt_ms)
        self.heard(now_ms)
        return True

    def heard(self, now_ms: float) -> None:
        self.heard_ms = now_ms
        self.died_ms = None

    def is_fresh(self, now_ms: float) -> bool:
        """Heard, or new, a short time ago: worth data that nobody has confirmed yet."""
        latest = self.added_ms if self.heard_ms is None else max(self.heard_ms, self.added_ms)
        return self.died_ms is None and now_ms - latest <= FRESH_MS

    def loss_ratio(self, now_ms: float) -> float:
        return self.loss.loss(now_ms, self.rtt.rto_ms) or 0.0


def ranked(paths: Iterable[Path], policy: Policy, now_ms: float) -> list[Path]:
    """The paths that may be taken, best first: a pure function of what is known.

    Forbidden transports, paths over the loss floor while another is below it, and paths that died
    within the cooldown while another did not, go to the end rather than away: a bad path is better
    than none.
    """

    def key(path: Path) -> tuple[bool, bool, bool, float, float, float, str]:
        loss = path.loss_ratio(now_ms)
        died = path.died_ms is not None and now_ms - path.died_ms < policy.switch_cooldown_ms
        return (
            died,
            not path.is_fresh(now_ms),
            loss > policy.loss_floor,
            round(loss, 2),
            path.rtt.srtt_ms if path.rtt.srtt_ms is not None else float("inf"),
            path.added_ms,
            path.id,
        )

    allowed = [path for path in paths if path.info.transport in policy.allowed_transports]
    return sorted(allowed, key=key)
