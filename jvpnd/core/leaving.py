"""How a node gives its sessions away: it asks their clients, some at a time, to move to another."""

from __future__ import annotations

from collections import deque

from jvpnd.core import constants as c
from jvpnd.core.effects import Send
from jvpnd.core.gatewaystate import GatewayState
from jvpnd.core.messages import Control
from jvpnd.core.peer import Peer
from jvpnd.core.states import State


class Leaving:
    """The order to leave, and who is still to be asked: who does not go is asked again."""

    def __init__(self, state: GatewayState) -> None:
        self._state = state
        self._to_ask: deque[Peer] = deque()
        self._ask_ms = 0.0

    def order(self, now_ms: float, leave: bool) -> None:
        """Leave, or stay after all."""
        self._state.is_draining = leave
        self._to_ask.clear()
        self._ask_ms = now_ms

    def due_ms(self) -> list[float]:
        """When the next clients are to be asked, if there are any."""
        return [self._ask_ms] if self._state.is_draining else []

    def ask_some(self, now_ms: float) -> None:
        """By and by: each moves at once, and the table has to write it."""
        if not self._state.is_draining or now_ms < self._ask_ms:
            return
        if not self._to_ask:
            self._to_ask.extend(self._state.sessions.values())
        for _ in range(min(c.TELL_SLICE, len(self._to_ask))):
            peer = self._to_ask.popleft()
            if peer.session.state is not State.TERMINATED and not peer.is_restored:
                packet = peer.channel.seal(bytes([Control.MOVE]))
                self._state.effects.append(Send(peer.origin, packet))
        self._ask_ms = now_ms + (c.TELL_GAP_MS if self._to_ask else c.MOVE_AGAIN_MS)
