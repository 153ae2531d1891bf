"""Keeps the kill switch as the configuration says, while the daemon runs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Sequence
from typing import Final

from jvpnd.net import killswitch, nft, nftables
from jvpnd.net.errors import MissingFeature

_log = logging.getLogger(__name__)
_PAUSE_S: Final = 0.1  # between looks, where somebody takes it off again and again
_RECV_BYTES: Final = 2**16


class KillGuard:
    """Of one tunnel interface. One that is wanted is never taken off: the table stays when the
    daemon ends."""

    def __init__(self, name: str, wanted: bool, exclude: Sequence[str]) -> None:
        self._name = name
        self._wanted = wanted
        self._exclude = exclude
        self._events: socket.socket | None = None
        self._mending: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Put it on, in place of the one that is there, and watch that it stays; or take off one
        that is wanted no more. Raises MissingFeature."""
        if not self._wanted:
            await self._take_off_left()
            return
        try:
            self._events = nftables.subscribe()
            self._warn_of_others(killswitch.switched_on())
        except OSError as error:
            raise MissingFeature(f"no kill switch: {error.strerror} (nf_tables)") from error
        problem = await nft.load(killswitch.ruleset(self._name, self._exclude))
        if problem is not None:
            raise MissingFeature(f"the kill switch cannot be put on: {problem}")
        asyncio.get_running_loop().add_reader(self._events.fileno(), self._changed)

    async def stop(self) -> None:
        """Watch no longer; the kill switch stays as it is."""
        if self._events is not None:
            asyncio.get_running_loop().remove_reader(self._events.fileno())
            self._events.close()
            self._events = None
        if self._mending is not None:
            self._mending.cancel()
            await asyncio.gather(self._mending, return_exceptions=True)

    async def _take_off_left(self) -> None:
        try:
            tables = killswitch.switched_on()
        except OSError as error:  # a kernel without nft has no tables
            _log.debug("cannot look for a kill switch: %s", error)
            return
        self._warn_of_others(tables)
        if killswitch.table_of(self._name) in tables:
            problem = await nft.load(killswitch.without(self._name))
            if problem is not None:
                _log.warning("cannot take the kill switch off: %s", problem)

    def _warn_of_others(self, tables: set[str]) -> None:
        """Left where the interface had another name, or of another daemon: we cannot tell."""
        others = tables - {killswitch.table_of(self._name)}
        if others:
            _log.warning(
                "the kill switch of another interface is on and holds this tunnel back (%s): "
                "jvpnctl kill-switch off takes it off", ", ".join(sorted(others)),
            )

    def _changed(self) -> None:
        """Somebody changed rules: was it ours?"""
        assert self._events is not None
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    self._events.recv(_RECV_BYTES)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:  # more changes than it could hold
                        raise
        if self._mending is None or self._mending.done():
            self._mending = asyncio.create_task(self._mend())

    async def _mend(self) -> None:
        """Others flush all rules when they load theirs."""
        while not killswitch.is_on(self._name):
            if killswitch.is_meant_off():
                _log.warning("the kill switch is off until the next start, by jvpnctl")
                asyncio.get_running_loop().remove_reader(self._fileno())
                return
            _log.warning("somebody removed the kill switch: putting it on again")
            problem = await nft.load(killswitch.ruleset(self._name, self._exclude))
            if problem is not None:
                _log.error("the kill switch cannot be put on: %s", problem)
            await asyncio.sleep(_PAUSE_S)

    def _fileno(self) -> int:
        assert self._events is not None
        return self._events.fileno()
