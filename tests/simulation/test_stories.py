"""Made-up stories: they end well, print as a script, and shrink to what matters when they fail."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jvpnd.core.clientstate import ClientState

from .faults import ACTIONS
from .minimal import ddmin
from .player import Player, play
from .story import Fault, Story
from .teller import policies, tell
from .trial import Failure, attempt, shortest


@pytest.mark.parametrize("seed", range(4))
def test_a_story_ends_well(seed: int) -> None:
    """A first look: `make simulate` plays these and many more."""
    result = attempt(tell(seed))
    assert not isinstance(result, Failure), result.text


ONCE_FAILED = {
    "a table out of reach leaves no index behind at the gateway": """
        paths 1
        at 0 table unavailable 300
        at 5000 wait
        """,
    "the switch bound reached behind a new NAT is no ATTACHED that carries nothing": """
        paths 1
        client {"max_switches_per_minute": 1}
        at 300 rebind a
        at 364 rebind a
        """,
    "a client whose heartbeat is slow is not dead at a gateway that wants a quick one": """
        paths 1
        client {"heartbeat_idle_ms": 3000, "volatile_after_ms": 3500}
        at 300000 wait
        """,
}


@pytest.mark.parametrize("script", ONCE_FAILED.values(), ids=ONCE_FAILED)
def test_a_story_that_ended_badly_once_ends_well(script: str) -> None:
    result = attempt(Story.parse(script))
    assert not isinstance(result, Failure), result.text


def test_a_story_prints_as_a_script_and_is_read_back() -> None:
    for seed in range(200):
        story = tell(seed)
        assert Story.parse(str(story)) == story


@pytest.mark.parametrize("line", ["at noon cut a up", "paths", "policy {}", "client {"])
def test_what_is_no_story_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(ValueError, match="not a line of a story") as error:
        Story.parse(f"seed 1\n{line}")
    assert repr(line) in str(error.value)


def test_the_teller_says_the_same_again_and_knows_every_fault() -> None:
    stories = [tell(seed) for seed in range(300)]
    assert stories == [tell(seed) for seed in range(300)]
    assert {fault.words[0] for story in stories for fault in story.faults} == set(ACTIONS)
    assert {story.paths for story in stories} == {1, 2, 3, 4, 5, 8}
    for story in stories:
        policies(story)  # PolicyError if one is not valid
        times = [fault.at_ms for fault in story.faults]
        assert times == sorted(times)


@pytest.mark.parametrize("seed", [2, 12])
def test_the_same_story_is_played_the_same_way(seed: int) -> None:
    def played() -> list[object]:
        player = Player(tell(seed))
        player.play()
        histories = player.net.client_history, player.net.gateway_history
        noted = [entry for history in histories for entry in history.events]
        events = [(at_ms, e.event_type, e.reason, e.state_version) for at_ms, e in noted]
        return [*player.net.world.trace, *events]

    assert played() == played()


def test_volatile_time_is_that_with_a_fault_in_force_or_no_session() -> None:
    quiet = play(Story(1, faults=(Fault(100_000, ("wait",)),)))
    assert quiet.volatile_ms == 20  # the birth
    faults = (
        Fault(10_000, ("cut", "b", "both")),
        Fault(40_000, ("heal", "b")),
        Fault(100_000, ("wait",)),
    )
    assert 30_000 <= play(Story(1, faults=faults)).volatile_ms - quiet.volatile_ms < 31_000


def test_ddmin_keeps_exactly_what_is_needed_together() -> None:
    tried = []

    def fails(items: object) -> bool:
        tried.append(items)
        return {3, 41, 42} <= set(items)  # type: ignore[call-overload]

    assert ddmin(range(60), fails) == [3, 41, 42]
    assert len(tried) < 120


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug: the TUN is read although no transport can carry what comes."""
    pause = ClientState.pause
    monkeypatch.setattr(ClientState, "pause", lambda state, paused: pause(state, False))


@pytest.mark.usefixtures("planted")
def test_a_story_that_fails_becomes_a_short_one_that_fails_the_same_way() -> None:
    failures = (attempt(tell(seed)) for seed in range(100, 200))
    failure = next(f for f in failures if isinstance(f, Failure) and len(f.story.faults) > 20)
    short = shortest(failure)
    assert short.kind == failure.kind
    assert len(short.story.faults) <= 2
    assert (short.story.paths, short.story.client, short.story.gateway) == (1, {}, {})
    script = short.text[short.text.index("seed ") :]
    assert Story.parse(script) == short.story
    again = attempt(Story.parse(script))
    assert isinstance(again, Failure)
    assert again.kind == failure.kind
    fewer = replace(short.story, faults=short.story.faults[:-1])
    assert not isinstance(attempt(fewer), Failure)
