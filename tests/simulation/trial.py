"""Tries stories, and tells of one that fails: its shortest form, its end, how to play it again."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from jvpnd.core.policy import PolicyError

from .invariants import History
from .minimal import minimal
from .player import Player, Tally
from .story import Story
from .world import Line, World

EVENTS_TOLD = 25
TRACE_TOLD = 25
_VARIES = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|b'.*?'|[\d.]+")


@dataclass(frozen=True, slots=True)
class Failure:
    """A story that ended badly. `kind` is what another story has to share to be the same bug."""

    story: Story
    kind: str
    text: str


class Plays(Protocol):
    """A story under way, or what it left behind."""

    story: Story

    @property
    def world(self) -> World: ...

    def histories(self) -> dict[str, tuple[History, int]]: ...

    def play(self) -> None: ...

    def tally(self) -> Tally: ...


Kind: TypeAlias = Callable[[Story], Plays]


def attempt(story: Story, kind: Kind = Player) -> Tally | Failure:
    """Play it. Whatever goes wrong is a failure of the story, also an error in the core."""
    player = kind(story)
    try:
        player.play()
    except Exception as error:
        return Failure(story, _kind(error), _tell(player, error))
    return player.tally()


def shortest(failure: Failure, kind: Kind = Player) -> Failure:
    """The same failure, by the smallest story."""

    def fails(story: Story) -> bool:
        try:
            result = attempt(story, kind)
        except PolicyError:  # of a key left out that another one needs
            return False
        return isinstance(result, Failure) and result.kind == failure.kind

    result = attempt(minimal(failure.story, fails), kind)
    return result if isinstance(result, Failure) else failure


def _kind(error: Exception) -> str:
    """Type, place and words, without what differs between two runs of one bug."""
    frames = traceback.extract_tb(error.__traceback__)
    first = _VARIES.sub("#", str(error).split("\n")[0])[:60]
    return f"{type(error).__name__} in {frames[-1].name}: {first}"


def _tell(player: Plays, error: Exception) -> str:
    """The story, and the ends of its trace and its events."""
    where = "".join(traceback.format_tb(error.__traceback__)[-3:])
    events = sorted(
        (
            (at_ms - ahead_ms, end, event)
            for end, (history, ahead_ms) in player.histories().items()
            for at_ms, event in history.events
        ),
        key=lambda entry: entry[0],
    )
    told = [
        f"{at_ms:>9} {end:7} {event.event_type} {event.reason or ''} "
        f"{event.from_state or ''}>{event.to_state or ''} {dict(event.details)}"
        for at_ms, end, event in events[-EVENTS_TOLD:]
    ]
    trace = [_line(line) for line in list(player.world.trace)[-TRACE_TOLD:]]
    return "\n".join(
        [
            f"{type(error).__name__}: {error}".split("; the trace ends")[0],
            where,
            "--- trace",
            *trace,
            "--- events",
            *told,
            "--- story; play it again with: python -m tests.simulation.soak --story FILE",
            str(player.story),
            "",
        ]
    )


def _line(line: Line) -> str:
    packet = f" type {line.kind}, {line.length} bytes" if line.length else ""
    return f"{line.at_ms:>9} {line.subject} {line.what}{packet}"
