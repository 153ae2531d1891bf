"""A state machine of faults: Hypothesis draws a story, and where one breaks something, shortens it.

The model beside it is small: whatever the network does, a session's id stays until somebody ends
it (an operator, a crash that loses it), and once all is well it carries packets again.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from jvpnd.core.policy import Policy
from jvpnd.core.states import State

from .net import PATHS, Net
from .world import BLACKHOLE, Conditions

# No TTL is over within a story, so nothing but what the model knows of may end a session.
POLICY = Policy(transport_loss_ttl_ms=600_000, rekey_after_ms=5_000, max_switches_per_minute=12)
POLICIES = {
    "as it was": POLICY,
    "wwan is the last resort": replace(POLICY, metered_uplinks=("wwan",)),
    "wwan is forbidden": replace(POLICY, forbidden_uplinks=("wwan",)),
    "a floor for the round trip": replace(POLICY, latency_floor_ms=50),
    "two switches a minute": replace(POLICY, max_switches_per_minute=2),
    "no drain, no cooldown": replace(POLICY, drain_ms=0, switch_cooldown_ms=0),
}
ATTACHED_WITHIN_MS = 95_000  # the rate bound may hold it for a minute, a birth backs off

paths = st.sampled_from(PATHS)
ways = st.sampled_from(["up", "down", "both ways"])


class Faults(RuleBasedStateMachine):
    """One client, one gateway, two paths, and everything that may go wrong with them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(1, POLICY)
        self.patches = pytest.MonkeyPatch()
        self.net.ledger.watch_control(self.patches)
        self.net.client.busy = False
        self.net.attach()
        self.id = self.net.session.id
        self.may_end = False  # something has happened that ends a session
        self.version = 0

    # --- the network ---

    @rule(for_ms=st.sampled_from([1, 10, 40, 200, 1_000, 5_000]))
    def time_passes(self, for_ms: int) -> None:
        self.net.run(for_ms)

    @rule(path=paths, way=ways)
    def path_goes_silent(self, path: str, way: str) -> None:
        self._set(path, way, BLACKHOLE)

    @rule(
        path=paths,
        way=ways,
        delay_ms=st.sampled_from([1, 10, 150]),
        jitter_ms=st.sampled_from([0, 30]),
        loss=st.sampled_from([0.0, 0.05, 0.5]),
        duplicate=st.sampled_from([0.0, 0.2]),
    )
    def path_changes(
        self, path: str, way: str, delay_ms: int, jitter_ms: int, loss: float, duplicate: float
    ) -> None:
        self._set(path, way, Conditions(delay_ms, jitter_ms, loss, duplicate))

    @rule(path=paths)
    def path_heals(self, path: str) -> None:
        self.net.heal(path)

    @rule(path=paths)
    def nat_forgets(self, path: str) -> None:
        self.net.world.rebind(path)

    @rule(path=paths)
    def link_changes(self, path: str) -> None:
        (self.net.link_down if path in self.net.up else self.net.link_up)(path)

    @rule(busy=st.booleans())
    def traffic(self, busy: bool) -> None:
        self.net.client.busy = busy
        self.net.world.call("client", lambda end, now_ms: end.timer(now_ms))

    @precondition(lambda self: self.net.client.sent)
    @rule(path=paths, spoilt=st.booleans(), back=st.integers(1, 5), ours=st.booleans())
    def packet_is_replayed(self, path: str, spoilt: bool, back: int, ours: bool) -> None:
        """One of the newest packets comes again, as it was or changed, from a stranger or not."""
        sent = self.net.client.sent
        packet = bytearray(sent[-min(back, len(sent))])
        if spoilt:
            packet[-1] ^= 1
        remote = None if ours else ("203.0.113.66", 666)
        self.net.world.inject(path, "up", bytes(packet), remote)

    # --- people and machines ---

    @rule(path=st.sampled_from([*PATHS, None]))
    def operator_switches(self, path: str | None) -> None:
        self.net.world.call("client", lambda end, now_ms: end.core.switch(now_ms, path) and None)

    @precondition(lambda self: not self.net.agent.is_resting)
    @rule()
    def operator_terminates_at_the_client(self) -> None:
        self.may_end = True
        self.net.world.call("client", lambda end, now_ms: end.core.terminate(now_ms) and None)

    @rule()
    def operator_terminates_at_the_gateway(self) -> None:
        self.may_end = True
        for session_id in list(self.net.gateway.gateway.sessions):
            self.net.world.call(
                "gateway", lambda end, now_ms, it=session_id: end.core.terminate(now_ms, it)
            )

    @rule(name=st.sampled_from(sorted(POLICIES)), end=st.sampled_from(["client", "gateway"]))
    def policy_is_applied(self, name: str, end: str) -> None:
        self.version += 1
        policy = replace(POLICIES[name], version=1 + self.version)
        self.net.world.call(end, lambda node, now_ms: node.core.apply_policy(now_ms, policy))

    @rule()
    def gateway_crashes(self) -> None:
        self.may_end = True
        self.net.world.restart("gateway")

    @rule()
    def client_crashes(self) -> None:
        self.may_end = True
        busy = self.net.client.busy
        self.net.world.restart("client")
        self.net.client.busy = busy

    def _set(self, name: str, way: str, conditions: Conditions) -> None:
        path = self.net.world.paths[name]
        if way != "down":
            path.up = conditions
        if way != "up":
            path.down = conditions

    # --- what holds after each of them (invariants.py and plane.py look at every single effect) ---

    @invariant()
    def all_holds(self) -> None:
        self.the_session_is_the_same_until_somebody_ends_it()
        self.packets_leave_through_a_live_binding_or_not_at_all()
        self.tables_are_bounded()

    def the_session_is_the_same_until_somebody_ends_it(self) -> None:
        session = self.net.agent.session
        if self.may_end:
            self.id = session.id if session is not None else None
            return
        assert session is not None
        assert session.id == self.id, f"it was {self.id}, and nobody has ended it"
        assert session.state is not State.TERMINATED

    def packets_leave_through_a_live_binding_or_not_at_all(self) -> None:
        client, agent = self.net.client, self.net.agent
        for session_id, sending in client.plane.sending.items():
            assert agent.session is not None
            assert session_id == agent.session.id
            assert client._paused or sending.binding.to in agent.paths
        if not client._paused:
            assert client.plane.sending, "the TUN is read, and nothing can send"

    def tables_are_bounded(self) -> None:
        net = self.net
        for plane in (net.client.plane, net.gateway.plane):
            assert len(plane.receiving) <= 12
            assert len(plane.expected) <= 12
        assert len(net.gateway.gateway.sessions) <= 1

    def teardown(self) -> None:
        try:
            self._all_is_well_again()
        finally:
            self.patches.undo()

    def _all_is_well_again(self) -> None:
        """The session carries packets, unless its operator wants none."""
        net = self.net
        for name in PATHS:
            net.heal(name)
            if name not in net.up:
                net.link_up(name)
        for end in ("client", "gateway"):
            net.world.call(
                end,
                lambda node, now_ms: node.core.apply_policy(
                    now_ms, replace(POLICY, version=self.version + 2)
                ),
            )
        if net.agent.is_resting:
            return
        net.world.run_until(net.is_attached, net.now_ms + ATTACHED_WITHIN_MS)
        self.traffic(busy=True)  # which wakes an idle client, that sleeps for longer than this
        net.run(1_000)
        self.the_session_is_the_same_until_somebody_ends_it()
        assert net.client.longest_gap_ms(net.now_ms - 500) <= 200, "attached, and nothing passes"


SETTINGS = settings(
    max_examples=80,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def test_no_story_of_faults_breaks_an_invariant() -> None:
    run_machine(Faults, settings=SETTINGS)
