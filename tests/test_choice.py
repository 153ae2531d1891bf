"""Which path is taken: a pure function of what is known, the same for the same knowledge."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from jvpnd.core.choice import candidates, home, is_preferred, ranked, rescue, warm
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


# --- transports ---


def over(uplink: str, transport: str, rtt_ms: float = 20, lost: int = 0) -> Path:
    """A path of this uplink by this transport."""
    made = path(f"{uplink}/{transport}", rtt_ms, lost, transport)
    made.info = replace(made.info, uplink=uplink)
    return made


def infos(*names: str) -> list[PathInfo]:
    """Paths by name: uplink/transport, and perhaps /remote."""
    return [PathInfo(name, name.split("/")[1], name.split("/")[0], "-", "-") for name in names]


def test_of_healthy_paths_the_preferred_transport_is_taken_however_slow() -> None:
    paths = [over("eth0", "tls", 5), over("eth0", "tcp", 10), over("eth0", "udp", 80)]
    assert names(paths) == ["eth0/udp", "eth0/tcp", "eth0/tls"]
    assert names(paths, Policy(allowed_transports=("tcp", "udp"))) == ["eth0/tcp", "eth0/udp"]
    paths[2] = over("eth0", "udp", 80, lost=5)
    assert names(paths) == ["eth0/tcp", "eth0/tls", "eth0/udp"], "health comes first"


def test_the_uplink_is_preferred_before_the_transport() -> None:
    policy = Policy(metered_uplinks=("wwan0",))
    home_tls, away_udp = over("wlan0", "tls"), over("wwan0", "udp")
    assert names([away_udp, home_tls], policy) == ["wlan0/tls", "wwan0/udp"]
    assert is_preferred(home_tls, away_udp, policy)
    assert not is_preferred(away_udp, home_tls, policy)


def test_candidates_are_of_every_transport_before_a_second_one_of_any() -> None:
    """Where UDP is blocked, candidates that are all of UDP are none."""
    paths = [over(f"eth{n}", "udp") for n in range(8)]
    paths += [over("eth0", "tcp"), over("eth1", "tcp"), over("eth0", "tls")]
    chosen = candidates(paths, None, Policy(max_candidates=5))
    assert [p.id for p in chosen] == ["eth0/udp", "eth0/tcp", "eth0/tls", "eth1/udp", "eth1/tcp"]
    bound = paths[7]
    chosen = candidates(paths, bound, Policy(max_candidates=4))
    assert [p.id for p in chosen] == ["eth7/udp", "eth0/udp", "eth0/tcp", "eth0/tls"]


_transports = st.sampled_from(["udp", "quic", "tcp", "tls"])
_made = st.lists(st.tuples(st.sampled_from("abc"), _transports), unique=True, max_size=12)
_policies = st.builds(
    Policy,
    allowed_transports=st.lists(_transports, unique=True, min_size=1).map(tuple),
    max_candidates=st.integers(1, 8),
    warm_connections=st.integers(0, 8),
    metered_uplinks=st.sampled_from([(), ("a",)]),
    forbidden_uplinks=st.sampled_from([(), ("b",)]),
)


@given(_made, _policies, st.integers(0, 11))
def test_candidates_are_allowed_few_and_of_as_many_transports_as_can_be(
    made: list[tuple[str, str]], policy: Policy, bound_at: int
) -> None:
    paths = [over(*each) for each in made]
    allowed = [p for p in paths if policy.allows(p.info.transport, p.info.uplink)]
    bound = allowed[bound_at % len(allowed)] if allowed else None
    chosen = candidates(paths, bound, policy)
    assert set(chosen) <= set(allowed)
    assert len(chosen) == min(policy.max_candidates, len(allowed)) == len(set(chosen))
    unbound = candidates(paths, None, replace(policy, max_candidates=64))
    if bound is not None:
        unbound.remove(bound)
        unbound.insert(0, bound)
    assert chosen == unbound[: policy.max_candidates], "who is bound comes first, no more"
    freely = {p.info.transport for p in candidates(paths, None, policy)}
    assert len(freely) == min(len({p.info.transport for p in allowed}), len(chosen))


@given(_made, _policies)
def test_warm_connections_are_allowed_few_and_over_as_many_uplinks_as_can_be(
    made: list[tuple[str, str]], policy: Policy
) -> None:
    all_of = infos(*(f"{uplink}/{transport}" for uplink, transport in made))
    allowed = [info for info in all_of if policy.allows(info.transport, info.uplink)]
    chosen = warm(all_of, policy)
    assert set(chosen) <= set(allowed)
    assert len(chosen) == min(policy.warm_connections, len(allowed)) == len(set(chosen))
    uplinks = {info.uplink for info in allowed}
    assert len({info.uplink for info in chosen}) == min(len(uplinks), len(chosen))
    assert warm(reversed(all_of), policy) == chosen, "whatever the order of the question"


def test_warm_is_the_preferred_transport_over_each_uplink_then_the_next() -> None:
    of = infos("a/tls", "b/tls", "a/tcp", "b/tcp", "a/quic")
    chosen = [info.id for info in warm(of, Policy(warm_connections=4))]
    assert chosen == ["a/quic", "b/tcp", "a/tcp", "b/tls"]
    chosen = [info.id for info in warm(of, Policy(warm_connections=2, metered_uplinks=("a",)))]
    assert chosen == ["b/tcp", "a/quic"]
    assert warm(of, Policy(warm_connections=0)) == []


def test_home_is_a_preferred_transport_too() -> None:
    udp, tcp, tls = over("eth0", "udp", 80), over("eth0", "tcp", 10), over("eth0", "tls", 10)
    assert home(tls, [tcp, udp], Policy(), NOW_MS) is udp
    assert home(tls, [tcp, lossy(udp)], Policy(), NOW_MS) is tcp
    assert home(udp, [tcp, tls], Policy(), NOW_MS) is None
    policy = Policy(allowed_transports=("tls", "tcp", "udp"))
    assert home(udp, [tcp], policy, NOW_MS) is tcp
    policy = Policy(metered_uplinks=("wwan0",))
    assert home(over("wlan0", "tls"), [over("wwan0", "udp")], policy, NOW_MS) is None
    assert home(over("wwan0", "udp"), [over("wlan0", "tls")], policy, NOW_MS) is not None


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


def test_a_path_to_another_node_has_its_turn_among_the_candidates() -> None:
    mine, away = [path(f"mine{number}", 20) for number in range(5)], path("away", 20)
    away.is_elsewhere = True
    assert away in candidates([*mine, away], mine[4], Policy(max_candidates=3))


def test_of_paths_that_are_well_those_to_the_sessions_own_node_come_first() -> None:
    mine, away = path("mine", 80), path("away", 20)
    away.is_elsewhere = True
    assert names([away, mine]) == ["mine", "away"]
    mine.takes_sessions = False
    assert names([away, mine]) == ["away", "mine"]


def test_nobody_moves_by_choice_to_a_node_that_turns_sessions_away() -> None:
    bound, away = lossy(path("bound", 20)), path("away", 20)
    assert rescue(bound, [away], Policy(), NOW_MS) is away
    away.is_wrong = True
    assert rescue(bound, [away], Policy(), NOW_MS) is None
