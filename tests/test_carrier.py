"""What paths and connections send through: descriptors for the data plane that never block."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from jvpnd.transport.carrier import Messages, Stream
from jvpnd.transport.quic import new_pipe


class Plane:
    """A data plane that only looks at what it is given."""

    def __init__(self) -> None:
        self.fds: tuple[int, ...] = ()
        self.limit = 0

    def add_stream(self, socket_id: int, *fds: int) -> None:
        self.fds = fds

    def add_relay(self, socket_id: int, fd: int, limit: int) -> None:
        self.fds, self.limit = (fd,), limit

    def set_limit(self, socket_id: int, limit: int) -> None:
        self.limit = limit


@pytest.fixture
def stream() -> Iterator[Stream]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    made = Stream(ours)
    with theirs:
        yield made
    made.close()


def test_a_worker_that_writes_never_waits_for_who_does_not_read(stream: Stream) -> None:
    """Lane 0 writes to the stream, the other lanes to its feed, and all to the pipe of a relay."""
    plane = Plane()
    stream.hand_to(plane, 1)  # type: ignore[arg-type]
    assert len(plane.fds) == 3
    assert not any(map(os.get_blocking, plane.fds))
    ours, theirs = new_pipe()
    with theirs:
        pipe = Messages(ours, 1170)
        pipe.hand_to(plane, 2)  # type: ignore[arg-type]
        assert not any(map(os.get_blocking, plane.fds))
        pipe.close()


def test_controls_packets_get_past_a_feed_that_other_lanes_have_filled(stream: Stream) -> None:
    plane = Plane()
    stream.hand_to(plane, 1)  # type: ignore[arg-type]
    _, feed, intake = (socket.socket(fileno=os.dup(fd)) for fd in plane.fds)
    with feed, intake:
        sent = 0
        with suppress(BlockingIOError):
            while True:
                sent += feed.send(bytes(60_000), socket.MSG_DONTWAIT) // 60_000
        stream.send(b"\x07 probe")
        came = [intake.recv(1 << 17, socket.MSG_DONTWAIT) for _ in range(sent + 1)]
        assert came[-1] == b"\x07 probe"
        with pytest.raises(BlockingIOError):
            intake.recv(1, socket.MSG_DONTWAIT)


def test_a_pipe_tells_the_data_plane_what_it_carries_now() -> None:
    plane, (ours, theirs) = Plane(), new_pipe()
    with theirs:
        pipe = Messages(ours, 1170)
        pipe.resize(1250)
        pipe.hand_to(plane, 2)  # type: ignore[arg-type]
        assert plane.limit == 1250
        pipe.resize(1170)
        assert plane.limit == 1170
        pipe.close()
        pipe.resize(1300)
        assert plane.limit == 1170, "one that is closed tells nothing"
