"""Paths that live but are bad: what moves, what stays, and what nobody should take for trouble."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jvpnd.core import constants as c
from jvpnd.core.policy import Policy
from jvpnd.core.states import State

from .ends import ClientEnd, GatewayEnd
from .net import PATHS, WELL, Net
from .world import BLACKHOLE, Conditions

LOSSY = replace(WELL, loss=0.3)
SLOW = replace(WELL, delay_ms=110)


class Story:
    """A settled network under echoes, and what has happened since."""

    def __init__(self, policy: Policy | None = None, seed: int = 1) -> None:
        self.net = Net(seed, policy)
        self.net.attach()
        self.net.run(4_000)
        self.began_ms = self.net.now_ms
        self._first = self.net.client._number + 1
        self._session = self.net.session.id

    def spoil(self, *names: str, up: Conditions = LOSSY, down: Conditions | None = None) -> None:
        for name in names:
            path = self.net.world.paths[name]
            path.up, path.down = up, down or up

    def heal(self, *names: str) -> None:
        self.spoil(*names, up=WELL)

    def told(self) -> list[str]:
        """Transitions since the beginning."""
        assert self.net.session.id == self._session
        return [
            f"{event.from_state} -> {event.to_state} {event.reason}"
            for at_ms, event in self.net.client_history.events
            if at_ms >= self.began_ms and event.event_type == "STATE_CHANGE"
        ]

    def why(self) -> dict[str, object]:
        """Details of the newest transition that led to RECOVERING."""
        moves = [e for _, e in self.net.client_history.events if e.to_state == State.RECOVERING]
        return dict(moves[-1].details)

    def lost(self) -> int:
        """Echoes sent since the beginning that never came back."""
        end_ms = self.net.now_ms - 1_000
        sent = self.net.client.sent_ms
        return sum(n >= self._first and sent[n] < end_ms for n in self.net.client.lost)

    @property
    def other(self) -> str:
        return next(name for name in PATHS if name != self.net.bound)


BELOW = "ATTACHED -> VOLATILE QUALITY_FLOOR_VIOLATION"
MOVED = "VOLATILE -> RECOVERING RECOVERY_START"
BACK = "RECOVERING -> ATTACHED TRANSPORT_SWITCH_OK"
ORDERED = "ATTACHED -> RECOVERING RECOVERY_START"
DIED = "ATTACHED -> RECOVERING TRANSPORT_DEAD"
WORSE = "VOLATILE -> DEGRADED ENTER_DEGRADED_MODE"
BETTER = "DEGRADED -> ATTACHED EXIT_DEGRADED_MODE"
HEALED = "VOLATILE -> ATTACHED HEALTH_RECOVERED"


# --- loss ---


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("up", "down"), [(LOSSY, LOSSY), (LOSSY, WELL), (WELL, LOSSY)])
def test_a_path_that_loses_is_left_for_a_clean_one(
    seed: int, up: Conditions, down: Conditions
) -> None:
    story = Story(seed=seed)
    bad, good = story.net.bound, story.other
    story.spoil(bad, up=up, down=down)
    story.net.run(3_000)
    story.heal(bad)
    story.net.run(7_000)
    assert story.told() == [BELOW, MOVED, BACK]
    assert story.net.bound == good
    assert story.why()["why"] == "quality"
    ways = {key for key in story.why() if key in ("loss_up", "loss_down")}
    assert ways <= {f"loss_{way}" for way, c in (("up", up), ("down", down)) if c is LOSSY}
    assert story.lost() < 0.02 * 2_000  # of ten seconds at 200 Hz


def test_where_every_path_loses_the_session_stays_and_is_degraded_until_it_ends() -> None:
    story = Story(seed=2)
    bound = story.net.bound
    story.spoil(*PATHS)
    story.net.run(6_000)
    assert story.told() == [BELOW, WORSE]
    assert story.net.bound == bound
    story.heal(*PATHS)
    story.net.run(8_000)
    assert story.told() == [BELOW, WORSE, BETTER]


def test_a_short_spike_on_the_only_path_ends_in_attached() -> None:
    story = Story()
    story.net.link_down(story.other)
    story.spoil(story.net.bound)
    story.net.run(600)
    story.heal(story.net.bound)
    story.net.run(8_000)
    assert story.told() == [BELOW, HEALED]


def test_degraded_ends_when_a_good_path_appears() -> None:
    story = Story()
    spare = story.other
    story.net.link_down(spare)
    story.spoil(story.net.bound)
    story.net.run(7_000)
    story.net.link_up(spare)
    story.net.run(3_000)
    assert story.told() == [BELOW, WORSE, "DEGRADED -> RECOVERING RECOVERY_START", BACK]
    assert story.net.bound == spare


def test_a_path_that_dies_in_degraded_is_told_of_and_left_when_another_comes() -> None:
    story = Story()
    spare = story.other
    story.net.link_down(spare)
    story.spoil(story.net.bound)
    story.net.run(7_000)
    story.net.blackhole(story.net.bound)
    story.net.run(5_000)
    assert story.net.agent.bound is None
    assert len(story.net.client_history.of("TRANSPORT_LOST")) == 1
    story.net.link_up(spare)
    story.net.run(1_000)
    assert story.net.bound == spare
    assert story.net.session.state is State.ATTACHED


# --- latency and jitter ---


def test_a_slow_path_is_left_where_the_policy_has_a_floor_and_kept_where_it_has_none() -> None:
    for floor_ms in (100, 0):
        story = Story(Policy(latency_floor_ms=floor_ms))
        slow = story.net.bound
        story.spoil(slow, up=SLOW)
        story.net.run(6_000)
        assert story.told() == ([BELOW, MOVED, BACK] if floor_ms else [])
        assert story.lost() == 0


def test_a_jittery_path_is_left_where_the_policy_has_a_floor() -> None:
    story = Story(Policy(jitter_floor_ms=15))
    story.spoil(story.net.bound, up=replace(WELL, jitter_ms=80))
    story.net.run(8_000)
    assert story.told() == [BELOW, MOVED, BACK]
    assert story.lost() == 0


# --- what is no death ---


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("up", "down"),
    [
        (SLOW, SLOW),
        (replace(WELL, delay_ms=210), WELL),
        (WELL, replace(WELL, delay_ms=210)),
    ],
)
@pytest.mark.parametrize("busy", [True, False])
def test_a_round_trip_that_grows_by_200_ms_at_once_is_no_death(
    seed: int, up: Conditions, down: Conditions, busy: bool
) -> None:
    story = Story(seed=seed)
    story.net.client.busy = busy
    story.net.run(2_000)
    for _ in range(3):
        story.spoil(story.net.bound, up=up, down=down)
        story.net.run(3_000)
        story.heal(story.net.bound)
        story.net.run(3_000)
    assert story.told() == []


@pytest.mark.parametrize(("up_every_ms", "minutes"), [(5, 5), (20, 10), (0, 10)])
def test_three_percent_and_jitter_move_nothing(up_every_ms: int, minutes: int) -> None:
    """Much traffic shows a floor that is too low, little of it a death that is too quick."""
    story = Story()
    story.net.load.up_every_ms = up_every_ms
    story.spoil(*PATHS, up=replace(WELL, loss=0.03, jitter_ms=20))
    story.net.run(minutes * 60_000)
    assert story.told() == []


# --- one way only ---


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_one_way_hole_is_found_as_quickly_and_its_direction_is_told(way: str) -> None:
    story = Story()
    hole = story.net.bound
    setattr(story.net.world.paths[hole], way, BLACKHOLE)
    story.net.run(3_000)
    assert story.told() == [DIED, BACK]
    assert story.why()["way"] == way
    assert story.net.client.longest_gap_ms(story.began_ms) <= 250


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("way", ["up", "down"])
def test_the_direction_is_told_where_round_trips_vary_too(way: str, seed: int) -> None:
    """The RTO is long then, and the probes of the burst are young when the path is called dead."""
    story = Story(seed=seed)
    hole = story.net.bound
    story.spoil(hole, up=replace(WELL, jitter_ms=80))
    story.net.run(4_000)
    story.heal(hole)
    setattr(story.net.world.paths[hole], way, BLACKHOLE)
    story.net.run(3_000)
    assert story.told() == [DIED, BACK]
    assert story.why()["way"] == way


def test_a_hole_upwards_is_found_while_data_keeps_coming_down() -> None:
    """A download: what comes down tells nothing of the way up."""
    story = Story()
    story.net.client.busy = False
    hole = story.net.bound
    for at_ms in range(story.net.now_ms, story.net.now_ms + 5_000, 5):
        story.net.world.at(at_ms, lambda: story.net.world.call("gateway", _push))
    story.net.run(1_000)
    story.net.world.paths[hole].up = BLACKHOLE
    cut_ms = story.net.now_ms
    story.net.world.run_until(lambda: story.net.session.state is not State.ATTACHED, cut_ms + 600)
    story.net.run(500)
    assert story.told() == [DIED, BACK]
    assert (story.why()["why"], story.why()["way"]) == ("probes unanswered on this path only", "up")


def _push(end: GatewayEnd, now_ms: int) -> None:
    end.push(now_ms)


@pytest.mark.parametrize("way", ["up", "down"])
def test_trouble_of_a_candidate_leaves_the_bound_path_alone(way: str) -> None:
    story = Story()
    setattr(story.net.world.paths[story.other], way, BLACKHOLE)
    story.net.run(10_000)
    assert story.told() == []
    candidate = story.net.agent.paths[story.other]
    assert getattr(candidate, way).rate(story.net.now_ms) == 1.0, "the bound path brings the word"
    if way == "down":
        assert candidate.up.rate(story.net.now_ms) == 0.0


# --- preferred and metered ---


def test_a_preferred_uplink_is_gone_back_to_after_the_window_and_without_loss() -> None:
    story = Story(Policy(preferred_uplinks=("wlan",)))
    assert story.net.bound == "wlan"
    story.net.link_down("wlan")
    story.net.run(2_000)
    story.net.link_up("wlan")
    back_ms = story.net.now_ms
    story.net.run(2_900)
    assert story.told() == [DIED, BACK]
    story.net.run(500)
    assert story.told() == [DIED, BACK, ORDERED, BACK]
    assert story.why()["why"] == "failback"
    lost = [n for n in story.net.client.lost if story.net.client.sent_ms[n] > back_ms]
    assert all(story.net.client.sent_ms[n] > story.net.now_ms - 50 for n in lost)


def test_a_metered_uplink_is_the_last_resort_and_left_again() -> None:
    story = Story(Policy(metered_uplinks=("wwan",)))
    assert story.net.bound == "wlan", "although both are as quick"
    story.net.link_down("wlan")
    story.net.run(500)
    assert story.net.bound == "wwan"
    story.net.link_up("wlan")
    story.net.run(4_000)
    assert story.net.bound == "wlan"


def test_a_metered_candidate_is_asked_a_tenth_as_often() -> None:
    story = Story(Policy(metered_uplinks=("wwan",)))
    before = story.net.world.count("send", "wwan up")
    story.net.run(60_000)
    assert story.net.world.count("send", "wwan up") - before <= 7


def test_an_uplink_that_flaps_has_to_be_steady_for_longer_each_time() -> None:
    story = Story(Policy(preferred_uplinks=("wlan",), max_switches_per_minute=60))
    waits = []
    for _ in range(4):
        story.net.link_down("wlan")
        story.net.run(1_000)
        story.net.link_up("wlan")
        up_ms = story.net.now_ms
        story.net.world.run_until(lambda: story.net.bound == "wlan", up_ms + 100_000)
        waits.append(story.net.now_ms - up_ms)
        story.net.run(1_000)
    assert waits == sorted(waits)
    assert waits[-1] >= 8 * Policy().stability_window_ms


# --- bounds ---


def test_moves_by_choice_leave_half_of_the_switches_for_deaths() -> None:
    story = Story(Policy(max_switches_per_minute=4))
    for _ in range(4):
        bad = story.net.bound
        story.spoil(bad)
        story.net.run(2_000)
        story.heal(bad)
        story.net.run(4_000)
    assert story.told().count(BACK) == 2
    assert WORSE in story.told(), "one more would be too many"
    denied = story.net.client_history.of("TRANSPORT_SWITCH_DENIED")
    assert {str(event.reason) for event in denied} == {"RATE_LIMITED"}
    story.net.link_down(story.net.bound)
    story.net.run(1_000)
    assert story.net.session.state is State.ATTACHED, "a death may use the rest"


def test_probes_are_few_on_a_busy_path_and_one_a_heartbeat_on_an_idle_one() -> None:
    story = Story()
    for busy, most in ((True, 20), (False, 1)):
        story.net.client.busy = busy
        story.net.run(2_000)
        before = {name: _controls(story.net, name) for name in PATHS}
        story.net.run(20_000)
        asked = {name: _controls(story.net, name) - before[name] for name in PATHS}
        assert asked[story.net.bound] <= 20 * most
        assert asked[story.other] <= 20


def _controls(net: Net, name: str) -> int:
    lines = net.world.trace
    return sum(n.what == "send" and n.subject == f"{name} up" and n.kind == 7 for n in lines)


# --- policies applied, and sleep ---


def test_a_policy_that_forbids_the_bound_uplink_moves_the_session_off_it() -> None:
    story = Story()
    left, other = story.net.bound, story.other
    policy = Policy(version=2, forbidden_uplinks=(left,))
    story.net.world.call("client", lambda end, now_ms: end.core.apply_policy(now_ms, policy))
    story.net.run(200)
    assert story.net.bound == other
    assert story.told() == [ORDERED, BACK]
    assert story.why()["why"] == "policy"
    assert story.lost() == 0


def test_a_policy_that_forbids_every_uplink_stops_the_traffic_until_another_comes() -> None:
    story = Story()
    policy = Policy(version=2, forbidden_uplinks=("*",))
    story.net.world.call("client", lambda end, now_ms: end.core.apply_policy(now_ms, policy))
    story.net.run(10_000)
    assert story.told() == [DIED, "RECOVERING -> DEGRADED RECOVERY_BOUNDS_EXCEEDED"]
    policy = Policy(version=3)
    story.net.world.call("client", lambda end, now_ms: end.core.apply_policy(now_ms, policy))
    story.net.run(1_000)
    assert story.net.session.state is State.ATTACHED
    applied = [e.details["to_version"] for e in story.net.client_history.of("AUDIT_EVENT")]
    assert applied == [2, 3]


def test_a_gateway_enforces_an_applied_policy_at_once_and_tells_it_with_the_next_keys() -> None:
    story = Story(Policy(rekey_after_ms=20_000))
    policy = Policy(version=2, max_switches_per_minute=1, rekey_after_ms=20_000)
    story.net.world.call("gateway", lambda end, now_ms: end.gateway.apply_policy(now_ms, policy))
    for _ in range(2):
        story.net.world.call("client", lambda end, now_ms: end.core.switch(now_ms, None) and None)
        story.net.run(1_000)
    results = story.net.client_history.of("REATTACH_RESULT")
    assert [str(event.reason) for event in results] == ["REATTACH_ACCEPT", "RATE_LIMITED"]
    story.net.run(30_000)
    assert story.net.agent.policy.max_switches_per_minute == 1


@pytest.mark.parametrize("slept_ms", [5_000, 30_000, 120_000])
def test_a_client_that_slept_is_back_within_a_round_trip_or_two(slept_ms: int) -> None:
    net = Net()
    net.attach()
    session = net.session.id
    wake_ms = net.now_ms + slept_ms
    net.world.freeze("client")
    net.world.at(wake_ms, lambda: net.world.thaw("client"))
    net.run(slept_ms + 1)
    woke_ms = net.now_ms
    net.world.run_until(net.is_attached, woke_ms + 100)
    net.run(1_000)
    assert net.is_attached()
    over = slept_ms > Policy().transport_loss_ttl_ms
    assert (net.session.id != session) == over
    resumed = net.client_history.of("AUDIT_EVENT")[-1].details
    assert resumed["what"] == "resumed"
    assert net.client.longest_gap_ms(woke_ms) < 200


# --- limits at the gateway ---


def test_probes_beyond_any_honest_rate_are_not_answered() -> None:
    story = Story()
    net = story.net

    def ask(end: ClientEnd, now_ms: int) -> None:
        assert end.agent.bound is not None
        end.agent._state.probe(now_ms, end.agent.bound)

    for _ in range(3 * c.PROBE_BURST):
        net.world.call("client", ask)
    net.run(100)
    assert net.gateway.gateway.dropped["probe rate"] >= c.PROBE_BURST
