"""Plays a story of a cluster: the invariants hold after each step, and at the end every client has
a session, at the one node that the table names.
"""

from __future__ import annotations

from collections import Counter

import pytest

from jvpnd.core.nodes import Sharing
from jvpnd.core.reasons import Reason

from .cluster import Cluster
from .clusterfaults import ACTIONS, mend
from .clusterteller import clients_of, is_sticky, nodes_of
from .invariants import History
from .player import ECHO_EVERY_MS, ECHO_FOR_MS, TRACE_MAX, Tally, patience_ms
from .story import Story
from .teller import policies
from .world import World

SKEWS_MS = (0, 300)  # of the nodes' wall clocks


class ClusterPlayer:
    """One story under way; what it left behind can be looked at when it has failed."""

    def __init__(self, story: Story) -> None:
        self.story = story
        client, gateway = policies(story)
        self.cluster = Cluster(
            story.seed,
            len(nodes_of(story.seed)),
            client,
            Sharing.STICKY if is_sticky(story.seed) else Sharing.STORE,
            story.names,
            len(clients_of(story.seed)),
            gateway,
            trace_max=TRACE_MAX,
            skew_ms=SKEWS_MS[story.seed // 4 % 2],
        )
        self.cluster.load.up_every_ms = 0
        for history in self._all():
            history.never = {Reason.SEC_INVALID_TRANSITION}

    @property
    def world(self) -> World:
        return self.cluster.world

    def histories(self) -> dict[str, tuple[History, int]]:
        """By name, with what the clock is ahead of the world's."""
        cluster, shifts = self.cluster, dict.fromkeys(self.cluster.nodes, 0)
        for name in shifts:
            end = cluster.world.endpoint(name)
            shifts[name] = end.ahead_ms if end is not None else 0
        nodes = {name: (cluster.histories[name], shifts[name]) for name in cluster.nodes}
        return {name: (client.history, 0) for name, client in cluster.clients.items()} | nodes

    def _all(self) -> list[History]:
        return [history for history, _ in self.histories().values()]

    def play(self) -> None:
        cluster = self.cluster
        with pytest.MonkeyPatch.context() as patched:
            cluster.ledger.watch_control(patched)
            for fault in self.story.faults:
                cluster.world.run(fault.at_ms)
                word, *rest = fault.words
                ACTIONS[word](cluster, *rest)
            mend(cluster)
            self._end_well()
        for client in cluster.clients.values():
            client.history.retold.check_timeline(is_client=True)

    def _end_well(self) -> None:
        cluster = self.cluster
        limit_ms = cluster.now_ms + max(map(patience_ms, (cluster.policy, cluster.gateway_policy)))
        ACTIONS["load"](cluster, str(ECHO_EVERY_MS))
        while True:
            cluster.world.run_until(self._are_attached, limit_ms)
            before = self._came()
            cluster.run(ECHO_FOR_MS)
            came = [now - then for now, then in zip(self._came(), before, strict=True)]
            if self._are_attached() and min(came) >= 0.8 * ECHO_FOR_MS / ECHO_EVERY_MS:
                break
            assert cluster.now_ms < limit_ms, f"it does not come to rest: echoes {came}"
        ACTIONS["load"](cluster, "0")
        cluster.run(6_000)  # offers that nobody took up have been forgotten then
        cluster.check_rest()
        if is_sticky(self.story.seed):
            assert not cluster.owners.takeovers, "a session was taken over without a shared table"
        for end in cluster.running():
            sessions = len(end.gateway.sessions)
            assert len(end.plane.receiving) <= 2 * sessions, "old epochs are still received"
            assert len(end.plane.expected) <= 2 * sessions, "indexes are still expected"
            state = end.gateway._state
            assert len(state.reserved) <= 4 * sessions, "indexes are still reserved"
            assert not state.loads, "a look at the table is never over"

    def _came(self) -> list[int]:
        return [len(self.cluster.client(name).back_ms) for name in self.cluster.clients]

    def _are_attached(self) -> bool:
        return all(map(self.cluster.is_attached, self.cluster.clients))

    def tally(self) -> Tally:
        events: Counter[str] = Counter()
        for client in self.cluster.clients.values():
            events.update(event.event_type for _, event in client.history.events)
        events["takeovers"] = self.cluster.owners.takeovers
        return Tally(1, self.cluster.now_ms, events=events)
