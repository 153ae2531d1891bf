"""The control socket, over real sockets: answers, streams, refusals, and whoever misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import select
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jvpnd.control import server as server_module
from jvpnd.control.client import ControlClient, NotRunning
from jvpnd.control.protocol import MAX_REQUEST, decode_request
from jvpnd.control.server import AlreadyRunning, ControlServer, Handler, Refused
from jvpnd.observe.log import EventLog

from .served import Served, served

Args = Mapping[str, Any]


async def echo(args: Args) -> Any:
    return dict(args)


async def refuse(_: Args) -> Any:
    raise Refused("POLICY_DENY", "not now")


async def fail(_: Args) -> Any:
    raise OSError("a fault of the daemon's own")


async def count(args: Args) -> AsyncIterator[Any]:
    for number in range(args["to"]):
        yield {"number": number}
    if args.get("then") == "refuse":
        raise Refused("POLICY_DENY", "that is all")


async def flood(_: Args) -> AsyncIterator[Any]:
    while True:
        yield "x" * 65536


HANDLERS: dict[str, Handler] = {
    "echo": echo,
    "refuse": refuse,
    "fail": fail,
    "count": count,
    "flood": flood,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def host(path: Path) -> Iterator[Served]:
    with served(path, HANDLERS) as running:
        yield running


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(20)
    sock.connect(str(path))
    return sock


def raw(path: Path, data: bytes) -> list[dict[str, Any]]:
    """All answers to these bytes, until the server hangs up."""
    with connect(path) as sock:
        answer = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):  # it hung up on what it had not read
            while chunk := sock.recv(65536):
                answer += chunk
    return [json.loads(line) for line in answer.splitlines()]


def refusal_of(answers: list[dict[str, Any]]) -> str:
    (answer,) = answers
    assert answer["ok"] is False
    assert answer["error"]["message"]
    return str(answer["error"]["reason"])


# --- answers ---


@pytest.mark.usefixtures("host")
def test_a_command_is_answered_and_the_connection_serves_more_of_them(path: Path) -> None:
    with ControlClient(path) as client:
        for number in range(3):
            assert client.ask("echo", number=number, text="é") == {"number": number, "text": "é"}


@pytest.mark.usefixtures("host")
def test_the_protocol_is_what_the_documentation_says(path: Path) -> None:
    assert raw(path, b'{"command": "echo", "args": {"a": 1}}\n{"command": "echo"}\n') == [
        {"ok": True, "result": {"a": 1}},
        {"ok": True, "result": {}},
    ]
    with connect(path) as sock, sock.makefile("rb") as lines:
        sock.sendall(b'{"command": "count", "args": {"to": 2}}\n')
        assert [json.loads(next(lines)) for _ in range(3)] == [
            {"ok": True, "more": True, "result": {"number": 0}},
            {"ok": True, "more": True, "result": {"number": 1}},
            {"ok": True, "result": None},
        ]


@pytest.mark.usefixtures("host")
def test_a_stream_ends_and_the_connection_goes_on(path: Path) -> None:
    with ControlClient(path) as client:
        assert list(client.stream("count", follow=False, to=3)) == [
            {"number": 0},
            {"number": 1},
            {"number": 2},
        ]
        assert client.ask("echo") == {}


@pytest.mark.usefixtures("host")
def test_a_refusal_has_its_reason_and_the_connection_goes_on(path: Path) -> None:
    with ControlClient(path) as client:
        with pytest.raises(Refused, match="POLICY_DENY: not now") as caught:
            client.ask("refuse")
        assert (caught.value.reason, caught.value.message) == ("POLICY_DENY", "not now")
        stream = client.stream("count", follow=False, to=1, then="refuse")
        assert next(stream) == {"number": 0}
        with pytest.raises(Refused, match="that is all"):
            next(stream)
        assert client.ask("echo") == {}


@pytest.mark.usefixtures("host")
def test_a_fault_in_a_handler_is_logged_told_and_survived(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ControlClient(path) as client:
        with pytest.raises(Refused, match="INTERNAL"):
            client.ask("fail")
        assert client.ask("echo") == {}
    assert "a fault of the daemon's own" in caplog.text


@pytest.mark.usefixtures("host")
def test_an_unknown_command_is_refused_with_the_known_ones(path: Path) -> None:
    with ControlClient(path) as client, pytest.raises(Refused, match="known: count, echo"):
        client.ask("reboot")


def test_commands_before_the_daemon_is_ready_are_told_so(path: Path) -> None:
    with (
        served(path, {}),
        ControlClient(path) as client,
        pytest.raises(Refused, match="STARTING"),
    ):
        client.ask("status")


def test_events_are_followed_as_they_happen(path: Path) -> None:
    log = EventLog("gw1", lambda: 5)

    async def follow(_: Args) -> AsyncIterator[Any]:
        with log.subscribe() as coming:
            yield "subscribed"
            async for event in coming:
                yield event

    with served(path, {"events": follow}) as host, ControlClient(path) as client:
        stream = client.stream("events", follow=True)
        assert next(stream) == "subscribed"
        for number in (1, 2):
            host.call(lambda: log.append("REKEY"))
            assert next(stream)["seq"] == number


def test_who_leaves_a_stream_is_noticed_although_nothing_happens(path: Path) -> None:
    async def scenario() -> None:
        left = asyncio.Event()

        async def wait(_: Args) -> AsyncIterator[Any]:
            try:
                yield "waiting"
                await asyncio.Event().wait()
            finally:
                left.set()

        server = ControlServer(path, {"wait": wait})
        await server.start()
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"command": "wait"}\n')
        await reader.readline()
        writer.close()
        async with asyncio.timeout(20):
            await left.wait()
        await server.close()

    asyncio.run(scenario())


# --- whoever misbehaves ---


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"status",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"command": 1}',
        b'{"command": "echo", "args": []}',
        b'{"command": "echo", "args": null}',
        b'{"command": "echo", "more": 1}',
        b"[" * 20_000,
    ],
)
@pytest.mark.usefixtures("host")
def test_what_is_not_a_request_is_refused_as_usage(path: Path, line: bytes) -> None:
    assert refusal_of(raw(path, line + b"\n")) == "USAGE"


@given(st.binary(max_size=200))
def test_no_line_breaks_the_decoder(line: bytes) -> None:
    with contextlib.suppress(Refused):
        decode_request(line)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(data=st.lists(st.binary(max_size=100), max_size=5))
@pytest.mark.usefixtures("host")
def test_no_bytes_break_the_server(path: Path, data: list[bytes]) -> None:
    for answer in raw(path, b"\n".join(data)):
        assert answer["ok"] is False
    with ControlClient(path) as client:
        assert client.ask("echo") == {}


@pytest.mark.usefixtures("host")
def test_the_longest_request_is_served_and_one_byte_more_is_not(path: Path) -> None:
    frame = len(b'{"command": "echo", "args": {"a": ""}}\n')
    fits = b'{"command": "echo", "args": {"a": "%s"}}\n' % (b"x" * (MAX_REQUEST - frame))
    assert len(fits) == MAX_REQUEST
    assert raw(path, fits)[0]["ok"]
    assert refusal_of(raw(path, fits.replace(b"xx", b"xxx", 1))) == "USAGE"
    assert refusal_of(raw(path, b"x" * (8 * MAX_REQUEST))) == "USAGE"


@pytest.mark.usefixtures("host")
def test_connections_are_bounded_and_come_free_again(path: Path) -> None:
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(ControlClient(path)) for _ in range(server_module.MAX_CONNECTIONS)
        ]
        assert [client.ask("echo") for client in clients] == [{}] * len(clients)
        with ControlClient(path) as one_more, pytest.raises(Refused, match="RATE_LIMITED"):
            one_more.ask("echo")
        clients[0].close()
        assert _ask_until_served(path) == {}


def _ask_until_served(path: Path) -> Any:
    """The server learns of a close in its own time; it has no event for us to wait for."""
    while True:
        with ControlClient(path) as client:
            try:
                return client.ask("echo")
            except Refused as refused:
                if refused.reason != "RATE_LIMITED":
                    raise


def test_an_idle_connection_is_ended(path: Path) -> None:
    with served(path, HANDLERS, idle_timeout_s=0.05), connect(path) as sock:
        sock.sendall(b'{"command": ')
        assert sock.recv(100) == b""


def test_a_reader_that_does_not_read_is_dropped_and_others_are_served(path: Path) -> None:
    with served(path, HANDLERS, write_timeout_s=0.05), connect(path) as stuck:
        stuck.sendall(b'{"command": "flood"}\n')
        with ControlClient(path) as client:
            assert client.ask("echo") == {}
        wait_for_hang_up(stuck)


def wait_for_hang_up(sock: socket.socket) -> None:
    """Wait without reading a byte: poll reports the other end's close."""
    poll = select.poll()
    poll.register(sock, select.POLLHUP)
    assert poll.poll(20_000), "it was not hung up on"


# --- the socket itself ---


@pytest.mark.usefixtures("host")
def test_only_root_and_the_group_may_open_the_socket(path: Path) -> None:
    found = path.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o660


def test_the_socket_belongs_to_the_group_if_there_is_one(tmp_path: Path) -> None:
    daemon = grp.getgrnam("daemon")
    with served(tmp_path / "a", HANDLERS, group="daemon"):
        assert (tmp_path / "a").stat().st_gid == daemon.gr_gid
    with served(tmp_path / "b", HANDLERS, group="no-such-group"):
        assert (tmp_path / "b").stat().st_gid == os.getegid()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_what_holds_keys_is_for_root_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    path = Path("control.sock")
    with served(path, {"record": count, "echo": echo}):
        os.seteuid(65534)  # in the socket's group, as an operator is
        try:
            another = connect(path)
        finally:
            os.seteuid(0)
        with another:
            another.sendall(b'{"command": "record", "args": {"to": 1}}\n')
            assert refusal_of([json.loads(another.recv(65536))]) == "PERMISSION_DENIED"
            another.sendall(b'{"command": "echo"}\n')
            assert json.loads(another.recv(65536))["ok"] is True
        with ControlClient(path) as root:
            assert list(root.stream("record", False, to=1)) == [{"number": 0}]


def test_the_umask_is_as_it_was(path: Path) -> None:
    before = os.umask(0o022)
    try:
        with served(path, HANDLERS):
            assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_a_second_daemon_is_refused_and_the_first_goes_on(path: Path) -> None:
    with served(path, HANDLERS), ControlClient(path) as client:
        with pytest.raises(AlreadyRunning, match=f"already running: .*{path.name}"):
            asyncio.run(ControlServer(path).start())
        assert client.ask("echo") == {}
        with ControlClient(path) as another:
            assert another.ask("echo") == {}


def test_the_socket_of_a_daemon_that_was_killed_is_replaced(path: Path) -> None:
    code = (
        "import asyncio, sys; from jvpnd.control.server import ControlServer\n"
        "async def main():\n"
        "    await ControlServer(sys.argv[1]).start(); print('up', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        try:
            assert first.stdout.readline() == b"up\n"
            with pytest.raises(AlreadyRunning):
                asyncio.run(ControlServer(path).start())
        finally:
            first.kill()
    assert path.exists()
    with served(path, HANDLERS), ControlClient(path) as client:
        assert client.ask("echo") == {}


def test_what_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        asyncio.run(ControlServer(path).start())
    assert path.read_text() == "precious"


def test_closing_hangs_up_on_everyone_and_removes_the_socket(path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with served(path, HANDLERS):
            client = stack.enter_context(ControlClient(path))
            assert client.ask("echo") == {}
        with pytest.raises(NotRunning, match="hung up"):
            client.ask("echo")
    assert not path.exists()
    with pytest.raises(NotRunning, match="not running"):
        ControlClient(path)


def test_a_daemon_that_does_not_answer_is_told_from_one_that_says_no(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
        deaf.bind(str(path))
        with pytest.raises(NotRunning, match="refused"):
            ControlClient(path)
        deaf.listen()
        with (
            ControlClient(path, timeout_s=0.05) as client,
            pytest.raises(NotRunning, match="does not answer"),
        ):
            client.ask("status")
