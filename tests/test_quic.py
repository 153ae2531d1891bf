"""Control's side of the QUIC relay, with a relay that says whatever it likes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jvpnd.transport import quic
from jvpnd.transport.endpoint import missing
from jvpnd.transport.limits import MAX_CONNECTIONS
from jvpnd.transport.quic import FIRST_ACCEPTED, MAX_REPORT, QuicRelay

FIRST = ["accepted", 1, FIRST_ACCEPTED, "192.0.2.1", 4433, 1170]


class Child:
    """What ChildProcess is to a relay, without a process."""

    def __init__(self, spawned: Any, max_message: int, on_message: Any, on_exit: Any) -> None:
        self.on_message: Callable[[bytes, list[int]], None] = on_message
        self.sent: list[Any] = []

    def send(self, data: bytes, fds: Any = ()) -> None:
        self.sent.append(json.loads(data))


class Control:
    def __init__(self) -> None:
        self.told: list[Any] = []
        self.pipes: list[socket.socket] = []

        def accepted(listener: int, number: int, remote: Any, size: int, pipe: Any) -> None:
            self.told.append(("accepted", listener, number, remote, size))
            self.pipes.append(pipe)

        self.relay = QuicRelay(
            lambda *values: self.told.append(("ready", *values)),
            accepted,
            lambda *values: self.told.append(("size", *values)),
            lambda *values: self.told.append(("failed", *values)),
            lambda: None,
        )
        child = self.relay._child
        assert isinstance(child, Child)
        self.child = child

    def hear(self, *message: Any) -> None:
        self.child.on_message(json.dumps(message).encode(), [])


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Iterator[Control]:
    monkeypatch.setattr(quic, "ChildProcess", Child)
    monkeypatch.setattr(quic, "spawn", lambda module: None)
    control = Control()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        ours, theirs = quic.new_pipe()
        with ours, theirs:
            control.relay.connect(5, sock, theirs, None, ["h3"])
        control.relay.listen(1, sock, b"", ["h3"])
    yield control
    for pipe in control.pipes:
        pipe.close()


def test_reports_reach_their_callbacks(control: Control) -> None:
    control.hear("ready", 5, 1170)
    control.hear("size", 5, 1442)
    control.hear(*FIRST)
    assert control.told == [
        ("ready", 5, 1170),
        ("size", 5, 1442),
        ("accepted", 1, FIRST_ACCEPTED, ("192.0.2.1", 4433), 1170),
    ]
    assert control.child.sent[-1] == ["pipe", {"number": FIRST_ACCEPTED}]
    assert not control.pipes[0].getblocking()


@pytest.mark.parametrize(
    "message",
    [
        ["ready", 6, 1170],  # not begun
        ["ready", 5, 1],
        ["ready", 5, 65508],
        ["ready", 5, 1170, 1],
        ["ready", True, 1170],
        ["ready", 5.0, 1170],
        ["ready", "5", 1170],
        ["ready", 5],
        ["failed", 6, "why"],
        ["failed", 5, ["why"]],
        ["size", -1, 1170],
        ["size", 2**63, 1170],
        ["size", 5, 0],
        ["accepted", 2, *FIRST[2:]],  # no such listener
        ["accepted", 1, FIRST_ACCEPTED - 1, *FIRST[3:]],
        ["accepted", 1, 2**63, *FIRST[3:]],
        [*FIRST[:3], "gateway.example", 4433, 1170],
        [*FIRST[:3], "1" * 65, 4433, 1170],
        [*FIRST[:3], "192.0.2.1", 0, 1170],
        [*FIRST[:3], "192.0.2.1", 65536, 1170],
        [*FIRST[:5], 1],
        ["on_exit"],
        [["ready"], 5, 1170],
        [],
        {"ready": 5},
        None,
        "ready",
        1,
    ],
)
def test_what_is_no_report_is_dropped(control: Control, message: Any) -> None:
    sent = len(control.child.sent)
    control.child.on_message(json.dumps(message).encode(), [])
    assert control.told == []
    assert len(control.child.sent) == sent


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe\x00",
        b"[" * MAX_REPORT,
        b'["size",5,1170',
        b'["size",5,NaN]',
        b'["size",5,1170' + b" " * MAX_REPORT + b"]",
        bytes(range(128, 192)),
    ],
)
def test_what_is_no_json_is_dropped(control: Control, data: bytes) -> None:
    control.child.on_message(data, [])
    assert control.told == []


def test_descriptors_of_the_relay_are_closed(control: Control) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    control.child.on_message(b"", [fd])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_number_is_ready_or_fails_once(control: Control) -> None:
    control.hear("failed", 5, "\x1b[31m" + "why" * 60)
    control.hear("failed", 5, "again")
    control.hear("ready", 5, 1170)
    ((kind, number, why),) = control.told
    assert (kind, number) == ("failed", 5)
    assert why == ("[31m" + "why" * 60)[:200]


def test_an_accepted_number_never_comes_again(control: Control) -> None:
    for number in (0, 0, 2, 1, 2, 3):
        control.hear("accepted", 1, FIRST_ACCEPTED + number, *FIRST[3:])
    assert [each[2] - FIRST_ACCEPTED for each in control.told] == [0, 2, 3]


def test_accepted_connections_are_bounded(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 8
    assert most < MAX_CONNECTIONS
    monkeypatch.setattr(quic, "MAX_CONNECTIONS", most)
    for number in range(most + 3):
        control.hear("accepted", 1, FIRST_ACCEPTED + number, *FIRST[3:])
    assert len(control.told) == most
    assert control.child.sent[-1] == ["refuse", {"number": FIRST_ACCEPTED + most + 2}]
    control.pipes[0].close()
    control.hear("accepted", 1, FIRST_ACCEPTED + 100, *FIRST[3:])
    assert len(control.told) == most + 1


def test_missing_says_what_to_install() -> None:
    assert missing("quic") == ""
    code = (
        "import sys; sys.modules['aioquic'] = None\n"
        "from jvpnd.transport.endpoint import missing; print(missing('quic'))"
    )
    root = Path(quic.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert "pip install 'jvpn[quic]'" in done.stdout
    assert len(done.stdout.splitlines()) == 1
