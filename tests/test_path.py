"""Which path is taken: a pure function of what is known, the same for the same knowledge."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from jvpnd.core.path import Path, PathInfo, ranked
from jvpnd.core.policy import Policy
from jvpnd.core.rtt import LossWindow

NOW_MS = 10_000.0


def path(name: str, rtt_ms: float | None = None, lost: int = 0, transport: str = "udp") -> Path:
    made = Path(PathInfo(name, transport, name, "-", "-"), 1, 0.0, LossWindow(2_000))
    for number in range(10):
        made.probe_sent(number, NOW_MS - 500)
        if rtt_ms is not None and number >= lost:
            made.probe_answered(number, NOW_MS - 500 + rtt_ms)
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
