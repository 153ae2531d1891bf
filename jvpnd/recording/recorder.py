"""Stands between the shell and the agent, and writes down every input and what came of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, TypeVar

from jvpnd.core.client import ClientAgent, Refusal
from jvpnd.core.effects import Effect
from jvpnd.core.entropy import Entropy
from jvpnd.core.handshake import Established, Handshake, PendingInit
from jvpnd.core.messages import InitPayload
from jvpnd.core.packets import Response
from jvpnd.core.path import PathInfo
from jvpnd.core.policy import Policy
from jvpnd.core.watch import Traffic
from jvpnd.recording.snapshot import encode, plain
from jvpnd.recording.tape import Tape, digest, output

T = TypeVar("T")


class RecordedEntropy:
    """Entropy whose answers are on the tape."""

    def __init__(self, entropy: Entropy, tape: Tape) -> None:
        self._entropy, self._tape = entropy, tape

    def draw(self, count: int) -> bytes:
        drawn = self._entropy.draw(count)
        self._tape.gave.append(drawn.hex())
        return drawn

    def encapsulate(self, public_key: bytes) -> tuple[bytes, bytes]:
        """Only gateways do."""
        return self._entropy.encapsulate(public_key)


class RecordedHandshake:
    """A handshake whose results are on the tape, but not the keys that they were made with."""

    def __init__(self, handshake: Handshake, tape: Tape) -> None:
        self._handshake, self._tape = handshake, tape

    def start(
        self, now_ms: float, path_id: str, payload: InitPayload, cookie: bytes
    ) -> PendingInit:
        pending = self._handshake.start(now_ms, path_id, payload, cookie)
        asked = digest([plain(payload), path_id, cookie.hex()])
        self._tape.gave.append([asked, plain(pending)])
        return pending

    def finish(self, pending: PendingInit, response: Response) -> Established | None:
        done = self._handshake.finish(pending, response)
        self._tape.gave.append(None if done is None else plain(done))
        return done


class RecordedAgent:
    """Has the inputs of a ClientAgent, which was made with this entropy and this handshake."""

    def __init__(
        self,
        agent: ClientAgent,
        tape: Tape,
        entropy: RecordedEntropy,
        handshake: RecordedHandshake,
    ) -> None:
        self._agent, self._tape = agent, tape
        self._holes = {"entropy": entropy, "handshake": handshake}
        self._traffic = Traffic()

    @property
    def policy(self) -> Policy:
        return self._agent.policy

    @property
    def own_policy(self) -> Policy:
        return self._agent.own_policy

    # --- inputs ---

    def path_added(self, now_ms: float, info: PathInfo) -> None:
        self._begin()
        self._agent.path_added(now_ms, info)
        self._note("path_added", now_ms, asdict(info))

    def path_removed(self, now_ms: float, path_id: str, why: str) -> None:
        self._begin()
        self._agent.path_removed(now_ms, path_id, why)
        self._note("path_removed", now_ms, path_id, why)

    def path_failed(self, now_ms: float, path_id: str, why: str, certain: bool) -> None:
        self._begin()
        self._agent.path_failed(now_ms, path_id, why, certain)
        self._note("path_failed", now_ms, path_id, why, certain)

    def keys_lost(self, now_ms: float, why: str) -> None:
        self._begin()
        self._agent.keys_lost(now_ms, why)
        self._note("keys_lost", now_ms, why)

    def packet_received(self, now_ms: float, path_id: str, packet: bytes) -> None:
        self._begin()
        self._agent.packet_received(now_ms, path_id, packet)
        self._note("packet_received", now_ms, path_id, packet.hex())

    def traffic(self, now_ms: float, traffic: Traffic) -> None:
        """A look that shows nothing new is none."""
        if traffic != self._traffic:
            self._traffic = traffic
            self._begin()
            self._agent.traffic(now_ms, traffic)
            self._note("traffic", now_ms, *asdict(traffic).values())

    def timer(self, now_ms: float) -> None:
        self._begin()
        self._agent.timer(now_ms)
        self._note("timer", now_ms)

    def switch(self, now_ms: float, path_id: str | None) -> Refusal | None:
        self._begin()
        refusal = self._agent.switch(now_ms, path_id)
        return self._note("switch", now_ms, path_id, said=refusal)

    def terminate(self, now_ms: float) -> Refusal | None:
        self._begin()
        refusal = self._agent.terminate(now_ms)
        return self._note("terminate", now_ms, said=refusal)

    def apply_policy(self, now_ms: float, policy: Policy) -> None:
        self._begin()
        self._agent.apply_policy(now_ms, policy)
        self._note("apply_policy", now_ms, asdict(policy))

    def next_timer_ms(self, now_ms: float) -> float:
        """An input too: the agent remembers when it wanted to be called."""
        self._begin()
        return self._note("next_timer_ms", now_ms, said=self._agent.next_timer_ms(now_ms))

    # --- outputs ---

    def drain(self) -> list[Effect]:
        if self._tape.wants_snapshot():  # a restored session has effects before any input
            self._begin()
        effects = self._agent.drain()
        if effects:
            self._tape.write(output(effects))
        return effects

    # --- writing ---

    def _begin(self) -> None:
        self._tape.gave = []
        if self._tape.wants_snapshot():
            self._tape.begin_half(encode(self._agent, self._holes))

    def _note(self, name: str, now_ms: float, *args: Any, said: T = None) -> T:  # type: ignore[assignment]
        row: dict[str, Any] = {"in": name, "t": now_ms}
        if args:
            row["args"] = args
        if self._tape.gave:
            row["gave"] = self._tape.gave
        if said is not None:
            row["said"] = asdict(said) if isinstance(said, Refusal) else said
        self._tape.write(row)
        return said
