"""The QUIC relay as real processes, on loopback and over a veth pair."""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from namespaced import forbid_filters, in_namespace, run, spawn
from quicends import ALPN, LISTENER, PEM, Link, drain, joined, link, receive, side, udp, wire
from quicstranger import Stranger
from test_dataplane import isolated, status_of
from twoplanes import PATIENCE_S, Namespace, until

from jvpnd.transport import quic

OVERHEAD = 30  # of a UDP payload: QUIC's header with our connection ids, the frame's, the tag
ETHERNET = (1472 - OVERHEAD, 1472 - OVERHEAD)
LEAST = 1200 - OVERHEAD


async def carried(connection: Link, sizes: list[int]) -> None:
    """Messages of these sizes pass both ways, whole and in order."""
    for sender, receiver in (
        (connection.ours, connection.theirs),
        (connection.theirs, connection.ours),
    ):
        for size in sizes:
            message = b"\x08" + random.Random(size).randbytes(size - 1)
            sender.send(message)
            assert await receive(receiver) == message


# --- carrying ------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_datagrams_pass_both_ways(host: str) -> None:
    async def body() -> None:
        async with link(host) as both:
            await carried(both, [1, 2, 63, 64, 65, 1000, LEAST])
            assert both.gateway.remotes[both.number][0] == host
            assert both.number >= quic.FIRST_ACCEPTED

    isolated(body)()


@isolated
async def test_what_is_written_before_it_is_ready_goes_out_once_it_is() -> None:
    async with side() as gateway, side() as client:
        ours = client.connect(1, gateway.listen("127.0.0.1"), name=None)
        ours.send(b"\x01 early")
        await until(lambda: gateway.pipes, "accepted")
        assert await receive(*gateway.pipes.values()) == b"\x01 early"


@isolated
async def test_a_dual_stack_listener_takes_both_families() -> None:
    async with side() as gateway, side() as client:
        with udp("::") as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(("::", 0))
            port = sock.getsockname()[1]
            gateway.relay.listen(LISTENER, sock, PEM, ALPN)
        for number, host in enumerate(("127.0.0.1", "::1")):
            both = await joined(client, gateway, (host, port), number)
            await carried(both, [LEAST])
            limit = 1472 if number == 0 else 1452
            await until(
                lambda number=number, limit=limit: client.ready[number] == limit - OVERHEAD,
                "as large as Ethernet carries",
            )
            assert gateway.remotes[both.number][0] == ("::ffff:127.0.0.1", "::1")[number]


@isolated
async def test_many_connections_keep_their_datagrams_apart() -> None:
    async with side() as gateway, side() as client:
        address = gateway.listen("127.0.0.1")
        links = [await joined(client, gateway, address, number) for number in range(20)]
        for number, each in enumerate(links):
            each.ours.send(b"up %d" % number)
            each.theirs.send(b"down %d" % number)
        for number, each in enumerate(links):
            assert await receive(each.theirs) == b"up %d" % number
            assert await receive(each.ours) == b"down %d" % number


# --- size ----------------------------------------------------------------------------------


@isolated
async def test_the_size_is_what_fits_exactly() -> None:
    async with side() as gateway, side() as client:
        address = gateway.listen("127.0.0.1")
        async with wire(address) as middle:
            both = await joined(client, gateway, middle.address)
            await until(lambda: both.sizes() == ETHERNET, "raised")
            middle.lengths.clear()
            await carried(both, [ETHERNET[0]] * 100)
            assert max(middle.lengths) == 1472
            assert middle.lengths.count(1472) == 100, "one message, one UDP datagram"
            both.ours.send(bytes([8]) * (ETHERNET[0] + 1))
            await carried(both, [1])  # and nothing before it


@contextmanager
def veth(inner_mtu: int) -> Iterator[Namespace]:
    """10.9.0.1 here, 10.9.0.2 in the namespace, which drops what is longer than its MTU."""
    inside = Namespace()
    where = f"/proc/{os.getpid()}/fd/{inside._fd}"
    run(f"ip link add outer type veth peer name inner netns {where}")
    run("ip address add 10.9.0.1/24 dev outer")
    run("ip link set outer up")
    with inside():
        run("ip address add 10.9.0.2/24 dev inner")
        run(f"ip link set inner mtu {inner_mtu} up")
    yield inside


@isolated
async def test_an_ethernet_path_is_used_to_the_full() -> None:
    with veth(1500) as inside:
        async with side() as gateway, side() as client:
            with inside():
                address = gateway.listen("10.9.0.2")
            both = await joined(client, gateway, address)
            await until(lambda: both.sizes() == ETHERNET, "raised")
            await carried(both, [ETHERNET[0]] * 100)


@isolated
async def test_a_narrow_path_gets_no_more_than_it_carries() -> None:
    with veth(1300) as inside:
        async with side() as gateway, side() as client:
            with inside():
                address = gateway.listen("10.9.0.2")
            both = await joined(client, gateway, address)
            fits = 1280 - 28 - OVERHEAD
            await until(lambda: both.sizes() == (fits, fits), "raised a little")
            await carried(both, [fits] * 100)


@isolated
async def test_a_path_that_swallows_large_packets_is_noticed() -> None:
    with veth(1500) as inside:
        async with side() as gateway, side() as client:
            with inside():
                address = gateway.listen("10.9.0.2")
            both = await joined(client, gateway, address)
            await until(lambda: both.sizes() == ETHERNET, "raised")
            with inside():
                run("ip link set inner mtu 1300")
            fits = 1280 - 28 - OVERHEAD

            def narrower() -> bool:
                for large in (True, False):
                    both.ours.send(bytes([8]) * (both.client.ready[1] if large else 50))
                return both.client.ready[1] == fits

            await until(narrower, "fallen back, and risen to what is left")


# --- strangers -----------------------------------------------------------------------------


@isolated
async def test_garbage_is_not_answered() -> None:
    async with link() as both:
        address = both.gateway.address
        rng = random.Random(1)
        with udp("127.0.0.1") as stranger:
            for number in range(400):
                data = bytearray(rng.randbytes(rng.choice((0, 1, 7, 20, 1199, 1200, 1472))))
                if data and number % 2:
                    data[0] |= 0xC0  # a long header
                if len(data) > 5 and number % 4 == 1:
                    data[1:5] = struct.pack("!I", 1)
                stranger.sendto(data, address)
            await carried(both, [LEAST])  # it is behind the garbage, in the same socket
            stranger.setblocking(False)
            with pytest.raises(BlockingIOError):
                stranger.recv(2000)


@isolated
async def test_an_unvalidated_source_gets_three_times_its_bytes_at_most() -> None:
    async with side() as gateway, Stranger(gateway.listen("127.0.0.1")) as stranger:
        stranger.hello()
        await until(lambda: stranger.received, "answered")
        await until(lambda: stranger.is_quiet(1.5), "it has tried again, too")
        assert stranger.received <= 3 * stranger.sent
        assert gateway.pipes == {}


@isolated
async def test_a_handshake_that_is_never_finished_is_given_up() -> None:
    quic.HANDSHAKE_S = 0.3
    async with side() as gateway, Stranger(gateway.listen("127.0.0.1")) as stranger:
        stranger.hello()
        await until(lambda: stranger.is_told_off, "given up")


@isolated
async def test_half_open_handshakes_are_bounded_and_busy_gateways_ask_for_an_address() -> None:
    async with side() as gateway, side() as client:
        address = gateway.listen("127.0.0.1")
        first = Stranger(address)
        async with first:
            first.hello()
            await until(lambda: first.received, "answered")
            crowd = [Stranger(address, f"127.0.1.{number % 250 + 1}") for number in range(256)]
            for each in crowd:
                await each.open()
                each.hello()
                await until(lambda each=each: each.received, "answered")
                if each.retried:
                    each.hello()
            assert not crowd[0].retried
            assert all(each.retried for each in crowd[16:])
            await until(lambda: first.is_told_off, "the oldest goes")
            assert not any(each.is_told_off for each in crowd)
            both = await joined(client, gateway, address)  # who answers gets in
            await carried(both, [LEAST])
            for each in crowd:
                each.close()


@isolated
async def test_a_gateway_of_another_protocol_is_not_connected_to() -> None:
    async with side() as gateway, side() as client:
        client.connect(1, gateway.listen("127.0.0.1"), alpn=["other"])
        await until(lambda: client.failed, "refused")
        assert "ALPN" in client.failed[1]
        assert gateway.pipes == client.ready == {}


@isolated
async def test_a_closed_port_and_a_silent_one_fail() -> None:
    quic.HANDSHAKE_S = 0.5
    async with side() as client:
        with udp("127.0.0.1") as silent:
            silent.bind(("127.0.0.1", 0))
            client.connect(1, silent.getsockname())
            pipe = client.pipes[1]
            await until(lambda: client.failed, "silent")
            assert client.failed == {1: "not ready in 0.5 s"}
            assert await receive(pipe) == b""
            gone = silent.getsockname()
        client.connect(2, gone)
        await until(lambda: 2 in client.failed, "closed")
        assert client.failed[2] in ("Connection refused", "not ready in 0.5 s")


# --- ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize("closer", ["client", "gateway"])
def test_closing_one_pipe_ends_the_other(closer: str) -> None:
    async def body() -> None:
        async with link() as both:
            near, far = both.ours, both.theirs
            if closer == "gateway":
                near, far = far, near
            copy = near.dup()  # as a worker has one
            near.close()
            await settled(both)
            copy.send(b"still open")
            assert await receive(far) == b"still open"
            copy.close()
            assert await receive(far) == b""

    async def settled(both: Link) -> None:
        """Another connection of the same relays has come and gone."""
        again = await joined(both.client, both.gateway, both.gateway.address, 2)
        again.ours.close()
        assert await receive(again.theirs) == b""

    isolated(body)()


@isolated
async def test_a_relay_that_stops_or_dies_ends_its_connections() -> None:
    async with link() as both:
        again = await joined(both.client, both.gateway, both.gateway.address, 2)
        await both.client.relay.stop()
        for pipe in (both.ours, both.theirs, again.ours, again.theirs):
            assert await receive(pipe) == b""
        assert both.client.exits == 0
        os.kill(both.gateway.relay.pid, signal.SIGKILL)
        await until(lambda: both.gateway.exits == 1, "told")


@isolated
async def test_who_does_not_read_loses_own_packets_only() -> None:
    async with link() as lazy:
        await until(lambda: lazy.sizes() == ETHERNET, "raised")
        busy = await joined(lazy.client, lazy.gateway, lazy.gateway.address, 2)
        message, sent = bytes([8]) * ETHERNET[0], 3000
        loop = asyncio.get_running_loop()
        for number in range(sent):
            await loop.sock_sendall(lazy.ours, message)
            if number % 10 == 0:
                busy.ours.send(b"%d" % number)
                assert await receive(busy.theirs) == b"%d" % number
        lazy.ours.close()
        got = await drain(lazy.theirs)
        assert 100 < len(got) < sent
        assert set(got) == {message}


@isolated
async def test_a_dead_path_costs_what_is_sent_meanwhile_and_no_time_afterwards() -> None:
    async with side() as gateway, side() as client, wire(gateway.listen("127.0.0.1")) as middle:
        both = await joined(client, gateway, middle.address)
        middle.cut = True
        loop = asyncio.get_running_loop()
        for _ in range(8500):  # more than it sends unacknowledged at full speed
            await loop.sock_sendall(both.ours, bytes([8]) * 100)
        middle.cut = False
        both.ours.send(b"back")
        while await asyncio.wait_for(receive(both.theirs), 2.0) != b"back":
            pass


# --- processes -----------------------------------------------------------------------------


@isolated
async def test_the_relay_holds_no_privilege() -> None:
    async with link() as both:
        for relay in (both.client.relay, both.gateway.relay):
            status = status_of(relay.pid)
            for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(status[kind], 16) == 0, kind
            assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
            assert status["Groups"].split() == []
            assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


@isolated
async def test_signals_from_a_terminal_do_not_end_the_relay() -> None:
    async with link() as both:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(both.client.relay.pid, number)
        await carried(both, [LEAST])
        assert both.client.exits == 0


@in_namespace
def test_the_relay_ends_when_control_is_killed() -> None:
    reader, writer = os.pipe()

    async def control() -> None:
        async with link() as both:
            pids = both.client.relay.pid, both.gateway.relay.pid
            os.write(writer, struct.pack("2i", *pids))
            await asyncio.Event().wait()

    pid, trace = spawn(lambda: asyncio.run(control()))
    watched = [os.pidfd_open(relay) for relay in struct.unpack("2i", os.read(reader, 8))]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(trace)
    for fd in watched:
        assert select.select([fd], [], [], PATIENCE_S)[0], "relay outlives its control process"


@isolated
async def test_a_relay_that_cannot_drop_its_privileges_does_not_run() -> None:
    forbid_filters()
    async with side() as here:
        await until(lambda: here.exits == 1, "ended")


@isolated
async def test_a_certificate_without_a_key_ends_the_relay() -> None:
    async with side() as here:
        with udp("127.0.0.1") as sock:
            sock.bind(("127.0.0.1", 0))
            here.relay.listen(LISTENER, sock, b"nothing", ALPN)
        await until(lambda: here.exits == 1, "ended")
