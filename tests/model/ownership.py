"""Who owns a session, as a model: nodes of a cluster, their store, one client, an attacker.

Everything is asynchronous. A step that is not taken is a delay, a loss, a partition, or a node that
is paused. Every request that the client ever made stays in the network: it may arrive at any node,
at any time, again and again, which is all that an attacker who replays could do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

CLIENT = -1  # who takes a step: a node's number, the client, or mischance
MISCHANCE = -2
LOADS = 3  # that one request is good for


@dataclass(frozen=True)
class Rules:
    """How nodes decide. As it stands each is right; a mutation turns one."""

    waits_for_store: bool = True  # before it binds
    store_compares: bool = True  # the version
    attempts_rise: bool = True  # above the stored one
    heeds_others: bool = True  # watch and conflicts fence
    news_by_version: bool = True  # a notice counts only if it is newer than what the node won
    ok_by_version: bool = True  # an OK counts only if no newer owner is known
    unknown_is_ok: bool = False  # the store did not answer, so it will have worked
    whole_row: bool = True  # one's own write is known by all that is in it
    returns: bool = True  # who left a session takes it over again when asked
    conflict_is_final: bool = False  # the client ends the session at OWNERSHIP_CONFLICT


@dataclass(frozen=True)
class Bounds:
    nodes: int = 2
    attempts: int = 2  # that the client makes, after it was born at node A with attempt 1
    writes: int = 1  # of the owner, that bind nothing
    crashes: bool = True  # of nodes, any number
    refusals: bool = False  # for reasons of policy: the node remembers the attempt, nobody else

    def __str__(self) -> str:
        crashes = "any number of" if self.crashes else "no"
        return (
            f"{self.nodes} nodes, {self.attempts} attempts, {self.writes} other writes, "
            f"{crashes} crashes"
        )


class Row(NamedTuple):
    version: int
    owner: int
    attempt: int  # and the epoch


class Held(NamedTuple):
    """A session at a node."""

    version: int  # of the row, as far as it knows
    sends: int  # the epoch that it has keys for, 0: unbound since a restart
    attempt: int


class Job(NamedTuple):
    """What a node is at with the store, one at a time for a session."""

    attempt: int  # 0: a write that binds nothing
    stage: str  # "swap", "load", "answer" (to the load)
    loads: int = 0
    expected: int = 0  # by its last write
    write: str = ""  # where that is: "sent", "applied", "refused"
    unsure: bool = False  # it was not answered
    row: Row = Row(0, 0, 0)  # that was loaded


class Node(NamedTuple):
    held: Held | None = None
    heard: int = 0  # the highest version known to be another's
    news: tuple[int, ...] = ()  # versions of others that the watch has yet to tell
    job: Job | None = None
    gone: bool = False  # it left it once, and `Rules.returns` is broken


class Client(NamedTuple):
    epoch: int = 1
    home: int = 0  # whose ACK it took
    made: int = 1
    asks: bool = False  # the last attempt is not answered
    acks: tuple[int, ...] = ()  # nodes that have answered it
    told_off: bool = False  # OWNERSHIP_CONFLICT is under way to it
    ended: bool = False


class State(NamedTuple):
    row: Row
    client: Client
    nodes: tuple[Node | None, ...]  # None: not running
    late: frozenset[tuple[int, int]]  # writes nobody waits for: owner, attempt; they expect the row
    # What happened, for the invariants: per attempt, who wrote it, who bound it (and was it by an
    # own write that the store has).
    wrote: tuple[tuple[int, ...], ...]
    bound: tuple[tuple[tuple[int, bool], ...], ...]
    refused: frozenset[int]  # attempts
    writes: int  # of the owner, that are left


class Step(NamedTuple):
    label: str
    actor: int
    state: State


def start(bounds: Bounds) -> State:
    """Born at node A, and bound to it."""
    nothing: tuple[()] = ()
    none = (nothing,) * bounds.attempts
    return State(
        Row(1, 0, 1),
        Client(),
        (Node(Held(1, 1, 1)), *(Node() for _ in range(bounds.nodes - 1))),
        frozenset(),
        (nothing, (0,), *none),
        (nothing, ((0, True),), *none),
        frozenset(),
        bounds.writes,
    )


def name(node: int) -> str:
    return chr(ord("A") + node)


def steps(state: State, rules: Rules, bounds: Bounds) -> Iterator[Step]:
    """All that may happen next."""
    yield from _client(state, rules, bounds)
    for at, node in enumerate(state.nodes):
        if node is None:
            yield Step(f"{name(at)} starts", MISCHANCE, _restart(state, at))
        else:
            yield from _requests(state, rules, bounds, at, node)
            yield from _store(state, rules, at, node)
            yield from _mischance(state, rules, bounds, at, node)
    for owner, attempt in state.late:
        label = f"a late write of {name(owner)} arrives (attempt {attempt})"
        yield Step(label, MISCHANCE, _apply(state, owner, state.row.version, attempt))


def _set(state: State, at: int, node: Node | None) -> State:
    return state._replace(nodes=(*state.nodes[:at], node, *state.nodes[at + 1 :]))


# --- the client ---


def _client(state: State, rules: Rules, bounds: Bounds) -> Iterator[Step]:
    client = state.client
    if client.ended:
        return
    if client.made <= bounds.attempts:
        made = client.made + 1
        asking = client._replace(made=made, asks=True, acks=(), told_off=False)
        yield Step(f"the client asks: attempt {made}", CLIENT, state._replace(client=asking))
    if not client.asks:
        return
    rested = client._replace(asks=False, acks=(), told_off=False)
    for at in client.acks:
        attached = rested._replace(epoch=client.made, home=at)
        label = f"the client takes {name(at)}'s ACK of {client.made}"
        yield Step(label, CLIENT, state._replace(client=attached))
    if client.told_off and rules.conflict_is_final:
        ended = rested._replace(ended=True)
        yield Step("the client hears OWNERSHIP_CONFLICT", MISCHANCE, state._replace(client=ended))


# --- requests ---


def _requests(state: State, rules: Rules, bounds: Bounds, at: int, node: Node) -> Iterator[Step]:
    """Of any age, from the client or from somebody who has seen it."""
    if node.job is not None:
        return
    held, client = node.held, state.client
    for attempt in range(1, client.made + 1):
        is_fresh = client.asks and attempt == client.made
        if held is None:
            if 1 < attempt <= state.row.attempt and rules.attempts_rise and not is_fresh:
                continue  # no other than attempt 1: stale
            if node.gone:
                continue
            after = _set(state, at, node._replace(job=Job(attempt, "load", loads=1)))
        elif attempt > held.attempt or not rules.attempts_rise:
            after = _swap(state, rules, at, node, Job(attempt, "swap", expected=held.version))
        else:
            continue
        label = f"{name(at)} gets the request of attempt {attempt}"
        yield Step(label, at if is_fresh else MISCHANCE, after)
        if bounds.refusals and held is not None and attempt > held.attempt:
            refusing = _set(state, at, node._replace(held=held._replace(attempt=attempt)))
            refusing = refusing._replace(refused=state.refused | {attempt})
            yield Step(f"{name(at)} refuses attempt {attempt}", MISCHANCE, refusing)


def _swap(state: State, rules: Rules, at: int, node: Node, job: Job) -> State:
    """Send the write."""
    sent = node._replace(job=job._replace(stage="swap", write="sent", unsure=False))
    if not rules.waits_for_store and job.attempt:
        return _bind(_set(state, at, sent), at, sent, job.expected + 1, job, own=False)
    return _set(state, at, sent)


def _bind(state: State, at: int, node: Node, version: int, job: Job, own: bool) -> State:
    """Install the keys of the epoch, and answer."""
    n, client = job.attempt, state.client
    bound = (*state.bound[n], (at, own))
    if client.asks and client.made == n and at not in client.acks:
        client = client._replace(acks=tuple(sorted((*client.acks, at))))
    held = Held(version, n, n)
    return _set(state, at, node._replace(held=held))._replace(
        bound=(*state.bound[:n], bound, *state.bound[n + 1 :]), client=client
    )


# --- the store ---


def _store(state: State, rules: Rules, at: int, node: Node) -> Iterator[Step]:
    job, who = node.job, name(at)
    if job is None:
        return
    if job.write == "sent":
        if job.expected == state.row.version or not rules.store_compares:
            written = _set(state, at, node._replace(job=job._replace(write="applied")))
            after = _apply(written, at, job.expected, job.attempt)
            yield Step(f"the store takes {who}'s write", at, after)
        elif job.stage == "swap":
            refused = node._replace(job=job._replace(write="refused"))
            yield Step(f"the store refuses {who}'s write", at, _set(state, at, refused))
    if job.stage == "swap":
        if job.write == "applied":
            after = _won(state, rules, at, node, job, own=True)
            yield Step(f"{who} hears OK", at, after)
            after = _conflict(state, rules, at, node, job)
            yield Step(f"{who} hears CONFLICT: its write went out twice", MISCHANCE, after)
        if job.write == "refused":
            yield Step(f"{who} hears CONFLICT", at, _conflict(state, rules, at, node, job))
        if rules.unknown_is_ok:
            after = _won(state, rules, at, node, job, own=job.write == "applied")
        else:
            asking = job._replace(stage="load", loads=job.loads + 1, unsure=True)
            after = _set(state, at, node._replace(job=asking))
        yield Step(f"{who} hears UNAVAILABLE", MISCHANCE, after)
    elif job.stage == "load":
        read = node._replace(job=job._replace(stage="answer", row=state.row))
        yield Step(f"the store reads the row for {who}", at, _set(state, at, read))
    else:
        label = f"{who} is told of version {job.row.version} of {name(job.row.owner)}"
        yield Step(label, at, _loaded(state, rules, at, node, job))
    if job.stage != "swap":
        yield Step(f"{who} hears UNAVAILABLE", MISCHANCE, _give_up(state, at, node))


def _apply(state: State, owner: int, expected: int, attempt: int) -> State:
    """A write becomes the row: whoever is another hears of it, some time."""
    row = Row(expected + 1, owner, attempt or state.row.attempt)
    nodes = tuple(
        node._replace(news=(*node.news, row.version)) if node and at != owner else node
        for at, node in enumerate(state.nodes)
    )
    if attempt:
        wrote = (*state.wrote[attempt], owner)
        after = (*state.wrote[:attempt], wrote, *state.wrote[attempt + 1 :])
        state = state._replace(wrote=after)
    return state._replace(row=row, nodes=nodes, late=frozenset())  # what was late is too late


def _won(state: State, rules: Rules, at: int, node: Node, job: Job, own: bool) -> State:
    """The row is what this node wrote."""
    version, done = job.expected + 1, node._replace(job=None)
    if rules.ok_by_version and node.heard > version:
        return _set(state, at, done)  # it was, and is another's now
    if job.attempt:
        return _bind(state, at, done, version, job, own)
    if node.held is not None:
        done = done._replace(held=node.held._replace(version=version))
    return _set(state, at, done)


def _conflict(state: State, rules: Rules, at: int, node: Node, job: Job) -> State:
    if not rules.heeds_others:
        return _set(state, at, node._replace(job=None))
    if job.loads < LOADS:
        return _set(state, at, node._replace(job=job._replace(stage="load", loads=job.loads + 1)))
    return _told_off(_set(state, at, node._replace(job=None)), job)


def _told_off(state: State, job: Job) -> State:
    client = state.client
    if client.asks and client.made == job.attempt:
        return state._replace(client=client._replace(told_off=True))
    return state


def _loaded(state: State, rules: Rules, at: int, node: Node, job: Job) -> State:
    """Whose it is: this node's by the write in question, another's, or this node's as before."""
    row = job.row
    same = row == Row(job.expected + 1, at, job.attempt or row.attempt)
    own = job.write == "applied"
    if job.expected and same and (own or not rules.whole_row):
        return _won(state, rules, at, node, job, own)
    if row.owner != at:
        node = _fence(rules, node, row.version)
    elif node.held is not None and row.version > max(node.held.version, node.heard):
        attempt = max(row.attempt, node.held.attempt)  # what it has refused stays refused
        node = node._replace(held=Held(row.version, node.held.sends, attempt))
    if job.attempt == 0 or job.unsure or (rules.attempts_rise and job.attempt <= row.attempt):
        return _give_up(state, at, node)
    again = Job(job.attempt, "swap", job.loads, row.version)
    return _swap(state, rules, at, node, again)


def _fence(rules: Rules, node: Node, version: int) -> Node:
    """Another is the owner since `version`: silence, unless this node has won a later one."""
    held = node.held
    if held is not None and rules.heeds_others:
        if version > held.version or not rules.news_by_version:
            held = None
    gone = node.gone or (not rules.returns and node.held is not None and held is None)
    return node._replace(held=held, heard=max(node.heard, version), gone=gone)


def _give_up(state: State, at: int, node: Node) -> State:
    """No more of this job; a write that has not arrived yet may still do."""
    after, job = _set(state, at, node._replace(job=None)), node.job
    if job and job.write == "sent" and job.expected == state.row.version:
        return after._replace(late=state.late | {(at, job.attempt)})
    return after


# --- mischance ---


def _mischance(state: State, rules: Rules, bounds: Bounds, at: int, node: Node) -> Iterator[Step]:
    who, held = name(at), node.held
    if node.news:
        told = _fence(rules, node, node.news[0])._replace(news=node.news[1:])
        label = f"{who} hears that version {node.news[0]} is another's"
        yield Step(label, MISCHANCE, _set(state, at, told))
    if held is not None:
        gone = node.gone or not rules.returns
        after = _give_up(state, at, node._replace(held=None, gone=gone))
        yield Step(f"{who} lets go: the store was away for too long", MISCHANCE, after)
    if held is not None and node.job is None and state.writes:
        write = Job(0, "swap", expected=held.version)
        after = _swap(state, rules, at, node, write)._replace(writes=state.writes - 1)
        yield Step(f"{who} writes what binds nothing", MISCHANCE, after)
    if bounds.crashes:
        yield Step(f"{who} crashes", MISCHANCE, _set(_give_up(state, at, node), at, None))


def _restart(state: State, at: int) -> State:
    """It takes up the row if it is its own, unbound; the watch begins with what it has read."""
    row = state.row
    held = Held(row.version, 0, row.attempt) if row.owner == at else None
    return _set(state, at, Node(held))
