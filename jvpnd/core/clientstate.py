"""What the parts of a client agent share: the session, its paths, and the hold on its keys."""

from __future__ import annotations

from dataclasses import dataclass, field

from jvpnd.core.binding import Binding
from jvpnd.core.effects import Effect, PauseTun, Send
from jvpnd.core.entropy import Entropy
from jvpnd.core.messages import Control, Probe
from jvpnd.core.path import Path
from jvpnd.core.policy import Policy
from jvpnd.core.reattach import Credentials
from jvpnd.core.session import Machine, Session
from jvpnd.core.states import State
from jvpnd.core.watch import BindingWatch


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the client is and whom it trusts. Keys are 32 bytes."""

    name: str
    secret: bytes = field(repr=False)
    gateway_public: bytes
    psk: bytes | None = field(default=None, repr=False)
    has_aes: bool = False


class ClientState:
    """One session at a time, at most one path bound to it. Births and recovery change it."""

    def __init__(self, identity: Identity, policy: Policy, entropy: Entropy) -> None:
        self.identity = identity
        self.own_policy = policy
        self.policy = policy  # the stricter of ours and the gateway's bounds
        self.entropy = entropy
        self.effects: list[Effect] = []
        self.machine = Machine(self.effects.append)
        self.session: Session | None = None
        self.paths: dict[str, Path] = {}
        self.bound: Path | None = None
        self.binding: Binding | None = None
        self.credentials: Credentials | None = None
        self.anchor_ms = 0.0  # when the root's INIT was sent: proof ages count from it
        self.watch = BindingWatch(0)
        self.dropped: dict[str, int] = {}
        self._paused = True  # nothing may leave before there is a session
        self._probe_number = 0

    def live_session(self) -> Session | None:
        """The session, if there is one that has not ended."""
        session = self.session
        return None if session is None or session.state is State.TERMINATED else session

    def bind(self, now_ms: float, path: Path) -> None:
        """This path carries the session from now on."""
        self.bound = path
        self.watch = BindingWatch(now_ms, traffic=self.watch.traffic)
        path.unanswered = 0

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
        self._probe_number = (self._probe_number + 1) & 0xFFFFFFFF
        body = Probe(path.number, self._probe_number).encode(Control.PROBE)
        path.probe_sent(self._probe_number, now_ms)
        if path is self.bound:
            self.watch.sent(now_ms)
        self.effects.append(Send(path.id, channel.seal(body)))

    def count(self, cause: str) -> None:
        self.dropped[cause] = self.dropped.get(cause, 0) + 1
