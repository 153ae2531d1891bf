"""Makes a failing story minimal: every fault, path and policy key that it does not need is gone.

Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input (2002).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from .story import Fault, Story

T = TypeVar("T")

ROUND_MS = (10_000, 1_000, 100, 10)


def minimal(story: Story, fails: Callable[[Story], bool], tries: int = 2_000) -> Story:
    """The smallest story found that still fails; at most so many are played."""
    budget = _Budget(fails, tries)
    while True:
        before = story
        story = _fewer_faults(story, budget)
        for shorter in (_without_policies, _without_paths, _sooner, _rounder):
            story = shorter(story, budget)
        if story == before or not budget.left:
            return story


@dataclass
class _Budget:
    fails: Callable[[Story], bool]
    left: int

    def __call__(self, story: Story) -> bool:
        self.left -= 1
        return self.left >= 0 and self.fails(story)


def ddmin(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> Sequence[T]:
    """A subsequence that still fails, from which no single item can be left out."""
    parts = 2
    while len(items) >= 1:
        size = max(1, len(items) // parts)
        for start in range(0, len(items), size):
            rest = [*items[:start], *items[start + size :]]
            if fails(rest):
                items, parts = rest, max(parts - 1, 2)
                break
        else:
            if size == 1:
                break
            parts = min(2 * parts, len(items))
    return items


def _fewer_faults(story: Story, fails: _Budget) -> Story:
    kept = ddmin(story.faults, lambda faults: fails(replace(story, faults=tuple(faults))))
    return replace(story, faults=tuple(kept))


def _first(story: Story, shorter: Iterator[Story], fails: _Budget) -> Story:
    """Take every simplification that still fails."""
    return next((each for each in shorter if fails(each)), story)


def _without_policies(story: Story, fails: _Budget) -> Story:
    if story.gateway != story.client and fails(same := replace(story, gateway=story.client)):
        story = same
    for key in [*story.client, *story.gateway]:
        tables = (
            {name: value for name, value in table.items() if name != key}
            for table in (story.client, story.gateway)
        )
        without = replace(story, client=next(tables), gateway=next(tables))
        if without != story and fails(without):
            story = without
    return story


def _without_paths(story: Story, fails: _Budget) -> Story:
    fewer = (replace(story, paths=paths) for paths in range(1, story.paths))
    return _first(story, fewer, fails)


def _moved(story: Story, number: int, at_ms: int) -> Story:
    """The fault of this number is then, and all behind it as much earlier or later."""
    by_ms = at_ms - story.faults[number].at_ms
    moved = (Fault(fault.at_ms + by_ms, fault.words) for fault in story.faults[number:])
    return replace(story, faults=(*story.faults[:number], *moved))


def _sooner(story: Story, fails: _Budget) -> Story:
    """Less time between two faults."""
    for number, fault in enumerate(story.faults):
        before_ms = story.faults[number - 1].at_ms if number else 0
        gap_ms = story.faults[number].at_ms - before_ms
        at = (before_ms + int(gap_ms * share) for share in (0, 0.1, 0.5, 0.8))
        earlier = (_moved(story, number, ms) for ms in at if ms < fault.at_ms)
        story = _first(story, earlier, fails)
    return story


def _rounder(story: Story, fails: _Budget) -> Story:
    """Times that are easier to read."""
    for number in range(len(story.faults)):
        at_ms = story.faults[number].at_ms
        before_ms = story.faults[number - 1].at_ms if number else 0
        rounded = (max(before_ms, at_ms // by_ms * by_ms) for by_ms in ROUND_MS)
        story = _first(story, (_moved(story, number, ms) for ms in rounded if ms != at_ms), fails)
    return story
