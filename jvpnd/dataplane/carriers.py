"""Kinds of transport by what their descriptors are, and which worker gets which of them.

`one_reader`: all that comes, of whatever lane, comes to the downlink of lane 0.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from jvpnd.core.dataclass import dataclass
from jvpnd.dataplane.messages import Remote

Command: TypeAlias = tuple[str, list[int], dict[str, Any]]
"""What a worker is told: name, descriptors, arguments."""


@dataclass(slots=True)
class Udp:
    """A socket for each lane, and the only address that may be heard on them."""

    fds: list[int]
    peer: Remote | None
    one_reader = False

    def for_worker(self, role: str, lane: int) -> Command | None:
        peer = {"peer": self.peer} if role == "downlink" else {}
        return "add_socket", [self.fds[lane]], peer


@dataclass(slots=True)
class Stream:
    """A byte stream, both ends of its feed: lane 0 reads and writes it, other lanes feed it."""

    fds: list[int]
    one_reader = True

    def for_worker(self, role: str, lane: int) -> Command | None:
        stream, feed, intake = self.fds
        if role == "downlink":
            return ("add_stream", [stream], {}) if lane == 0 else None
        return ("add_stream", [stream, intake], {}) if lane == 0 else ("add_socket", [feed], {})


@dataclass(slots=True)
class Relay:
    """A socket of messages: lane 0 reads it, and every lane writes."""

    fds: list[int]
    one_reader = True

    def for_worker(self, role: str, lane: int) -> Command | None:
        return ("add_socket", self.fds, {}) if role == "uplink" or lane == 0 else None


Carrier: TypeAlias = Udp | Stream | Relay
