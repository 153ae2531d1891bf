"""What the parts of a client agent share: the session, its paths, and the hold on its keys."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from jvpnd.core import constants as c
from jvpnd.core.binding import Binding
from jvpnd.core.choice import candidates
from jvpnd.core.effects import Effect, Endpoint, PauseTun, Send, host_port
from jvpnd.core.entropy import Entropy
from jvpnd.core.messages import PolicyBounds, Probe
from jvpnd.core.nodes import NO_NODE, NodeState, node_probe, read_node_reply, reply_sequence
from jvpnd.core.path import Path
from jvpnd.core.policy import RANGES, Policy
from jvpnd.core.reasons import Reason
from jvpnd.core.reattach import Credentials, Proof
from jvpnd.core.session import Machine, Session
from jvpnd.core.states import State
from jvpnd.core.watch import BindingWatch

TURNED_AWAY = (Reason.WRONG_NODE, Reason.NODE_DRAINING, Reason.STORE_UNAVAILABLE)
"""Why one node of a cluster refuses a session that another may take."""


@dataclass(frozen=True, slots=True)
class Before:
    """What held before a rekey. It still does for a gateway that has not confirmed it."""

    proof: Proof
    index: int
    epoch: int


class ClientState:
    """One session at a time, at most one path bound to it. Births and recovery change it."""

    def __init__(self, name: str, has_aes: bool, policy: Policy, entropy: Entropy) -> None:
        self.name = name
        self.has_aes = has_aes
        self.own_policy = policy
        self.bounds: PolicyBounds | None = None  # the gateway's, for the present session
        self.policy = policy  # ours within these bounds
        self.entropy = entropy
        self.effects: list[Effect] = []
        self.machine = Machine(self.effects)
        self.session: Session | None = None
        self.paths: dict[str, Path] = {}
        self.bound: Path | None = None
        self.binding: Binding | None = None
        self.credentials: Credentials | None = None
        self.anchor_ms = 0.0  # when the root's INIT was sent: proof ages count from it
        self.before: Before | None = None  # the last rekey
        self.home = NO_NODE  # the node that owns the session, as far as is known
        self._nodes: dict[tuple[str, str], int] = {}  # what is at a transport and a remote
        self.watch = BindingWatch(0)
        self.dropped: dict[str, int] = {}
        self._left: dict[str, deque[float]] = {}  # when each path died or was left as a bad one
        self._choice: tuple[object, ...] = ()
        self._candidates: list[Path] = []
        self._paused = True  # nothing may leave before there is a session

    def live_session(self) -> Session | None:
        """The session, if there is one that has not ended."""
        session = self.session
        return None if session is None or session.state is State.TERMINATED else session

    def proof(self) -> Proof:
        """By what requests of the present session are proven."""
        assert self.session is not None
        assert self.credentials is not None
        return Proof(self.session.root, self.anchor_ms, self.credentials)

    def rekeying(self) -> None:
        """A new root is about to take the place of the present one."""
        assert self.session is not None
        assert self.binding is not None
        self.before = Before(self.proof(), self.binding.index, self.session.epoch)

    def unconfirmed(self) -> Before | None:
        """What the gateway may still hold to, since it was not heard under the newest root yet."""
        unsure = self.binding is not None and self.binding.awaits_peer
        return self.before if unsure else None

    def fall_back(self, proof: Proof) -> None:
        """The gateway does not know the newest root: go on with the one before."""
        assert self.session is not None
        self.session.root, self.anchor_ms = proof.root, proof.anchor_ms
        self.credentials = proof.credentials

    def renew_policy(self) -> None:
        """Our policy or the gateway's bounds have changed."""
        before, self.policy = self.policy, _within(self.own_policy, self.bounds)
        if self.policy.loss_window_ms != before.loss_window_ms:
            for path in self.paths.values():
                path.set_window(self.policy.loss_window_ms)

    def candidates(self) -> list[Path]:
        """The paths that the policy allows, the bound one among them."""
        choice = (self.bound, self.policy, *self.paths.values())  # asked often, changed seldom
        if choice != self._choice:
            self._choice = choice
            self._candidates = candidates(self.paths.values(), self.bound, self.policy)
        return self._candidates

    def others(self) -> list[Path]:
        """The candidates that are not bound."""
        return [path for path in self.candidates() if path is not self.bound]

    def bind(self, now_ms: float, path: Path) -> None:
        """This path carries the session from now on."""
        self.bound = path
        self.set_home(self.node_of(path) or self.home)
        path.takes_sessions, path.is_wrong = True, False
        path.renewed()
        self.watch = BindingWatch(now_ms, traffic=self.watch.traffic)

    def note_left(self, now_ms: float, path: Path) -> None:
        """It died or was bad: a path that comes and goes is not moved back to soon."""
        path.troubled(now_ms)
        left = self._left.setdefault(path.id, deque(maxlen=c.FLAP_DOUBLINGS))
        left.append(now_ms)
        if len(self._left) > c.MAX_PATHS:
            del self._left[next(iter(self._left))]

    def times_left(self, now_ms: float, path: Path) -> int:
        """How often that was, lately."""
        return sum(1 for at in self._left.get(path.id, ()) if now_ms - at < c.FLAP_MEMORY_MS)

    def is_steady(self, now_ms: float, path: Path, early_ms: float = 0) -> bool:
        """Whether it has been well for as long as its past asks for, or will be in `early_ms`."""
        doublings = max(0, self.times_left(now_ms, path) - 1)
        needed_ms = float(self.policy.stability_window_ms << doublings)
        return now_ms - path.steady_since_ms >= needed_ms - early_ms

    def pause(self, paused: bool) -> None:
        """Leave the TUN unread (the kernel queues), or read it again."""
        if paused != self._paused:
            self._paused = paused
            self.effects.append(PauseTun(paused))

    def probe(self, now_ms: float, path: Path) -> None:
        """Ask the gateway over this path; any authentic answer is a sign of life."""
        channel = self.binding.channel if self.binding else None
        if channel is None:
            return
        if path.is_elsewhere:
            self._probe_node(now_ms, path)
            return
        about = self._in_trouble(now_ms, path)
        body = Probe(path.number, about.number, path.probe_sent(now_ms)).encode()
        if path is self.bound:
            self.watch.sent(now_ms)
        self.effects.append(Send(path.id, channel.seal(body)))

    # --- the nodes of a cluster ---

    def learn_nodes(self, endpoints: Iterable[Endpoint]) -> None:
        """Which node is where, as the gateway has told."""
        told = [e for e in endpoints if e.address and e.node != NO_NODE]
        self._nodes = {(e.transport, host_port(e.address, e.port)): e.node for e in told}
        self.set_home(self.home)

    def node_of(self, path: Path) -> int:
        """The tag of the node that the path leads to, NO_NODE if that is not known."""
        return path.info.node or self._nodes.get((path.info.transport, path.info.remote), NO_NODE)

    def set_home(self, node: int) -> None:
        """This node owns the session."""
        self.home = node
        for path in self.paths.values():
            self.place(path)

    def place(self, path: Path) -> None:
        """See whether the path leads to another node than the one that owns the session."""
        path.is_elsewhere = NO_NODE != self.home != self.node_of(path) != NO_NODE

    def turned_away(self, path: Path, reason: Reason, owner: int) -> None:
        """The node that `path` leads to has refused the session for `reason`, and names `owner`."""
        node = self.node_of(path)
        if reason not in TURNED_AWAY or node == NO_NODE:
            return
        for other in self.paths.values():
            if reason is Reason.WRONG_NODE:
                wrong = self.node_of(other) == node
                knows = any(self.node_of(each) == owner for each in self.paths.values())
                other.is_wrong |= wrong or (knows and self.node_of(other) != owner)
            elif self.node_of(other) == node:
                other.takes_sessions = False

    def _probe_node(self, now_ms: float, path: Path) -> None:
        """The node there does not have the session: it can only say that it lives."""
        if self.credentials is not None:
            sequence, its = path.probe_sent(now_ms), self.credentials
            packet = node_probe(its.ticket, sequence, its.reset_key)
            self.effects.append(Send(path.id, packet))

    def on_node_reply(self, now_ms: float, path: Path, packet: bytes) -> bool:
        """A node says of itself how it is. False if that is forged, or about an older ticket."""
        sequence, its = reply_sequence(packet), self.credentials
        if sequence is None or its is None:
            return False
        asked = node_probe(its.ticket, sequence, its.reset_key)
        state = read_node_reply(packet, asked, its.reset_key)
        if state is None:
            return False
        if path.probe_answered(sequence, now_ms):
            path.takes_sessions = state is NodeState.READY
        return True

    def _in_trouble(self, now_ms: float, path: Path) -> Path:
        """The path to ask about over `path`: the bound one, or else one that does not answer."""
        if self.bound is not None and path is not self.bound:
            return self.bound
        silent = [p for p in self.others() if p.overdue(now_ms)]
        # By turns, where several are silent.
        return min(silent, key=lambda p: p.told_ms) if silent else path

    def count(self, cause: str) -> None:
        self.dropped[cause] = self.dropped.get(cause, 0) + 1


def _within(own: Policy, bounds: PolicyBounds | None) -> Policy:
    """Our policy, and of what the gateway bounds as well, the stricter of both that is allowed."""
    if bounds is None:
        return own
    names = [name for name in bounds.__slots__ if name not in ("version", "rekey_after_ms")]
    tighter = {
        name: max(min(getattr(own, name), getattr(bounds, name)), int(RANGES[name][1]))
        for name in names
    }
    longer_ms = max(own.switch_cooldown_ms, bounds.switch_cooldown_ms)
    tighter["switch_cooldown_ms"] = min(longer_ms, int(RANGES["switch_cooldown_ms"][2]))
    return replace(own, **tighter)
