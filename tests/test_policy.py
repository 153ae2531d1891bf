"""The policy: what each value may be, what must fit together, and what a wrong one is told."""

from __future__ import annotations

import contextlib
import re
import tomllib
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.core.policy import RANGES, TRANSPORTS, UPLINK_KEYS, Policy, PolicyError

DOCS = Path(__file__).parent.parent / "docs" / "configuration.md"


class _ClashError(Exception):
    """Two values that do not go together."""


def _policy(table: dict[str, object]) -> Policy:
    try:
        return Policy.from_table(table)
    except PolicyError as error:
        if "below" in error.problem or "not above" in error.problem:
            raise _ClashError from error
        raise


@pytest.mark.parametrize("key", RANGES)
def test_a_policy_value_has_inclusive_bounds(key: str) -> None:
    kind, low, high = RANGES[key]
    step = 1 if kind is int else 0.001
    for value in (low, high):
        # beside the other defaults it may be wrong, but it is never out of its own range
        with contextlib.suppress(_ClashError):
            assert getattr(_policy({key: value}), key) == value
    for value in (low - step, high + step):
        with pytest.raises(PolicyError, match="out of range") as caught:
            Policy.from_table({key: value})
        assert caught.value.key == key


@pytest.mark.parametrize("key", RANGES)
@pytest.mark.parametrize("value", [True, "1", [1], None])
def test_a_policy_value_has_a_strict_type(key: str, value: object) -> None:
    with pytest.raises(PolicyError, match="wrong type") as caught:
        Policy.from_table({key: value})
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("lines", "key", "problem", "allowed"),
    [
        ("max_switches = 1", "max_switches", "unknown key", "max_switches_per_minute"),
        ("loss_floor = nan", "loss_floor", "nan is out of range", "from 0 to 1"),
        ("drain_ms = 5.0", "drain_ms", "5.0 is of the wrong type", "whole number from 0 to 1000"),
        ("drain_ms = 1001", "drain_ms", "1001 is out of range", "0 to 1000"),
        (
            "heartbeat_idle_ms = 2000",
            "volatile_after_ms",
            "2000 is not above heartbeat_idle_ms = 2000",
            "2001 or more",
        ),
        (
            "heartbeat_active_ms = 1001",
            "heartbeat_idle_ms",
            "1000 is below heartbeat_active_ms = 1001",
            "1001 or more",
        ),
        (
            "volatile_to_degraded_ms = 1999",
            "volatile_to_degraded_ms",
            "1999 is below volatile_after_ms = 2000",
            "2000 or more",
        ),
        (
            "session_ttl_ms = 59999",
            "session_ttl_ms",
            "59999 is below transport_loss_ttl_ms = 60000",
            "60000 or more",
        ),
        (
            "proof_max_age_ms = 500\ndrain_ms = 501",
            "proof_max_age_ms",
            "500 is below drain_ms = 501",
            "501 or more",
        ),
        ("allowed_transports = []", "allowed_transports", "is empty", "udp, quic, tcp, tls"),
        ('allowed_transports = "udp"', "allowed_transports", "wrong type", "a list"),
        ("allowed_transports = [[1]]", "allowed_transports", "wrong type", "a list"),
        ('allowed_transports = ["sctp"]', "allowed_transports", "'sctp' is not known", "udp, quic"),
        ('allowed_transports = ["udp", "udp"]', "allowed_transports", "'udp' is there twice", "l"),
    ],
)
def test_a_wrong_policy_is_told_in_one_line(
    lines: str, key: str, problem: str, allowed: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.from_table(tomllib.loads(lines))
    error = caught.value
    assert error.key == key
    assert problem in error.problem
    assert allowed in error.allowed
    assert str(error) == f"{key}: {error.problem} (allowed: {error.allowed})"
    assert str(error).isprintable()


def test_a_policy_printed_by_the_daemon_can_be_written_back() -> None:
    policy = Policy(version=7, loss_floor=0.5, allowed_transports=("tcp", "udp"))
    table = {each.name: getattr(policy, each.name) for each in fields(policy)}
    table |= {key: list(getattr(policy, key)) for key in ("allowed_transports", *UPLINK_KEYS)}
    assert Policy.from_table(table) == policy


def test_an_empty_table_is_the_defaults_and_they_pass_their_own_checks() -> None:
    assert Policy.from_table({}) == Policy()
    table = {each.name: getattr(Policy(), each.name) for each in fields(Policy)}
    table |= {key: list(getattr(Policy(), key)) for key in ("allowed_transports", *UPLINK_KEYS)}
    assert Policy.from_table(table) == Policy()


def test_every_field_has_a_range_or_is_a_list() -> None:
    lists = {"allowed_transports", *UPLINK_KEYS}
    assert {each.name for each in fields(Policy)} == {*RANGES, *lists}


def test_a_policy_in_force_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        Policy().drain_ms = 0  # type: ignore[misc]


_NUMBERS = {
    key: st.integers(int(low) - 2, int(high) + 2) if kind is int else st.floats(low - 1, high + 1)
    for key, (kind, low, high) in RANGES.items()
}


# Few keys at a time, so that a good part of the tables is taken.
_TABLES = st.lists(st.sampled_from(list(RANGES)), max_size=3, unique=True).flatmap(
    lambda keys: st.fixed_dictionaries({key: _NUMBERS[key] for key in keys})
)


def _fits(values: dict[str, float]) -> bool:
    """The rules of docs/configuration.md, said a second time."""
    return (
        all(low <= values[key] <= high for key, (_, low, high) in RANGES.items())
        and values["volatile_after_ms"] > values["heartbeat_idle_ms"]
        and values["heartbeat_idle_ms"] >= values["heartbeat_active_ms"]
        and values["volatile_to_degraded_ms"] >= values["volatile_after_ms"]
        and values["session_ttl_ms"] >= values["transport_loss_ttl_ms"]
        and values["proof_max_age_ms"] >= values["drain_ms"]
    )


@given(_TABLES)
def test_a_policy_is_taken_exactly_where_every_bound_and_rule_holds(
    table: dict[str, float],
) -> None:
    values = {key: getattr(Policy(), key) for key in RANGES} | table
    if not _fits(values):
        with pytest.raises(PolicyError):
            Policy.from_table(table)
        return
    policy = Policy.from_table(table)
    assert {key: getattr(policy, key) for key in RANGES} == values


def test_the_docs_have_every_policy_key_with_its_default_and_range() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|", DOCS.read_text(), re.MULTILINE)
    told = {key: (default.strip(), allowed.strip()) for key, default, allowed in rows}
    for each in fields(Policy):
        if each.name in RANGES:
            _, low, high = RANGES[each.name]
            assert told[each.name] == (f"{each.default}", f"{low:.0f} to {high:.0f}")
        elif each.name in UPLINK_KEYS:
            assert told[each.name] == ("none", "a list of interface names or patterns")
        else:
            assert told[each.name][1] == f"a list of {', '.join(TRANSPORTS)}"


# --- uplinks ---


def test_uplinks_are_told_apart_by_name_or_pattern() -> None:
    policy = Policy(
        preferred_uplinks=("eth0", "enp*"), metered_uplinks=("wwan*",), forbidden_uplinks=("tun?",)
    )
    assert [policy.tier(name) for name in ("eth0", "enp3s0", "eth1", "wwan0")] == [0, 0, 1, 2]
    assert policy.allows("udp", "eth1")
    assert not policy.allows("udp", "tun0")
    assert not Policy(allowed_transports=("tcp",)).allows("udp", "eth0")


def test_a_metered_candidate_is_asked_seldom() -> None:
    policy = Policy(metered_uplinks=("wwan*",))
    assert policy.candidate_heartbeat_ms("eth0") == policy.heartbeat_idle_ms
    assert policy.candidate_heartbeat_ms("wwan0") > 5 * policy.heartbeat_idle_ms


@pytest.mark.parametrize("value", ["eth0", [1], [""], ["x" * 33], ["e"] * 33])
@pytest.mark.parametrize("key", UPLINK_KEYS)
def test_lists_of_uplinks_are_strict_and_bounded(key: str, value: object) -> None:
    with pytest.raises(PolicyError, match="a list of at most 32") as caught:
        Policy.from_table({key: value})
    assert caught.value.key == key


# --- one after the other ---


def test_a_successor_without_a_version_is_the_next_one() -> None:
    assert Policy(version=4).successor({"drain_ms": 7}) == Policy(version=5, drain_ms=7)
    assert Policy(version=4).successor({"version": 9}) == Policy(version=9)


@pytest.mark.parametrize("version", [1, 4])
def test_a_successor_has_a_higher_version(version: int) -> None:
    with pytest.raises(PolicyError, match="not above 4, which is in force"):
        Policy(version=4).successor({"version": version})


def test_a_policy_that_leaves_no_endpoint_is_refused() -> None:
    Policy().require_any({"udp"})
    with pytest.raises(PolicyError, match="leaves no endpoint"):
        Policy(allowed_transports=("tcp",)).require_any({"udp"})
