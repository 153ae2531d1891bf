"""Attacks on a running session: replays, forgeries, floods, and whoever may open the socket."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lab.capture import Datagram, Listener, Sender
from lab.daemons import INNER, PORT, Daemon, Event
from lab.liar import strangers_inits
from lab.namespace import Namespace
from lab.stage import Stage, Watch, until
from lab.topology import OUTSIDE
from lab.traffic import Traffic

from jvpnd.core.packets import decode_retry
from jvpnd.core.wire import PacketType
from jvpnd.keyfile import parse_key

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

GATEWAY = (OUTSIDE[4], PORT)
OFTEN = "max_switches_per_minute = 600\nswitch_cooldown_ms = 0\n"
EVENTS_PER_S = 10  # security events a second, as the documentation promises
LENGTHS = (0, 1, 2, 7, 8, 15, 16, 31, 32, 33, 40, 64, 116, 117, 140, 1200, 1372, 1400)
LONG_LENGTHS = (2047, 2048, 2049, 4000, 9000)  # fragments on the way


@dataclass
class Siege:
    """A session under traffic, a stranger, and ears on both of the client's ways."""

    stage: Stage
    watch: Watch
    stranger: Namespace
    ears: dict[str, Listener]

    @property
    def gateway(self) -> Daemon:
        return self.watch.pair.gateway

    @property
    def client(self) -> Daemon:
        return self.watch.pair.client

    def heard(self, kind: PacketType, up: bool) -> list[Datagram]:
        """Packets of a type from the client (`up`) or to it, over both ways."""
        found = [d for ear in self.ears.values() for d in ear.heard() if d.type == kind]
        return [d for d in found if (d.target == GATEWAY) == up]

    def switch(self) -> Datagram:
        """Move the session to its other way; the request that did it."""
        goal = self.stage.other(self.watch.bound()).device
        ear, moved = self.ears[goal], self.client.last_seq()
        before = set(ear.heard())
        done = self.client.ctl("switch", goal)
        assert done.returncode == 0, done.stderr
        self.client.wait_state("ATTACHED", after=moved)
        assert self.watch.bound() == goal
        return ear.wait_for(lambda d: d.type == PacketType.REATTACH_REQUEST and d not in before)

    def router(self) -> Namespace:
        """The router of the bound way."""
        return self.stage.uplink(self.watch.bound()).router

    def restart_client(self) -> None:
        """A new session, by a handshake that the ears hear."""
        self.client.stop()
        self.client.lose_table()
        self.client.start()
        self.client.wait_state("ATTACHED")

    def begin(self) -> None:
        """From here on nothing may be disturbed; what was lost before is forgotten."""
        assert self.watch.echo is not None
        self.watch.echo.report()
        self.watch.echo.wait_until("sent", above=100)  # more than are under way
        self.watch.begin()

    def assert_undisturbed(self) -> None:
        """No echo was lost, nothing moved, and both ends tell of nothing."""
        assert self.watch.echo is not None
        reports = self.watch.echo.wait_until("received", above=50)
        assert sum(r["sent"] for r in reports) == sum(r["received"] for r in reports)
        assert self.watch.story("client") == self.watch.story("gateway") == []
        self.watch.assert_same_session()


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture(scope="module")
def stranger(stage: Stage) -> Namespace:
    return stage.lab.stranger()


@pytest.fixture
def siege(stage: Stage, stranger: Namespace) -> Iterator[Siege]:
    pair = stage.pair(client_policy=OFTEN, gateway_policy=OFTEN)
    with contextlib.ExitStack() as stack:
        ears = {
            uplink.device: stack.enter_context(Listener(uplink.router, "lan", PORT))
            for uplink in (stage.lab.a, stage.lab.b)
        }
        hosts = (stage.lab.client, stage.lab.gateway)
        echo = stack.enter_context(Traffic("echo", *hosts, INNER["gateway"][0], "100"))
        echo.wait_until("received", above=10)
        yield Siege(stage, Watch(pair, echo), stranger, ears)


def binding(daemon: Daemon) -> tuple[Any, ...]:
    """Where the gateway sends, and under which epoch."""
    (row,) = daemon.status()["sessions"]
    return row["binding"]["remote"], row["epoch"], row["state_version"]


def dropped(daemon: Daemon) -> int:
    return sum(daemon.status()["traffic"]["dropped"].values())


def of_type(events: Iterable[Event], kind: str) -> list[Event]:
    return [event for event in events if event["event_type"] == kind]


def processes(daemon: Daemon) -> list[int]:
    """The daemon's pid and those of its workers."""
    assert daemon.process is not None
    pid = daemon.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def memory_kib(daemon: Daemon) -> int:
    """Resident memory of the daemon and its workers."""
    total = 0
    for pid in processes(daemon):
        rows = Path(f"/proc/{pid}/status").read_text().splitlines()
        total += next(int(row.split()[1]) for row in rows if row.startswith("VmRSS"))
    return total


# --- replays ---


def test_a_reattach_request_replayed_from_another_host_is_refused(siege: Siege) -> None:
    request = siege.switch()
    siege.watch.begin()
    bound = binding(siege.gateway)
    with Sender(siege.stranger) as sender:
        counts = sender.send(GATEWAY, [request.payload] * 3, per_s=20)
    assert counts.answer_bytes <= 3 * counts.sent_bytes
    told = siege.watch.events("gateway")
    results, security = of_type(told, "REATTACH_RESULT"), of_type(told, "SECURITY_EVENT")
    assert [e["reason"] for e in results] == ["REPLAY_DETECTED"] * 3
    assert [e["reason"] for e in security] == ["SEC_REPLAY_ATTEMPT"] * 3
    for event in results + security:
        assert event["session_id"] == siege.watch.session
        assert event["details"]["remote"].startswith("192.0.2.66:")
    assert binding(siege.gateway) == bound
    siege.assert_undisturbed()


def test_a_reattach_request_replayed_from_its_own_address_changes_nothing(siege: Siege) -> None:
    request = siege.switch()
    siege.watch.begin()
    bound, answers = binding(siege.gateway), len(siege.heard(PacketType.REATTACH_ACK, up=False))
    with Sender(siege.router()) as sender:
        sender.send_forged([request] * 5, per_s=50)
    until(
        lambda: siege.gateway.status()["traffic"]["dropped"].get("duplicate request", 0) >= 5,
        "the duplicates are counted",
    )
    assert binding(siege.gateway) == bound
    assert len(siege.heard(PacketType.REATTACH_ACK, up=False)) == answers
    siege.assert_undisturbed()


def test_an_older_reattach_request_does_not_bring_its_way_back(siege: Siege) -> None:
    older = siege.switch()
    siege.switch()
    siege.watch.begin()
    bound = binding(siege.gateway)
    for host in (siege.stage.lab.a.router, siege.stage.lab.b.router):
        with Sender(host) as sender:
            sender.send_forged([older] * 3, per_s=50)
    with Sender(siege.stranger) as sender:
        sender.send(GATEWAY, [older.payload] * 3, per_s=50)
    assert binding(siege.gateway) == bound
    siege.assert_undisturbed()


def test_replayed_data_and_control_packets_are_counted_and_dropped(siege: Siege) -> None:
    """From the client's own address and from a stranger's: the gateway sends nowhere else."""
    siege.watch.begin()
    bound = binding(siege.gateway)
    data = siege.ears[siege.watch.bound()].wait_for(
        lambda d: d.type == PacketType.DATA and d.target == GATEWAY
    )
    control = siege.ears[siege.watch.bound()].wait_for(
        lambda d: d.type == PacketType.CONTROL and d.target == GATEWAY
    )
    before = dropped(siege.gateway)
    with Sender(siege.router()) as sender:
        sender.send_forged([data, control] * 50)
    with Sender(siege.stranger) as sender:
        counts = sender.send(GATEWAY, [data.payload, control.payload] * 50)
    assert counts.answers == 0
    until(lambda: dropped(siege.gateway) >= before + 200, "all are counted")
    assert binding(siege.gateway) == bound
    siege.assert_undisturbed()


def test_a_replayed_init_dies_by_its_timestamp(siege: Siege) -> None:
    """And after a restart of the gateway, which has forgotten it, it still makes no session."""
    siege.restart_client()
    siege.begin()
    inits = siege.heard(PacketType.HANDSHAKE_INIT, up=True)
    assert inits
    answers = len(siege.heard(PacketType.HANDSHAKE_RESPONSE, up=False))
    with Sender(siege.stranger) as sender:
        assert sender.send(GATEWAY, [inits[-1].payload] * 3, per_s=20).answers == 0
    with Sender(siege.router()) as sender:  # from the client's own address: a doubled packet
        sender.send_forged(inits[-1:] * 3, per_s=20)

    def seen() -> list[Event]:
        return of_type(siege.watch.events("gateway"), "SECURITY_EVENT")

    def doubled() -> int:
        return int(siege.gateway.status()["traffic"]["dropped"].get("duplicate INIT", 0))

    until(lambda: doubled() == 3, "three doubled INITs")
    assert len(seen()) == 3
    assert {(e["reason"], e["details"]["what"]) for e in seen()} == {
        ("SEC_REPLAY_ATTEMPT", "old INIT of laptop")
    }
    assert len(siege.heard(PacketType.HANDSHAKE_RESPONSE, up=False)) == answers
    siege.assert_undisturbed()
    siege.client.stop()
    siege.gateway.stop()
    siege.gateway.lose_table()
    siege.gateway.start()
    with Sender(siege.stranger) as sender:
        counts = sender.send(GATEWAY, [inits[-1].payload] * 3, per_s=20)
    assert counts.answer_bytes <= 3 * counts.sent_bytes
    assert siege.gateway.status()["sessions"] == []
    assert of_type(siege.gateway.events(), "SESSION_CREATED") == []
    siege.client.start()
    siege.client.wait_state("ATTACHED")


# --- forgeries ---


def garbage(lengths: Iterable[int]) -> list[bytes]:
    """Every type with every length; the rest is random, the same in each run."""
    source = random.Random(7)
    return [
        (bytes([kind]) + source.randbytes(length))[:length]
        for kind in range(256)
        for length in lengths
    ]


def is_half(packet: bytes) -> bool:
    """It waits for the other half, which may come yet."""
    return packet[:1] == bytes([PacketType.HALF]) and packet[1:2] in (b"\0", b"\1")


def mutations(packet: bytes) -> list[bytes]:
    """Truncated, prolonged, and with single bits flipped: none is what was sealed."""
    step = max(1, len(packet) // 100)
    cut = [packet[:length] for length in range(0, len(packet), step)]
    flipped = []
    for at in range(0, len(packet), step):
        changed = bytearray(packet)
        changed[at] ^= 1 << (at % 8)
        flipped.append(bytes(changed))
    return [*cut, *flipped, packet + b"\0", packet[:1] + b"\0" * (len(packet) - 1)]


def test_garbage_of_every_type_and_length_is_counted_at_the_gateway(siege: Siege) -> None:
    before, pids = dropped(siege.gateway), processes(siege.gateway)
    packets = garbage((*LENGTHS, *LONG_LENGTHS))
    with Sender(siege.stranger) as sender:
        counts = sender.send(GATEWAY, packets)
    assert counts.sent == len(packets)
    assert counts.answers == 0
    least = before + sum(not is_half(packet) for packet in packets)
    until(lambda: dropped(siege.gateway) >= least, "all are counted")
    assert processes(siege.gateway) == pids
    siege.assert_undisturbed()


def test_garbage_of_every_type_and_length_is_counted_at_the_client(siege: Siege) -> None:
    """As if from the gateway, to the very socket that the session uses."""
    before, pids = dropped(siege.client), processes(siege.client)
    home = siege.ears[siege.watch.bound()].wait_for(lambda d: d.source == GATEWAY).target
    packets = garbage(LENGTHS)
    with Sender(siege.router()) as sender:
        sender.send_forged(Datagram(GATEWAY, home, packet) for packet in packets)
    least = before + sum(not is_half(packet) for packet in packets)
    until(lambda: dropped(siege.client) >= least, "all are counted")
    assert processes(siege.client) == pids
    siege.assert_undisturbed()


def test_real_packets_slightly_changed_are_counted_and_dropped(siege: Siege) -> None:
    """Both ways, each as if from the other end itself."""
    siege.restart_client()
    siege.begin()
    siege.switch()
    siege.begin()
    way = siege.watch.bound()
    home = siege.ears[way].wait_for(lambda d: d.type == PacketType.REATTACH_ACK).target
    ends = {True: (home, GATEWAY), False: (GATEWAY, home)}
    for up, daemon in ((True, siege.gateway), (False, siege.client)):
        pids = processes(daemon)
        seen = {kind: siege.heard(kind, up) for kind in PacketType}
        kinds = {kind for kind in seen if seen[kind]}
        assert len(kinds) == 5, f"the packets of one end are of five types, seen: {kinds}"
        forged = [
            Datagram(*ends[up], changed)
            for kind in kinds
            for changed in mutations(seen[kind][-1].payload)
            if changed not in (d.payload for d in seen[kind])
        ]
        least = dropped(daemon) + len(forged)
        with Sender(siege.router()) as sender:
            sender.send_forged(forged)
        until(lambda daemon=daemon, least=least: dropped(daemon) >= least, "all are counted")
        assert processes(daemon) == pids
    siege.assert_undisturbed()


# --- floods ---


def test_a_flood_of_garbage(siege: Siege) -> None:
    """Echoes go on, memory and events stay bounded, and next to nothing is sent back."""
    source = random.Random(11)
    packets = [
        bytes([kind]) + source.randbytes(source.choice((31, 139, 400, 1300)))
        for kind in (1, 4, 7, 8)
        for _ in range(50)
    ]
    assert siege.watch.echo is not None
    with Sender(siege.stranger) as sender:
        sender.send(GATEWAY, packets, per_s=10_000, total=5_000)  # buffers grow to their size
        siege.watch.echo.report()
        siege.watch.begin()
        memory, pids = memory_kib(siege.gateway), processes(siege.gateway)
        start = time.monotonic()
        counts = sender.send(GATEWAY, packets, per_s=10_000, total=20_000)
        seconds = time.monotonic() - start
    reports = siege.watch.echo.wait_until("received", above=50)
    sent, received = (sum(r[what] for r in reports) for what in ("sent", "received"))
    assert received >= 0.9 * sent, "a socket's queue may overflow, not more"
    assert processes(siege.gateway) == pids
    assert memory_kib(siege.gateway) < memory + 16 * 1024
    events = of_type(siege.watch.events("gateway"), "SECURITY_EVENT")
    assert len(events) <= EVENTS_PER_S * (seconds + 2)
    assert counts.answer_bytes <= 3 * counts.sent_bytes
    siege.watch.assert_same_session()
    siege.begin()
    siege.assert_undisturbed()


def test_under_load_a_cookie_is_asked_for_and_who_brings_it_gets_in(siege: Siege) -> None:
    hosts = [f"192.0.2.{number}" for number in range(100, 130)]
    siege.stranger.ip_batch(*(f"addr replace {host}/24 dev eth0" for host in hosts))
    inits = strangers_inits(parse_key(siege.watch.pair.gateway_keys[1]), len(hosts))
    attack = [
        Datagram((host, 5000), GATEWAY, packet) for host, packet in zip(hosts, inits, strict=True)
    ]
    siege.watch.begin()
    siege.client.stop()
    siege.client.lose_table()
    with Listener(siege.stranger, "eth0", PORT) as ear, Sender(siege.stranger) as sender:
        start = time.monotonic()
        sender.start_forged(attack, per_s=200, total=2_000)
        retry = ear.wait_for(lambda d: d.type == PacketType.RETRY)
        siege.client.start()
        siege.client.wait_state("ATTACHED")
        asked = siege.heard(PacketType.RETRY, up=False)
        sender.counts()
        seconds = time.monotonic() - start
        answers = [d for d in ear.heard() if d.source == GATEWAY]
    assert asked, "the client came in without a cookie: there was no load"
    assert {d.type for d in answers} == {PacketType.RETRY}
    assert decode_retry(retry.payload) is not None
    told = of_type(siege.watch.events("gateway"), "SECURITY_EVENT")
    assert 0 < len(told) <= EVENTS_PER_S * (seconds + 2)
    theirs = [e["details"] for e in told if e["details"]["remote"].startswith("192.0.2.")]
    assert {details["what"] for details in theirs} == {"unknown client key"}
    siege.begin()
    siege.assert_undisturbed()


@contextlib.contextmanager
def in_the_clients_name(siege: Siege, packets: list[bytes]) -> Iterator[None]:
    """Meanwhile the gateway gets these, 300 a second by each way, from the client's addresses."""
    homes = {
        way: ear.wait_for(lambda d: d.target == GATEWAY).source for way, ear in siege.ears.items()
    }
    with contextlib.ExitStack() as stack:
        for way, (host, _) in homes.items():
            sender = stack.enter_context(Sender(siege.stage.uplink(way).router))
            forged = [
                Datagram((host, port), GATEWAY, packet) for port, packet in enumerate(packets, 2000)
            ]
            sender.start_forged(forged, per_s=300, total=30_000)
        yield


def causes(events: Iterable[Event]) -> set[str]:
    return {e["details"]["cause"] for e in of_type(events, "REATTACH_ATTEMPT")}


def test_forged_requests_in_the_clients_name_do_not_lock_it_out(siege: Siege) -> None:
    """Garbage with the client's source address must not use up what the client may ask for."""
    source = random.Random(13)
    garbage = [bytes([4]) + source.randbytes(199) for _ in range(200)]
    before = dropped(siege.gateway)
    with in_the_clients_name(siege, garbage):
        until(lambda: dropped(siege.gateway) > before + 200, "the flood has arrived")
        for _ in range(3):
            siege.switch()
    assert causes(siege.watch.events("client")) == {"SWITCH"}
    siege.begin()
    siege.assert_undisturbed()


def test_forged_inits_in_the_clients_name_do_not_lock_it_out(siege: Siege) -> None:
    """Not even those of somebody who knows the gateway's public key."""
    inits = strangers_inits(parse_key(siege.watch.pair.gateway_keys[1]), 20)
    before = dropped(siege.gateway)
    with in_the_clients_name(siege, inits):
        until(lambda: dropped(siege.gateway) > before + 200, "the flood has arrived")
        for _ in range(3):
            siege.switch()
        assert causes(siege.watch.events("client")) == {"SWITCH"}
        siege.restart_client()
    siege.begin()
    siege.assert_undisturbed()


# --- the control socket ---


def connect(daemon: Daemon) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.settimeout(20)
    stream.connect(str(daemon.socket_file))
    return stream


def read_line(stream: socket.socket) -> bytes:
    """One line; less at the end of the connection."""
    line = b""
    while not line.endswith(b"\n"):
        try:
            chunk = stream.recv(1 << 16)
        except ConnectionError:
            break
        if not chunk:
            break
        line += chunk
    return line


def refusal(line: bytes) -> str:
    answer = json.loads(line)
    assert answer["ok"] is False
    return str(answer["error"]["reason"])


SIDES = pytest.mark.parametrize("side", ["client", "gateway"])
COMMANDS = ("status", "sessions", "paths", "switch", "terminate", "policy", "timeline", "events")
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**70,
    1e308,
    "",
    "\0",
    "\ud800",
    "zz" * 99,
    [],
    [[]],
    {},
)
KEYS = ("id", "path", "session", "limit", "best", "follow_", "")


@SIDES
def test_garbage_on_the_control_socket_is_refused(siege: Siege, side: str) -> None:
    daemon: Daemon = getattr(siege.watch.pair, side)
    lines = (
        b"\xff\x00garbage",
        b"{}",
        b"[" * 60_000,
        b'{"command": 1}',
        b'{"command": "rm"}',
        b"1e999",
    )
    with connect(daemon) as stream:
        for line in lines:
            stream.sendall(line + b"\n")
            assert refusal(read_line(stream)) == "USAGE", line[:40]
    with connect(daemon) as stream:
        with contextlib.suppress(ConnectionError):
            stream.sendall(b"x" * (4 << 20))
        line = read_line(stream)
        assert not line or refusal(line) == "USAGE"
    assert daemon.status()["state"]
    siege.assert_undisturbed()


@SIDES
def test_no_argument_breaks_a_command(siege: Siege, side: str) -> None:
    daemon: Daemon = getattr(siege.watch.pair, side)
    for command in COMMANDS:
        for key in KEYS:
            for value in VALUES:
                if command == "switch" and (value is None or key != "path"):
                    continue  # a good request, and the session would move
                with connect(daemon) as stream:
                    request = {"command": command, "args": {key: value}}
                    stream.sendall(json.dumps(request).encode() + b"\n")
                    answer = json.loads(read_line(stream).splitlines()[0])
                    told = answer.get("error", {}).get("reason")
                    assert answer["ok"] or told != "INTERNAL", (request, daemon.log)
    siege.assert_undisturbed()


@SIDES
def test_who_does_not_read_or_hoards_connections_keeps_nobody_else_out(
    siege: Siege, side: str
) -> None:
    daemon: Daemon = getattr(siege.watch.pair, side)
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            slow = stack.enter_context(connect(daemon))
            slow.setblocking(False)
            with contextlib.suppress(OSError):
                while True:
                    slow.send(b'{"command": "timeline", "args": {}}\n' * 100)
        for _ in range(5):
            assert daemon.status()["state"]
        hoard = [stack.enter_context(connect(daemon)) for _ in range(40)]
        assert refusal(read_line(hoard[-1])) == "RATE_LIMITED"
        for stream in hoard[:10]:
            stream.sendall(b'{"command": "status", "args": {}}\n')
            assert json.loads(read_line(stream))["ok"] is True
    until(lambda: daemon.ctl("--json", "status").returncode == 0, "served again")
    siege.assert_undisturbed()
