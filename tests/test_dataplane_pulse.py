"""A worker that hangs is found, and none that is only idle, slow to start, or asleep with us."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.dataplane.pulse import HUNG_LOOKS, LATE_LOOK_S, LOOK_S, START_LOOKS, Pulse

from .workers import Receiver, Sender, receiver, sender

PATIENCE_S = 10


class Looks:
    """A pulse of one worker, looked at in time, whose number of turns the test says."""

    def __init__(self) -> None:
        self.pulse: Pulse[str] = Pulse()
        self.pulse.begin("uplink", 0)
        self.now_s = 0.0

    def hangs(self, turns: int, after_s: float = LOOK_S) -> bool:
        self.now_s += after_s
        return self.pulse.look(self.now_s, {"uplink": turns}) == ["uplink"]


def test_a_worker_that_stands_still_hangs_after_so_many_looks() -> None:
    looks = Looks()
    assert not looks.hangs(1)
    assert [looks.hangs(1) for _ in range(HUNG_LOOKS)] == [False] * (HUNG_LOOKS - 1) + [True]


@given(st.lists(st.integers(1, HUNG_LOOKS - 1), max_size=30))
def test_a_turn_between_the_looks_is_enough(gaps: list[int]) -> None:
    looks = Looks()
    assert not looks.hangs(1)
    for turn, gap in enumerate(gaps, start=2):
        assert not any(looks.hangs(turn - 1) for _ in range(gap))
        assert not looks.hangs(turn)


def test_a_worker_may_take_its_time_to_start_but_not_for_ever() -> None:
    looks = Looks()
    assert not any(looks.hangs(0) for _ in range(START_LOOKS - 1))
    assert looks.hangs(0)


def test_a_restarted_worker_starts_again_whatever_it_had_counted() -> None:
    looks = Looks()
    assert not looks.hangs(7)
    looks.pulse.begin("uplink", 7)
    assert not any(looks.hangs(7) for _ in range(START_LOOKS - 1))


@given(st.integers(0, HUNG_LOOKS - 1), st.floats(1.01, 1e5))
def test_looks_after_a_pause_of_everything_count_from_the_start(before: int, late: float) -> None:
    looks = Looks()
    assert not looks.hangs(1)
    assert not any(looks.hangs(1) for _ in range(before))
    assert not looks.hangs(1, after_s=late * LATE_LOOK_S)
    assert not any(looks.hangs(1) for _ in range(HUNG_LOOKS - 1))
    assert looks.hangs(1)


def test_a_pause_while_a_worker_starts_does_not_shorten_its_time() -> None:
    looks = Looks()
    assert not looks.hangs(0)
    assert not looks.hangs(0, after_s=1000)
    assert not any(looks.hangs(0) for _ in range(HUNG_LOOKS + 1))


@pytest.mark.parametrize(("make", "role"), [(sender, "uplink"), (receiver, "downlink")])
def test_an_idle_worker_goes_round(make: type, role: str) -> None:
    """Without a packet, without a command."""
    end: Sender | Receiver
    ours, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with make() as end, ours, channel:
        running = threading.Thread(target=end.worker.run, args=(channel, lambda: False))
        running.start()
        deadline = time.monotonic() + PATIENCE_S
        while end.counters.turns(role) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        ours.send(b"the end")
        running.join()
        assert end.counters.turns(role) >= 3
        other = "uplink" if role == "downlink" else "downlink"
        assert end.counters.turns(other) == 0
        assert end.drops() == {}  # turns are none
