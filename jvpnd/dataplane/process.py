"""Control's hold on one data plane worker: commands to it, checked reports from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jvpnd.child import ChildProcess
from jvpnd.dataplane.messages import MAX_REPORT, Report, decode_report, encode_command
from jvpnd.seqpacket import close_all
from jvpnd.spawn import Spawned


class WorkerProcess:
    """One running worker. `on_exit` is called once if it ends without having been stopped."""

    def __init__(
        self,
        spawned: Spawned,
        on_report: Callable[[Report], None],
        on_exit: Callable[[], None],
    ) -> None:
        def on_message(data: bytes, fds: list[int]) -> None:
            close_all(fds)  # a worker has none to give
            report = decode_report(data)
            if report is not None:
                on_report(report)

        self._hung = False
        self._child = ChildProcess(spawned, MAX_REPORT, on_message, on_exit)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def how_it_ended(self) -> str:
        """In words; "" while it runs."""
        return "hung" if self._hung else self._child.how_it_ended

    def kill_hung(self) -> None:
        """It does not go round any more: end it, as if it had died."""
        self._hung = True
        self._child.kill()

    def send(self, name: str, fds: Sequence[int] = (), **arguments: Any) -> None:
        """Send a command, or queue it while the channel is full."""
        self._child.send(encode_command(name, arguments), fds)

    async def stop(self) -> None:
        """End the worker and wait for it."""
        await self._child.stop()
