"""The rules of ownership hold in every state that can be reached, and each of them is needed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from .lean import lean
from .ownership import CLIENT, Bounds, Client, Held, Node, Row, Rules, State, Step, start
from .search import BrokenError, broken, search, stuck

RIGHT = Rules()
SECONDS = [
    Bounds(nodes=2, attempts=1, writes=1, crashes=True),
    Bounds(nodes=2, attempts=2, writes=0, crashes=False),
    Bounds(nodes=3, attempts=1, writes=0, crashes=False),
]
SMALL = Bounds(nodes=2, attempts=1, writes=0, crashes=True)
MOVES = Bounds(nodes=2, attempts=2, writes=1, crashes=False)


@pytest.mark.parametrize("bounds", SECONDS, ids=str)
def test_no_order_of_steps_breaks_ownership(bounds: Bounds) -> None:
    try:
        found = search(RIGHT, bounds)
        stuck(found, bounds)
    except BrokenError as broken:
        pytest.fail(str(broken), pytrace=False)
    print(f"{bounds}: {len(found.states)} states, {found.steps} steps, {found.depth} deep")
    homes = {state.client.home for state in found.states}
    assert homes == set(range(bounds.nodes)), "the session never went everywhere"


@dataclass(frozen=True)
class Mutation:
    name: str
    rules: Rules
    bounds: Bounds
    breaks: str
    ends: str  # the step that does it

    def __str__(self) -> str:
        return self.name


MUTATIONS = [
    Mutation(
        "a node binds before the store answers",
        replace(RIGHT, waits_for_store=False),
        SMALL,
        "bound without a write of its own that the store took",
        "A gets the request of attempt 2",
    ),
    Mutation(
        "a takeover does not compare the version",
        replace(RIGHT, store_compares=False),
        SMALL,
        "the stored version or attempt went back",
        "the store takes A's write",
    ),
    Mutation(
        "an attempt need not be above the stored one",
        replace(RIGHT, attempts_rise=False),
        SMALL,
        "a replayed request binds again",
        "the store takes A's write",
    ),
    Mutation(
        "watch and conflict are ignored",
        replace(RIGHT, heeds_others=False),
        SMALL,
        "a node sends that knows of a newer owner",
        "A hears that version 2 is another's",
    ),
    Mutation(
        "no answer of the store counts as success",
        replace(RIGHT, unknown_is_ok=True),
        SMALL,
        "bound without a write of its own that the store took",
        "A hears UNAVAILABLE",
    ),
    Mutation(
        "news does not say of which version it is",
        replace(RIGHT, news_by_version=False),
        MOVES,
        "the owner is silenced by old news",
        "B hears that version 2 is another's",
    ),
    Mutation(
        "an OK binds though a newer owner is known",
        replace(RIGHT, ok_by_version=False),
        MOVES,
        "a node sends that knows of a newer owner",
        "A hears OK",
    ),
    Mutation(
        "an own write is known by owner, version and attempt alone",
        replace(RIGHT, whole_row=False),
        SMALL,
        "bound without a write of its own that the store took",
        "A is told of version 2 of A",
    ),
    Mutation(
        "OWNERSHIP_CONFLICT ends the session",
        replace(RIGHT, conflict_is_final=True),
        replace(MOVES, attempts=1, writes=2),
        "a race ended the session",
        "the client hears OWNERSHIP_CONFLICT",
    ),
    Mutation(
        "a node does not take back what it has left",
        replace(RIGHT, returns=False),
        SMALL,
        "the client has an attempt left and cannot come to A",
        "A lets go: the store was away for too long",
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_rule_that_is_left_out_is_missed(mutation: Mutation) -> None:
    with pytest.raises(BrokenError) as caught:
        stuck(search(mutation.rules, mutation.bounds), mutation.bounds)
    assert caught.value.what == mutation.breaks
    assert caught.value.trace[-1] == mutation.ends


FIRST = start(SMALL)
WRONG = {
    "two nodes speak under the client's epoch": FIRST._replace(
        nodes=(Node(Held(1, 1, 1)), Node(Held(1, 1, 1)))
    ),
    "the client took the ACK of a node that was not the owner": FIRST._replace(
        client=Client(epoch=1, home=1)
    ),
    "an epoch was bound twice": FIRST._replace(bound=((), ((0, True), (0, True)), ())),
    "the stored version or attempt went back": FIRST._replace(row=Row(2, 0, 0)),
    "a replayed request binds again": FIRST._replace(wrote=((), (0, 0), ())),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_no_single_mutation_gets_to_is_seen_too(what: str) -> None:
    """Invariants before which another breaks."""
    assert broken(FIRST, Step("made up", CLIENT, WRONG[what])) == what


def test_a_refusal_is_known_to_the_node_that_refused_alone() -> None:
    """A limit: a copy of the request binds elsewhere, until it is too old (`proof_max_age_ms`)."""
    with pytest.raises(BrokenError) as caught:
        search(RIGHT, replace(SMALL, crashes=False, refusals=True))
    assert caught.value.what == "a request that was refused binds"
    assert "B gets the request of attempt 2" in caught.value.trace


@pytest.mark.parametrize("crashes", [False, True])
def test_what_is_left_out_leads_nowhere_else(crashes: bool) -> None:
    """Search all states and leave out afterwards: the same remain."""

    def whole(state: State, rules: Rules) -> State:
        return state

    bounds = replace(SMALL, crashes=crashes)
    everything = search(RIGHT, bounds, whole).states
    fewer = search(RIGHT, bounds).states
    assert {lean(state, RIGHT) for state in everything} == set(fewer)
    assert len(fewer) < len(everything) / 2
