"""Plays a story: the invariants hold after each step, and at the end the session lives."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest

from jvpnd.core.policy import METERED_BEATS, Policy
from jvpnd.core.reasons import Reason
from jvpnd.core.states import State

from .faults import ACTIONS, is_well, mend
from .invariants import History
from .net import Net
from .story import Story
from .teller import policies
from .world import World

TRACE_MAX = 2_000
ECHO_EVERY_MS = 50  # at the end
ECHO_FOR_MS = 3_000
BRISK_MS = 3_000


@dataclass
class Tally:
    """What one or more stories came to. Volatile: a fault in force, or not ATTACHED. Brisk: that
    with the policy's heartbeats, which set the pace of everything, no slower than BRISK_MS."""

    stories: int = 0
    simulated_ms: int = 0
    volatile_ms: int = 0
    brisk_ms: int = 0
    events: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        self.stories += other.stories
        self.simulated_ms += other.simulated_ms
        self.volatile_ms += other.volatile_ms
        self.brisk_ms += other.brisk_ms
        self.events += other.events


def play(story: Story) -> Tally:
    """AssertionError, StuckError or whatever the core raises if the story ends badly."""
    player = Player(story)
    player.play()
    return player.tally()


class Player:
    """One story under way; what it left behind can be looked at when it has failed."""

    def __init__(self, story: Story) -> None:
        self.story = story
        client, gateway = policies(story)
        self.net = Net(
            story.seed,
            client,
            paths=story.names,
            gateway_policy=gateway,
            trace_max=TRACE_MAX,
            keeps=story.seed % 2 == 0,  # of the others every crash is a reboot
        )
        self.net.load.up_every_ms = 0
        for history in (self.net.client_history, self.net.gateway_history):
            history.never = _never(story)
        self._troubled: list[tuple[int, int]] = []  # from, to

    @property
    def world(self) -> World:
        return self.net.world

    def histories(self) -> dict[str, tuple[History, int]]:
        """By name, with what the clock is ahead of the world's."""
        return {"client": (self.net.client_history, 0), "gateway": (self.net.gateway_history, 0)}

    def play(self) -> None:
        with pytest.MonkeyPatch.context() as patched:
            self.net.ledger.watch_control(patched)
            self._tell()
            mend(self.net)
            self._end_well()
        self.net.client_history.retold.check_timeline(is_client=True)
        self.net.gateway_history.retold.check_timeline(is_client=False)

    def _tell(self) -> None:
        net, since_ms = self.net, None
        for fault in self.story.faults:
            net.world.run(fault.at_ms)
            word, *rest = fault.words
            ACTIONS[word](net, *rest)
            if since_ms is None and not is_well(net):
                since_ms = net.now_ms
            elif since_ms is not None and is_well(net):
                self._troubled.append((since_ms, net.now_ms))
                since_ms = None
        if since_ms is not None:
            self._troubled.append((since_ms, net.now_ms))

    # --- the end ---

    def _end_well(self) -> None:
        """All is well: in time the session is ATTACHED on both ends, and says so truly."""
        net = self.net
        limit_ms = net.now_ms + max(map(patience_ms, (net.policy, net.gateway_policy)))
        ACTIONS["load"](net, str(ECHO_EVERY_MS), "1", "0")
        while True:
            net.world.run_until(self._is_attached, limit_ms)
            before, versions = len(net.client.back_ms), self._versions()
            net.run(ECHO_FOR_MS)
            came = len(net.client.back_ms) - before
            if came >= 0.8 * ECHO_FOR_MS / ECHO_EVERY_MS and self._is_attached():
                break
            assert versions != self._versions(), f"ATTACHED, but {came} echoes came back"
            assert net.now_ms < limit_ms, "it does not come to rest"
        self._leaves_nothing_behind()

    def _versions(self) -> list[int]:
        """They rise with each transition of a session."""
        events = self.net.client_history.events
        return [event.state_version or 0 for _, event in events if event.to_state is not None]

    def _is_attached(self) -> bool:
        client, gateway = self.net.agent.session, self.net.gateway.gateway.sessions
        if client is None or client.state is not State.ATTACHED or client.id is None:
            return False
        peer = gateway.get(client.id)
        return peer is not None and peer.session.state is State.ATTACHED

    def _leaves_nothing_behind(self) -> None:
        net = self.net
        ACTIONS["load"](net, "0", "1", "0")
        net.run(6_000)  # offers that nobody took up have been forgotten then
        assert len(net.client.plane.receiving) <= 2, "old epochs are still received"
        assert len(net.gateway.plane.receiving) <= 2, "old epochs are still received"
        assert len(net.gateway.plane.expected) <= 2, "indexes are still expected"
        assert len(net.client.plane.expected) <= 1, "indexes are still expected"

    # --- what it came to ---

    def tally(self) -> Tally:
        now_ms, spans = self.net.now_ms, [*self._troubled, *self._unattached()]
        volatile_ms, covered_ms = 0, 0
        for since_ms, until_ms in sorted(spans):
            volatile_ms += max(0, until_ms - max(since_ms, covered_ms))
            covered_ms = max(covered_ms, until_ms)
        events = Counter(e.event_type for _, e in self.net.client_history.events)
        brisk = self.net.policy.heartbeat_idle_ms <= BRISK_MS
        return Tally(1, now_ms, volatile_ms, volatile_ms if brisk else 0, events)

    def _unattached(self) -> list[tuple[int, int]]:
        spans, since_ms = [], 0
        attached = False
        for at_ms, event in self.net.client_history.events:
            if event.event_type != "STATE_CHANGE":
                continue
            is_attached = event.to_state == State.ATTACHED
            if is_attached and not attached:
                spans.append((since_ms, at_ms))
            elif attached and not is_attached:
                since_ms = at_ms
            attached = is_attached
        if not attached:
            spans.append((since_ms, self.net.now_ms))
        return spans


def _never(story: Story) -> set[Reason]:
    """What must not be said of anybody in this story."""
    if any(fault.words[0] == "attack" for fault in story.faults):
        return {Reason.SEC_INVALID_TRANSITION}
    if any(fault.words == ("freeze", "gateway") for fault in story.faults):
        # It finds the packets of a minute at once: for it that is a flood.
        return set(Reason) - {Reason.SEC_ABUSE_CONTROL_PLANE, Reason.AUTH_FAIL}
    if any(fault.words == ("crash", "gateway") for fault in story.faults):
        # It does not know the root of a rekey that it had not confirmed yet.
        return set(Reason) - {Reason.AUTH_FAIL}
    return set(Reason)


def patience_ms(policy: Policy) -> int:
    """The longest that a session may take to come back when all is well."""
    back_off_ms = 60_000 + 35_000  # the rate bound; failed births
    beat_ms = policy.heartbeat_idle_ms * METERED_BEATS
    late_ms = policy.volatile_to_degraded_ms + policy.max_recovery_window_ms
    return back_off_ms + beat_ms + late_ms + 3 * policy.stability_window_ms
