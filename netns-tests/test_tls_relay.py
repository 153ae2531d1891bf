"""The TLS relay as real processes, on a loopback of its own: bytes, ends, and no privilege."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import random
import resource
import select
import signal
import socket
import ssl
import struct
import termios
from contextlib import closing

import pytest
from namespaced import in_namespace, spawn
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

from jvpnd.transport.tlscontext import client_context

# --- carrying ------------------------------------------------------------------------------


@isolated
async def test_bytes_pass_both_ways_unchanged() -> None:
    async with end() as one, end() as two:
        pipes = await join(one, two)
        await echo(*pipes, 16 * MIB)
        await echo(*pipes, 1)
        assert not one.failed
        assert not two.failed


@isolated
async def test_connections_of_one_relay_are_apart() -> None:
    async with end() as both:
        pipes = [await join_itself(both, 2 * number) for number in range(20)]
        await asyncio.gather(*(echo(*pair, 500_000 + 1000 * n) for n, pair in enumerate(pipes)))


async def join_itself(both: End, number: int) -> tuple[socket.socket, socket.socket]:
    client, server = tcp()
    pipes = both.connect(number, client), both.accept(number + 1, server)
    await until(lambda: {number, number + 1} <= set(both.ready), "TLS")
    return pipes


@isolated
async def test_who_does_not_read_holds_up_its_own_sender_only() -> None:
    async with end() as one, end() as two:
        stuck, unread = await join(one, two, 1)
        other = await join(one, two, 2)
        await echo(*other, MIB)
        before = [memory_of(each) for each in (one, two)]
        data = random.Random(3).randbytes(64 * MIB)
        taken = 0
        while select.select([], [stuck], [], 0.3)[1]:  # seconds in which nothing moves
            taken += stuck.send(data[taken : taken + MIB])
        assert taken < 16 * MIB  # most of it in socket buffers
        await echo(*other, 4 * MIB)
        for each, memory in zip((one, two), before, strict=True):
            assert memory_of(each) < memory + 2 * MIB
        got, _ = await asyncio.gather(receive(unread, taken + 5), send(stuck, b"after"))
        assert got == data[:taken] + b"after"


def memory_of(here: End) -> int:
    with open(f"/proc/{here.relay.pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@isolated
async def test_who_asks_for_new_keys_and_does_not_read_the_answers_is_not_listened_to() -> None:
    async with end() as two:
        client, server = tcp()
        with client, closing(two.accept(1, server)) as pipe:
            peer = Peer(client)
            await peer.handshake()
            await until(lambda: two.ready, "TLS")
            await send(client, peer.asks_for_new_keys(40_000))
            await until(lambda: asleep(two) and untaken(client) > 100_000, "unheard")
            await send(pipe, b"hello")
            assert await peer.read(5) == b"hello"  # behind the answers


class Peer:
    """A client that can do what the ssl module cannot."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._to_us, self._to_them = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = client_context([]).wrap_bio(self._to_us, self._to_them)

    async def handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await send(self._sock, self._to_them.read())
                await self._more()
            else:
                await send(self._sock, self._to_them.read())
                return

    def asks_for_new_keys(self, times: int) -> bytes:
        """What is to be sent for it."""
        library = ctypes.CDLL("libssl.so.3")
        library.SSL_key_update.argtypes = (ctypes.c_void_p, ctypes.c_int)
        behind_head_and_socket = id(self._tls._sslobj) + 24  # PySSLSocket in CPython's _ssl.c
        pointer = ctypes.c_void_p.from_address(behind_head_and_socket)
        for _ in range(times):
            assert library.SSL_key_update(pointer, 1) == 1  # SSL_KEY_UPDATE_REQUESTED
            self._tls.do_handshake()
        return self._to_them.read()

    async def read(self, length: int) -> bytes:
        while True:
            try:
                return self._tls.read(length)
            except ssl.SSLWantReadError:
                await self._more()

    async def _more(self) -> None:
        loop = asyncio.get_running_loop()
        self._to_us.write(await asyncio.wait_for(loop.sock_recv(self._sock, MIB), PATIENCE_S))


def untaken(sock: socket.socket) -> int:
    """How many of the bytes that were sent the other end's kernel has not taken."""
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0])


def asleep(here: End) -> bool:
    """Whether the relay has nothing to do."""
    with open(f"/proc/{here.relay.pid}/wchan") as file:
        return "poll" in file.read()


@isolated
async def test_a_busy_connection_leaves_time_for_others() -> None:
    async with end() as one, end() as two:
        busy = await join(one, two, 1)
        other = await join(one, two, 2)
        work = asyncio.gather(*(pour(each) for each in busy), *(drain(each) for each in busy))
        try:
            for _ in range(100):
                await echo(*other, 100)
            assert not work.done()
        finally:
            work.cancel()


async def pour(pipe: socket.socket) -> None:
    while True:
        await send(pipe, bytes(MIB))


async def drain(pipe: socket.socket) -> None:
    while True:
        assert await receive(pipe, MIB)


# --- the end of a connection ---------------------------------------------------------------


@pytest.mark.parametrize("closer", [0, 1])
def test_closing_one_end_ends_the_other_behind_what_was_sent(closer: int) -> None:
    async def body() -> None:
        async with end() as one, end() as two:
            pipes = await join(one, two)
            mine, theirs = pipes[closer], pipes[1 - closer]
            data = random.Random(4).randbytes(50_000)
            await send(mine, data)
            mine.close()
            assert await receive(theirs, len(data) + 1) == data
            with pytest.raises(BrokenPipeError):
                theirs.send(b"x")
            for each in (one, two):
                await until(lambda each=each: descriptors_of(each) == IDLE, "nothing left open")
            assert not one.failed
            assert not two.failed

    isolated(body)()


@isolated
async def test_a_full_connection_is_closed_at_once() -> None:
    async with end() as one, end() as two:
        stuck, unread = await join(one, two)
        while select.select([], [stuck], [], 0.3)[1]:
            stuck.send(bytes(MIB))
        stuck.close()
        await until(lambda: descriptors_of(one) == IDLE, "closed")
        unread.close()
        await until(lambda: descriptors_of(two) == IDLE, "closed there too")


@isolated
async def test_what_came_before_the_end_waits_for_a_slow_reader() -> None:
    async with end() as one:
        client, server = tcp()
        with closing(one.connect(1, client)) as pipe:
            tls = await asyncio.to_thread(wrap, stdlib_server(), server)
            data = random.Random(5).randbytes(600_000)  # pipe and relay hold less
            with tls:
                await asyncio.to_thread(tls.sendall, data)
            assert await receive(pipe, len(data) + 1) == data
            await until(lambda: descriptors_of(one) == IDLE, "closed")


@isolated
async def test_a_pipe_that_closes_before_tls_is_there_ends_it_quietly() -> None:
    async with end() as one:
        client, server = tcp()
        pipe = one.connect(1, client)
        with server:
            assert await receive(server, 5)
            pipe.close()
            await receive(server, MIB)  # up to the end
            await until(lambda: descriptors_of(one) == IDLE, "closed")
        client, server = tcp()
        with server, closing(one.connect(2, client)):
            server.shutdown(socket.SHUT_WR)
            assert await one.why(2) == "the peer closed"
        assert list(one.failed) == [2]


@isolated
async def test_a_reset_ends_it() -> None:
    async with end() as one:
        client, server = tcp()
        with closing(one.connect(1, client)) as pipe:
            tls = await asyncio.to_thread(wrap, stdlib_server(), server)
            await until(lambda: one.ready == [1], "TLS")
            tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            tls.close()
            assert await ended(pipe)
            await until(lambda: descriptors_of(one) == IDLE, "closed")


@isolated
async def test_a_forged_record_ends_it() -> None:
    async with end() as one:
        client, server = tcp()
        with closing(one.connect(1, client)) as pipe:
            tls = await asyncio.to_thread(wrap, stdlib_server(), server)
            await until(lambda: one.ready == [1], "TLS")
            with socket.socket(fileno=tls.detach()) as raw:
                raw.send(b"\x17\x03\x03\x00\x20" + bytes(32))
                assert await ended(pipe)
        assert not one.failed


# --- processes -----------------------------------------------------------------------------


@isolated
async def test_a_relay_holds_no_privilege() -> None:
    async with end() as one, end() as two:
        await join(one, two)  # it runs
        status = status_of(one.relay.pid)
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[kind], 16) == 0, kind
        assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
        assert status["Groups"].split() == []
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def status_of(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/status") as file:
        lines = (line.partition(":") for line in file)
        return {name: value.strip() for name, _, value in lines}


@isolated
async def test_a_killed_relay_is_told_and_its_connections_end() -> None:
    async with end() as one, end() as two:
        mine, theirs = await join(one, two)
        os.kill(one.relay.pid, signal.SIGKILL)
        assert await ended(mine)
        assert await ended(theirs)
        await until(lambda: one.exits == 1, "told")
    assert (one.exits, two.exits) == (1, 0)


@isolated
async def test_signals_from_a_terminal_do_not_end_it() -> None:
    async with end() as one, end() as two:
        pipes = await join(one, two)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(one.relay.pid, number)
        await echo(*pipes, 1000)
        assert one.exits == 0


@isolated
async def test_stop_ends_the_process_and_its_connections() -> None:
    async with end() as one, end() as two:
        _mine, theirs = await join(one, two)
        watched = os.pidfd_open(one.relay.pid)
        await one.relay.stop()
        assert select.select([watched], [], [], 0)[0]
        assert await ended(theirs)
        assert one.exits == 0


@in_namespace
def test_a_relay_ends_when_control_is_killed() -> None:
    reader, writer = os.pipe()

    async def control() -> None:
        async with end() as one, end() as two:
            await join(one, two)
            os.write(writer, struct.pack("i", one.relay.pid))
            await asyncio.Event().wait()

    pid, trace = spawn(lambda: asyncio.run(control()))
    (relay,) = struct.unpack("i", os.read(reader, 4))
    watched = os.pidfd_open(relay)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(trace)
    assert select.select([watched], [], [], PATIENCE_S)[0], "it outlives its control process"
