"""What is recorded can be told again, and the core decides the same, byte for byte."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from jvpnd.core.policy import Policy
from jvpnd.recording.player import RecordingError, replay
from jvpnd.recording.tape import Tape

from .net import PATHS, WELL, Net
from .test_faults import mend, one_fault
from .world import Conditions

POLICY = Policy(rekey_after_ms=5_000, transport_loss_ttl_ms=5_000, max_switches_per_minute=60)
APPLIED = Policy(version=2, loss_floor=0.5, rekey_after_ms=4_000)


def recorded(seed: int, faults: int = 12, half_bytes: int = 10**9) -> list[str]:
    """A story with faults, an operator and a policy applied."""
    net = Net(seed, POLICY, tape=lambda: Tape("laptop", half_bytes))
    dice = Random(f"replay {seed}")
    net.attach()
    for number in range(faults):
        one_fault(net, dice)
        net.run(dice.choice([5, 100, 2_000]))
        if number == 4:
            net.world.call("client", lambda end, now: end.core.switch(now, None) and None)
        if number == 6:
            net.world.call("client", lambda end, now: end.core.apply_policy(now, APPLIED))
    mend(net)
    net.run(8_000)
    return net.lines()


@pytest.mark.parametrize("seed", range(6))
def test_a_story_with_faults_replays_identically(seed: int) -> None:
    found = replay(recorded(seed))
    assert found.difference is None
    assert found.inputs > 1_000
    assert found.decisions
    assert found.decisions[0][1]["to"] in ("ATTACHED", "TERMINATED")


def test_a_tape_that_forgot_its_beginning_replays_from_a_snapshot() -> None:
    lines = recorded(3, faults=20, half_bytes=200_000)
    assert sum(len(line) for line in lines) < 1_000_000
    assert json.loads(lines[1]).keys() == {"snapshot"}
    found = replay(lines)
    assert found.difference is None
    assert found.snapshots == 2, "the second one is compared with the state that it meets"


def change(lines: list[str], wanted: str, edit: Any) -> tuple[int, list[str]]:
    """`edit` the first line in the second half that has an input `wanted`, or a key."""
    for at in range(len(lines) // 2, len(lines)):
        row = json.loads(lines[at])
        if row.get("in") == wanted or wanted in row:
            edit(row)
            return at + 1, [*lines[:at], json.dumps(row), *lines[at + 1 :]]
    raise AssertionError(wanted)


def test_an_output_that_was_changed_is_the_first_difference() -> None:
    number, lines = change(recorded(1), "out", lambda row: row.update(out="0" * 16))
    found = replay(lines).difference
    assert found is not None
    assert (found.line, found.what) == (number, "the bytes of the effects")


def test_a_packet_with_one_byte_changed_is_found_out_soon() -> None:
    def edit(row: dict[str, Any]) -> None:
        path, packet = row["args"]
        row["args"] = [path, packet[:-2] + f"{int(packet[-2:], 16) ^ 1:02x}"]

    number, lines = change(recorded(1), "packet_received", edit)
    found = replay(lines).difference
    assert found is not None
    assert number <= found.line


def test_an_input_that_was_left_out_is_found_out_soon() -> None:
    lines = recorded(2)
    at = next(n for n, line in enumerate(lines) if '"in":"path_removed"' in line)
    found = replay([*lines[:at], *lines[at + 1 :]]).difference
    assert found is not None
    assert found.line > at


def test_entropy_that_was_changed_is_found_out() -> None:
    def edit(row: dict[str, Any]) -> None:
        row["gave"][-1] = "00" * (len(row["gave"][-1]) // 2)

    lines = recorded(1)
    drew = [json.loads(line) for line in lines]
    at = max(
        n for n, row in enumerate(drew) if row.get("gave") and isinstance(row["gave"][-1], str)
    )
    edit(drew[at])
    found = replay([*lines[:at], json.dumps(drew[at]), *lines[at + 1 :]]).difference
    assert found is not None
    assert found.line >= at + 1


def test_no_static_secret_is_on_the_tape() -> None:
    net = Net(tape=lambda: Tape("laptop"))
    net.attach()
    text = "\n".join(net.lines())
    assert net.secret.hex() not in text
    assert net.session.root.hex() in text, "the keys of the session are, of necessity"


def test_a_recorder_changes_no_decision() -> None:
    stories = []
    for tape in (None, lambda: Tape("laptop")):
        net = Net(5, POLICY, tape=tape)
        net.attach()
        for name in PATHS:
            net.world.paths[name].up = Conditions(delay_ms=10, loss=0.4)
        net.run(5_000)
        net.heal(PATHS[0], WELL)
        net.run(5_000)
        stories.append(
            [(at, e.event_type, e.reason, e.to_state) for at, e in net.client_history.events]
        )
    assert stories[0] == stories[1]


def test_a_file_that_is_cut_off_replays_up_to_there_or_says_so() -> None:
    lines = recorded(4, faults=3)
    assert replay(lines[: len(lines) // 2]).difference is None
    with pytest.raises(RecordingError, match="line 9 is damaged"):
        replay([*lines[:8], lines[8][:-5]])
    with pytest.raises(RecordingError, match="no snapshot"):
        replay(lines[:1])
