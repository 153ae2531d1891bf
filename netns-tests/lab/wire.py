"""A cable in user space: delay, jitter, loss, duplication, reordering and silence, each way.

The kernel here need not have netem. A process in a namespace of its own carries Ethernet frames
between two veth ends; run as a script this file is that process.
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
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

ETH_P_ALL = 3
FRAME_MAX = 2048
BATCH = 256
QUEUE_MAX = 100_000
_PR_SET_PDEATHSIG = 1
_OFFLOADS = ("tx", "tso", "gso", "gro", "tx-udp-segmentation")


@dataclass(frozen=True)
class Conditions:
    """What one direction of a wire does to each frame; loss and duplicate are probabilities."""

    delay_ms: float = 0
    jitter_ms: float = 0  # uniform, on top of the delay
    loss: float = 0
    duplicate: float = 0
    silent: bool = False
    reorder: bool = True  # whether jitter may change the order


class Wire:
    """A cable between a new interface in one namespace and one in another."""

    def __init__(
        self,
        ns_a: str,
        dev_a: str,
        ns_b: str,
        dev_b: str,
        conditions: Conditions | None = None,
    ) -> None:
        from lab.namespace import Namespace, ip

        self._namespace = Namespace("wire")
        inside = self._namespace
        inside.sysctl("net.ipv6.conf.default.disable_ipv6", "1")
        for near, namespace, device in (("wa", ns_a, dev_a), ("wb", ns_b, dev_b)):
            ip(
                *("link", "add", near, "netns", inside.name, "type", "veth"),
                *("peer", "name", device, "netns", namespace),
            )
            # Frames must come whole and with their checksums done.
            off = [word for feature in _OFFLOADS for word in (feature, "off")]
            command = ["ip", "netns", "exec", namespace, "ethtool", "-K", device, *off]
            subprocess.run(command, check=True, capture_output=True)
            inside.ip("link", "set", near, "up")
            ip("-n", namespace, "link", "set", device, "up")
        self._process = inside.popen(sys.executable, __file__, stdin=subprocess.PIPE)
        self._read()  # the process has its sockets
        self.set_both(conditions or Conditions())

    def set(self, a_to_b: Conditions | None = None, b_to_a: Conditions | None = None) -> None:
        """Change one or both directions; holds for every frame from now on."""
        for direction, wanted in (("a", a_to_b), ("b", b_to_a)):
            if wanted is not None:
                self._ask({"from": direction, "conditions": asdict(wanted)})

    def set_both(self, conditions: Conditions) -> None:
        self.set(conditions, conditions)

    def counters(self) -> dict[str, int]:
        """Frames carried_a, dropped_a (those that came from a), carried_b, dropped_b."""
        return self._ask({})

    def close(self) -> None:
        self._namespace.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, int]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the wire's process has ended"
        answer: dict[str, int] = json.loads(line)
        return answer


class _End:
    """Frames that come in at one end and what the wire does to them on the way to the other."""

    def __init__(self, name: str, device: str) -> None:
        self.name = name
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self.sock.bind((device, 0))
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self.conditions = Conditions()
        self.carried = self.dropped = 0
        self.last_due = 0.0


class _Carrier:
    """The process: two ends, and a queue of frames by the time they are due."""

    def __init__(self) -> None:
        self.a, self.b = _End("a", "wa"), _End("b", "wb")
        self._queue: list[tuple[float, int, socket.socket, bytes]] = []
        self._number = 0
        self._random = random.Random(1)

    def run(self) -> None:
        print("{}", flush=True)
        while True:
            wait_s = None
            if self._queue:
                wait_s = max(0.0, self._queue[0][0] - time.monotonic())
            readable, _, _ = select.select([self.a.sock, self.b.sock, sys.stdin], [], [], wait_s)
            if sys.stdin in readable and not self._obey(sys.stdin.readline()):
                return
            for end, other in ((self.a, self.b), (self.b, self.a)):
                if end.sock in readable:
                    self._take(end, other.sock)
            self._release()

    def _obey(self, line: str) -> bool:
        if not line:
            return False
        request = json.loads(line)
        if "from" in request:
            end = self.a if request["from"] == "a" else self.b
            end.conditions = Conditions(**request["conditions"])
        counts = {}
        for end in (self.a, self.b):
            counts |= {f"carried_{end.name}": end.carried, f"dropped_{end.name}": end.dropped}
        print(json.dumps(counts), flush=True)
        return True

    def _take(self, end: _End, out: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                frame, source = end.sock.recvfrom(FRAME_MAX)
            except BlockingIOError:
                return
            if source[2] == socket.PACKET_OUTGOING:
                continue
            self._carry(end, out, frame)
            if self._random.random() < end.conditions.duplicate:
                self._carry(end, out, frame)

    def _carry(self, end: _End, out: socket.socket, frame: bytes) -> None:
        now = time.monotonic()
        conditions = end.conditions
        lost = conditions.silent or self._random.random() < conditions.loss
        if lost or len(self._queue) >= QUEUE_MAX:
            end.dropped += 1
            return
        end.carried += 1
        delay_ms = conditions.delay_ms + conditions.jitter_ms * self._random.random()
        due = now + delay_ms / 1000
        if not conditions.reorder:
            due = end.last_due = max(due, end.last_due)
        if due <= now and not self._queue:
            self._send(out, frame)
        else:
            self._number += 1
            heapq.heappush(self._queue, (due, self._number, out, frame))

    def _release(self) -> None:
        now = time.monotonic()
        while self._queue and self._queue[0][0] <= now:
            _, _, out, frame = heapq.heappop(self._queue)
            self._send(out, frame)

    @staticmethod
    def _send(out: socket.socket, frame: bytes) -> None:
        with contextlib.suppress(OSError):  # a full or downed device loses frames, as cables do
            out.send(frame)


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(KeyboardInterrupt):
        _Carrier().run()
