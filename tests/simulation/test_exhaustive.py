"""Every order of what may happen, breadth first: what random faults may never try.

Worlds that differ in keys, nonces and exact times only (smallchecks.digest) are gone on from once,
so few worlds stand for very many sequences. The first that breaks an invariant is a shortest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from jvpnd.core.binding import Binding
from jvpnd.core.clientstate import ClientState
from jvpnd.core.effects import Emit
from jvpnd.core.gatewaystate import GatewayState
from jvpnd.core.peer import Follow, Future, Peer, Stored
from jvpnd.core.policy import Policy
from jvpnd.core.session import Session

from .freezer import freeze, thaw
from .smallactions import ACTIONS
from .smallchecks import check, digest
from .smallworld import POLICY, SmallWorld, watch_control

MENDED_WITHIN_MS = 95_000  # the rate bound may hold a session for a minute, a birth backs off
PACKETS = ("deliver", "lose", "double", "overtake", "tick")
ATTACHED = ("overtake", "deliver", "lose", "deliver", "tick", "tick", "tick")  # over b
REKEYING = replace(POLICY, rekey_after_ms=1_000)


@dataclass(frozen=True)
class Search:
    """From where, what may happen, and how often in a row."""

    name: str
    begin: Sequence[str]
    actions: Sequence[str]
    depth: int
    policy: Policy = POLICY
    gateway_policy: Policy | None = None  # where it has another one
    mended: int = 3  # worlds of up to so many actions are mended, and have to come back

    def __str__(self) -> str:
        return self.name


SEARCHES = [
    Search("everything while being born", (), tuple(ACTIONS), 3),
    Search("everything while attached", ATTACHED, tuple(ACTIONS), 3),
    Search("a bad network", ATTACHED, (*PACKETS, "wait", "cut b", "rebind", "link b", "switch"), 5),
    Search(
        "moves while rekeying",
        (*ATTACHED, "wait", "tick"),
        (*PACKETS, "link b", "rebind", "switch", "table slow"),
        4,
        REKEYING,
    ),
    Search(
        "a session table in trouble",
        ATTACHED,
        ("deliver", "lose", "wait", "switch", "link b", "table slow", "table conflict"),
        5,
    ),
    Search(
        "crashes",
        ATTACHED,
        ("deliver", "lose", "tick", "wait", "gateway restarts", "client restarts", "link b"),
        5,
    ),
    Search(
        "a client stricter than its gateway, with no switch left",
        (*ATTACHED, "switch", "deliver", "deliver", "tick"),
        ("deliver", "lose", "tick", "wait", "link a", "link b", "cut a", "rebind", "switch"),
        4,
        replace(POLICY, max_switches_per_minute=1),
        gateway_policy=POLICY,
    ),
]


class BrokenError(Exception):
    """A sequence after which an invariant does not hold."""

    def __init__(self, story: Sequence[str], cause: BaseException) -> None:
        super().__init__(f"{cause}, after: {', '.join(story)}")
        self.story, self.cause = tuple(story), cause


@dataclass
class Found:
    """What a search went through."""

    steps: int = 0
    worlds: int = 0
    states: set[tuple[str, str]] = field(default_factory=set)  # of client and gateway


def begin(
    policy: Policy, story: Sequence[str], gateway_policy: Policy | None = None
) -> SmallWorld:
    world = SmallWorld.now = SmallWorld(policy, gateway_policy)
    check(world)
    for name in story:
        assert step(world, name) is not None, f"{name}: there is nothing for it to happen to"
    return world


def step(world: SmallWorld, name: str) -> list[Emit] | None:
    """Let it happen and check; the events, or None where there is nothing for it to happen to."""
    return check(world) if ACTIONS[name](world) else None


def search(what: Search) -> Found:
    """Breadth first. BrokenError with a shortest sequence, where one breaks something."""
    world, found = begin(what.policy, what.begin, what.gateway_policy), Found()
    seen, layer = {digest(world)}, [((), freeze(world))]
    for _ in range(what.depth):
        layer = [
            (story, frozen)
            for before, origin in layer
            for name in what.actions
            for story in [(*before, name)]
            for frozen in [_tried(what, seen, found, story, origin)]
            if frozen is not None
        ]
    return found


def _tried(
    what: Search, seen: set[object], found: Found, story: tuple[str, ...], origin: bytes
) -> bytes | None:
    """The world after the last action of `story`, None where it has been seen or cannot be. Where
    nothing follows, it is not kept."""
    world = SmallWorld.now = thaw(origin)
    try:
        if step(world, story[-1]) is None:
            return None
        found.steps += 1
        same = digest(world)
        if same in seen:
            return None
        seen.add(same)
        found.worlds += 1
        found.states.add(states(world))
        frozen = freeze(world) if len(story) < what.depth else b""
        if len(story) <= what.mended and not world.agent.is_resting:
            assert world.mend(MENDED_WITHIN_MS), "all is well again, and nothing comes of it"
    except Exception as error:  # a bug of the core raises whatever it likes
        raise BrokenError((*what.begin, *story), error) from error
    return frozen


def states(world: SmallWorld) -> tuple[str, str]:
    session = world.agent.session
    peers = list(world.gate.sessions.values())
    mine = str(session.state) if session is not None else "none"
    return mine, str(peers[0].session.state) if peers else "none"


def told(what: Search, story: Sequence[str]) -> str:
    """The sequence with what each action led to, up to where it breaks."""
    lines, world = [], begin(what.policy, (), what.gateway_policy)
    for number, name in enumerate(story, 1):
        lines.append(f"{number:2}. {name}")
        try:
            events = step(world, name) or []
        except Exception as error:
            return "\n".join([*lines, f"    {error!r}"])
        for event in events:
            change = f"{event.from_state} -> {event.to_state}" if event.from_state else ""
            lines.append(f"    {event.event_type} {change} {event.reason} {dict(event.details)}")
        lines.append(f"    client {states(world)[0]}, gateway {states(world)[1]}")
    return "\n".join(lines)


@pytest.fixture(autouse=True)
def _nonces_of_control_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    watch_control(monkeypatch)


@pytest.mark.parametrize("what", SEARCHES, ids=str)
def test_no_order_of_events_breaks_an_invariant(what: Search) -> None:
    try:
        found = search(what)
    except BrokenError as broken:
        pytest.fail(f"{broken.cause!r}\n{told(what, broken.story)}", pytrace=False)
    print(f"{what}: {found.steps} steps to {found.worlds} worlds, {len(found.states)} pairs")
    assert found.worlds > 100
    assert len({client for client, _ in found.states}) >= 3, "it never left its first states"


# --- the search finds what is planted ---


def planted(what: Search) -> BrokenError:
    with pytest.raises(BrokenError) as caught:
        search(replace(what, mended=0))
    return caught.value


MOVES = Search("moves", ATTACHED, ("deliver", "tick", "switch", "link b"), 6)


def test_an_old_epoch_that_is_never_released_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Binding, "expire", lambda self, now_ms: None)
    broken = planted(MOVES)
    assert "after its drain" in str(broken)
    assert broken.story[len(ATTACHED) :] == ("switch", "deliver", "deliver", "tick", "tick")
    assert "RECOVERING -> ATTACHED TRANSPORT_SWITCH_OK" in told(MOVES, broken.story)


def test_a_tun_that_is_read_without_a_transport_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClientState, "pause", lambda self, paused: None)
    assert "the TUN is not read" in str(planted(Search("birth", (), PACKETS, 5)))


def test_a_rate_bound_that_does_not_hold_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "may_switch", lambda self, now_ms, policy: True)
    strict = replace(POLICY, max_switches_per_minute=1)
    assert "too many switches" in str(planted(replace(MOVES, policy=strict)))


def test_a_move_that_the_table_did_not_agree_to_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    swap = GatewayState.swap

    def blind(
        state: GatewayState, now_ms: float, peer: Peer, future: Future, follow: Follow
    ) -> None:
        swap(state, now_ms, peer, future, lambda at_ms, outcome: follow(at_ms, Stored.OK))

    monkeypatch.setattr(GatewayState, "swap", blind)
    actions = ("deliver", "switch", "table conflict")
    assert "the table did not agree" in str(planted(replace(MOVES, actions=actions)))


# --- what the search has found ---

ONCE_BROKEN = {
    "the bound link goes while a move is under way": ("switch", "link b", "tick"),
    "the table refuses a move and its client goes": (
        *("table conflict", "switch", "deliver", "link b", "link a", "wait", "wait"),
    ),
}


@pytest.mark.parametrize("story", ONCE_BROKEN.values(), ids=ONCE_BROKEN)
def test_what_once_broke_an_invariant_does_so_no_more(story: Sequence[str]) -> None:
    world = begin(POLICY, (*ATTACHED, *story))
    assert world.mend(MENDED_WITHIN_MS)
