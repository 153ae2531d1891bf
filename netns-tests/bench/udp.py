"""UDP through a tunnel: what arrives at less than 1 % loss, found by search."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.link import Link
from bench.peers.base import Tunnel
from bench.search import Found, Trial, search

SOURCE = Path(__file__).with_name("datagrams.c")
PORT = 5202
START_RATE = 40_000.0  # datagrams a second
DRAIN_S = 0.2  # queues empty before the receiver is asked
SLACK_S = 20.0


class Generator:
    """The compiled sender and receiver; a context."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="jvpn-bench-")
        self._program = str(Path(self._folder.name) / "datagrams")
        command = ["gcc", "-O2", "-o", self._program, str(SOURCE), "-lm"]
        subprocess.run(command, check=True, timeout=120)

    def trial(self, link: Link, tunnel: Tunnel, size: int, rate: float, seconds: float) -> Trial:
        """`size` bytes of payload at `rate` datagrams a second, client to gateway."""
        where = (tunnel.gateway, str(PORT), str(size))
        receiver = link.gateway.popen(self._program, "receive", *where, stdin=subprocess.PIPE)
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n", "the receiver did not start"
        sender = link.client.popen(self._program, "send", *where, f"{rate:.0f}", f"{seconds:.3f}")
        sent = _report(sender.communicate(timeout=seconds + SLACK_S)[0])
        time.sleep(DRAIN_S)
        received = _report(receiver.communicate(timeout=SLACK_S)[0])
        # What still came out of a long queue after the sender's time was not carried in that time.
        lasted = max(sent["seconds"], received["seconds"])
        offered = sent["sent"] + sent["refused"]
        return Trial(rate, offered / sent["seconds"], received["received"] / lasted)

    def search(self, link: Link, tunnel: Tunnel, size: int, seconds: float, trials: int) -> Found:
        def one(rate: float) -> Trial:
            return self.trial(link, tunnel, size, rate, seconds)

        return search(one, START_RATE, trials)

    def close(self) -> None:
        self._folder.cleanup()

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _report(text: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(text)
    return report
