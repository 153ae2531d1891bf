"""Scrapes over HTTP: who is slow, rude or many costs the others nothing."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from jvpnd.observe.exporters import prometheus
from jvpnd.observe.exporters.prometheus import ScrapeServer
from jvpnd.observe.trouble import Change

BODY = b"jvpn_info 1\n"


def free_port(address: str = "127.0.0.1") -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def serving(
    listen: str, render: Callable[[], bytes] = lambda: BODY
) -> Iterator[tuple[ScrapeServer, list[Change]]]:
    told: list[Change] = []
    server = ScrapeServer(listen, render, told.append)
    server.start()
    until(lambda: server._listener is not None or told)
    try:
        yield server, told
    finally:
        server.stop()


def get(port: int, target: str = "/metrics", method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, target)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_metrics_are_served_on_a_loopback_address(address: str) -> None:
    port = free_port(address)
    listen = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    with serving(listen) as (server, _):
        connection = http.client.HTTPConnection(address, port, timeout=10)
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.getheader("Content-Type") == "text/plain; version=0.0.4; charset=utf-8"
        assert answer.read() == BODY
        connection.close()
        until(lambda: server.status() == {"scrapes": 1, "failed": 0, "degraded": None})


def test_metrics_are_served_on_a_unix_socket_which_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with serving(str(path)), socket.socket(socket.AF_UNIX) as scraper:
        assert path.stat().st_mode & 0o777 == 0o660
        scraper.settimeout(10)
        scraper.connect(str(path))
        scraper.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert scraper.makefile("rb").read().endswith(b"\r\n\r\n" + BODY)
    assert not path.exists()


def test_a_file_in_the_place_of_the_socket_is_left_alone_and_told_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    path.write_text("precious")
    with serving(str(path)) as (_, told):
        assert [change.why for change in told] == [
            f"cannot listen on {path}: is there and is no socket"
        ]
    assert path.read_text() == "precious"


def test_an_address_in_use_is_told_once_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "RETRY_S", 0.01)
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as other:
        told: list[Change] = []
        server = ScrapeServer(f"127.0.0.1:{port}", lambda: BODY, told.append)
        server.start()
        until(lambda: server.failed > 5)
        other.close()
        until(lambda: server._listener is not None)
    assert get(port) == (200, BODY)
    server.stop()
    assert len(told) == 1
    assert "in use" in told[0].why


@pytest.mark.parametrize(
    ("target", "method", "status"),
    [("/", "GET", 404), ("/metrics", "POST", 405), ("/metrics?name[]=x", "GET", 200)],
)
def test_only_the_metrics_can_be_got(target: str, method: str, status: int) -> None:
    port = free_port()
    with serving(f"127.0.0.1:{port}"):
        assert get(port, target, method)[0] == status
        assert get(port, "/metrics", "HEAD") == (200, b"")


def test_a_busy_daemon_is_a_503_and_told_once() -> None:
    def busy() -> bytes:
        raise TimeoutError

    port = free_port()
    with serving(f"127.0.0.1:{port}", busy) as (server, told):
        assert [get(port)[0] for _ in range(3)] == [503, 503, 503]
        until(lambda: server.failed == 3)
        assert told == [Change("prometheus", "the daemon did not answer in time", 0)]


def test_scrapers_that_say_nothing_or_do_not_read_are_given_up_and_told_of_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prometheus, "ASK_TIMEOUT_S", 0.05)
    monkeypatch.setattr(prometheus, "READ_TIMEOUT_S", 0.05)
    port = free_port()
    body = b"x" * 20_000_000
    with serving(f"127.0.0.1:{port}", lambda: body) as (server, told):
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
        until(lambda: server.failed >= 8)
        deaf = socket.create_connection(("127.0.0.1", port))
        deaf.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        until(lambda: server.failed >= 9)
        assert len(told) == 1
        for connection in (*idle, deaf):
            connection.close()
        monkeypatch.setattr(prometheus, "READ_TIMEOUT_S", 10)
        until(lambda: get(port)[1] == body and len(told) == 2)
        assert told[1] == Change("prometheus", "", 0)


@pytest.mark.parametrize(
    "said", [b"\x16\x03\x01\r\n\r\n", b"GET /metrics\r\n\r\n", b"", b"G" * 9000]
)
def test_what_is_no_http_is_hung_up_on_and_is_nobodys_fault(said: bytes) -> None:
    port = free_port()
    with serving(f"127.0.0.1:{port}") as (server, told):
        with socket.create_connection(("127.0.0.1", port), 10) as stranger:
            stranger.sendall(said)
            stranger.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):  # it had not read everything
                assert stranger.recv(100) == b""
        assert get(port) == (200, BODY)
        assert told == []
        assert server.failed == 0


def test_one_hanging_render_does_not_hold_up_another_scrape() -> None:
    gate, first = threading.Event(), threading.Event()

    def render() -> bytes:
        if not first.is_set():
            first.set()
            gate.wait(10)
        return BODY

    port = free_port()
    with serving(f"127.0.0.1:{port}", render):
        slow = threading.Thread(target=get, args=(port,))
        slow.start()
        assert first.wait(10)
        assert get(port) == (200, BODY)
        gate.set()
        slow.join(10)
