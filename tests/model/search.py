"""Every state of the model, breadth first: what breaks an invariant comes with a shortest trace.

    python -m tests.model.search     bounds that take minutes (make model)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .lean import lean
from .ownership import CLIENT, Bounds, Rules, State, Step, name, start, steps


class BrokenError(Exception):
    """An invariant that does not hold, and how it came to that."""

    def __init__(self, what: str, trace: list[str]) -> None:
        lines = [f"{number:2}. {label}" for number, label in enumerate(trace, 1)]
        super().__init__("\n".join([what, *lines]))
        self.what, self.trace = what, trace


def broken(before: State, step: Step) -> str | None:
    """The first invariant that the step breaks."""
    after = step.state
    return (
        _of_row(before, after)
        or _of_binding(before, after)
        or _of_client(after)
        or _of_nodes(before, step)
    )


def _of_row(before: State, after: State) -> str | None:
    old, new = before.row, after.row
    if new is not old and (new.version <= old.version or new.attempt < old.attempt):
        return "the stored version or attempt went back"
    if after.wrote is not before.wrote and any(len(writers) > 1 for writers in after.wrote):
        return "a replayed request binds again"
    return None


def _of_binding(before: State, after: State) -> str | None:
    if after.bound is before.bound:
        return None
    for attempt, holders in enumerate(after.bound):
        if any(not own or at not in after.wrote[attempt] for at, own in holders):
            return "bound without a write of its own that the store took"
        if len(holders) > 1:
            return "an epoch was bound twice"
        if holders != before.bound[attempt] and attempt in after.refused:
            return "a request that was refused binds"
    return None


def _of_client(state: State) -> str | None:
    client = state.client
    if client.ended:
        return "a race ended the session"
    if client.home not in state.wrote[client.epoch]:
        return "the client took the ACK of a node that was not the owner"
    for at, node in enumerate(state.nodes):
        held = node.held if node else None
        if held and held.sends == client.epoch and at != client.home:
            return "two nodes speak under the client's epoch"
    return None


def _of_nodes(before: State, step: Step) -> str | None:
    for at, node in enumerate(step.state.nodes):
        held = node.held if node else None
        if node and held and held.sends and held.version <= node.heard:
            return "a node sends that knows of a newer owner"
        was = before.nodes[at]
        if was and was.held and node and not held and "hears that" in step.label:
            if before.row.owner == at and before.row.version == was.held.version:
                return "the owner is silenced by old news"
    return None


@dataclass
class Found:
    """All that can be reached."""

    states: list[State] = field(default_factory=list)
    came_from: list[tuple[int, str]] = field(default_factory=list)
    fair: list[tuple[int, int, int]] = field(default_factory=list)  # from, to, whose step
    steps: int = 0
    depth: int = 0

    def trace(self, at: int) -> list[str]:
        labels = []
        while at:
            at, label = self.came_from[at]
            labels.append(label)
        return labels[::-1]


Shape = Callable[[State, Rules], State]  # one state for all that count as the same


def search(rules: Rules, bounds: Bounds, shape: Shape = lean) -> Found:
    """Raises BrokenError with a shortest trace, if there is one."""
    first = shape(start(bounds), rules)
    found, seen = Found([first], [(0, "")]), {first: 0}
    depth, at = [0], 0
    while at < len(found.states):
        state = found.states[at]
        for step in steps(state, rules, bounds):
            found.steps += 1
            what = broken(state, step)
            if what is not None:
                raise BrokenError(what, [*found.trace(at), step.label])
            after = shape(step.state, rules)
            to = seen.setdefault(after, len(found.states))
            if to == len(found.states):
                found.states.append(after)
                found.came_from.append((at, step.label))
                depth.append(depth[at] + 1)
            if step.actor >= CLIENT and to != at:
                found.fair.append((at, to, step.actor))
        at += 1
    found.depth = max(depth)
    return found


def stuck(found: Found, bounds: Bounds) -> None:
    """From every state in which the client has an attempt left and a node runs, the client has to
    get to be bound to that node, by steps of these two and the store alone: nobody else need wake.
    Raises BrokenError with a shortest trace to where it cannot."""
    for at in range(bounds.nodes):
        before: list[list[int]] = [[] for _ in found.states]
        for origin, to, actor in found.fair:
            if actor in (CLIENT, at):
                before[to].append(origin)
        good = [is_served(state, at) for state in found.states]
        todo = [number for number, is_good in enumerate(good) if is_good]
        while todo:
            for origin in before[todo.pop()]:
                if not good[origin]:
                    good[origin] = True
                    todo.append(origin)
        for number, state in enumerate(found.states):
            has_a_chance = state.client.made <= bounds.attempts and state.nodes[at] is not None
            if has_a_chance and not good[number]:
                what = f"the client has an attempt left and cannot come to {name(at)}"
                raise BrokenError(what, found.trace(number))


def is_served(state: State, at: int) -> bool:
    """The client and the owner, `at`, are bound to the same epoch."""
    node, client, row = state.nodes[at], state.client, state.row
    sends = node.held.sends if node and node.held else 0
    is_bound = sends == client.epoch == row.attempt
    return is_bound and client.home == row.owner == at


MINUTES = [
    Bounds(nodes=2, attempts=2, writes=1, crashes=True),
    Bounds(nodes=2, attempts=3, writes=0, crashes=False),
    Bounds(nodes=3, attempts=1, writes=1, crashes=False),
]


def main() -> None:
    for bounds in MINUTES:
        began_s = time.monotonic()
        found = search(Rules(), bounds)
        stuck(found, bounds)
        took_s = time.monotonic() - began_s
        print(
            f"{bounds}: {len(found.states)} states, {found.steps} steps, "
            f"{found.depth} deep, {took_s:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
