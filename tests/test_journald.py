"""Events in the journal's native protocol, to a socket as journald has one."""

from __future__ import annotations

import array
import json
import os
import socket
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from jvpnd.observe.exporters import journald
from jvpnd.observe.exporters.journald import Journald, encoded
from jvpnd.observe.log import Event, EventLog


def make(**details: object) -> Event:
    log = EventLog("gw1", lambda: 1_700_000_000_123)
    return log.append(
        *("STATE_CHANGE", "ab" * 16, "laptop", "ATTACHED", "RECOVERING", "TRANSPORT_DEAD", 2, 1),
        details,
    )


def fields(data: bytes) -> dict[str, str]:
    """A datagram as journald reads it."""
    found = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[8 + size :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        found[name.decode()] = value.decode()
        data = rest
    return found


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "journal")


def bound(path: str) -> socket.socket:
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(path)
    receiver.settimeout(10)
    return receiver


@pytest.fixture
def receiver(path: str) -> Iterator[socket.socket]:
    with bound(path) as receiver:
        yield receiver


def test_an_event_becomes_fields_that_a_journal_can_be_asked_for() -> None:
    assert fields(encoded(make(epoch=1, why="uplink lost"))) == {
        "MESSAGE": "STATE_CHANGE ATTACHED -> RECOVERING TRANSPORT_DEAD session=abababab "
        "epoch=1 why=uplink lost",
        "PRIORITY": "5",
        "SYSLOG_IDENTIFIER": "jvpnd",
        "JVPN_EVENT": "STATE_CHANGE",
        "JVPN_SEQ": "1",
        "JVPN_TS_MS": "1700000000123",
        "JVPN_NODE": "gw1",
        "JVPN_SESSION": "ab" * 16,
        "JVPN_CLIENT": "laptop",
        "JVPN_FROM": "ATTACHED",
        "JVPN_TO": "RECOVERING",
        "JVPN_REASON": "TRANSPORT_DEAD",
        "JVPN_STATE_VERSION": "2",
        "JVPN_POLICY_VERSION": "1",
        "JVPN_DETAILS": '{"epoch":1,"why":"uplink lost"}',
    }


def test_a_text_of_several_lines_makes_no_fields_of_its_own() -> None:
    found = fields(encoded(make(why="one\nPRIORITY=0\ntwo")))
    assert found["PRIORITY"] == "5"
    assert found["MESSAGE"].endswith("one\nPRIORITY=0\ntwo")


@pytest.mark.usefixtures("receiver")
def test_events_arrive_each_in_a_datagram(path: str, receiver: socket.socket) -> None:
    output = Journald(path)
    pending = deque([make(n=1), make(n=2)])
    output.write(pending)
    output.close()
    assert not pending
    rows = [json.loads(fields(receiver.recv(65536))["JVPN_DETAILS"]) for _ in range(2)]
    assert rows == [{"n": 1}, {"n": 2}]


def test_what_no_datagram_holds_comes_as_a_sealed_file(path: str, receiver: socket.socket) -> None:
    output = Journald(path)
    output.write(deque([make(what="x" * 1_000_000)]))
    output.close()
    data, rights, _, _ = receiver.recvmsg(16, 64)
    assert data == b""
    (fd,) = array.array("i", rights[0][2])
    with os.fdopen(fd, "rb") as file:
        file.seek(0)
        assert len(fields(file.read())["JVPN_DETAILS"]) > 1_000_000
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(fd, 0)


def test_a_journal_that_does_not_read_is_given_up_and_found_again_when_restarted(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journald, "SEND_TIMEOUT_S", 0.05)
    output = Journald(path)
    pending = deque(make(n=n) for n in range(5000))
    with bound(path), pytest.raises(TimeoutError):
        output.write(pending)
    left = len(pending)
    assert 0 < left < 5000
    with pytest.raises(ConnectionRefusedError):
        output.write(pending)
    os.unlink(path)
    with pytest.raises(FileNotFoundError):
        output.write(pending)
    assert len(pending) == left
    with bound(path) as again:
        first = deque([pending[0]])
        output.write(first)
        assert fields(again.recv(65536))["JVPN_SEQ"] == "1"
    output.close()
