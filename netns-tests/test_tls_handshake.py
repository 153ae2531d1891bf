"""How connections of the TLS relay begin, or do not: as others see it, and through proxies."""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from contextlib import closing, suppress

import pytest
from tlsends import (
    IDLE,
    MIB,
    End,
    descriptors_of,
    echo,
    end,
    ended,
    isolated,
    join,
    receive,
    send,
    stdlib_server,
    tcp,
    wrap,
)
from twoplanes import PATIENCE_S, until

from jvpnd.transport.certificate import self_signed
from jvpnd.transport.tls import ProxyRequest

# --- what it looks like from outside -------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shown"),
    [("vpn.example", "vpn.example"), (None, None), ("192.0.2.1", None), ("2001:db8::1", None)],
)
def test_a_server_sees_name_protocols_and_version(name: str | None, shown: str | None) -> None:
    async def body() -> None:
        names: list[str | None] = []
        async with end() as one:
            client, server = tcp()
            context = stdlib_server()
            context.sni_callback = lambda _sock, shown, _context: names.append(shown)
            with closing(one.connect(1, client, name)) as pipe:
                tls = await asyncio.to_thread(wrap, context, server)
                with tls:
                    await until(lambda: one.ready == [1], "TLS")
                    assert tls.version() == "TLSv1.3"
                    assert tls.selected_alpn_protocol() == "http/1.1"
                    await send(pipe, b"hello")
                    assert await asyncio.to_thread(tls.recv, 100) == b"hello"
                    pipe.close()
                    assert await asyncio.to_thread(tls.recv, 100) == b""  # close_notify
        assert names == [shown]

    isolated(body)()


@isolated
async def test_an_ordinary_client_gets_an_ordinary_handshake() -> None:
    async with end() as two:
        client, server = tcp()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["http/1.1", "h2"])
        with closing(two.accept(1, server)) as pipe:
            with await asyncio.to_thread(wrap, context, client) as tls:
                await until(lambda: two.ready == [1], "TLS")
                assert tls.selected_alpn_protocol() == "h2"
                tls.send(b"GET / HTTP/1.1\r\n\r\n")
                assert await receive(pipe, 18) == b"GET / HTTP/1.1\r\n\r\n"
            assert await ended(pipe)


@isolated
async def test_tls_1_2_is_refused() -> None:
    async with end() as one:
        client, server = tcp()
        context = stdlib_server()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with closing(one.connect(1, client)) as pipe:
            with pytest.raises(ssl.SSLError):
                await asyncio.to_thread(wrap, context, server)
            assert await one.why(1) == "TLS failed: tlsv1 alert protocol version"
            assert await ended(pipe)
        server.close()


@isolated
async def test_a_relay_shows_the_certificate_that_it_was_given() -> None:
    certificate = self_signed("first")
    async with end(certificate=certificate) as two:
        client, server = tcp()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        pipe = two.accept(1, server)
        with pipe, await asyncio.to_thread(wrap, context, client) as tls:
            shown = tls.getpeercert(binary_form=True)
            assert shown is not None
            assert ssl.DER_cert_to_PEM_cert(shown).encode() in certificate


@isolated
async def test_a_certificate_without_a_key_ends_the_relay() -> None:
    async with end(certificate=b"nothing") as two:
        await until(lambda: two.exits == 1, "ended")


# --- what comes to nothing -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not TLS: wrong version number"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not TLS: wrong version number"),
        (b"\x16\x03\x03\xff\xff" + bytes(100), "not TLS: packet length too long"),
        (b"\x15\x03\x03\x00\x02\x02\x28", "TLS failed: sslv3 alert handshake failure"),
        (b"", "the peer closed"),
    ],
)
def test_a_gateway_that_is_none(answer: bytes, why: str) -> None:
    async def body() -> None:
        async with end() as one:
            client, server = tcp()
            with server, closing(one.connect(1, client)) as pipe:
                assert await receive(server, 5)  # of the ClientHello
                server.send(answer)
                server.shutdown(socket.SHUT_WR)
                assert await one.why(1) == why
                assert await ended(pipe)

    isolated(body)()


@pytest.mark.parametrize(
    ("question", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not TLS: http request"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not TLS: wrong version number"),
        (bytes(100_000), "not TLS: wrong version number"),
        (b"", "the peer closed"),
    ],
)
def test_a_client_that_is_none(question: bytes, why: str) -> None:
    async def body() -> None:
        async with end() as two:
            client, server = tcp()
            with client, closing(two.accept(1, server)) as pipe:
                client.send(question)
                client.shutdown(socket.SHUT_WR)
                assert await two.why(1) == why
                assert await ended(pipe)

    isolated(body)()


@isolated
async def test_silence_is_not_waited_for() -> None:
    async with end(timeout_s=0.2) as here:
        silent = [tcp() for _ in range(3)]
        pipes = [
            here.connect(1, silent[0][0]),
            here.accept(2, silent[1][0]),
            here.connect(3, silent[2][0], proxy=ProxyRequest("vpn.example:443", None)),
        ]
        assert await here.why(1) == await here.why(2) == "no TLS handshake in 0.2 s"
        assert await here.why(3) == "no answer from the proxy in 0.2 s"
        for pipe, (_, peer) in zip(pipes, silent, strict=True):
            assert await ended(pipe)
            await receive(peer, MIB)  # up to the end


@isolated
async def test_bytes_now_and_then_do_not_put_the_end_off() -> None:
    async with end(timeout_s=0.3) as here:
        client, server = tcp()
        with client, closing(here.accept(1, server)):
            client.send(b"\x16\x03\x01\x40\x00")  # a record of 16 KiB, drop by drop

            def dripped() -> bool:
                if not here.failed:
                    client.send(b"\x01")
                return bool(here.failed)

            await until(dripped, "given up")
            assert await here.why(1) == "no TLS handshake in 0.3 s"


@isolated
async def test_established_connections_may_be_silent() -> None:
    async with end(timeout_s=0.2) as one, end(timeout_s=0.2) as two:
        pipes = await join(one, two, 1)
        client, server = tcp()
        with server, closing(one.connect(2, client)):
            assert await one.why(2) == "no TLS handshake in 0.2 s"
        await echo(*pipes, 1000)


@isolated
async def test_failures_are_told_though_control_is_busy() -> None:
    count = 400  # more than the channel takes
    async with end(timeout_s=1.0) as here:
        silent = [tcp() for _ in range(count)]
        pipes = [here.connect(number, sock) for number, (sock, _) in enumerate(silent)]
        for _, peer in silent:
            assert await receive(peer, 5)
        for _, peer in silent:  # control does nothing meanwhile
            peer.settimeout(PATIENCE_S)
            while peer.recv(MIB):
                pass
        await until(lambda: len(here.failed) == count, "all told")
        for pipe in pipes:
            pipe.close()


@isolated
async def test_without_a_certificate_or_a_name_that_can_be_nothing_begins() -> None:
    here = End(PATIENCE_S, None)
    client, server = tcp()
    with closing(here.accept(1, server)) as first, closing(here.connect(2, client, ".x")) as second:
        assert await here.why(1) == "not begun: there is no certificate"
        assert (await here.why(2)).startswith("not begun: ")
        assert await ended(first)
        assert await ended(second)
    await here.relay.stop()


@isolated
async def test_a_relay_without_room_says_so_and_goes_on() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 48), 48))
    async with end() as one:
        with socket.create_server(("127.0.0.1", 0)) as listener:  # silent, and takes two fewer
            pipes = []
            while not one.failed:
                sock = socket.create_connection(listener.getsockname())
                sock.setblocking(False)
                pipes.append(one.connect(len(pipes), sock))
                held = IDLE + 2 * len(pipes)
                await until(lambda n=held: one.failed or descriptors_of(one) == n, "taken")
            assert 10 < len(pipes) < 24
            last = len(pipes) - 1
            assert one.failed == {last: "the relay has too many connections"}
            assert await ended(pipes.pop())
            for pipe in pipes:
                pipe.close()
            await until(lambda: descriptors_of(one) == IDLE, "room")
        client, server = tcp()
        with server, closing(one.connect(100, client)):
            assert await receive(server, 5)


# --- proxies -------------------------------------------------------------------------------


class ConnectProxy:
    """Takes CONNECT with the right password, and answers a few bytes at a time."""

    def __init__(self, authorization: str | None) -> None:
        self.requests: list[bytes] = []
        self._authorization = authorization
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(request)
        if f"Proxy-Authorization: {self._authorization}".encode() not in request:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            writer.close()
            return
        host, port = request.split()[1].decode().rsplit(":", 1)
        there, back = await asyncio.open_connection(host, int(port))
        for piece in (b"HTTP/1.1 2", b"00 Connection established\r\nVia: x\r", b"\n\r", b"\n"):
            writer.write(piece)
            await writer.drain()
        await asyncio.gather(pass_on(reader, back), pass_on(there, writer))


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with closing(writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def through(proxy: asyncio.Server) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, proxy.sockets[0].getsockname())
    return sock


@isolated
async def test_a_proxy_is_asked_for_the_gateway_and_passed() -> None:
    behind = ConnectProxy("Basic eDp5")
    async with end() as one, end() as two:
        server = await asyncio.start_server(behind.serve, "127.0.0.1", 0)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            target = f"127.0.0.1:{listener.getsockname()[1]}"
            request = ProxyRequest(target, "Basic eDp5")
            first = one.connect(1, await through(server), "vpn.example", request)
            listener.setblocking(False)
            accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
        second = two.accept(1, accepted)
        await until(lambda: one.ready == two.ready == [1], "TLS")
        await echo(first, second, 4 * MIB)
        first.close()
        assert await ended(second)
        assert behind.requests[0].startswith(f"CONNECT {target} HTTP/1.1\r\n".encode())
        server.close()


@isolated
async def test_what_a_proxy_says_is_told() -> None:
    behind = ConnectProxy("Basic eDp5")
    async with end() as one:
        server = await asyncio.start_server(behind.serve, "127.0.0.1", 0)
        request = ProxyRequest("127.0.0.1:9", None)
        with closing(one.connect(1, await through(server), None, request)) as pipe:
            assert await one.why(1) == "the proxy refused: 407 Proxy Authentication Required"
            assert await ended(pipe)
        server.close()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 403 \x1b[31mNo\r\n\r\n", "the proxy refused: 403 ?[31mNo"),
        (b"\x15\x03\x03\x00\x02\x02\x28\n", "the proxy does not speak HTTP"),
        (b"x" * 100_000, "the proxy's answer does not end"),
        (b"HTTP/1.1 200 OK\r\n", "the proxy closed"),
        (b"HTTP/1.1 200 OK\r\n\r\nwelcome", "not TLS: wrong version number"),
    ],
)
def test_a_proxy_that_is_none(answer: bytes, why: str) -> None:
    async def body() -> None:
        async with end() as one:
            client, server = tcp()
            request = ProxyRequest("vpn.example:443", None)
            with server, closing(one.connect(1, client, None, request)) as pipe:
                assert (await receive(server, 8)) == b"CONNECT "
                server.send(answer)
                with suppress(OSError):  # the relay may have heard enough already
                    server.shutdown(socket.SHUT_WR)
                assert await one.why(1) == why
                assert await ended(pipe)

    isolated(body)()
