"""An epoll loop of a relay: who is told about which descriptor."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Final

_EVENTS_A_TURN: Final = 256


class Watch:
    """One descriptor in the loop. EPOLLERR and EPOLLHUP are told of in any case."""

    def __init__(self, epoll: select.epoll, handlers: dict[int, _Handler], fd: int) -> None:
        self._epoll = epoll
        self._handlers = handlers
        self._fd = fd
        self._events = 0

    def want(self, events: int) -> None:
        if events != self._events:  # most often it is the same: no system call
            self._epoll.modify(self._fd, events)
            self._events = events

    def forget(self) -> None:
        """Before the descriptor is closed."""
        self._epoll.unregister(self._fd)
        del self._handlers[self._fd]


class Poll:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, _Handler] = {}

    def watch(self, fd: int, handler: Callable[[int], None]) -> Watch:
        """Call `handler` with the events of `fd`; never more than once a turn.

        Not to be called from a handler: the number of a descriptor that was closed in this turn
        may still have an event to come.
        """
        self._epoll.register(fd, 0)
        self._handlers[fd] = handler
        return Watch(self._epoll, self._handlers, fd)

    def turn(self, timeout_s: float | None) -> None:
        """Wait for something to happen, and tell everyone concerned."""
        for fd, events in self._epoll.poll(timeout_s, _EVENTS_A_TURN):
            handler = self._handlers.get(fd)
            if handler is not None:  # nobody forgot it since
                handler(events)


_Handler = Callable[[int], None]
