"""A cable in user space: delay, jitter, loss, duplication, reordering and silence, each way.

The kernel here need not have netem. A process in a namespace of its own carries Ethernet frames
between two veth ends; run as a module this file is that process.
"""

from __future__ import annotations

import contextlib
import ctypes
import heapq
import json
import random
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any

from lab.namespace import Namespace, ip

FRAME_MAX = 1514  # an MTU of 1500 and the Ethernet header
BATCH = 256  # frames of one direction before the other one's turn
QUEUE_MAX = 100_000  # frames under way in one direction
RECEIVE_BUFFER = 8 << 20
# What would hand over frames that are not yet cut to size or lack their checksum.
_OFFLOADS = ("tx", "tso", "gso", "gro", "tx-udp-segmentation")
_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_IGNORE_OUTGOING = 263, 6, 23  # linux/if_packet.h
_STATISTICS = struct.Struct("II")  # struct tpacket_stats: packets, drops
_SO_RCVBUFFORCE = 33
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Conditions:
    """What one direction of a wire does to each frame; loss and duplicate are probabilities."""

    delay_ms: float = 0
    jitter_ms: float = 0  # uniform, on top of the delay
    loss: float = 0
    duplicate: float = 0
    silent: bool = False
    reorder: bool = True  # whether jitter may change the order

    def __post_init__(self) -> None:
        for name, most in (("delay_ms", 1e6), ("jitter_ms", 1e6), ("loss", 1), ("duplicate", 1)):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise ValueError(f"{name} is {value}, not in 0 to {most:g}")


class Wire:
    """A cable between a new interface in one namespace and one in another.

    The far ends are up and have no addresses; frames flow once the constructor has returned. The
    process ends with the thread that made it. Raises RuntimeError where a device cannot be made.
    """

    def __init__(
        self,
        ns_a: str,
        dev_a: str,
        ns_b: str,
        dev_b: str,
        conditions: Conditions | None = None,
    ) -> None:
        self._namespace = Namespace("wire")
        try:
            self._namespace.sysctl("net.ipv6.conf.default.disable_ipv6", "1")  # it says nothing
            self._plug("wa", ns_a, dev_a)
            self._plug("wb", ns_b, dev_b)
            self._process = self._namespace.popen(
                *(sys.executable, "-m", "lab.wire"),
                stdin=PIPE,
                env={"PYTHONPATH": str(Path(__file__).parents[1])},
            )
            self._read()  # the process has its sockets
            self.set_both(conditions or Conditions())
        except BaseException:
            self.close()
            raise

    def _plug(self, near: str, namespace: str, device: str) -> None:
        ip(
            *("link", "add", near, "netns", self._namespace.name, "type", "veth"),
            *("peer", "name", device, "netns", namespace),
        )
        off = [word for feature in _OFFLOADS for word in (feature, "off")]
        ip("netns", "exec", namespace, "ethtool", "-K", device, *off)
        ip("-n", namespace, "link", "set", device, "up")
        self._namespace.ip("link", "set", near, "up")
        # The far end learns of its carrier a moment later, and loses what it sends until then;
        # asking for its link state makes the kernel do that now (ethtool_op_get_link).
        ip("netns", "exec", namespace, "ethtool", device)

    def set(self, a_to_b: Conditions | None = None, b_to_a: Conditions | None = None) -> None:
        """Change one or both directions; holds for every frame from now on.

        Frames under way arrive as they would have.
        """
        wanted = {"a": a_to_b, "b": b_to_a}
        self._ask({name: asdict(value) for name, value in wanted.items() if value is not None})

    def set_both(self, conditions: Conditions) -> None:
        self.set(conditions, conditions)

    def counters(self) -> dict[str, int]:
        """Frames by their fate, and by the end they came from: carried_a, dropped_a, waiting_a, ...

        One is carried when it leaves the wire, a duplicate once more; until then it is waiting.
        """
        return self._ask({})

    def close(self) -> None:
        """End the process, take both interfaces away at once, and the wire's namespace."""
        for near in ("wa", "wb"):
            with contextlib.suppress(RuntimeError):  # gone with its far end, or closed before
                self._namespace.ip("link", "del", near)
        self._namespace.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, int]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the wire's process has ended")
        answer: dict[str, int] = json.loads(line)
        return answer


def _open(device: str) -> socket.socket:
    """A packet socket that sees every frame which comes in at the device, and only those."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    sock.setblocking(False)
    sock.bind((device, _ETH_P_ALL))
    return sock


class _Direction:
    """From one end to the other: its conditions, its luck and its counters."""

    def __init__(self, source: socket.socket, sink: socket.socket, seed: str) -> None:
        self.source, self._sink = source, sink
        self.conditions = Conditions()
        self.carried = self.dropped = self.waiting = 0
        self._random = random.Random(seed)  # of its own: the other direction changes nothing
        self._last_due = 0.0

    def fate(self, frame: bytes, now: float) -> list[float]:
        """When each copy of a frame that comes in now is due; none if it is lost."""
        wanted, chance = self.conditions, self._random.random
        if wanted.silent or len(frame) > FRAME_MAX:
            return []
        copies = 2 if chance() < wanted.duplicate else 1
        return [self._due(now) for _ in range(copies) if chance() >= wanted.loss]

    def _due(self, now: float) -> float:
        wanted = self.conditions
        due = now + (wanted.delay_ms + wanted.jitter_ms * self._random.random()) / 1000
        if not wanted.reorder:
            due = max(due, self._last_due)
        self._last_due = due
        return due

    def send(self, frame: bytes) -> None:
        try:
            self._sink.send(frame)
            self.carried += 1
        except OSError:  # a full or downed device loses frames, as cables do
            self.dropped += 1

    def count_overrun(self) -> None:
        """Add what the kernel dropped since the last time because this process was too slow."""
        size = _STATISTICS.size
        statistics = self.source.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, size)
        self.dropped += _STATISTICS.unpack(statistics)[1]


class _Carrier:
    """The process: two directions, and a queue of frames by the time they are due."""

    def __init__(self) -> None:
        a, b = _open("wa"), _open("wb")
        self._directions = {"a": _Direction(a, b, "a"), "b": _Direction(b, a, "b")}
        self._queue: list[tuple[float, int, _Direction, bytes]] = []
        self._number = 0

    def run(self) -> None:
        """Until the other end of stdin is closed."""
        directions = list(self._directions.values())
        sources = [sys.stdin, *(direction.source for direction in directions)]
        print("{}", flush=True)
        while True:
            wait_s = max(0.0, self._queue[0][0] - time.monotonic()) if self._queue else None
            readable = select.select(sources, [], [], wait_s)[0]
            # One request at a time is under way, so none hides in stdin's buffer.
            if sys.stdin in readable and not self._obey(sys.stdin.readline()):
                return
            for direction in directions:
                if direction.source in readable:
                    self._take(direction)
            self._release()

    def _obey(self, line: str) -> bool:
        if not line:
            return False
        for name, conditions in json.loads(line).items():
            self._directions[name].conditions = Conditions(**conditions)
        counts: dict[str, int] = {}
        for name, direction in self._directions.items():
            direction.count_overrun()
            for fate in ("carried", "dropped", "waiting"):
                counts[f"{fate}_{name}"] = getattr(direction, fate)
        print(json.dumps(counts), flush=True)
        return True

    def _take(self, direction: _Direction) -> None:
        now = time.monotonic()
        for _ in range(BATCH):
            try:
                frame = direction.source.recv(FRAME_MAX + 1)
            except OSError:  # nothing more, or the device is gone
                return
            dues = direction.fate(frame, now)
            if not dues:
                direction.dropped += 1
            for due in dues:
                self._carry(direction, frame, due, now)

    def _carry(self, direction: _Direction, frame: bytes, due: float, now: float) -> None:
        if due <= now and not direction.waiting:
            direction.send(frame)
        elif direction.waiting >= QUEUE_MAX:
            direction.dropped += 1
        else:
            direction.waiting += 1
            self._number += 1
            heapq.heappush(self._queue, (due, self._number, direction, frame))

    def _release(self) -> None:
        now = time.monotonic()
        while self._queue and self._queue[0][0] <= now:
            _, _, direction, frame = heapq.heappop(self._queue)
            direction.waiting -= 1
            direction.send(frame)


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever made the wire decides when it ends
    _Carrier().run()
