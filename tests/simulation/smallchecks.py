"""What must hold after every action in a closed world, and when two worlds count as the same.

Written from the design, not from the code: it shares nothing with the core but names.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from jvpnd.core.constants import MAX_PENDING_INITS, SCAN_MS
from jvpnd.core.effects import Emit
from jvpnd.core.session import Session

from .smallworld import PATHS, Held, Side, SmallWorld

# The design's table of states, by what may follow what.
FOLLOWS = {
    "BIRTH": {"ATTACHED", "TERMINATED"},
    "ATTACHED": {"VOLATILE", "RECOVERING", "TERMINATED"},
    "VOLATILE": {"ATTACHED", "DEGRADED", "RECOVERING", "TERMINATED"},
    "DEGRADED": {"ATTACHED", "RECOVERING", "TERMINATED"},
    "RECOVERING": {"ATTACHED", "VOLATILE", "DEGRADED", "TERMINATED"},
    "TERMINATED": set(),
}
LATE_MS = SCAN_MS  # a gateway looks at its sessions so often
ROUND_MS = 20  # a drain ends with the next timer


def check(world: SmallWorld) -> list[Emit]:
    """AssertionError where an invariant is broken; returns the events since the last check."""
    client, gateway = world.client, world.gateway
    for side in (client, gateway):
        for event in side.events:
            _follow(world, side, event)
        _check_sending(world, side)
        _check_receiving(world, side)
    told = [*client.events, *gateway.events]
    _check_client(world)
    _check_gateway(world)
    client.events, gateway.events = [], []
    return told


# --- events ---


def _follow(world: SmallWorld, side: Side, event: Emit) -> None:
    assert event.reason != "SEC_INVALID_TRANSITION", f"the core tried {dict(event.details)}"
    session_id = event.session_id
    if event.event_type == "SESSION_CREATED" and side is world.client:
        named = event.details["supersedes"]
        assert named == world.superseded, f"it names {named}, not {world.superseded}"
        assert session_id is not None
        world.superseded = session_id.hex()
    elif event.event_type == "SESSION_CREATED":
        assert (session_id, 1) in world.granted, "born, and the table did not agree"
    if event.reason == "REATTACH_ACCEPT":
        assert event.state_version is not None
        written = session_id, event.state_version + 1
        assert written in world.granted, "bound, and the table did not agree"
    if event.event_type == "TRANSPORT_SWITCH":
        _count_switch(world, side, session_id)
    if event.event_type != "STATE_CHANGE" or session_id is None:
        return
    state, version = side.told.get(session_id, ("BIRTH", 0))
    assert event.from_state == state, f"{event} does not follow {state}"
    assert event.to_state in FOLLOWS[state], f"{event} is not in the table"
    assert event.state_version == version + 1, f"{event} does not follow version {version}"
    assert event.reason is not None, f"{event} has no reason"
    side.told[session_id] = str(event.to_state), version + 1


def _count_switch(world: SmallWorld, side: Side, session_id: bytes | None) -> None:
    assert session_id is not None
    recent = [t for t in side.switched_ms.get(session_id, []) if world.now_ms - t < 60_000]
    side.switched_ms[session_id] = [*recent, world.now_ms]
    # The gateway counts a binding when its client has confirmed the one before: one more is
    # bound for a client that loses its answers, and the client's own count is the bound.
    if side is world.client:
        assert len(recent) < world.policy.max_switches_per_minute, "too many switches"


# --- the data plane ---


def _check_sending(world: SmallWorld, side: Side) -> None:
    """One binding at a time, for a live session, and no epoch comes back."""
    assert len(side.plane.sending) <= 1, "two sessions send"
    for session_id in side.plane.sending:
        assert side.told.get(session_id, ("", 0))[0] not in ("", "BIRTH", "TERMINATED"), (
            "a session sends that is not alive"
        )
    for session in sessions(side):
        if session.id is not None:
            assert session.epoch >= side.epochs.get(session.id, 0), "an epoch went back"
            assert session.epoch <= session.attempt, "an epoch that nobody asked for"
            side.epochs[session.id] = session.epoch


def _check_receiving(world: SmallWorld, side: Side) -> None:
    """What is not the newest epoch is received for the drain, and not longer."""
    live = {session.id for session in sessions(side)}
    for index, receiving in side.plane.receiving.items():
        assert receiving.binding.session_id in live, "keys of a session that is over"
        since_ms = side.retired.get(index)
        # A new root waits for the gateway to confirm it (rekey): then the drain begins.
        if since_ms is not None and world.policy.rekey_after_ms > world.policy.session_ttl_ms:
            late_ms = world.now_ms - since_ms - world.policy.drain_ms
            assert late_ms <= ROUND_MS, f"an old epoch is received {late_ms} ms after its drain"
    assert len(side.plane.receiving) <= 1 + 4 * len(live)
    assert len(side.plane.expected) <= 2 * MAX_PENDING_INITS + 2, "indexes pile up"


# --- the ends ---


def sessions(side: Side) -> list[Session]:
    """The live ones."""
    core = side.core
    if hasattr(core, "sessions"):
        return [peer.session for peer in core.sessions.values()]
    session = core.session
    return [session] if session is not None and session.state != "TERMINATED" else []


def _check_session(
    world: SmallWorld, side: Side, session: Session, undecided: bool = False
) -> None:
    policy = world.policy if side is world.client else world.gateway_policy
    if session.id is not None:
        told = side.told.get(session.id)
        assert told == (session.state, session.state_version), f"{session}, but told {told}"
    assert world.now_ms - session.created_ms <= policy.session_ttl_ms + LATE_MS, "over its TTL"
    if session.lost_since_ms is not None:
        lost_ms = world.now_ms - session.lost_since_ms
        assert lost_ms <= policy.transport_loss_ttl_ms + LATE_MS, "lost for too long"
        assert session.state in ("RECOVERING", "DEGRADED"), f"{session.state} without a transport"
    if session.state == "RECOVERING" and not undecided:
        for_ms = world.now_ms - session.entered_ms
        assert for_ms <= policy.max_recovery_window_ms + LATE_MS, "recovers for too long"


def _check_client(world: SmallWorld) -> None:
    agent, side = world.agent, world.client
    for session in sessions(side):
        _check_session(world, side, session)
        if session.state in ("ATTACHED", "VOLATILE"):
            assert agent.bound is not None, f"{session.state} over no path"
            assert agent.bound.id in world.up, f"{session.state} over a path that is gone"
            assert not side.paused, f"{session.state}, and the TUN is not read"
            (sending,) = side.plane.sending.values()
            assert sending.binding.to == agent.bound.id, "sends over a path that is not bound"
    if not sessions(side):
        assert side.paused, "without a session the TUN is read"
        assert not side.plane.sending, "a session sends after its end"
    if not side.paused:
        assert side.plane.sending, "the TUN is read, and nothing can send"


def _check_gateway(world: SmallWorld) -> None:
    gate, side = world.gate, world.gateway
    clients = [peer.entry.name for peer in gate.sessions.values()]
    assert len(clients) == len(set(clients)), "a client has two sessions"
    for session_id, peer in gate.sessions.items():
        session = peer.session
        assert session.id == session_id, "a session changed its id"
        # While the table has not answered, nobody knows: the window ends when it has.
        _check_session(world, side, session, undecided=peer.swapping)
        assert peer.keys.index in side.plane.receiving, "a session that cannot hear"
        sending = side.plane.sending[session_id].binding
        assert sending.to == peer.origin, "sends to an address that is not bound"
        assert sending.index == peer.keys.peer_index, "sends under an old epoch"
        assert len(peer.draining) <= 4, "old epochs pile up"
        switches = session.switches_in_last_minute(world.now_ms)
        assert switches <= world.gateway_policy.max_switches_per_minute, "too many switches"
        lost = session.state == "DEGRADED" and session.lost_since_ms is None
        assert not lost, "DEGRADED, and no TTL runs"
        mine = [s for s in sessions(world.client) if s.id == session_id]
        if mine:
            assert session.epoch <= mine[0].attempt, "bound what the client never asked for"
            if world.policy.rekey_after_ms > world.policy.session_ttl_ms:
                assert mine[0].epoch <= session.epoch, "the client is bound, the gateway is not"


# --- sameness ---

_EDGES_MS = (0, 1, 60, 210, 410, 610, 1_010, 2_010)


def _age(world: SmallWorld, since_ms: float | None) -> int:
    return -1 if since_ms is None else bisect_right(_EDGES_MS, world.now_ms - since_ms)


def digest(world: SmallWorld) -> Any:
    """Equal for worlds that differ in keys, nonces, names of paths and exact times only."""
    bound = world.agent.bound
    order = sorted(PATHS, key=lambda name: (bound is None or name != bound.id, name))
    role = {name: number for number, name in enumerate(order)} | {"": -1, None: -1}
    return (
        _client_digest(world, role),
        _gateway_digest(world, role),
        tuple(_held_digest(world, held, role) for held in world.held),
        tuple((role[path], up, data[0]) for _, path, up, _, data in world.flying),
        tuple((name in world.up, name in world.cut) for name in order),
        world.table,
    )


def _client_digest(world: SmallWorld, role: dict[Any, int]) -> Any:
    agent, side = world.agent, world.client
    recovery, births, watch = agent._recovery, agent._births, agent._state.watch
    attempt, planned, binding = recovery._attempt, recovery._planned, agent._state.binding
    session, policy = agent.session, agent.policy
    paths = sorted(agent.paths.values(), key=lambda path: role[path.id])
    return (
        None if session is None else _session_digest(world, session),
        agent.bound is None,
        tuple((path.died_ms is None, path.is_fresh(world.now_ms, policy)) for path in paths),
        attempt and (role[attempt.path_id], _age(world, attempt.sent_ms)),
        planned and role[planned.id],
        min(recovery._attempts_made, 3),
        binding and (len(binding._draining), binding._move_to is None),
        len(births._pending),
        births._begin_ms is None,
        min(births._failures, 2),
        (_age(world, watch.waiting_ms), watch.suspect_ms is None),
        side.paused,
        world.superseded is None,
    )


def _session_digest(world: SmallWorld, session: Session) -> Any:
    return (
        str(session.state),
        session.id is None,
        _age(world, session.entered_ms),
        _age(world, session.lost_since_ms),
        world.now_ms - session.created_ms > 6_000,
        session.switches_in_last_minute(world.now_ms),
    )


def _gateway_digest(world: SmallWorld, role: dict[Any, int]) -> Any:
    mine = world.agent.session
    found = []
    for session_id, peer in world.gate.sessions.items():
        same = mine is not None and mine.id == session_id
        ahead = peer.session.epoch - mine.epoch if same and mine else 0
        behind = mine.attempt - peer.session.attempt if same and mine else 0
        remotes = {at: name for name, at in world.remotes.items()}
        found.append(
            (
                same,
                _session_digest(world, peer.session),
                (min(ahead, 2), max(-1, min(behind, 2))),
                role[remotes.get(peer.origin.remote)],
                (peer.confirmed, peer.swapping, len(peer.writes), len(peer.draining)),
            )
        )
    offers = tuple(_age(world, offer.made_ms) for offer in world.gate._offers.all())
    ended = mine is not None and world.gate._state.tombstones.get(mine.id or b"")
    return tuple(found), offers, str(ended)


def _held_digest(world: SmallWorld, held: Held, role: dict[Any, int]) -> Any:
    newest = held.number == world.sent[held.kind]
    current = not held.path or world.remotes[held.path] == held.remote
    return held.kind, role[held.path], held.up, newest, current
