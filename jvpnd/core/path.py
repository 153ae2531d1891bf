"""A path (uplink x endpoint x transport) and its health, as probes and traffic show it."""

from __future__ import annotations

from dataclasses import dataclass

from jvpnd.core.constants import FRESH_BEATS, LOOK_SAMPLE_MS, RTT_STEP_MS, STREAM_STEP_MS
from jvpnd.core.loss import DirectionLoss, ProbeLog, Report
from jvpnd.core.policy import Policy
from jvpnd.core.rtt import Jitter, RttEstimator

STREAMS = ("tcp", "tls")


@dataclass(frozen=True, slots=True)
class PathInfo:
    """The facts that the shell knows of a path."""

    id: str
    transport: str
    uplink: str
    local: str
    remote: str
    node: int = 0  # the tag of the gateway's node that is there, where the configuration says


class Path:
    """One way to the gateway, with its health."""

    def __init__(self, info: PathInfo, number: int, now_ms: float, policy: Policy) -> None:
        """`number` names the path to the gateway; it is not used again for a long time."""
        self.info = info
        self.number = number
        self.added_ms = now_ms
        self.rtt = RttEstimator()
        self.jitter = Jitter()
        self.heard_ms: float | None = None
        self.proven_ms: float | None = None  # when the newest probe that was answered was sent
        self.died_ms: float | None = None
        self.probed_ms: float | None = None
        self.told_ms = 0.0  # when the gateway last told which of its probes came
        self.steady_since_ms = now_ms  # no sign of trouble since then
        self.is_elsewhere = False  # it leads to another node than the one that owns the session
        self.takes_sessions = True  # as its node says of itself
        self.is_wrong = False  # its node has said that this session is not its own
        self.set_window(policy.loss_window_ms)
        self._probe_number = 0

    def set_window(self, window_ms: float) -> None:
        """Count loss over this time; what was counted over another is forgotten."""
        self.probes = ProbeLog(window_ms)
        self.up, self.down = DirectionLoss(window_ms), DirectionLoss(window_ms)
        self._either = DirectionLoss(window_ms)  # trouble of both ways shows here in half the time

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def step_ms(self) -> int:
        """By so much it may become slower at once."""
        return STREAM_STEP_MS if self.info.transport in STREAMS else RTT_STEP_MS

    # --- what happens ---

    def probe_sent(self, now_ms: float) -> int:
        """Returns the probe's sequence number."""
        self._probe_number = (self._probe_number + 1) & 0xFFFFFFFF
        self.probes.sent(self._probe_number, now_ms)
        self.probed_ms = now_ms
        return self._probe_number

    def probe_answered(self, sequence: int, now_ms: float) -> bool:
        """False for a reply to nothing that is outstanding."""
        rtt_ms = self.probes.answered(sequence, now_ms)
        if rtt_ms is None:
            return False
        self.rtt.sample(rtt_ms)
        self.jitter.sample(rtt_ms)
        self.proven_ms = max(self.proven_ms or 0, now_ms - rtt_ms)
        self.heard(now_ms)
        return True

    def told(self, report: Report, now_ms: float) -> None:
        """What the gateway says of our probes, perhaps over another path."""
        self.told_ms = now_ms
        self.probes.told(report, now_ms, self.rtt.rto_ms)

    def heard(self, now_ms: float) -> None:
        self.heard_ms = now_ms
        self.died_ms = None

    def carried(
        self, now_ms: float, way: DirectionLoss, came: int, lost: int, in_ms: float, floor: float
    ) -> None:
        """Records of the data plane in the last `in_ms`. Losses of one moment go together (a full
        queue drops many), so many records in a short time count as few."""
        seen = came + max(lost, 0)
        weight = min(1.0, (1 + in_ms / LOOK_SAMPLE_MS) / seen) if seen else 0.0
        for sums in (way, self._either):
            sums.count(now_ms, came * weight, lost * weight, floor)

    def settle(self, now_ms: float, policy: Policy) -> None:
        """Count the probes whose fate has become known."""
        # A path that became slower is not one that loses.
        for is_up, lost in self.probes.fates(now_ms, self.rtt.rto_ms + self.step_ms):
            for sums in (self.up if is_up else self.down, self._either):
                sums.count(now_ms, not lost, lost, policy.loss_floor)
        for sums in (self.up, self.down, self._either):
            sums.forgive_after(now_ms, policy.stability_window_ms)

    def renewed(self) -> None:
        """A binding begins on it: it is judged by what comes now."""
        self.probes.forget()
        for sums in (self.up, self.down, self._either):
            sums.forgive()

    def troubled(self, now_ms: float) -> None:
        """It is not to be trusted before it has been steady for a while again."""
        self.steady_since_ms = now_ms

    # --- what it is worth ---

    @property
    def turns_away(self) -> bool:
        """It is no use to ask its node for a binding."""
        return self.is_wrong or not self.takes_sessions

    def is_fresh(self, now_ms: float, policy: Policy) -> bool:
        """Heard, or new, a short time ago: worth data that nobody has confirmed yet."""
        latest = self.added_ms if self.heard_ms is None else max(self.heard_ms, self.added_ms)
        fresh_ms = FRESH_BEATS * policy.candidate_heartbeat_ms(self.info.uplink)
        return self.died_ms is None and now_ms - latest <= fresh_ms

    def loss_ratio(self, now_ms: float) -> float:
        """Share of the probes that got no answer, both ways together, 0 to 1."""
        return self.probes.loss(now_ms, self.rtt.rto_ms) or 0.0

    def overdue(self, now_ms: float) -> int:
        """How many of its newest probes should have been answered and were not."""
        return self.probes.overdue(now_ms, self.rtt.rto_ms, self.added_ms)[0]

    def is_doubtful(self) -> bool:
        """On the way below the loss floor: time to look at the others."""
        return any(sums.is_doubtful for sums in (self.up, self.down, self._either))

    def violations(self, policy: Policy) -> dict[str, float]:
        """What is worse than a floor of the policy allows, and how bad it is."""
        found: dict[str, float] = {}
        ways = {"loss_up": self.up, "loss_down": self.down, "loss_either": self._either}
        for name, sums in ways.items():
            lost = sums.violation(policy.loss_floor)
            if lost is not None:
                found[name] = round(lost, 3)
        srtt_ms, jitter_ms = self.rtt.srtt_ms or 0.0, self.jitter.jitter_ms
        if policy.latency_floor_ms and srtt_ms > policy.latency_floor_ms:
            found["rtt_ms"] = round(srtt_ms, 1)
        if policy.jitter_floor_ms and jitter_ms > policy.jitter_floor_ms:
            found["jitter_ms"] = round(jitter_ms, 1)
        return found
