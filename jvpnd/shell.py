"""What the client's and the gateway's shell have in common: core in the middle, timer, events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from jvpnd.core.effects import Effect, Emit
from jvpnd.core.policy import Policy
from jvpnd.host import now_ms
from jvpnd.observe.log import Event, EventLog
from jvpnd.observe.words import describe

_log = logging.getLogger("jvpnd")


class Core(Protocol):
    """Both cores look like this from outside."""

    @property
    def policy(self) -> Policy: ...
    @property
    def own_policy(self) -> Policy: ...

    def apply_policy(self, now_ms: float, policy: Policy) -> None: ...
    def drain(self) -> list[Effect]: ...
    def next_timer_ms(self, now_ms: float) -> float: ...
    def timer(self, now_ms: float) -> None: ...


class CoreDriver:
    """Runs a core: performs its effects in order after every input and wakes it when it wants."""

    def __init__(
        self,
        core: Core,
        events: EventLog,
        perform: Mapping[type[Effect], Callable[[Any], None]],
        look: Callable[[float], None],
        look_every_ms: float,
    ) -> None:
        """`look` takes the data plane's counters to the core: before each timer, and this often."""
        self._core = core
        self._events = events
        self._perform: dict[type, Callable[[Any], None]] = {**perform, Emit: self._emit}
        self._look = look
        self._look_every_ms = look_every_ms
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._pumping = False
        self._stopped = False

    def pump(self) -> None:
        """Perform what the core wants done. Inputs made meanwhile are taken in the same turn."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while effects := self._core.drain():
                for effect in effects:
                    self._perform[type(effect)](effect)
        finally:
            self._pumping = False
        self._schedule()

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._stopped:
            return
        now = now_ms()
        delay_ms = min(self._core.next_timer_ms(now) - now, self._look_every_ms)
        self._timer = self._loop.call_later(delay_ms / 1000, self._wake)

    def _wake(self) -> None:
        self._timer = None
        now = now_ms()
        self._look(now)
        self._core.timer(now)
        self.pump()

    def stop(self) -> None:
        """No more timers; what comes in while all is taken down is still worked off."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def worker_restarted(self, name: str, why: str) -> None:
        """No decision of the protocol, so no event of the core's (nor of a recording)."""
        _log.error("the %s worker was started again: %s", name, why)
        self._events.append(
            "WORKER_RESTARTED",
            policy_version=self._core.policy.version,
            details={"worker": name, "why": why},
        )

    def _emit(self, event: Emit) -> None:
        written = write(self._events, event, self._core.policy.version)
        if event.event_type in ("STATE_CHANGE", "SECURITY_EVENT", "SESSION_CREATED"):
            _log.info("%s", describe(written))


def write(events: EventLog, event: Emit, policy_version: int) -> Event:
    """Put an event of the core into the log."""
    return events.append(
        event_type=event.event_type,
        session_id=event.session_id.hex() if event.session_id else None,
        client=event.client,
        from_state=event.from_state,
        to_state=event.to_state,
        reason=str(event.reason) if event.reason else None,
        state_version=event.state_version,
        policy_version=policy_version,
        details=event.details,
    )
