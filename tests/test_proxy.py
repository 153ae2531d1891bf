"""HTTP proxies: their URLs, the request, and answers from anybody."""

from __future__ import annotations

import base64
import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jvpnd.transport.proxy import (
    MAX_HEADER,
    ConnectResponse,
    Proxy,
    ProxyError,
    connect_request,
    parse_proxy,
)

OPEN = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 somewhere\r\n\r\n"


def read(*pieces: bytes) -> int | str | None:
    """How many bytes were the proxy's, or why it refuses; None while the answer goes on."""
    response, before = ConnectResponse(), 0
    for piece in pieces:
        try:
            used = response.feed(piece)
        except ProxyError as error:
            return str(error)
        if used is not None:
            return before + used
        before += len(piece)
    return None


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def basic(pair: bytes) -> str:
    return "Basic " + base64.b64encode(pair).decode()


# --- the URL -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://proxy.example:3128", Proxy("proxy.example", 3128, None)),
        ("http://proxy.example", Proxy("proxy.example", 80, None)),
        ("http://192.0.2.1:8080/", Proxy("192.0.2.1", 8080, None)),
        ("http://[2001:db8::1]:8080", Proxy("2001:db8::1", 8080, None)),
        ("http://[2001:db8::1]", Proxy("2001:db8::1", 80, None)),
        ("http://me:secret@proxy:1", Proxy("proxy", 1, basic(b"me:secret"))),
        ("http://me@proxy:1", Proxy("proxy", 1, basic(b"me:"))),
        ("http://m%40e:a%3Ab%2F%C3%BC@proxy:1", Proxy("proxy", 1, basic("m@e:a:b/ü".encode()))),
    ],
)
def test_a_url_is_host_port_and_authorization(url: str, proxy: Proxy) -> None:
    assert parse_proxy(url) == proxy


@pytest.mark.parametrize(
    "url",
    [
        *("", "proxy:3128", "//proxy:3128", "https://proxy:3128", "socks5://proxy:1080"),
        *("http://", "http://:80", "http://me:secret@:80", "http://[::1", "http://[x]:80"),
        *("http://proxy:0", "http://proxy:65536", "http://proxy:x", "http://proxy:-1"),
        *("http://proxy/path", "http://proxy?query", "http://proxy#there"),
        *("http://pro xy", "http://proxy\n:80", "http://prøxy", "http://proxy\r\nHost: x"),
    ],
)
def test_other_urls_are_refused_with_what_is_allowed(url: str) -> None:
    with pytest.raises(ValueError, match=r"http://\[user:password@\]host|1 to 65535") as refused:
        parse_proxy(url)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["https://me:secret@proxy", "http://me:secret@:1", "http://me:secret/x@proxy:1"]
)
def test_a_refusal_does_not_tell_the_password(url: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        parse_proxy(url)
    assert "secret" not in str(refused.value)


@given(st.text())
def test_any_text_is_a_proxy_or_a_value_error(text: str) -> None:
    for url in (text, f"http://{text}"):
        try:
            proxy = parse_proxy(url)
        except ValueError:
            continue
        assert proxy.host
        assert 0 < proxy.port < 65536


# --- the request ---------------------------------------------------------------------------


def test_the_request_names_the_target_and_the_user() -> None:
    assert connect_request("[2001:db8::7]:443", None) == (
        b"CONNECT [2001:db8::7]:443 HTTP/1.1\r\nHost: [2001:db8::7]:443\r\n\r\n"
    )
    assert connect_request("vpn.example:443", "Basic eDp5") == (
        b"CONNECT vpn.example:443 HTTP/1.1\r\nHost: vpn.example:443\r\n"
        b"Proxy-Authorization: Basic eDp5\r\n\r\n"
    )


# --- the answer ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        OPEN,
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.1 204 \r\nContent-Length: 70\r\n\r\n",
        b"HTTP/1.1 200 with bare line feeds\nX: y\n\n",
    ],
)
def test_behind_the_header_it_is_tls(answer: bytes) -> None:
    assert read(answer) == len(answer)
    assert read(answer + b"\x16\x03\x03\r\n\r\n") == len(answer)
    assert read(answer[:-1]) is None


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n", "the proxy refused: 403 Forbidden"),
        (b"HTTP/1.1 407 \r\n", "the proxy refused: 407"),
        (b"HTTP/1.0 502\r\n", "the proxy refused: 502"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "the proxy refused: 100 Continue"),
        (b"HTTP/1.1 503 \x1b[2J\x07\xff\tnow\r\n", "the proxy refused: 503 ?[2J???now"),
        (b"HTTP/2 200 OK\r\n\r\n", "the proxy does not speak HTTP"),
        (b"HTTP/1.1 20 OK\r\n\r\n", "the proxy does not speak HTTP"),
        (b"HTTP/1.1 200\rOK\r\n\r\n", "the proxy does not speak HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the proxy does not speak HTTP"),
        (b"\n", "the proxy does not speak HTTP"),
    ],
)
def test_a_refusal_is_known_at_the_end_of_its_first_line(answer: bytes, why: str) -> None:
    assert read(answer) == why
    assert read(answer[: answer.index(b"\n")]) is None


def test_a_refusal_does_not_fill_a_log() -> None:
    why = read(b"HTTP/1.1 500 " + b"x" * 8000 + b"\r\n")
    assert isinstance(why, str)
    assert len(why) < 150


def test_a_header_ends_or_is_given_up() -> None:
    line = b"HTTP/1.1 200 OK\r\n"
    fits = line + b"X: " + b"y" * (MAX_HEADER - len(line) - 7) + b"\r\n\r\n"
    assert len(fits) == MAX_HEADER
    assert read(fits) == MAX_HEADER
    assert read(fits[:-4] + b"y\r\n\r\n") == "the proxy's answer does not end"
    assert read(*[b"x"] * MAX_HEADER) == "the proxy's answer does not end"
    assert read(b"x" * (MAX_HEADER - 1)) is None


ANSWERS = st.one_of(
    st.binary(max_size=200),
    st.binary(max_size=200).map(OPEN.__add__),
    st.lists(st.sampled_from([b"HTTP/1.1 200 OK", b"\r", b"\n", b"\r\n", b"X: y"])).map(b"".join),
    st.integers(MAX_HEADER - 10, MAX_HEADER + 10).map(lambda n: OPEN[:-2] + b"x" * n + b"\n\n"),
)


@given(ANSWERS, st.lists(st.integers(0, 2 * MAX_HEADER)))
@example(OPEN + b"\n\n", list(range(len(OPEN))))
def test_how_the_answer_is_cut_does_not_matter(answer: bytes, places: list[int]) -> None:
    whole = read(answer)
    assert read(*cut(answer, places)) == whole
    assert read(*(bytes([byte]) for byte in answer)) == whole


@given(st.lists(st.binary(max_size=4000), max_size=50))
def test_garbage_has_an_end(pieces: list[bytes]) -> None:
    result = read(*pieces)
    assert result is not None or sum(map(len, pieces)) < MAX_HEADER
    assert not isinstance(result, str) or result.isprintable()
