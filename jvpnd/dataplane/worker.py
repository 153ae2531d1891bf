"""A data plane process: `helper.py jvpnd.dataplane.worker ROLE LANE LANES CHANNEL_FD COUNTERS_FD
PARENT_PID`.

Started by process.py only. It holds keys and descriptors and nothing else: once it has the TUN it
gives up every privilege, and it ends with its control process, however that ends.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import Final

from jvpnd.core.offloads import Offloads
from jvpnd.dataplane.counters import Counters, Drop
from jvpnd.dataplane.downlink import Downlink
from jvpnd.dataplane.messages import Report, ReportKind, encode_report, receive_command
from jvpnd.dataplane.uplink import Uplink
from jvpnd.privileges import give_up_all

COMMANDS_A_TURN: Final = 256  # packets wait no longer, and the loop is seen to turn


class Channel:
    """The worker's end of the socket pair to control."""

    def __init__(self, fd: int, drops: memoryview) -> None:
        self.socket = socket.socket(fileno=fd)
        self._drops = drops
        self.commands: dict[str, Callable[..., None]] = {}

    def report(self, report: Report) -> None:
        """Tell control, without ever waiting for it."""
        try:
            self.socket.send(encode_report(report), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            self._drops[Drop.CONTROL_BUSY] += 1
        except (BrokenPipeError, ConnectionResetError):
            return  # control is gone; the next read says so

    def take_commands(self) -> bool:
        """Carry out commands that wait, some at a time; False once control is gone."""
        for _ in range(COMMANDS_A_TURN):
            try:
                command = receive_command(self.socket)
            except BlockingIOError:
                return True
            except ConnectionResetError:
                return False
            if command is None:
                return False
            name, arguments, fds = command
            if fds:
                arguments["fds"] = fds
            self.commands[name](**arguments)
        return True


def main(
    role: str, lane: int, lanes: int, channel_fd: int, counters_fd: int, parent: int
) -> None:
    """Run a worker until control goes away."""
    for noise in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(noise, signal.SIG_IGN)  # control decides when this ends, and sees to it
    counters = Counters(counters_fd, lane)
    first = Counters(counters_fd) if lane else counters
    os.close(counters_fd)
    channel = Channel(channel_fd, counters.drops_of(role))
    started = receive_command(channel.socket)
    if started is None:
        return
    _name, arguments, (tun_fd,) = started
    offloads = Offloads(**arguments["offloads"])
    worker: Uplink | Downlink
    if role == "uplink":
        worker = Uplink(tun_fd, offloads, lane, counters, channel.report, first)
        worker.set_mtu(arguments["mtu"])
        worker.pause(arguments["paused"])  # before it reads what nobody waits for yet
    else:
        worker = Downlink(tun_fd, offloads, lane, counters, channel.report, lanes)
    channel.commands = worker.commands
    give_up_all(parent)
    channel.report(Report(ReportKind.READY))
    channel.socket.setblocking(False)
    worker.run(channel.socket, channel.take_commands)
