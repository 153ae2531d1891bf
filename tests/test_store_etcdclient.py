"""Requests to what is no good etcd: bounded in time and size, and told in one line."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("etcd3gw")

from jvpnd.configcluster import EtcdAccess
from jvpnd.store import etcdclient
from jvpnd.store.etcdclient import Connection, EtcdError, Login, Refused, TooLarge, Unreachable

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]
TRICKLE_S = 0.05


class Server(http.server.ThreadingHTTPServer):
    """Answers every request as it is told to."""

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        self.paths: list[str] = []
        self.tokens: list[str | None] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                server.paths.append(self.path)
                server.tokens.append(self.headers["Authorization"])
                with contextlib.suppress(OSError):
                    answer(self)

            def log_message(self, *_: object) -> None:
                pass

        server = self
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def end(self) -> tuple[str, str, int]:
        return ("http", "127.0.0.1", self.server_address[1])


@contextlib.contextmanager
def serving(*answers: Answer, user: str = "") -> Iterator[tuple[Connection, list[Server]]]:
    """A connection to members that answer like this."""
    servers = [Server(answer) for answer in answers]
    access = EtcdAccess(tuple(server.end for server in servers), username=user, password=user)
    with contextlib.closing(Connection(access, Login())) as connection:
        yield connection, servers
    for server in servers:
        server.shutdown()
        server.server_close()


def saying(body: bytes, status: int = 200) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def refusing(code: int, error: str, status: int = 400) -> Answer:
    return saying(json.dumps({"code": code, "error": error}).encode(), status)


def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 65536)


def trickling(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        time.sleep(TRICKLE_S)


def silent(handler: http.server.BaseHTTPRequestHandler) -> None:
    time.sleep(3)
    handler.close_connection = True


GOOD = saying(b'{"ok": 1}')


def test_what_is_no_object_is_no_answer() -> None:
    for body in (b"", b"[]", b"{", b"\xff", b"7", b"[" * 100_000):
        with serving(saying(body)) as (connection, _), pytest.raises(Unreachable):
            connection.ask("kv/range", {}, 0.3)


def test_an_answer_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcdclient, "MAX_ANSWER", 1_000_000)
    with serving(endless) as (connection, _):
        with pytest.raises(TooLarge):
            connection.ask("kv/range", {}, 5)
        with pytest.raises(TooLarge):
            list(connection.follow("watch", {}, 5))


@pytest.mark.parametrize("answer", [trickling, silent])
def test_an_answer_that_does_not_come_is_given_up_in_time(answer: Answer) -> None:
    began_s = time.monotonic()
    with serving(answer) as (connection, _), pytest.raises(Unreachable, match=r"^http://127"):
        connection.ask("kv/range", {}, 0.4)
    assert time.monotonic() - began_s < 3


@pytest.mark.parametrize(
    "answer",
    [
        *(silent, saying(b"no", 502), refusing(etcdclient.UNAVAILABLE, "no leader", 503)),
        refusing(etcdclient.DEADLINE_EXCEEDED, "timed out", 504),
        lambda handler: setattr(handler, "close_connection", True),
        saying(b"", 302),
    ],
)
def test_another_member_is_asked_and_stays_the_one(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcdclient, "ATTEMPT_S", 0.3)
    with serving(answer, GOOD) as (connection, (bad, good)):
        for _ in range(3):
            assert connection.ask("kv/range", {}, 4) == {"ok": 1}
        assert (len(bad.paths), len(good.paths)) == (1, 3)


def test_a_no_is_not_asked_again() -> None:
    no = refusing(7, "etcdserver: permission denied\n" + "x" * 500)
    with serving(no, GOOD) as (connection, (first, second)):
        with pytest.raises(Refused) as caught:
            connection.ask("kv/put", {}, 4)
        assert caught.value.code == 7
        assert str(caught.value).startswith("etcdserver: permission denied ")
        assert len(str(caught.value)) == 200
        assert (len(first.paths), len(second.paths)) == (1, 0)


def test_a_token_that_is_no_good_any_more_is_renewed_once() -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path.endswith("authenticate"):
            saying(json.dumps({"token": f"t{len(server.paths)}"}).encode())(handler)
        elif handler.headers["Authorization"] == "t1":
            refusing(etcdclient.UNAUTHENTICATED, "etcdserver: invalid auth token", 401)(handler)
        else:
            GOOD(handler)

    with serving(answer, user="gw") as (connection, (server,)):
        for _ in range(2):
            assert connection.ask("kv/range", {}, 4) == {"ok": 1}
        asked = [path.rpartition("/")[2] for path in server.paths]
        assert asked == ["authenticate", "range", "authenticate", "range", "range"]
        assert server.tokens == [None, "t1", None, "t3", "t3"]


def test_a_token_that_is_never_good_is_given_up() -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path.endswith("authenticate"):
            saying(b'{"token": "t"}')(handler)
        else:
            refusing(etcdclient.UNAUTHENTICATED, "etcdserver: invalid auth token", 401)(handler)

    with serving(answer, user="gw") as (connection, (server,)):
        with pytest.raises(Refused):
            connection.ask("kv/range", {}, 4)
        assert len(server.paths) == 4


def test_a_stream_ends_with_silence() -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b'\n{"result": {"n": 1}}\n{"res')
        handler.wfile.flush()
        handler.wfile.write(b'ult": {"n": 2}}\n')
        time.sleep(2)

    with serving(answer) as (connection, _):
        assert list(connection.follow("watch", {}, 0.3)) == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize(
    "body", [b"7\n", b"{}\n", b'{"result": []}\n', b'{"error": {"grpc_code": 14}}\n', b"{\n"]
)
def test_a_stream_of_something_else_is_given_up(body: bytes) -> None:
    with serving(saying(body)) as (connection, _), pytest.raises(EtcdError):
        list(connection.follow("watch", {}, 0.5))
