"""Which path is taken: a pure function of what is known, the same for the same knowledge."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from jvpnd.core.choice import candidates, home, ranked, rescue
from jvpnd.core.path import Path, PathInfo
from jvpnd.core.policy import Policy

NOW_MS = 10_000.0


def path(name: str, rtt_ms: float | None = None, lost: int = 0, transport: str = "udp") -> Path:
    made = Path(PathInfo(name, transport, name, "-", "-"), 1, 0.0, Policy())
    for number in range(10):
        sequence = made.probe_sent(NOW_MS - 500)
        if rtt_ms is not None and number >= lost:
            made.probe_answered(sequence, NOW_MS - 500 + rtt_ms)
    return made


def lossy(made: Path, loss: float = 0.5) -> Path:
    """Below the loss floor on its way up."""
    for _ in range(100):
        made.up.count(NOW_MS, 1 - loss, loss, Policy().loss_floor)
    return made


def names(paths: list[Path], policy: Policy | None = None) -> list[str]:
    return [p.id for p in ranked(paths, policy or Policy(), NOW_MS)]


def test_the_quicker_of_two_good_paths_is_first() -> None:
    assert names([path("slow", 80), path("quick", 20)]) == ["quick", "slow"]


def test_loss_outranks_rtt() -> None:
    assert names([path("lossy", 5, lost=5), path("slow", 80)]) == ["slow", "lossy"]


def test_a_path_that_was_never_heard_comes_after_one_that_was() -> None:
    assert names([path("mute"), path("slow", 300)]) == ["slow", "mute"]


def test_a_path_that_just_died_comes_last_but_is_not_dropped() -> None:
    dead = path("dead", 1)
    dead.died_ms = NOW_MS - 10
    assert names([dead, path("mute")]) == ["mute", "dead"]


def test_a_forbidden_transport_is_dropped() -> None:
    policy = Policy(allowed_transports=("udp",))
    assert names([path("t", 1, transport="tcp"), path("u", 50)], policy) == ["u"]


@given(st.permutations(["a", "b", "c", "d"]), st.integers(0, 99))
def test_the_order_does_not_depend_on_the_order_of_the_question(
    order: list[str], seed: int
) -> None:
    dice = Random(seed)
    made = {name: path(name, dice.choice([10, 20]), dice.choice([0, 4])) for name in "abcd"}
    assert names([made[name] for name in order]) == names(list(made.values()))


# --- what the policy prefers ---


def test_health_comes_before_preference_and_preference_before_speed() -> None:
    policy = Policy(preferred_uplinks=("eth*",), metered_uplinks=("wwan0",))
    paths = [path("wwan0", 5), path("wlan0", 10), path("eth0", 80)]
    assert names(paths, policy) == ["eth0", "wlan0", "wwan0"]
    assert names([path("eth0", 80, lost=5), path("wwan0", 5)], policy) == ["wwan0", "eth0"]


def test_a_forbidden_uplink_is_no_candidate() -> None:
    policy = Policy(forbidden_uplinks=("w*",))
    assert names([path("wlan0", 1), path("eth0", 50)], policy) == ["eth0"]


def test_the_bound_path_is_a_candidate_before_any_other() -> None:
    policy = Policy(max_candidates=2, preferred_uplinks=("b",))
    a, b, c = path("a"), path("b"), path("c")
    assert candidates([a, b, c], c, policy) == [c, b]
    assert candidates([a, b, c], None, policy) == [b, a]


# --- moves by choice ---


def test_a_path_below_the_loss_floor_is_left_for_one_that_answers() -> None:
    bad, good = lossy(path("bad", 10)), path("good", 80)
    assert rescue(bad, [good], Policy(), NOW_MS) is good


def test_where_all_are_bad_none_is_better() -> None:
    assert rescue(lossy(path("bad", 10)), [lossy(path("other", 10))], Policy(), NOW_MS) is None
    assert rescue(lossy(path("bad", 10)), [path("other", 10, lost=3)], Policy(), NOW_MS) is None


def test_a_candidate_of_which_little_is_known_is_not_taken_by_choice() -> None:
    new = Path(PathInfo("new", "udp", "new", "-", "-"), 1, NOW_MS, Policy())
    new.probe_answered(new.probe_sent(NOW_MS - 50), NOW_MS)
    assert rescue(lossy(path("bad", 10)), [new], Policy(), NOW_MS) is None


def test_a_slow_path_is_left_only_for_one_that_is_quicker_by_the_factor() -> None:
    policy = Policy(latency_floor_ms=100, improvement_factor=1.5)
    slow = path("slow", 150)
    assert rescue(slow, [path("hardly", 101)], policy, NOW_MS) is None, "below the floor itself"
    assert rescue(slow, [path("quick", 99)], policy, NOW_MS) is not None
    policy = Policy(latency_floor_ms=145, improvement_factor=1.5)
    assert rescue(slow, [path("hardly", 110)], policy, NOW_MS) is None


def test_home_is_a_better_uplink_that_is_fit() -> None:
    policy = Policy(preferred_uplinks=("eth0",), metered_uplinks=("wwan0",))
    eth, wlan, wwan = path("eth0", 80), path("wlan0", 10), path("wwan0", 5)
    assert home(wwan, [wlan, eth], policy, NOW_MS) is eth
    assert home(wlan, [wwan, eth], policy, NOW_MS) is eth
    assert home(eth, [wlan, wwan], policy, NOW_MS) is None
    assert home(wwan, [wlan, lossy(eth)], policy, NOW_MS) is wlan
    eth.died_ms = NOW_MS
    assert home(wlan, [eth], policy, NOW_MS) is None
