"""When silence is suspicion, and when it is death: never without a reason that can be told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.core import constants as c
from jvpnd.core.loss import Report
from jvpnd.core.path import Path, PathInfo
from jvpnd.core.policy import Policy
from jvpnd.core.watch import BindingWatch, Traffic, Verdict

POLICY = Policy()
RTT_MS = 20.0
INDEX = 7


def path(name: str, transport: str = "udp") -> Path:
    """A path with a round trip of 20 ms, so an RTO of 30 to 60 ms."""
    made = Path(PathInfo(name, transport, name, "-", "-"), 1, 0.0, POLICY)
    for _ in range(20):
        made.rtt.sample(RTT_MS)
    return made


class Bench:
    """A watch over `bound`, with one candidate."""

    def __init__(self) -> None:
        self.bound, self.other = path("bound"), path("other")
        self.watch = BindingWatch(-1.0)

    def verdict(self, now_ms: float) -> Verdict:
        return self.watch.assess(now_ms, self.bound, [self.other], POLICY)

    def probe(self, target: Path, now_ms: float, answered: bool) -> None:
        number = target.probe_sent(now_ms)
        if answered:
            target.probe_answered(number, now_ms + RTT_MS)

    def burst(self, now_ms: float, other_answers: bool) -> None:
        """A round of probes that the bound path does not answer."""
        self.probe(self.bound, now_ms, answered=False)
        self.probe(self.other, now_ms, answered=other_answers)
        self.watch.burst.append(now_ms)


def test_silence_means_nothing_while_nothing_was_sent() -> None:
    bench = Bench()
    assert bench.verdict(3_600_000) is Verdict.ALIVE
    assert bench.watch.burst_due_ms(POLICY) is None


def test_silence_longer_than_the_rto_is_suspicion_and_calls_for_a_burst() -> None:
    bench = Bench()
    bench.watch.sent(1_000)
    rto_ms = bench.bound.rtt.rto_ms
    assert bench.verdict(1_000 + rto_ms) is Verdict.ALIVE
    late_ms = 1_001 + rto_ms
    assert bench.verdict(late_ms) is Verdict.SUSPECT
    assert bench.watch.burst_due_ms(POLICY) == late_ms


def test_a_burst_goes_over_to_the_busy_heartbeat() -> None:
    bench = Bench()
    bench.watch.sent(0)
    bench.verdict(100)
    for n in range(1, c.BURST_LIMIT):
        bench.watch.burst.append(100.0 * n)
        assert bench.watch.burst_due_ms(POLICY) == 100.0 * n + c.BURST_GAP_MS
    bench.watch.burst.append(5_000)
    assert bench.watch.burst_due_ms(POLICY) == 5_000 + POLICY.heartbeat_active_ms


def test_a_burst_unanswered_while_another_path_answers_is_death() -> None:
    bench = Bench()
    bench.watch.sent(0)
    assert bench.verdict(100) is Verdict.SUSPECT
    for n in range(c.BURST_DEAD):
        bench.burst(100 + n, other_answers=True)
    bench.watch.heard_ms = -1_000
    patient_ms = bench.bound.rtt.rto_ms + c.RTT_STEP_MS
    assert bench.verdict(patient_ms - 0.1) is Verdict.SUSPECT
    assert bench.verdict(patient_ms) is Verdict.DEAD
    assert bench.watch.why == "silent while another path answers"


def test_a_path_that_becomes_slower_by_a_step_is_not_dead() -> None:
    """Busy: the last packet was heard at 1000, and the next one comes 200 ms later than before."""
    bench = Bench()
    bench.watch.heard(1_000)
    bench.watch.sent(1_005)
    for n in range(12):
        bench.verdict(1_040 + n * c.BURST_GAP_MS)
        bench.burst(1_040 + n * c.BURST_GAP_MS, other_answers=True)
    slowest_ms = 1_000 + c.RTT_STEP_MS
    assert bench.verdict(slowest_ms) is Verdict.SUSPECT
    bench.watch.heard(slowest_ms + 5)
    assert bench.verdict(slowest_ms + 5) is not Verdict.DEAD


def test_an_idle_path_is_given_the_step_from_the_question_on() -> None:
    bench = Bench()
    bench.watch.heard(0)
    bench.watch.sent(1_000)
    rto_ms = bench.bound.rtt.rto_ms
    assert bench.watch.patience_ms(bench.bound) == 1_000 + rto_ms + c.RTT_STEP_MS


def test_an_answer_to_a_probe_from_before_the_suspicion_is_no_evidence() -> None:
    bench = Bench()
    bench.watch.sent(0)
    bench.probe(bench.other, 95, answered=True)  # sent before, answered after
    bench.verdict(100)
    for n in range(c.BURST_DEAD):
        bench.burst(100 + n, other_answers=False)
    assert bench.verdict(1_000) is Verdict.SUSPECT


def test_without_another_path_the_policy_decides() -> None:
    bench = Bench()
    bench.watch.sent(0)
    for n in range(c.BURST_LIMIT):
        bench.burst(100 + n, other_answers=False)
    assert bench.verdict(POLICY.volatile_after_ms - 1) is Verdict.SUSPECT
    assert bench.verdict(POLICY.volatile_after_ms) is Verdict.LATE
    assert bench.verdict(POLICY.volatile_to_degraded_ms - 1) is Verdict.LATE
    assert bench.verdict(POLICY.volatile_to_degraded_ms) is Verdict.DEAD
    assert bench.watch.why == "silent, and no other path answers"


def test_whatever_is_heard_ends_the_silence() -> None:
    bench = Bench()
    bench.watch.sent(0)
    bench.verdict(100)
    bench.burst(100, other_answers=True)
    bench.watch.heard(110)
    assert bench.verdict(120) is Verdict.ALIVE
    assert bench.watch.burst == []


def test_probes_unanswered_while_data_is_heard_call_for_a_burst() -> None:
    bench = Bench()
    bench.probe(bench.bound, 0, answered=False)
    bench.watch.heard(30)
    assert bench.verdict(100) is Verdict.UNANSWERED
    assert bench.watch.burst_due_ms(POLICY) == 100
    bench.probe(bench.bound, 100, answered=True)
    assert bench.verdict(120) is Verdict.ALIVE


def test_what_was_heard_before_the_question_does_not_answer_it() -> None:
    bench = Bench()
    bench.watch.sent(1_000)
    bench.watch.heard(999)
    assert bench.verdict(2_000) is Verdict.SUSPECT


def test_probes_unanswered_on_this_path_only_are_death_however_much_is_heard() -> None:
    bench = Bench()
    for n in range(c.ONE_WAY_DEAD):
        bench.probe(bench.bound, 100.0 * n, answered=False)
        bench.watch.heard(100.0 * n + 1)
    now_ms = 100.0 * c.ONE_WAY_DEAD
    assert bench.verdict(now_ms) is Verdict.UNANSWERED, "without evidence from elsewhere"
    bench.probe(bench.other, now_ms, answered=True)
    assert bench.verdict(now_ms + RTT_MS) is Verdict.DEAD
    assert bench.watch.why == "probes unanswered on this path only"


def test_probes_from_before_the_binding_say_nothing_of_it() -> None:
    bench = Bench()
    for n in range(c.ONE_WAY_DEAD):
        bench.probe(bench.bound, 10.0 * n, answered=False)
    bench.probe(bench.other, 200, answered=True)
    bench.watch = BindingWatch(201)
    assert bench.verdict(1_000) is Verdict.ALIVE


def test_data_of_an_older_epoch_says_nothing_of_this_binding() -> None:
    bench = Bench()
    stale = Traffic(1, 50, 1, 60, rx_index=INDEX - 1)
    assert not bench.watch.observe(stale, INDEX)
    assert bench.watch.waiting_ms == 50
    assert bench.watch.observe(Traffic(1, 50, 2, 70, rx_index=INDEX), INDEX)
    assert bench.watch.waiting_ms is None


def test_data_sent_after_the_last_that_was_heard_waits_for_an_answer() -> None:
    bench = Bench()
    bench.watch.observe(Traffic(1, 50, 1, 60, INDEX), INDEX)
    assert bench.watch.waiting_ms is None
    bench.watch.observe(Traffic(2, 70, 1, 60, INDEX), INDEX)
    bench.watch.observe(Traffic(3, 80, 1, 60, INDEX), INDEX)
    assert bench.watch.waiting_ms == 70, "since the first of them"


def test_a_path_is_busy_for_a_while_after_traffic_of_either_direction() -> None:
    bench = Bench()
    bench.watch.traffic = Traffic(1, 100, 1, 1_000)
    assert bench.watch.is_busy(999 + c.ACTIVE_FOR_MS)
    assert not bench.watch.is_busy(1_000 + c.ACTIVE_FOR_MS)


@given(st.floats(1, 5_000), st.floats(1, 100_000))
def test_a_stall_of_the_host_is_not_silence_of_the_path(silent_ms: float, stall_ms: float) -> None:
    plain, stalled = Bench(), Bench()
    for bench in (plain, stalled):
        bench.watch.sent(1_000)
        bench.watch.burst.append(1_010)
    stalled.watch.shift(stall_ms)
    # A hair off the thresholds, where floats may round either way.
    if all(abs(silent_ms - at) > 0.01 for at in (2_000, 4_000, plain.bound.rtt.rto_ms)):
        assert plain.verdict(1_000 + silent_ms) is stalled.verdict(1_000 + silent_ms + stall_ms)


# --- streams ---


@pytest.mark.parametrize(
    ("transport", "step_ms"),
    [
        ("udp", c.RTT_STEP_MS),
        ("quic", c.RTT_STEP_MS),
        ("tcp", c.STREAM_STEP_MS),
        ("tls", c.STREAM_STEP_MS),
    ],
)
def test_a_stream_may_be_held_up_by_one_lost_segment(transport: str, step_ms: int) -> None:
    """The kernel sends it again after 200 ms or more: until then silence is no death."""
    bench = Bench()
    bench.bound, bench.watch = path("bound", transport), BindingWatch(-1_000)
    bench.watch.sent(0)
    bench.verdict(100)
    for n in range(c.BURST_DEAD):
        bench.burst(100 + n, other_answers=True)
    patience_ms = bench.watch.patience_ms(bench.bound)
    assert patience_ms == bench.bound.rtt.rto_ms + step_ms
    assert bench.verdict(patience_ms - 1) is Verdict.SUSPECT
    assert bench.verdict(patience_ms) is Verdict.DEAD


def test_probes_that_a_stream_delivers_late_are_not_lost() -> None:
    for transport, counts in (("udp", True), ("tcp", False)):
        bound = path("bound", transport)
        for number in range(20):
            newest = bound.probe_sent(number)
        bound.told(Report(newest, 2**32 - 1), 20)  # all have come, and no answer has
        bound.settle(20 + bound.rtt.rto_ms + c.RTT_STEP_MS + 1, POLICY)
        assert bool(bound.violations(POLICY)) is counts
