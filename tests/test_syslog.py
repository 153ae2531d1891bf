"""Events as RFC 5424 messages, over UDP and over TCP to collectors of every kind."""

from __future__ import annotations

import re
import socket
from collections import deque
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.observe.exporters import syslog
from jvpnd.observe.exporters.syslog import MAX_MESSAGE, Syslog, encoded
from jvpnd.observe.log import Event, EventLog

# RFC 5424 section 6, as far as it concerns us.
MESSAGE = re.compile(
    r"<(?P<pri>[0-9]{1,3})>1 (?P<at>\S+) (?P<host>[!-~]{1,255}) (?P<app>[!-~]{1,48}) "
    r"(?P<pid>[!-~]{1,128}) (?P<id>[!-~]{1,32}) "
    r'\[jvpn@32473(?P<params>(?: [!#-<>-~]{1,32}="(?:[^"\\\]]|\\["\\\]])*")*)\] (?P<text>.*)',
    re.DOTALL,
)


def make(kind: str = "STATE_CHANGE", client: str = "laptop", **details: object) -> Event:
    log = EventLog("gw1", lambda: 1_700_000_000_123)
    return log.append(
        *(kind, "ab" * 16, client, "ATTACHED", "RECOVERING", "TRANSPORT_DEAD", 2, 1), details
    )


def parsed(message: bytes) -> tuple[dict[str, str], dict[str, str]]:
    """(header and text, parameters)."""
    found = MESSAGE.fullmatch(message.decode())
    assert found is not None, message
    params = re.findall(r' ([^= ]+)="((?:[^"\\]|\\.)*)"', found["params"])
    plain = {name: re.sub(r'\\(["\\\]])', r"\1", value) for name, value in params}
    return found.groupdict(), plain


def test_an_event_is_one_message_with_its_fields_as_structured_data() -> None:
    head, params = parsed(encoded(make(epoch=1)))
    assert (head["pri"], head["at"]) == ("29", "2023-11-14T22:13:20.123Z")  # daemon, notice
    assert (head["host"], head["app"], head["id"]) == ("gw1", "jvpnd", "STATE_CHANGE")
    assert head["text"].startswith("STATE_CHANGE ATTACHED -> RECOVERING TRANSPORT_DEAD")
    assert params == {
        "seq": "1",
        "session": "ab" * 16,
        "client": "laptop",
        "from": "ATTACHED",
        "to": "RECOVERING",
        "reason": "TRANSPORT_DEAD",
        "stateVersion": "2",
        "policyVersion": "1",
        "details": '{"epoch":1}',
    }


def test_what_an_operator_should_see_is_a_warning() -> None:
    assert encoded(make("SECURITY_EVENT")).startswith(b"<28>1 ")
    assert encoded(make("REKEY")).startswith(b"<30>1 ")


@given(st.text(max_size=200), st.dictionaries(st.text(max_size=20), st.text(max_size=200)))
def test_no_text_breaks_out_of_its_place(client: str, details: dict[str, str]) -> None:
    message = encoded(make(client=client, **{"what": details}))
    _, params = parsed(message)
    assert params["client"] == client.replace("\n", " ").encode(errors="backslashreplace").decode()
    assert b"\n" not in message


def test_text_beyond_ascii_is_marked_as_utf_8() -> None:
    assert parsed(encoded(make(why="Zürich")))[0]["text"].startswith("\ufeffSTATE_CHANGE")
    assert "\ufeff" not in encoded(make(why="Bern")).decode()


@pytest.mark.parametrize("letter", ["x", "ü"])
def test_a_message_that_is_too_long_loses_its_end_only(letter: str) -> None:
    message = encoded(make(what=letter * 20_000))
    assert MAX_MESSAGE - 2 <= len(message) <= MAX_MESSAGE
    _, params = parsed(message)
    assert params["reason"] == "TRANSPORT_DEAD"
    assert "details" not in params


@pytest.fixture(params=["127.0.0.1", "::1"])
def address(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def listening(address: str, kind: socket.SocketKind, port: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    collector = socket.socket(family, kind)
    collector.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    collector.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    collector.bind((address, port))
    collector.settimeout(10)
    if kind is socket.SOCK_STREAM:
        collector.listen()
    return collector


def frames(connection: socket.socket) -> Iterator[bytes]:
    """Messages by their counted octets."""
    connection.settimeout(10)
    with connection.makefile("rb") as stream:
        while True:
            digits = b""
            while (byte := stream.read(1)) not in (b" ", b""):
                digits += byte
            if not byte:
                return
            yield stream.read(int(digits))


def test_over_udp_each_message_is_a_datagram(address: str) -> None:
    with listening(address, socket.SOCK_DGRAM) as collector:
        output = Syslog("udp", address, collector.getsockname()[1])
        output.write(deque([make(n=1), make(n=2)]))
        assert [parsed(collector.recv(9000))[1]["details"] for _ in range(2)] == [
            '{"n":1}',
            '{"n":2}',
        ]
        output.close()


def test_over_tcp_octets_are_counted(address: str) -> None:
    with listening(address, socket.SOCK_STREAM) as collector:
        output = Syslog("tcp", address, collector.getsockname()[1])
        output.write(deque([make(n=1), make(why="zwei\nZeilen ü")]))
        with collector.accept()[0] as connection:
            output.close()
            first, second = map(parsed, frames(connection))
        assert first[1]["details"] == '{"n":1}'
        assert second[1]["details"] == '{"why":"zwei\\nZeilen ü"}'


def test_a_collector_that_hung_up_meanwhile_costs_no_message() -> None:
    with listening("127.0.0.1", socket.SOCK_STREAM) as collector:
        output = Syslog("tcp", "127.0.0.1", collector.getsockname()[1])
        output.write(deque([make(n=1)]))
        connection, _ = collector.accept()
        assert parsed(next(frames(connection)))[1]["details"] == '{"n":1}'
        connection.close()
        output.write(deque([make(n=2)]))
        with collector.accept()[0] as again:
            assert parsed(next(frames(again)))[1]["details"] == '{"n":2}'
        output.close()


def test_a_collector_that_refuses_leaves_events_where_they_are() -> None:
    with listening("127.0.0.1", socket.SOCK_STREAM) as collector:
        port = collector.getsockname()[1]
    output, pending = Syslog("tcp", "127.0.0.1", port), deque([make()])
    with pytest.raises(ConnectionRefusedError):
        output.write(pending)
    assert len(pending) == 1
    with listening("127.0.0.1", socket.SOCK_STREAM, port) as collector:
        output.write(pending)
        assert not pending
        output.close()


def test_a_collector_that_never_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syslog, "SEND_TIMEOUT_S", 0.05)
    with listening("127.0.0.1", socket.SOCK_STREAM) as collector:
        output = Syslog("tcp", "127.0.0.1", collector.getsockname()[1])
        pending = deque(make(what="x" * 4000) for _ in range(1000))
        with pytest.raises(TimeoutError):
            output.write(pending)
        assert 0 < len(pending) < 1000
        with collector.accept()[0] as connection:  # nothing of it is cut but the last
            whole = list(frames(connection))
        assert len(whole) >= 1000 - len(pending)
        output.close()


def test_a_name_that_does_not_resolve_is_an_error_like_any_other() -> None:
    for transport in ("udp", "tcp"):
        with pytest.raises(OSError, match=r"."):
            Syslog(transport, "no-such-host.invalid", 514).write(deque([make()]))
