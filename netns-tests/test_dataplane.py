"""The data plane as real processes: real TUNs, real namespaces, real UDP."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import random
import secrets
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from namespaced import forbid_filters, in_namespace, run, spawn
from twoplanes import (
    ANY,
    FULL,
    PATIENCE_S,
    PLAIN,
    End,
    Observer,
    commands_taken,
    end,
    join,
    launched,
    tunnel,
    until,
)
from twoplanes import transfer as blocking_transfer

from jvpnd.core.offloads import Offloads
from jvpnd.core.wire import HEADER, MAX_CONTROL_LEN, PacketType, Suite
from jvpnd.dataplane.early import MAX_HELD
from jvpnd.dataplane.plane import DataPlaneError

NO_SUPER = Offloads(vnet=True, tso=False, uso=False, udp_gso=False, udp_gro=False)
NO_USO = Offloads(vnet=True, tso=True, uso=False, udp_gso=True, udp_gro=False)


def isolated(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run an async test in a child process with a namespace of its own."""

    def body() -> None:
        asyncio.run(test())

    body.__name__, body.__doc__ = test.__name__, test.__doc__
    return in_namespace(body)


async def transfer(sender: End, receiver: End, size: int, version: int = 4) -> None:
    data = random.Random(size).randbytes(size)
    arrived = await asyncio.to_thread(
        blocking_transfer, sender, receiver, data, version=version
    )
    assert arrived == data


# --- carrying ------------------------------------------------------------------------------


@isolated
async def test_ping_and_tcp_pass_both_ways_in_both_families() -> None:
    async with tunnel() as (one, two):
        for target in (two.v4, two.v6):
            with one.inside():
                ping = ["ping", "-q", "-c", "5", "-i", "0.01", "-W", "5", target]
                done = await asyncio.to_thread(subprocess.run, ping, capture_output=True)
            assert done.returncode == 0, done.stdout
        for version in (4, 6):
            await transfer(one, two, 8_000_000, version)
            await transfer(two, one, 8_000_000, version)
        assert one.drops() == two.drops() == {}


@pytest.mark.parametrize("suite", list(Suite))
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_each_suite_over_each_family(suite: Suite, host: str) -> None:
    async def body() -> None:
        async with tunnel(suite=suite, host=host) as (one, two):
            await transfer(one, two, 2_000_000)

    isolated(body)()


@pytest.mark.parametrize(
    ("first", "second"),
    [(FULL, PLAIN), (PLAIN, FULL), (PLAIN, PLAIN), (NO_SUPER, FULL), (NO_USO, NO_SUPER)],
    ids=["full-plain", "plain-full", "plain-plain", "nosuper-full", "nouso-nosuper"],
)
def test_ends_with_different_offloads_understand_each_other(
    first: Offloads, second: Offloads
) -> None:
    async def body() -> None:
        async with tunnel(first, second) as (one, two):
            for version in (4, 6):
                await transfer(one, two, 1_000_000, version)
            await check_uso(one, two)

    isolated(body)()


async def check_uso(one: End, two: End) -> None:
    """A UDP super-packet from inside arrives as the datagrams it stands for."""
    pieces = [bytes([number]) * 1000 for number in range(20)] + [b"short"]
    with one.udp() as sender, two.udp() as receiver:
        segment = [(socket.SOL_UDP, 103, struct.pack("H", 1000))]
        sender.sendmsg([b"".join(pieces)], segment, 0, receiver.getsockname())
        got = [await asyncio.to_thread(receiver.recv, 2000) for _ in pieces]
    assert got == pieces


@isolated
async def test_udp_super_packets_pass_as_datagrams() -> None:
    async with tunnel() as (one, two):
        await check_uso(one, two)
        assert one.plane.slot_counters(0).tx_packets == 21  # counted as cut
        assert two.plane.slot_counters(0).rx_packets == 21
        inner_bytes = 20 * 1028 + 33
        assert one.plane.slot_counters(0).tx_bytes == inner_bytes
        assert two.plane.slot_counters(0).rx_bytes == inner_bytes
        assert two.plane.slot_counters(0).last_rx_index == 100
        age_ms = time.monotonic_ns() // 1_000_000 - two.plane.slot_counters(0).last_rx_ms
        assert 0 <= age_ms < 60_000


@isolated
async def test_path_too_narrow_for_segmentation_offload_is_used_without() -> None:
    run("ip link set lo mtu 1300")
    async with tunnel() as (one, two):
        await transfer(one, two, 3_000_000)
        assert one.drops() == {}


@isolated
async def test_records_span_datagrams_while_none_is_lost() -> None:
    async with tunnel() as (one, two):

        def spans() -> int:
            return one.plane.slot_counters(0).tx_spans

        for _ in range(10):
            await transfer(one, two, 8_000_000)
            if spans() > 10:
                break
        assert spans() > 10
        run("nft add table inet lossy")
        run("nft add chain inet lossy input { type filter hook input priority 0 ; }")
        run("nft add rule inet lossy input meta l4proto udp numgen inc mod 20 0 drop")
        await transfer(one, two, 2_000_000)  # some of it may still be in spans
        before = spans()
        await transfer(one, two, 2_000_000)
        assert spans() == before


@isolated
async def test_connected_sockets_need_no_remote() -> None:
    async with end(1) as one, end(2) as two:
        key = secrets.token_bytes(32)
        one.transport.connect(two.address)
        two.plane.bind_receive(0, 7, Suite.AES_256_GCM, key, ANY, 1, one.address)
        await commands_taken(two)
        one.plane.set_routes(0, ANY)
        one.plane.bind_send(0, 7, Suite.AES_256_GCM, key, 1, None)
        with one.udp() as sender, two.udp() as receiver:
            sender.sendto(b"hello", receiver.getsockname())
            assert await asyncio.to_thread(receiver.recv, 100) == b"hello"
        assert two.observer.elsewhere == []


# --- bindings ------------------------------------------------------------------------------


@isolated
async def test_new_binding_replaces_the_old_without_a_lost_packet() -> None:
    async with tunnel() as (one, two):
        with one.udp() as sender, two.udp() as receiver:
            for epoch in range(20):
                await join(one, two, index=1000 + 2 * epoch)
                sender.sendto(bytes([epoch]), receiver.getsockname())
                assert await asyncio.to_thread(receiver.recv, 100) == bytes([epoch])
        assert two.plane.slot_counters(0).last_rx_index == 1038


@isolated
async def test_key_is_never_bound_twice_for_sending() -> None:
    async with end(1) as one:
        key = secrets.token_bytes(32)
        one.plane.bind_send(0, 1, Suite.AES_256_GCM, key, 1, ("127.0.0.1", 9))
        with pytest.raises(ValueError, match="only once"):
            one.plane.bind_send(0, 1, Suite.AES_256_GCM, key, 1, ("127.0.0.1", 10))


@isolated
async def test_slot_without_binding_drops_and_other_slots_go_on() -> None:
    async with tunnel() as (one, two):
        one.plane.set_routes(0, [f"{two.v4}/32"])
        one.plane.set_routes(1, ["10.77.0.50/32"])
        one.plane.set_routes(2, ["10.77.0.60/32"])
        one.plane.bind_send(2, 9, Suite.AES_256_GCM, secrets.token_bytes(32), 1, two.address)
        with one.udp() as sender, two.udp() as receiver:
            sender.sendto(b"x", ("10.77.0.50", 9))
            sender.sendto(b"x", ("10.77.0.99", 9))
            sender.sendto(b"x", ("10.77.0.60", 9))
            sender.sendto(b"y", receiver.getsockname())
            assert await asyncio.to_thread(receiver.recv, 100) == b"y"
        assert one.drops() == {"no_binding": 1, "no_route": 1}
        assert one.plane.slot_counters(2).tx_packets == 1
        one.plane.release_send(0)
        with one.udp() as sender:
            sender.sendto(b"x", (two.v4, 9))
            await until(lambda: one.dropped("no_binding") == 2, "dropped after release")


@isolated
async def test_removed_socket_is_not_sent_on_any_more() -> None:
    async with tunnel() as (one, two):
        one.plane.remove_socket(1)
        with one.udp() as sender:
            sender.sendto(b"x", (two.v4, 9))
            await until(lambda: one.dropped("no_binding") == 1, "dropped without a socket")
        assert one.counters()[0] == 0
        with pytest.raises(ValueError, match="not added"):
            one.plane.bind_send(0, 1, Suite.AES_256_GCM, bytes(32), 1, two.address)


@isolated
async def test_paused_plane_leaves_packets_with_the_kernel() -> None:
    async with tunnel() as (one, two):
        one.plane.pause(True)
        one.plane.release_send(0)  # nothing may get past the pause
        with one.udp() as sender, two.udp() as receiver:
            # commands are carried out in order: once this one has been, the pause holds
            one.plane.set_routes(9, ["10.99.0.0/16"])
            await until(lambda: queue_is_empty(one), "commands taken")
            for number in range(50):
                sender.sendto(bytes([number]), receiver.getsockname())
            await join(one, two, index=300)
            one.plane.pause(False)
            got = [await asyncio.to_thread(receiver.recv, 100) for _ in range(50)]
        assert got == [bytes([number]) for number in range(50)]
        assert one.drops() == {}


def queue_is_empty(here: End) -> bool:
    """Whether the uplink sleeps in poll with all of its commands taken."""
    pid = here.plane.worker_pids()["uplink"]
    with open(f"/proc/{pid}/wchan") as file:
        return "poll" in file.read()


@isolated
async def test_authentic_data_from_elsewhere_is_delivered_and_reported() -> None:
    async with tunnel() as (one, two):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.3", 0))
            one.plane.add_socket(2, [other.fileno()])
            key = secrets.token_bytes(32)
            two.plane.bind_receive(0, 55, Suite.AES_256_GCM, key, ANY, 1, one.address)
            await commands_taken(two)
            one.plane.bind_send(0, 55, Suite.AES_256_GCM, key, 2, two.address)
            with one.udp() as sender, two.udp() as receiver:
                for _ in range(100):
                    sender.sendto(b"moved", receiver.getsockname())
                    assert await asyncio.to_thread(receiver.recv, 100) == b"moved"
            await until(lambda: two.observer.elsewhere, "told")
            assert set(two.observer.elsewhere) == {(55, 1, other.getsockname())}
            assert len(two.observer.elsewhere) < 100


# --- hostile input -------------------------------------------------------------------------


@isolated
async def test_control_packets_are_forwarded_and_junk_is_counted() -> None:
    async with tunnel() as (one, two):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
            attacker.connect(two.address)
            data = HEADER.pack(8, 0, 0, 424242, 1) + bytes(40)
            control = [kind for kind in PacketType if kind is not PacketType.DATA]
            unknown = range(len(PacketType) + 1, 256)
            for packet in (
                *(bytes([kind]) * 50 for kind in control),
                b"\x04" * MAX_CONTROL_LEN,
                b"\x04" * (MAX_CONTROL_LEN + 1),
                b"\x00" * 60,
                *(bytes([kind]) for kind in unknown),
                b"",
                b"\x08",
                data[:31],
                data,
                HEADER.pack(8, 0, 0, 100, 5) + bytes(40),
            ):
                attacker.send(packet)
            mine = attacker.getsockname()
        await until(lambda: two.dropped("bad_tag") == 1, "last packet seen")
        await until(lambda: len(two.observer.packets) == len(control) + 1, "all forwarded")
        kinds = [packet[0] for _, _, packet in two.observer.packets]
        assert kinds == [*control, 4]
        assert {(socket_id, remote) for socket_id, remote, _ in two.observer.packets} == {
            (1, mine)
        }
        junk = len(unknown) + 2  # with what is too long, and kind 0
        expected = {"unknown_type": junk, "malformed": 3, "unknown_index": 1, "bad_tag": 1}
        assert two.drops() == expected
        assert two.plane.slot_counters(0).last_rx_ms == 0
        await transfer(one, two, 100_000)


@isolated
async def test_captured_packets_are_refused_when_sent_again() -> None:
    async with end(1) as one, end(2) as two:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as tap:
            tap.bind(("127.0.0.1", 0))
            tap.settimeout(PATIENCE_S)
            key = secrets.token_bytes(32)
            two.plane.bind_receive(0, 7, Suite.AES_256_GCM, key, ANY, 1, tap.getsockname())
            await commands_taken(two)
            one.plane.set_routes(0, ANY)
            one.plane.bind_send(0, 7, Suite.AES_256_GCM, key, 1, tap.getsockname())
            with one.udp() as sender, two.udp() as receiver:
                sender.sendto(b"once", receiver.getsockname())
                captured = await asyncio.to_thread(tap.recv, 2000)
                tampered = bytearray(captured)
                tampered[-1] ^= 1
                for packet in (tampered, captured, captured, captured[:-1], captured):
                    tap.sendto(packet, two.address)
                await until(lambda: two.dropped("replayed") == 2, "replays counted")
                assert receiver.recv(100) == b"once"
                assert two.drops() == {"bad_tag": 2, "replayed": 2}
                assert two.counters() == (0, 1)


@isolated
async def test_spoofed_inner_source_is_dropped() -> None:
    async with tunnel() as (one, two):
        with one.inside():
            run("ip address add 10.77.0.66/24 dev t0")
            spoofer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with spoofer:
            spoofer.bind(("10.77.0.66", 0))
            spoofer.sendto(b"x", (two.v4, 9))
        await until(lambda: two.dropped("bad_source") == 1, "dropped")
        assert two.counters()[1] == 0
        assert two.plane.slot_counters(0).last_rx_ms > 0  # the peer is alive, if dishonest


# --- early data ----------------------------------------------------------------------------


async def settled(two: End) -> None:
    """Wait until the downlink has looked at everything that is in its socket."""
    before = two.dropped("unknown_type")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as barrier:
        barrier.sendto(b"\xff", two.address)
    await until(lambda: two.dropped("unknown_type") > before, "barrier packet seen")


@isolated
async def test_early_data_waits_for_its_keys() -> None:
    async with end(1) as one, end(2) as two:
        key = secrets.token_bytes(32)
        two.plane.expect(7)
        await commands_taken(two)
        one.plane.set_routes(0, ANY)
        one.plane.bind_send(0, 7, Suite.AES_256_GCM, key, 1, two.address)
        with one.udp() as sender, two.udp() as receiver:
            for number in range(20):
                sender.sendto(bytes([number]), receiver.getsockname())
            await until(lambda: one.counters()[0] == 20, "sent")
            await settled(two)
            assert two.counters()[1] == 0
            two.plane.bind_receive(0, 7, Suite.AES_256_GCM, key, ANY, 1, one.address)
            got = [await asyncio.to_thread(receiver.recv, 100) for _ in range(20)]
        assert got == [bytes([number]) for number in range(20)]
        assert set(two.drops()) == {"unknown_type"}


@isolated
async def test_early_data_is_bounded_and_expires() -> None:
    async with end(1) as one, end(2) as two:
        one.plane.set_routes(0, ANY)
        two.plane.expect(7)
        await commands_taken(two)
        key = secrets.token_bytes(32)
        one.plane.bind_send(0, 7, Suite.AES_256_GCM, key, 1, two.address)
        with one.udp() as sender, two.udp() as receiver:
            for _ in range(MAX_HELD + 10):
                sender.sendto(bytes(1000), receiver.getsockname())  # a datagram each
            await until(lambda: two.dropped("early_overflow") >= 10, "bounded")
            await until(
                lambda: two.dropped("early_expired") == MAX_HELD, "forgotten in time"
            )
            two.plane.bind_receive(0, 7, Suite.AES_256_GCM, key, ANY, 1, one.address)
            sender.sendto(b"late", receiver.getsockname())
            assert await asyncio.to_thread(receiver.recv, 100) == b"late"
            assert two.counters()[1] == 1


# --- errors --------------------------------------------------------------------------------


@isolated
async def test_send_errors_are_reported_and_counted() -> None:
    async with end(1) as one:
        one.plane.set_routes(0, ANY)
        suite, nowhere = Suite.AES_256_GCM, ("203.0.113.1", 9)
        one.plane.bind_send(0, 7, suite, secrets.token_bytes(32), 1, nowhere)
        with one.udp() as sender:
            for _ in range(30):
                sender.sendto(b"x", ("10.77.0.2", 9))
            await until(lambda: one.dropped("send_error") == 30, "counted")
        await until(lambda: one.observer.send_errors, "reported")
        # bound to a loopback address, the kernel may call the network unreachable or the use wrong
        assert set(one.observer.send_errors) <= {(0, errno.ENETUNREACH), (0, errno.EINVAL)}
        assert one.plane.slot_counters(0).tx_packets == 0


@isolated
async def test_icmp_errors_of_a_connected_socket_are_reported() -> None:
    async with end(1) as one:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
            gone.bind(("127.0.0.1", 0))
            one.transport.connect(gone.getsockname())
        one.plane.set_routes(0, ANY)
        one.plane.bind_send(0, 7, Suite.AES_256_GCM, secrets.token_bytes(32), 1, None)
        with one.udp() as sender:

            def reported() -> bool:
                sender.sendto(b"x", ("10.77.0.2", 9))
                seen = one.observer.socket_errors + one.observer.send_errors
                return any(number == errno.ECONNREFUSED for _, number in seen)

            await until(reported, "ECONNREFUSED reported")


@isolated
async def test_end_of_a_relay_is_reported_once() -> None:
    async with end(1) as one:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            ours.setblocking(False)
            one.plane.add_socket(2, [ours.fileno()])
            theirs.send(b"\x01 over a relay")
            await until(lambda: one.observer.packets, "packet from the relay")
            assert one.observer.packets == [(2, ("", 0), b"\x01 over a relay")]
        await until(lambda: one.observer.socket_errors, "its end")
        await settled(one)
        assert one.observer.socket_errors == [(2, errno.ECONNRESET)]


# --- processes -----------------------------------------------------------------------------


@isolated
async def test_workers_hold_no_privilege() -> None:
    async with end(1) as one:
        for role, pid in one.plane.worker_pids().items():
            status = status_of(pid)
            for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(status[kind], 16) == 0, (role, kind)
            assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
            assert status["Groups"].split() == []
            assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def status_of(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/status") as file:
        lines = (line.partition(":") for line in file)
        return {name: value.strip() for name, _, value in lines}


@isolated
async def test_killed_worker_is_reported_and_replaced() -> None:
    async with tunnel() as (one, two):
        for turn, role in enumerate(("uplink", "downlink", "uplink")):
            before = one.plane.worker_pids()[role]
            os.kill(before, signal.SIGKILL)
            await until(lambda turn=turn: len(one.observer.deaths) == turn + 1, "reported")
            assert one.observer.deaths[-1] == role
            assert one.observer.causes[-1] == "signal SIGKILL"
            assert one.plane.worker_pids()[role] != before
            await join(one, two, index=200 + 2 * turn)
            await transfer(one, two, 100_000)
            await transfer(two, one, 100_000)
        assert two.observer.deaths == []


@isolated
async def test_signals_from_a_terminal_do_not_end_workers() -> None:
    async with tunnel() as (one, two):
        for pid in one.plane.worker_pids().values():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(pid, number)
        await transfer(one, two, 100_000)
        assert one.observer.deaths == []


@isolated
async def test_stuck_worker_never_blocks_control_and_is_replaced() -> None:
    async with tunnel() as (one, two):
        os.kill(one.plane.worker_pids()["downlink"], signal.SIGSTOP)
        for number in range(6000):
            one.plane.expect(number)
        await until(lambda: one.observer.deaths == ["downlink"], "replaced")
        await join(one, two, index=200)
        await transfer(one, two, 100_000)


@isolated
async def test_a_worker_that_hangs_without_any_command_is_replaced() -> None:
    async with tunnel() as (one, two):
        for pid in one.plane.worker_pids().values():
            os.kill(pid, signal.SIGSTOP)
        await until(lambda: len(one.observer.deaths) == 2, "both are replaced")
        assert sorted(one.observer.deaths) == ["downlink", "uplink"]
        assert one.observer.causes == ["hung", "hung"]
        await join(one, two, index=200)
        await transfer(one, two, 100_000)
        await transfer(two, one, 100_000)
        assert two.observer.deaths == []  # an idle worker goes round too


@isolated
async def test_commands_wait_for_a_slow_worker_in_order() -> None:
    async with tunnel() as (one, two):
        pid = two.plane.worker_pids()["downlink"]
        os.kill(pid, signal.SIGSTOP)
        key = secrets.token_bytes(32)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as extra:
            extra.bind(("127.0.0.1", 0))
            for number in range(2000):
                two.plane.expect(number)
            two.plane.add_socket(5, [extra.fileno()])  # its descriptor waits in the queue too
            where = extra.getsockname()
        two.plane.bind_receive(0, 77, Suite.AES_256_GCM, key, ANY, 5, one.address)
        os.kill(pid, signal.SIGCONT)
        await commands_taken(two)
        one.plane.bind_send(0, 77, Suite.AES_256_GCM, key, 1, where)
        with one.udp() as sender, two.udp() as receiver:
            sender.sendto(b"in order", receiver.getsockname())
            assert await asyncio.to_thread(receiver.recv, 100) == b"in order"
        assert two.observer.deaths == []


@in_namespace
def test_workers_end_when_control_is_killed() -> None:
    reader, writer = os.pipe()

    async def control() -> None:
        async with end(1) as one:
            os.write(writer, struct.pack("2i", *one.plane.worker_pids().values()))
            await asyncio.Event().wait()

    pid, trace = spawn(lambda: asyncio.run(control()))
    pids = struct.unpack("2i", os.read(reader, 8))
    watched = [os.pidfd_open(worker) for worker in pids]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(trace)
    for fd in watched:
        assert select.select([fd], [], [], PATIENCE_S)[0], "worker outlives its control process"


@isolated
async def test_close_ends_the_workers() -> None:
    async with end(1) as one:
        watched = [os.pidfd_open(pid) for pid in one.plane.worker_pids().values()]
    assert sorted(select.select(watched, [], [], 0)[0]) == sorted(watched)
    assert one.observer.deaths == []


@isolated
async def test_worker_that_cannot_drop_its_privileges_does_not_start() -> None:
    tun_fd = os.open("/dev/null", os.O_RDWR)
    forbid_filters()
    with pytest.raises(DataPlaneError, match="ended while it started"):
        await launched([tun_fd], PLAIN, Observer())


@isolated
async def test_workers_carry_packets_where_control_may_not_change_their_uid() -> None:
    keep_capabilities(12, 13)  # CAP_NET_ADMIN, CAP_NET_RAW
    async with tunnel() as (one, two):
        for pid in one.plane.worker_pids().values():
            status = status_of(pid)
            assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == 0
            assert status["Uid"].split() == ["0"] * 4
            assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        await transfer(one, two, 100_000)
        await transfer(two, one, 100_000)


def keep_capabilities(*kept: int) -> None:
    """The others are not for our children to have."""
    libc = ctypes.CDLL(None)
    for capability in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
        if capability not in kept:
            assert libc.prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP
