"""Health of the paths while a session lives: probes, looks at the counters, and what follows."""

from __future__ import annotations

from jvpnd.core import constants as c
from jvpnd.core.births import Births
from jvpnd.core.clientstate import ClientState
from jvpnd.core.loss import RecordLog, Report
from jvpnd.core.messages import ProbeReply
from jvpnd.core.path import Path
from jvpnd.core.reasons import Reason
from jvpnd.core.recovery import Recovery
from jvpnd.core.session import Session
from jvpnd.core.states import Event, State
from jvpnd.core.steering import SWITCHABLE, Steering
from jvpnd.core.watch import Traffic, Verdict


class Health:
    """Watches the bound path and the candidates, and leads the session by what it sees."""

    def __init__(
        self, state: ClientState, births: Births, recovery: Recovery, steering: Steering
    ) -> None:
        self._state = state
        self._births = births
        self._recovery = recovery
        self._steering = steering
        self._unstable_ms = 0.0
        self._looked_ms = 0.0
        self._doubt_probes = 0

    # --- time ---

    def next_ms(self) -> float:
        """When `probe_all` and `judge` have something to do, if nothing else happens."""
        state = self._state
        watch, bound, session = state.watch, state.bound, state.session
        quiet = (
            session is not None
            and session.state is State.ATTACHED
            and bound is not None
            and watch.waiting_ms is None
            and watch.suspect_ms is None
        )
        if not quiet:
            return 0.0
        return min(
            [(path.probed_ms or 0.0) + self._every_ms(path) for path in state.candidates()],
            default=0.0,
        )

    def _every_ms(self, path: Path) -> int:
        """Between two probes of a path that is not suspect."""
        state = self._state
        policy, now_ms, session = state.policy, self._looked_ms, state.session
        if session is not None and session.state in (State.VOLATILE, State.DEGRADED):
            return policy.heartbeat_active_ms
        if path is state.bound:
            busy = state.watch.is_busy(now_ms)
            return policy.heartbeat_active_ms if busy else policy.heartbeat_idle_ms
        if self._steering.in_trial(now_ms, path):
            return policy.heartbeat_active_ms
        return policy.candidate_heartbeat_ms(path.info.uplink)

    def probe_all(self, now_ms: float) -> None:
        """Ask each candidate whose time has come."""
        self._looked_ms = now_ms
        for path in self._state.candidates():
            if path.probed_ms is None or now_ms - path.probed_ms >= self._every_ms(path):
                self._state.probe(now_ms, path)

    # --- what is heard ---

    def look(self, now_ms: float, traffic: Traffic) -> None:
        """Take in the data plane's counters."""
        state = self._state
        bound, binding = state.bound, state.binding
        if binding is None or bound is None:
            return
        before = state.watch.traffic
        if state.watch.observe(traffic, binding.index):
            bound.heard(traffic.last_rx_ms)
            binding.peer_has_moved(now_ms + state.policy.drain_ms)
            self._count(now_ms, bound, before, traffic)

    def _count(self, now_ms: float, bound: Path, before: Traffic, now: Traffic) -> None:
        watch, floor = self._state.watch, self._state.policy.loss_floor
        in_ms = now.last_rx_ms - before.last_rx_ms
        if before.rx_index != now.rx_index:
            watch.down = RecordLog()
        for came, lost, of_ms in watch.down.look(now_ms, now.rx_records, now.lost_down, in_ms):
            bound.carried(now_ms, bound.down, came, lost, of_ms, floor)
        # What the gateway says in the first round trip may be about the binding before this one.
        if now_ms - watch.began_ms > bound.rtt.rto_ms:
            told = watch.up.look(now_ms, now.peer_records, now.lost_up, in_ms)
            for came, lost, of_ms in told:
                bound.carried(now_ms, bound.up, came, lost, of_ms, floor)

    def on_reply(self, now_ms: float, path: Path, reply: ProbeReply) -> None:
        """What a probe brought; an answer to one that is forgotten says nothing."""
        if reply.path_number != path.number or not path.probe_answered(reply.sequence, now_ms):
            return
        path.told(Report(reply.sequence, reply.mask), now_ms)
        for other in self._state.paths.values():
            if other is not path and other.number == reply.about:
                other.told(Report(reply.about_newest, reply.about_mask), now_ms)

    def cut_off(self, now_ms: float, session: Session, bound: Path) -> None:
        """We are heard from an address that is not bound, and the rate bound forbids to bind it:
        what the gateway sends does not arrive. It hints often, so this is told once."""
        self._unstable_ms = now_ms
        machine = self._state.machine
        why = {"path": bound.id, "why": "behind a new NAT, switch bound reached"}
        if session.state is State.ATTACHED:
            machine.note(session, "TRANSPORT_SWITCH_DENIED", Reason.RATE_LIMITED, {**why})
            machine.fire(session, Event.HEARTBEAT_LATE, now_ms, {**why})
        if session.state is State.VOLATILE:
            machine.fire(session, Event.INSTABILITY_PERSISTED, now_ms, {**why})

    # --- suspicion ---

    def suspect(self, now_ms: float, bound: Path) -> None:
        """A socket error: ask at once, but errors in a row are no reason for a flood."""
        if bound.probed_ms is None or now_ms - bound.probed_ms >= c.BURST_GAP_MS:
            self._burst(now_ms, bound)

    def _burst(self, now_ms: float, bound: Path) -> None:
        """Ask the suspect path, and all candidates: in the first rounds for a witness, and now and
        then later, when it is known which probes are late, for the way in which they were lost."""
        state, number = self._state, len(self._state.watch.burst)
        ask_all = number < c.BURST_DEAD or number % c.BURST_DEAD == 0
        for path in state.candidates() if ask_all else [bound]:
            state.probe(now_ms, path)
        state.watch.burst.append(now_ms)

    def _doubt(self, now_ms: float, bound: Path) -> None:
        """The bound path is getting worse: see in time what the others are worth."""
        if not bound.is_doubtful():
            self._doubt_probes = 0
        elif self._doubt_probes < c.DOUBT_PROBES:
            for path in self._state.others():
                if path.probed_ms is None or now_ms - path.probed_ms >= c.DOUBT_GAP_MS:
                    self._state.probe(now_ms, path)
                    self._state.probe(now_ms, path)
            self._doubt_probes += 2

    # --- judgement ---

    def judge(self, now_ms: float, session: Session) -> None:
        """Look at the bound path and act on what is seen."""
        state, bound = self._state, self._state.bound
        assert bound is not None
        if not self._is_allowed(now_ms, session, bound):
            return
        verdict = state.watch.assess(now_ms, bound, state.others(), state.policy)
        if verdict is Verdict.DEAD:
            # The probes that made it suspect tell of the way too: later ones may be too young.
            _, since_ms = bound.probes.overdue(now_ms, bound.rtt.rto_ms, state.watch.began_ms)
            way = bound.probes.silent_way(min(state.watch.suspect_ms or now_ms, since_ms))
            self.lose(now_ms, bound, state.watch.why, way)
            return
        due_ms = state.watch.burst_due_ms(state.policy)
        if due_ms is not None and now_ms >= due_ms:
            self._burst(now_ms, bound)
        self._settle(now_ms)
        self._doubt(now_ms, bound)
        self._lead(now_ms, session, bound, verdict)
        if session.state is State.ATTACHED:
            self._steering.go_home(now_ms, session, bound)
        if session.state is not State.RECOVERING:
            self._births.rekey_if_due(now_ms, session, bound)

    def _settle(self, now_ms: float) -> None:
        """Count the fates of probes; what shows trouble has to be steady anew."""
        state = self._state
        for path in state.candidates():
            path.settle(now_ms, state.policy)
            if path.overdue(now_ms) > 1 or path.violations(state.policy):
                path.troubled(now_ms)

    def _lead(self, now_ms: float, session: Session, bound: Path, verdict: Verdict) -> None:
        """Between ATTACHED, VOLATILE and DEGRADED, or away to a better path."""
        state = self._state
        policy, fire = state.policy, state.machine.fire
        wrong: dict[str, object] = {"path": bound.id, **bound.violations(policy)}
        below = len(wrong) > 1
        if below or verdict in (Verdict.SUSPECT, Verdict.LATE):
            self._unstable_ms = now_ms
        if session.state is State.ATTACHED:
            if below:
                fire(session, Event.QUALITY_BELOW_FLOOR, now_ms, wrong)
            elif verdict is Verdict.LATE:
                fire(session, Event.HEARTBEAT_LATE, now_ms, {"path": bound.id})
        if session.state is State.ATTACHED:
            return
        refusal = self._steering.mend(now_ms, session, bound) if below else None
        if session.state is State.RECOVERING:
            return
        stable_ms = now_ms - max(self._unstable_ms, session.entered_ms)
        if stable_ms >= policy.stability_window_ms:
            volatile = session.state is State.VOLATILE
            fire(session, Event.STABILITY_RESTORED if volatile else Event.DEGRADATION_OVER, now_ms)
        elif session.state is State.VOLATILE:
            if refusal is not None:
                why: dict[str, object] = {"path": bound.id, "why": refusal.message}
                fire(session, Event.INSTABILITY_PERSISTED, now_ms, why)
            elif now_ms - session.entered_ms >= policy.volatile_to_degraded_ms:
                fire(session, Event.INSTABILITY_PERSISTED, now_ms, wrong)

    def _is_allowed(self, now_ms: float, session: Session, bound: Path) -> bool:
        """A policy applied meanwhile may forbid the bound path: leave it, one way or the other."""
        state = self._state
        if state.policy.allows(bound.info.transport, bound.info.uplink):
            return True
        target = next((p for p in state.others() if p.is_fresh(now_ms, state.policy)), None)
        if target is not None and session.may_switch(now_ms, state.policy):
            self._steering.move(now_ms, target, {"why": "policy"})
        else:
            self.lose(now_ms, bound, "forbidden by the policy")
        return False

    # --- losses ---

    def lose(self, now_ms: float, path: Path, why: str, way: str | None = None) -> None:
        """This path is dead; `way`: the direction, where that is known."""
        state = self._state
        path.died_ms = now_ms
        state.note_left(now_ms, path)
        if path is state.bound:
            self._births.cancel_rekey(now_ms)
            self._recovery.transport_died(now_ms, path, why, way)
        elif state.live_session() is not None:
            self._recovery.candidate_lost(now_ms, path)

    def gateway_restarted(self, now_ms: float, session: Session, path: Path) -> None:
        """Nothing is bound there any more: bind again over the path that told us so. It is well."""
        path.heard(now_ms)
        if session.state is State.RECOVERING:
            self._recovery.ask_again(now_ms)
        elif self._state.bound is not None:
            self._births.cancel_rekey(now_ms)
            why = "gateway started again"
            self._recovery.transport_died(now_ms, self._state.bound, why, None, path)

    def resumed(self, now_ms: float, session: Session, stalled_ms: float) -> None:
        """We slept. Ask every path; and where the gateway may have given us up meanwhile, ask it to
        bind us again at once: it agrees, or proves that the session is over."""
        state, bound = self._state, self._state.bound
        what: dict[str, object] = {"what": "resumed", "stalled_ms": round(stalled_ms)}
        state.machine.note(session, "AUDIT_EVENT", None, what)
        for path in state.candidates():
            state.probe(now_ms, path)
        long = stalled_ms >= state.policy.volatile_to_degraded_ms
        if long and bound is not None and session.state in SWITCHABLE:
            if session.may_switch(now_ms, state.policy):
                self._steering.move(now_ms, bound, {"why": "resumed"})
            else:
                why: dict[str, object] = {"to_path": bound.id, "why": "resumed"}
                state.machine.note(session, "TRANSPORT_SWITCH_DENIED", Reason.RATE_LIMITED, why)
