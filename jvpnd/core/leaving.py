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
    """The order to leave, who is still to be asked, and who is about to go: others are asked as
    these have left, so that no node has to take in more than it can. Who does not go is asked
    again."""

    def __init__(self, state: GatewayState) -> None:
        self._state = state
        self._to_ask: deque[Peer] = deque()
        self._going: list[tuple[float, Peer]] = []  # and until when they may take
        self._ask_ms = 0.0

    def order(self, now_ms: float, leave: bool) -> None:
        """Leave, or stay after all."""
        self._state.is_draining = leave
        self._to_ask.clear()
        self._going.clear()
        self._ask_ms = now_ms

    def due_ms(self) -> list[float]:
        """When the next clients are to be asked, if there are any."""
        return [self._ask_ms] if self._state.is_draining else []

    def ask_some(self, now_ms: float) -> None:
        """By and by: each moves at once, and the table has to write it."""
        if not self._state.is_draining or now_ms < self._ask_ms:
            return
        self._going = [each for each in self._going if now_ms < each[0] and _is_here(each[1])]
        if not self._to_ask and not self._going:
            self._to_ask.extend(self._state.sessions.values())
        while self._to_ask and len(self._going) < c.MOVES_AT_ONCE:
            peer = self._to_ask.popleft()
            if _is_here(peer) and not peer.is_restored:
                packet = peer.channel.seal(bytes([Control.MOVE]))
                self._state.effects.append(Send(peer.origin, packet))
                self._going.append((now_ms + c.MOVE_AGAIN_MS, peer))
        is_busy = self._to_ask or self._going
        self._ask_ms = now_ms + (c.TELL_GAP_MS if is_busy else c.MOVE_AGAIN_MS)


def _is_here(peer: Peer) -> bool:
    return peer.session.state is not State.TERMINATED
