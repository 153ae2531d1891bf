"""Control's hold on a helper process: talk to it, notice its end. Never blocks.

Child and control talk over a SOCK_SEQPACKET pair, one message a packet, descriptors beside it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from jvpnd.seqpacket import close_all, receive_message, send_message
from jvpnd.spawn import Spawned

MAX_QUEUED: Final = 65_536  # a worker that starts is told of each of 16,384 sessions
MESSAGES_A_TURN: Final = 64
STOP_TIMEOUT_S: Final = 2.0
END_TIMEOUT_S: Final = 0.5  # from the end of its channel to its own


class ChildProcess:
    """A process that has been started.

    `on_message` gets what the child sends, and owns the descriptors beside it. `on_exit` is called
    once if the child ends without having been stopped.
    """

    def __init__(
        self,
        spawned: Spawned,
        max_message: int,
        on_message: Callable[[bytes, list[int]], None],
        on_exit: Callable[[], None],
    ) -> None:
        """`max_message`: what is longer comes with one byte more than that."""
        self._loop = asyncio.get_running_loop()
        self._max_message = max_message
        self._on_message = on_message
        self._on_exit = on_exit
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._process, self._channel = spawned.process, spawned.channel
        self._channel.setblocking(False)
        self._loop.add_reader(self._channel, self._read)
        self._ending: tuple[int, asyncio.TimerHandle] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def how_it_ended(self) -> str:
        """In words: `signal SIGKILL`, `exit status 1`; "" while it runs."""
        status = self._process.returncode
        if status is None:
            return ""
        return f"exit status {status}" if status >= 0 else f"signal {_signal_name(-status)}"

    def kill(self) -> None:
        """End it at once, also where it does not listen; `on_exit` tells when it has."""
        self._process.kill()

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send a message, or queue it while the channel is full; the descriptors are duplicated.

        A child that leaves MAX_QUEUED messages lying is stuck, and is ended. Messages to one
        that has ended are lost; `on_exit` tells.
        """
        if not self._queue and self._try_send(data, fds):
            return
        if len(self._queue) >= MAX_QUEUED:
            self._process.kill()
            return
        if not self._queue:
            self._loop.add_writer(self._channel, self._write_queued)
        self._queue.append((data, [os.dup(fd) for fd in fds]))

    async def stop(self) -> None:
        """End the child and wait for it."""
        self._close_channel()
        self._end_waiting()
        if self._process.returncode is not None:
            return
        ended = asyncio.Event()
        pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(pidfd, ended.set)
        try:
            await asyncio.wait_for(ended.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            self._process.kill()
        finally:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
        self._process.wait()

    def _try_send(self, data: bytes, fds: Sequence[int]) -> bool:
        try:
            send_message(self._channel, data, fds)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            return True
        return True

    def _write_queued(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            if not self._try_send(data, fds):
                return
            self._queue.popleft()
            close_all(fds)
        self._loop.remove_writer(self._channel)

    def _read(self) -> None:
        for _ in range(MESSAGES_A_TURN):
            try:
                data, fds = receive_message(self._channel, self._max_message + 1)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data, fds = b"", []
            if not data:
                self._ended()
                return
            self._on_message(data, fds)
            if self._channel.fileno() < 0:  # stopped by what the message led to
                return

    def _ended(self) -> None:
        """It closed its channel: it is ending, or out of its mind."""
        self._close_channel()
        if self._process.poll() is not None:
            self._on_exit()
            return
        handle = os.pidfd_open(self._process.pid)
        self._loop.add_reader(handle, self._gone)
        self._ending = handle, self._loop.call_later(END_TIMEOUT_S, self._process.kill)

    def _gone(self) -> None:
        self._end_waiting()
        self._process.wait()
        self._on_exit()

    def _end_waiting(self) -> None:
        if self._ending is not None:
            (handle, timer), self._ending = self._ending, None
            timer.cancel()
            self._loop.remove_reader(handle)
            os.close(handle)

    def _close_channel(self) -> None:
        if self._channel.fileno() >= 0:
            self._loop.remove_reader(self._channel)
            self._loop.remove_writer(self._channel)
            self._channel.close()
        for _data, fds in self._queue:
            close_all(fds)
        self._queue.clear()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time one
        return str(number)
