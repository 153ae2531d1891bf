"""Some thousand races for ownership; `make races` runs as many as one has time for."""

from __future__ import annotations

import pytest

from jvpnd.core.gatewaystate import GatewayState
from jvpnd.core.peer import Stored
from jvpnd.core.takeover import Takeover

from .arena import BLOCK
from .races import block, run

SEEDS = range(6)


@pytest.mark.parametrize("seed", SEEDS)
def test_of_all_that_race_for_a_session_one_owns_it(seed: int) -> None:
    score, failure = block(seed, BLOCK)
    assert not failure, failure
    assert score.races == BLOCK
    assert score.takeovers > BLOCK / 2
    assert score.conflicts > BLOCK / 5


ONCE_FAILED = {
    "what a node wrote before it was started again is not undone by an older version": (40, 63),
    "who lost a session with much unwritten may win it again": (82, 50),
}


@pytest.mark.parametrize(("seed", "races"), ONCE_FAILED.values(), ids=ONCE_FAILED)
def test_a_race_that_ended_badly_once_ends_well(seed: int, races: int) -> None:
    assert block(seed, races)[1] == ""


def test_the_same_seed_gives_the_same_races() -> None:
    assert block(7, 100) == block(7, 100)
    assert block(7, 100) != block(8, 100)


def test_a_node_that_takes_every_answer_of_the_table_for_yes_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered = GatewayState._answered

    def deaf(state, now_ms, peer, _, version, tries):  # type: ignore[no-untyped-def]
        answered(state, now_ms, peer, Stored.OK, version, tries)

    monkeypatch.setattr(GatewayState, "_answered", deaf)
    (failure,) = run(BLOCK, jobs=1).failures
    assert "the table does not have" in failure


def test_a_node_that_does_not_look_whether_it_was_outdone_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The news of a later takeover comes before the answer to its own."""
    monkeypatch.setattr(Takeover, "is_outdone", lambda *_: False)
    assert len(run(8 * BLOCK, jobs=1).failures) >= 1
