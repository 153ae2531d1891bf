"""Attacks on what accepts connections: TCP, TLS and QUIC. Who has a session does not notice."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab.capture import Sender
from lab.daemons import INNER, PORTS, Daemon, Pair, key_pair
from lab.gauge import Gauge
from lab.liar import Liar
from lab.namespace import Namespace
from lab.stage import Watch, until
from lab.topology import OUTSIDE, Lab
from lab.traffic import Traffic

from jvpnd.core.wire import MAX_CONTROL_LEN
from jvpnd.dataplane.stream import MAX_PACKET
from jvpnd.keyfile import parse_key
from jvpnd.listeners import STRANGER_S
from jvpnd.transport.limits import DEFAULT_LIMITS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

WAYS = ("tcp", "tls", "quic")
PATHS = 2 * len(WAYS)  # of the honest client, all of them connected
POLICY = (
    f"allowed_transports = {list(WAYS)}\nwarm_connections = {PATHS}\n"
    "max_switches_per_minute = 600\nswitch_cooldown_ms = 0\n"
)
TCP, TLS, QUIC = ((OUTSIDE[4], PORTS[way]) for way in WAYS)
STRANGERS = [f"192.0.2.{number}" for number in range(100, 115)]
KEYS = key_pair()
GROWTH_KIB = 16 * 1024
LIAR = "10.77.0.3"
DATA, CONTROL = 8, 7


@dataclass
class Siege:
    """A session over TCP under traffic, its other paths, and a stranger with many addresses."""

    lab: Lab
    watch: Watch
    stranger: Namespace

    @property
    def gateway(self) -> Daemon:
        return self.watch.pair.gateway

    def strangers(self) -> int:
        return int(self.gateway.status()["connections"]["strangers"])

    def dropped(self, cause: str) -> int:
        return int(self.gateway.status()["traffic"]["dropped"].get(cause, 0))

    def paths_up(self) -> int:
        """Paths of the honest client that answer."""
        rows = self.watch.pair.client.status()["paths"]
        ages = [row["last_heard_ms"] for row in rows if row["state"] in ("up", "bound")]
        return sum(age is not None and age < 2_000 for age in ages)

    def begin(self) -> None:
        """From here on nothing may be disturbed; what was lost before is forgotten."""
        until(lambda: self.paths_up() == PATHS, "the honest client's paths are up", 40)
        until(lambda: self.strangers() == 0, "no stranger is left", 2 * STRANGER_S)
        assert self.watch.echo is not None
        self.watch.echo.report()
        self.watch.echo.wait_until("sent", above=100)  # more than are under way
        self.watch.begin()

    def assert_undisturbed(self) -> None:
        """No echo was lost, nothing moved, and no path of the session has gone."""
        assert self.watch.echo is not None
        reports = self.watch.echo.wait_until("received", above=50)
        assert sum(r["sent"] for r in reports) == sum(r["received"] for r in reports)
        assert self.watch.story("client") == self.watch.story("gateway") == []
        assert self.watch.pair.client.status()["session"]["id"] == self.watch.session
        assert self.paths_up() == PATHS


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def stranger(lab: Lab) -> Namespace:
    host = lab.stranger()
    host.ip_batch(*(f"addr replace {each}/24 dev eth0" for each in STRANGERS))
    return host


@pytest.fixture(scope="module")
def watch(lab: Lab) -> Iterator[Watch]:
    wanted = {"client_policy": POLICY, "gateway_policy": POLICY, "others": {"liar": KEYS[1]}}
    with Pair(lab.client, lab.gateway, transports=WAYS, **wanted) as pair:
        pair.start()
        with Traffic("echo", lab.client, lab.gateway, INNER["gateway"][0], "100") as echo:
            echo.wait_until("received", above=10)
            yield Watch(pair, echo)


@pytest.fixture
def siege(lab: Lab, watch: Watch, stranger: Namespace) -> Siege:
    siege = Siege(lab, watch, stranger)
    siege.begin()
    return siege


@contextlib.contextmanager
def connections(
    siege: Siege, count: int, target: tuple[str, int], sources: Sequence[str] = ("192.0.2.66",)
) -> Iterator[list[socket.socket]]:
    """So many, one after the other, from these addresses by turns."""
    with contextlib.ExitStack() as opened:
        made = siege.stranger.within(lambda: [socket.socket() for _ in range(count)])
        for number, sock in enumerate(made):
            opened.enter_context(sock)
            sock.settimeout(20)
            sock.bind((sources[number % len(sources)], 0))
            sock.connect(target)
        yield made


def is_closed(sock: socket.socket, within_s: float = 20) -> bool:
    """Whether the gateway closes it, whatever it says before."""
    sock.settimeout(within_s)
    try:
        while sock.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def still_open(socks: Sequence[socket.socket]) -> list[socket.socket]:
    """Those on which the gateway has said nothing, not even goodbye."""
    poll = select.poll()
    for sock in socks:
        poll.register(sock, select.POLLIN)
    over = {fd for fd, _ in poll.poll(0)}
    return [sock for sock in socks if sock.fileno() not in over]


def processes(daemon: Daemon) -> set[int]:
    """Its workers and relays."""
    assert daemon.process is not None
    pid = daemon.process.pid
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


# --- those who say little --------------------------------------------------------------------


def test_who_comes_to_no_session_is_closed_in_time_however_much_it_says(siege: Siege) -> None:
    """A byte at a time, half a frame and then silence, or nothing at all; over TCP and TLS."""
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(490)
    frame = struct.pack("<I", 1_400) + bytes([CONTROL]) + bytes(1_000)
    with (
        connections(siege, 15, TCP) as over_tcp,
        connections(siege, 15, TLS) as over_tls,
        Gauge(siege.gateway) as gauge,
    ):
        until(lambda: siege.strangers() == 30, "all are accepted")
        for sock in over_tcp[5:10]:
            sock.send(frame)
        for sock in over_tls[5:10]:
            sock.send(hello[:300])
        slow = [(sock, frame) for sock in over_tcp[:5]] + [(sock, hello) for sock in over_tls[:5]]
        deadline, at = time.monotonic() + 2 * STRANGER_S, 0
        while left := still_open([*over_tcp, *over_tls]):
            assert time.monotonic() < deadline, f"{len(left)} are still open"
            for sock, text in slow:
                with contextlib.suppress(OSError):
                    sock.send(text[at % len(text) :][:1])
            at += 1
            time.sleep(0.05)  # so slow are they
        assert at > 50, "they were closed because of what they said"
    assert siege.strangers() == 0
    assert max(max(sizes) - sizes[0] for sizes in gauge.memory_kib.values()) < GROWTH_KIB
    siege.assert_undisturbed()


def test_one_source_has_few_strangers_and_keeps_nobody_out(siege: Siege) -> None:
    cause = "too many connections of one source"
    for target in (TCP, TLS):
        least = siege.dropped(cause) + 20
        with connections(siege, DEFAULT_LIMITS.strangers_of_source + 20, target):
            until(lambda least=least: siege.dropped(cause) == least, "the others are refused")
            assert siege.strangers() == DEFAULT_LIMITS.strangers_of_source
            siege.assert_undisturbed()
        until(lambda: siege.strangers() == 0, "those who left are forgotten")


def test_of_many_sources_the_oldest_strangers_make_room(siege: Siege) -> None:
    more, cause = 50, "too many connections without a session"
    before = siege.dropped(cause)
    with connections(siege, DEFAULT_LIMITS.strangers + more, TCP, STRANGERS) as made:
        until(lambda: siege.dropped(cause) == before + more, "the oldest are closed")
        assert siege.strangers() == DEFAULT_LIMITS.strangers
        assert all(is_closed(sock) for sock in made[:more])
        siege.assert_undisturbed()
        client = siege.watch.pair.client
        client.stop()
        client.lose_table()
        client.start()
        client.wait_state("ATTACHED")
    siege.begin()
    siege.assert_undisturbed()


# --- those who say what is wrong -------------------------------------------------------------


@pytest.mark.parametrize("length", [0, MAX_PACKET + 1, 2**31, 2**32 - 1])
def test_a_length_that_no_packet_has_ends_the_connection(siege: Siege, length: int) -> None:
    before, count = siege.dropped("malformed"), 10
    with connections(siege, count, TCP) as made:
        for sock in made:
            sock.send(struct.pack("<I", length) + b"\x07 whatever")
        assert all(is_closed(sock, STRANGER_S / 2) for sock in made)
    assert siege.dropped("malformed") == before + count
    siege.assert_undisturbed()


def test_garbage_in_good_frames_is_counted_and_left_out(siege: Siege) -> None:
    """Long ones are not even kept; the connection goes on."""
    dice = random.Random(17)

    def total() -> int:
        return sum(siege.gateway.status()["traffic"]["dropped"].values())

    before = total()
    sizes = [1, 2, 15, 16, 31, 32, 33, 1400, MAX_CONTROL_LEN, MAX_CONTROL_LEN + 1, MAX_PACKET]
    packets = [bytes([kind]) + dice.randbytes(size - 1) for kind in range(12) for size in sizes]
    with connections(siege, 3, TCP) as made:
        for sock in made:
            for packet in packets:
                sock.sendall(struct.pack("<I", len(packet)) + packet)
        until(lambda: total() >= before + 3 * len(packets), "all are counted")
        assert len(still_open(made)) == 3
    siege.assert_undisturbed()


def test_what_is_no_tls_ends_the_connection_and_nothing_else(siege: Siege) -> None:
    pids = processes(siege.gateway)
    texts = [
        b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n",
        struct.pack("<I", 20) + b"\x07" + bytes(19),
        bytes(2_000),
        random.Random(19).randbytes(4_000),
        b"\x16\x03\x01\xff\xff" + bytes(70_000),
    ]
    with connections(siege, 4 * len(texts), TLS) as made:
        for number, sock in enumerate(made):
            with contextlib.suppress(OSError):
                sock.sendall(texts[number % len(texts)])
        assert all(is_closed(sock, STRANGER_S / 2) for sock in made)
    assert processes(siege.gateway) == pids
    siege.assert_undisturbed()


def test_what_is_no_quic_is_answered_little_if_at_all(siege: Siege) -> None:
    pids, dice = processes(siege.gateway), random.Random(23)
    firsts = (0x00, 0x07, 0x40, 0x7F, 0xC0, 0xC3, 0xE0, 0xF0, 0xFF)
    packets = [
        bytes([first]) + version + dice.randbytes(size)
        for first in firsts
        for version in (b"\x00\x00\x00\x01", b"\x00\x00\x00\x00", b"\x1a\x2a\x3a\x4a")
        for size in (1, 20, 200, 1195, 1400)
    ]
    with Sender(siege.stranger) as sender:
        counts = sender.send(QUIC, packets, total=1_000)
    assert counts.answer_bytes <= 3 * counts.sent_bytes
    assert processes(siege.gateway) == pids
    siege.assert_undisturbed()


# --- one who has a session -------------------------------------------------------------------


def test_a_client_that_does_not_read_harms_itself_alone(siege: Siege) -> None:
    """The gateway keeps a bounded amount for it, and counts what it drops."""
    keys = parse_key(KEYS[0]), parse_key(siege.watch.pair.gateway_keys[1])
    before = siege.dropped("send_buffer")
    with (
        Liar(siege.stranger, *keys, TCP, "tcp") as liar,
        Gauge(siege.gateway) as gauge,
        siege.lab.gateway.within(lambda: socket.socket(type=socket.SOCK_DGRAM)) as sender,
    ):
        assert liar.is_answered()
        sender.connect((LIAR, 9))
        deadline = time.monotonic() + 20
        while siege.dropped("send_buffer") < before + 2_000:
            assert time.monotonic() < deadline, "nothing is dropped"
            for _ in range(100):
                for _ in range(4):
                    sender.send(bytes(1_300))
                time.sleep(0.001)  # no more than the TUN's queue holds, which is everybody's
        siege.assert_undisturbed()
    assert gauge.problem == ""
    assert max(max(sizes) - sizes[0] for sizes in gauge.memory_kib.values()) < GROWTH_KIB
