"""The events alone tell the true history; where one is missing, doubled or wrong, that is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jvpnd.core.policy import Policy
from jvpnd.core.session import Machine

from .net import Net
from .player import Player
from .story import Story
from .trial import Failure, attempt

# Between them they have every event that a session's own doings can bring.
STORIES = {
    "moves, deaths, a limit": """
        seed 1
        paths 3
        client {"max_switches_per_minute": 4, "rekey_after_ms": 5000}
        at 1000 switch b
        at 3000 cut b both
        at 6000 link a down
        at 7000 switch best
        at 7001 switch best
        at 9000 link a up
        at 15000 switch best
        at 15900 switch best
        at 16000 heal b
        at 90000 wait
        """,
    "the path dies while the session moves away from it": """
        seed 2
        paths 3
        at 2000 cut b both
        at 2010 switch b
        at 2015 link a down
        at 20000 wait
        """,
    "every path dark until the window is over, then the TTL": """
        seed 3
        paths 2
        client {"max_recovery_window_ms": 1000, "transport_loss_ttl_ms": 5000}
        at 2000 cut a both
        at 2000 cut b both
        at 30000 heal a
        """,
    "a table that refuses": """
        seed 4
        paths 2
        at 1000 table conflict 0
        at 2000 switch best
        at 5000 table ok 0
        """,
    "a gateway that forgot": """
        seed 5
        paths 2
        at 2000 boot gateway
        """,
}


@pytest.mark.parametrize("script", STORIES.values(), ids=STORIES)
def test_events_tell_the_true_history(script: str) -> None:
    result = attempt(Story.parse(script))
    assert not isinstance(result, Failure), result.text


def test_the_stories_have_every_event_of_a_session() -> None:
    seen: set[str] = set()
    for script in STORIES.values():
        player = Player(Story.parse(script))
        player.play()
        for history in (player.net.client_history, player.net.gateway_history):
            seen |= {event["event_type"] for event in history.retold.events()}
    assert seen >= {
        "SESSION_CREATED",
        "STATE_CHANGE",
        "REATTACH_ATTEMPT",
        "REATTACH_RESULT",
        "TRANSPORT_SWITCH",
        "TRANSPORT_SWITCH_DENIED",
        "TRANSPORT_LOST",
        "REKEY",
        "SESSION_TERMINATED",
        "OWNERSHIP",
    }


def test_an_order_that_is_refused_is_told_once_and_one_that_is_none_is_not() -> None:
    net = Net(policy=Policy(max_switches_per_minute=1))
    net.attach()

    def denied(path: str | None) -> list[dict[str, Any]]:
        before = len(net.client_history.of("TRANSPORT_SWITCH_DENIED"))
        net.world.call("client", lambda end, now_ms: end.core.switch(now_ms, path))
        told = net.client_history.of("TRANSPORT_SWITCH_DENIED")[before:]
        return [{"reason": str(event.reason), **event.details} for event in told]

    assert denied("satellite") == denied(net.bound) == []
    (other,) = {"wlan", "wwan"} - {net.bound}
    assert denied(other) == []  # it goes
    (moving,) = denied(None)
    assert (moving["reason"], moving["to_path"]) == ("TRANSPORT_SWITCH_DENIED", None)
    net.run(2000)
    assert net.bound == other
    (spent,) = denied(None)
    assert spent["reason"] == "RATE_LIMITED"
    assert spent["to_path"] in ("wlan", "wwan")


Note = Callable[..., None]


def _lost(note: Note, machine: Machine, *what: Any) -> None:
    """Nothing is told."""


def _doubled(note: Note, machine: Machine, *what: Any) -> None:
    note(machine, *what)
    note(machine, *what)


TOLD = ["REATTACH_ATTEMPT", "REATTACH_RESULT", "TRANSPORT_SWITCH", "REKEY", "OWNERSHIP"]


@pytest.mark.parametrize("plant", [_lost, _doubled])
@pytest.mark.parametrize("event_type", TOLD)
def test_an_event_that_is_lost_or_doubled_does_not_pass(
    monkeypatch: pytest.MonkeyPatch, event_type: str, plant: Callable[..., None]
) -> None:
    note = Machine.note

    def planted(machine: Machine, session: Any, kind: str, *rest: Any) -> None:
        if kind == event_type:
            plant(note, machine, session, kind, *rest)
        else:
            note(machine, session, kind, *rest)

    monkeypatch.setattr(Machine, "note", planted)
    results = [attempt(Story.parse(script)) for script in STORIES.values()]
    assert any(isinstance(result, Failure) for result in results)


def test_a_transport_that_is_lost_without_a_word_does_not_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No transition tells that nothing carries the session any more."""
    note = Machine.note

    def planted(machine: Machine, session: Any, kind: str, *rest: Any) -> None:
        if kind != "TRANSPORT_LOST":
            note(machine, session, kind, *rest)

    monkeypatch.setattr(Machine, "note", planted)
    script = STORIES["the path dies while the session moves away from it"]
    result = attempt(Story.parse(script))
    assert isinstance(result, Failure)
    assert "told of" in result.text
