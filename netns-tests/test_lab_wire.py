"""The user-space wire: what each condition does to real frames between real namespaces.

The tests own both far ends: sockets made inside the namespaces, so that every frame is counted.
"""

from __future__ import annotations

import functools
import json
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lab.namespace import Namespace, ip
from lab.wire import QUEUE_MAX, Conditions, Wire

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

_SO_RCVBUFFORCE = 33
_SOL_UDP, _UDP_SEGMENT = 17, 103
# A local experimental EtherType (IEEE 802): no protocol answers it.
ETHERTYPE = 0x88B5
HEADER = b"\xff" * 6 + b"\x02\0\0\0\0\1" + ETHERTYPE.to_bytes(2, "big")
WAIT_S = 3  # bounds a hang
ADDRESSES = {4: ("10.9.0.1", "10.9.0.2"), 6: ("fd09::1", "fd09::2")}


class End:
    """Raw frames at one far end; each carries its number."""

    def __init__(self, namespace: Namespace, device: str) -> None:
        self.sock = namespace.within(
            lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        )
        self.sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        namespace.within(lambda: self.sock.bind((device, ETHERTYPE)))
        self.sock.settimeout(WAIT_S)

    def send(self, number: int, length: int = 60) -> None:
        frame = HEADER + number.to_bytes(4, "big")
        self.sock.send(frame + random.Random(number).randbytes(length - len(frame)))

    def receive(self, length: int = 60) -> int:
        """The number of the next frame, whose every byte must be as it was sent."""
        frame = self.sock.recv(2048)
        number = int.from_bytes(frame[14:18], "big")
        assert frame == HEADER + frame[14:18] + random.Random(number).randbytes(length - 18)
        return number

    def take(self, count: int, length: int = 60) -> list[int]:
        """The numbers of the next frames, behind which there is no other yet."""
        numbers = [self.receive(length) for _ in range(count)]
        assert not select.select([self.sock], [], [], 0)[0], "one more frame"
        return numbers


@dataclass
class Rig:
    """A wire between `va` in one namespace and `vb` in another, which say nothing by themselves."""

    ns_a: Namespace
    ns_b: Namespace
    wire: Wire
    a: End
    b: End

    def settle(self, count: int, *fates: str) -> dict[str, int]:
        """The counters once so many frames have met these fates: carried_a or dropped_a."""
        deadline = time.monotonic() + WAIT_S
        while True:
            counts = self.wire.counters()
            if sum(counts[fate] for fate in fates or ("carried_a", "dropped_a")) >= count:
                return counts
            assert time.monotonic() < deadline, f"{counts}, not yet {count}"
            time.sleep(0.002)

    def give_addresses(self) -> None:
        for namespace, device, index in ((self.ns_a, "va", 0), (self.ns_b, "vb", 1)):
            namespace.sysctl(f"net.ipv6.conf.{device}.disable_ipv6", "0")
            namespace.ip("addr", "add", f"{ADDRESSES[4][index]}/24", "dev", device)
            namespace.ip("addr", "add", f"{ADDRESSES[6][index]}/64", "dev", device, "nodad")


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Namespace("a") as ns_a, Namespace("b") as ns_b:
        for namespace in (ns_a, ns_b):
            namespace.sysctl("net.ipv6.conf.default.disable_ipv6", "1")
        wire = Wire(ns_a.name, "va", ns_b.name, "vb")
        try:
            a, b = End(ns_a, "va"), End(ns_b, "vb")
            with a.sock, b.sock:
                yield Rig(ns_a, ns_b, wire, a, b)
        finally:
            wire.close()


def namespaces_of(pid: int) -> list[str]:
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in listed.splitlines() if line.startswith(f"jv{pid}-")]


def devices(namespace: Namespace) -> list[str]:
    links = json.loads(namespace.run("ip", "-j", "link").stdout)
    return [link["ifname"] for link in links]


# --- conditions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [{"loss": 30}, {"loss": -0.1}, {"duplicate": 1.1}, {"delay_ms": -1}, {"jitter_ms": -1}]
)
def test_conditions_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Conditions(**wrong)


@pytest.mark.parametrize("length", [60, 1514])
def test_frames_pass_both_ways_unchanged_and_in_order(rig: Rig, length: int) -> None:
    for sender, receiver in ((rig.a, rig.b), (rig.b, rig.a)):
        for number in range(500):
            sender.send(number, length)
        assert receiver.take(500, length) == list(range(500))
    fates = ("carried", "dropped", "waiting")
    assert rig.wire.counters() == {
        f"{fate}_{end}": 500 if fate == "carried" else 0 for end in "ab" for fate in fates
    }


def test_frames_flow_as_soon_as_the_constructor_returns() -> None:
    with Namespace("a") as ns_a, Namespace("b") as ns_b:
        for _ in range(5):
            wire = Wire(ns_a.name, "va", ns_b.name, "vb")
            try:
                a, b = End(ns_a, "va"), End(ns_b, "vb")
                with a.sock, b.sock:
                    a.send(1)
                    b.send(2)
                    assert (b.receive(), a.receive()) == (1, 2)
            finally:
                wire.close()


def test_each_direction_has_its_own_delay(rig: Rig) -> None:
    rig.wire.set(a_to_b=Conditions(delay_ms=30), b_to_a=Conditions(delay_ms=50))
    for sender, receiver, delay_s in ((rig.a, rig.b, 0.03), (rig.b, rig.a, 0.05)):
        sent = time.monotonic()
        sender.send(1)
        receiver.receive()
        assert time.monotonic() - sent >= delay_s


@pytest.mark.parametrize("version", [4, 6])
def test_ping_takes_the_delay_of_both_directions(rig: Rig, version: int) -> None:
    rig.give_addresses()
    rig.wire.set_both(Conditions(delay_ms=20))
    out = rig.ns_a.run("ping", "-c", "3", "-i", "0.1", ADDRESSES[version][1]).stdout
    rtts = [float(rtt) for rtt in re.findall(r"time=([\d.]+) ms", out)]
    assert len(rtts) == 3
    assert min(rtts) >= 40


def test_silence_is_one_way_and_frames_under_way_still_arrive(rig: Rig) -> None:
    rig.wire.set(a_to_b=Conditions(delay_ms=300))
    rig.a.send(1)
    rig.settle(1, "waiting_a", "carried_a")
    rig.wire.set(a_to_b=Conditions(silent=True))
    for number in range(100, 200):
        rig.a.send(number)
        rig.b.send(number)
    assert rig.a.take(100) == list(range(100, 200))
    counts = rig.settle(101)
    assert (counts["carried_a"], counts["dropped_a"]) == (1, 100)
    assert rig.b.take(1) == [1]


def test_loss_is_near_its_probability_and_one_way(rig: Rig) -> None:
    rig.wire.set(a_to_b=Conditions(loss=0.3))
    for number in range(4000):
        rig.a.send(number)
        rig.b.send(number)
    counts = rig.settle(4000)
    assert 0.24 < counts["dropped_a"] / 4000 < 0.36
    assert counts["carried_a"] + counts["dropped_a"] == 4000
    arrived = rig.b.take(counts["carried_a"])
    assert arrived == sorted(set(arrived))
    assert rig.a.take(4000) == list(range(4000))


def test_loss_of_one_and_of_none(rig: Rig) -> None:
    rig.wire.set(Conditions(loss=1), Conditions(loss=0))
    for number in range(500):
        rig.a.send(number)
        rig.b.send(number)
    assert rig.settle(500)["dropped_a"] == 500
    assert rig.settle(500, "carried_b")["dropped_b"] == 0


def test_duplicates_are_near_their_probability(rig: Rig) -> None:
    rig.wire.set(a_to_b=Conditions(duplicate=0.3))
    for number in range(2000):
        rig.a.send(number)
    rig.a.send(2000)
    times = Counter(iter(rig.b.receive, 2000))
    assert sorted(times) == list(range(2000))
    assert set(times.values()) == {1, 2}
    assert 0.24 < (times.total() - 2000) / 2000 < 0.36


def test_every_frame_twice(rig: Rig) -> None:
    rig.wire.set_both(Conditions(duplicate=1))
    for number in range(100):
        rig.b.send(number)
    assert rig.a.take(200) == sorted([*range(100), *range(100)])


@pytest.mark.parametrize("reorder", [True, False])
def test_jitter_reorders_only_where_it_may(rig: Rig, reorder: bool) -> None:
    rig.wire.set(a_to_b=Conditions(delay_ms=10, jitter_ms=30, reorder=reorder))
    for number in range(300):
        rig.a.send(number)
    arrived = rig.b.take(300)
    assert sorted(arrived) == list(range(300))
    assert (arrived == sorted(arrived)) is not reorder


def test_luck_repeats_whatever_the_other_direction_does() -> None:
    fates = []
    for other in (0, 700):
        with Namespace("a") as ns_a, Namespace("b") as ns_b:
            for namespace in (ns_a, ns_b):
                namespace.sysctl("net.ipv6.conf.default.disable_ipv6", "1")
            wire = Wire(ns_a.name, "va", ns_b.name, "vb", Conditions(loss=0.5))
            try:
                a, b = End(ns_a, "va"), End(ns_b, "vb")
                with a.sock, b.sock:
                    for number in range(other):
                        b.send(number)
                    for number in range(700):
                        a.send(number)
                    counts = Rig(ns_a, ns_b, wire, a, b).settle(700)
                    fates.append(b.take(counts["carried_a"]))
            finally:
                wire.close()
    assert fates[0] == fates[1]
    assert 0 < len(fates[0]) < 700


def test_conditions_change_under_traffic(rig: Rig) -> None:
    stop = threading.Event()

    def chatter() -> None:
        while not stop.wait(0.0005):
            rig.a.send(0)

    talker = threading.Thread(target=chatter)
    talker.start()
    taken = 0
    try:
        for _ in range(10):
            rig.wire.set(a_to_b=Conditions(silent=True))
            before = rig.wire.counters()
            after = rig.settle(before["dropped_a"] + 20, "dropped_a")
            assert after["carried_a"] == before["carried_a"]
            taken += len(rig.b.take(after["carried_a"] - taken))
            rig.wire.set(a_to_b=Conditions())
            taken += len([rig.b.receive(), rig.b.receive()])
    finally:
        stop.set()
        talker.join()


def test_what_is_under_way_is_bounded_in_each_direction(rig: Rig) -> None:
    rig.wire.set(a_to_b=Conditions(delay_ms=600_000))
    step = 1000  # fits the receive buffer: what is dropped, the queue had no room for
    for start in range(0, QUEUE_MAX + step, step):
        for number in range(start, start + step):
            rig.a.send(number)
        counts = rig.settle(start + step, "waiting_a", "dropped_a")
        assert counts["dropped_a"] == max(0, start + step - QUEUE_MAX)
    assert counts["waiting_a"] == QUEUE_MAX
    rig.b.send(7)
    assert rig.a.take(1) == [7]


def test_what_the_process_is_too_slow_for_is_counted(rig: Rig) -> None:
    rig.wire._process.send_signal(signal.SIGSTOP)
    try:
        for number in range(40_000):
            rig.a.send(number)
    finally:
        rig.wire._process.send_signal(signal.SIGCONT)
    counts = rig.settle(40_000)
    assert counts["dropped_a"] > 0
    rig.b.take(counts["carried_a"])


# --- real traffic -----------------------------------------------------------------------------


def transfer(server_ns: Namespace, client_ns: Namespace, address: str, size: int) -> None:
    """A TCP stream each way at once over one connection, every byte compared."""
    texts = [random.Random(seed).randbytes(size) for seed in (1, 2)]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = server_ns.within(lambda: socket.create_server((address, 5001), family=family))
    with listener:
        listener.settimeout(WAIT_S)
        client = client_ns.within(lambda: socket.create_connection((address, 5001), WAIT_S))
        server, _ = listener.accept()
        server.settimeout(WAIT_S)
        with client, server:
            senders = [
                threading.Thread(target=sock.sendall, args=(text,))
                for sock, text in zip((client, server), texts, strict=True)
            ]
            got: list[bytes] = [b"", b""]

            def read(index: int, sock: socket.socket) -> None:
                with sock.makefile("rb") as stream:
                    got[index] = stream.read(size)

            readers = [
                threading.Thread(target=read, args=(index, sock))
                for index, sock in enumerate((server, client))
            ]
            for thread in senders + readers:
                thread.start()
            for thread in senders + readers:
                thread.join()
    assert got == texts


@pytest.mark.parametrize("version", [4, 6])
def test_tcp_passes_whole(rig: Rig, version: int) -> None:
    rig.give_addresses()
    transfer(rig.ns_b, rig.ns_a, ADDRESSES[version][1], 8 << 20)
    counts = rig.wire.counters()
    assert (counts["dropped_a"], counts["dropped_b"]) == (0, 0)


def test_tcp_gets_over_a_bad_wire(rig: Rig) -> None:
    rig.give_addresses()
    rig.wire.set_both(Conditions(delay_ms=1, jitter_ms=2, loss=0.01, duplicate=0.01))
    transfer(rig.ns_b, rig.ns_a, ADDRESSES[4][1], 1 << 20)
    assert sum(rig.wire.counters()[f"dropped_{end}"] for end in "ab") > 0


@pytest.mark.parametrize("version", [4, 6])
def test_udp_super_packets_are_cut_before_the_wire(rig: Rig, version: int) -> None:
    rig.give_addresses()
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    here, there = ADDRESSES[version]

    def bound(address: str) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.bind((address, 5002))
        sock.settimeout(WAIT_S)
        return sock

    text = random.Random(3).randbytes(30 * 1200 + 100)
    sender, receiver = (
        namespace.within(functools.partial(bound, address))
        for namespace, address in ((rig.ns_a, here), (rig.ns_b, there))
    )
    with sender, receiver:
        sender.setsockopt(_SOL_UDP, _UDP_SEGMENT, 1200)
        sender.sendto(text, (there, 5002))
        got = [receiver.recv(2048) for _ in range(31)]
    assert got == [text[at : at + 1200] for at in range(0, len(text), 1200)]
    assert rig.wire.counters()["dropped_a"] == 0


def test_a_routers_super_packets_are_cut_before_the_wire(rig: Rig) -> None:
    """A host behind the wire's end, with every offload of its own on, as in the lab's topology."""
    rig.give_addresses()
    with Namespace("host") as host:
        ip(
            *("link", "add", "eth", "netns", host.name, "type", "veth"),
            *("peer", "name", "lan", "netns", rig.ns_a.name),
        )
        host.ip("addr", "add", "10.8.0.2/24", "dev", "eth")
        rig.ns_a.ip("addr", "add", "10.8.0.1/24", "dev", "lan")
        rig.ns_a.ip("link", "set", "lan", "up")
        host.ip("link", "set", "eth", "up")
        host.ip("route", "add", "default", "via", "10.8.0.1")
        rig.ns_a.sysctl("net.ipv4.ip_forward", "1")
        rig.ns_b.ip("route", "add", "10.8.0.0/24", "via", ADDRESSES[4][0])
        transfer(rig.ns_b, host, ADDRESSES[4][1], 8 << 20)
    counts = rig.wire.counters()
    assert (counts["dropped_a"], counts["dropped_b"]) == (0, 0)


def test_a_frame_too_long_for_the_wire_is_dropped_and_counted(rig: Rig) -> None:
    rig.give_addresses()
    rig.ns_a.run("ethtool", "-K", "va", "tx", "on", "tx-udp-segmentation", "on")
    with rig.ns_a.within(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
        sender.setsockopt(_SOL_UDP, _UDP_SEGMENT, 1200)
        for _ in range(3):
            sender.sendto(bytes(12000), (ADDRESSES[4][1], 5003))
    rig.settle(3, "dropped_a")
    rig.a.send(9)
    assert rig.b.take(1) == [9]


# --- its own end ------------------------------------------------------------------------------


def test_close_leaves_nothing_behind_and_may_be_repeated() -> None:
    with Namespace("a") as ns_a, Namespace("b") as ns_b:
        before = namespaces_of(os.getpid())
        wire = Wire(ns_a.name, "va", ns_b.name, "vb", Conditions(delay_ms=5))
        (name,) = set(namespaces_of(os.getpid())) - set(before)
        listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
        (pid,) = (int(word) for word in listed.stdout.split())
        wire.close()
        assert namespaces_of(os.getpid()) == before
        assert not Path(f"/proc/{pid}").exists()
        assert (devices(ns_a), devices(ns_b)) == (["lo"], ["lo"])
        wire.close()


def test_close_after_the_far_namespaces_are_gone() -> None:
    before = namespaces_of(os.getpid())
    ns_a, ns_b = Namespace("a"), Namespace("b")
    try:
        wire = Wire(ns_a.name, "va", ns_b.name, "vb")
    finally:
        ns_a.close()
        ns_b.close()
    wire.close()
    assert namespaces_of(os.getpid()) == before


def test_a_wire_that_cannot_be_made_leaves_nothing_behind() -> None:
    with Namespace("a") as ns_a, Namespace("b") as ns_b:
        ns_b.ip("link", "add", "vb", "type", "veth", "peer", "name", "other")
        before = namespaces_of(os.getpid())
        with pytest.raises(RuntimeError, match="File exists"):
            Wire(ns_a.name, "va", ns_b.name, "vb")
        assert namespaces_of(os.getpid()) == before
        assert devices(ns_a) == ["lo"]
        Wire(ns_a.name, "va", ns_b.name, "vc").close()


def test_a_dead_process_is_reported(rig: Rig) -> None:
    rig.wire._process.kill()
    rig.wire._process.wait()
    with pytest.raises((RuntimeError, BrokenPipeError)):
        rig.wire.counters()


_MAKER = """
import subprocess, time
from lab.namespace import Namespace
from lab.wire import Wire
a, b = Namespace("a"), Namespace("b")
wire = Wire(a.name, "va", b.name, "vb")
heir = subprocess.Popen(["sleep", "600"], pass_fds=[wire._process.stdin.fileno()])
print(wire._process.pid, heir.pid, flush=True)
time.sleep(600)
"""


def test_the_process_dies_with_its_maker_whoever_else_holds_the_pipe() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _MAKER],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    ) as maker:
        assert maker.stdout is not None
        carrier, heir = (os.pidfd_open(int(pid)) for pid in maker.stdout.readline().split())
        try:
            maker.kill()
            maker.wait()
            assert select.select([carrier], [], [], WAIT_S)[0], "the wire's process lives on"
        finally:
            signal.pidfd_send_signal(heir, signal.SIGKILL)
            os.close(carrier)
            os.close(heir)
            for name in namespaces_of(maker.pid):
                ip("netns", "del", name)
