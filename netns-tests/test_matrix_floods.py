"""The failure matrix: floods of requests, true and false. Who keeps the rules does not notice."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from lab.capture import Datagram, Listener, Sender
from lab.daemons import PORT, Daemon, Event, key_pair
from lab.liar import Liar, strangers_inits
from lab.namespace import Namespace
from lab.stage import Stage, Watch
from lab.story import FULL, Fate, fate, forget
from lab.topology import OUTSIDE

from jvpnd.core import constants as c
from jvpnd.core.wire import PacketType
from jvpnd.keyfile import parse_key

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

GATEWAY = (OUTSIDE[4], PORT)
KEYS = key_pair()
STRANGERS = "192.0.2."


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture(scope="module")
def elsewhere(stage: Stage) -> Namespace:
    return stage.lab.stranger()


@pytest.fixture
def watch(stage: Stage) -> Iterator[Watch]:
    pair = stage.pair(client_policy=FULL, gateway_policy=FULL, others={"liar": KEYS[1]})
    with stage.watch(pair) as watch:
        yield watch


@dataclass
class Wire:
    """Packets and bytes, with their headers, that strangers sent to the gateway and got back."""

    asked: int = 0
    asked_bytes: int = 0
    answered: int = 0
    answered_bytes: int = 0


@contextlib.contextmanager
def measured(stage: Stage) -> Iterator[Wire]:
    """Counted by the gateway's kernel at the strangers' interface; complete at the end."""
    found, gateway = Wire(), stage.lab.gateway
    gateway.nft(
        "table inet lab_wire {\ncounter asked {}\ncounter answered {}\n"
        "chain input {\ntype filter hook input priority 0;\n"
        'iifname "gx" counter name asked\n}\n'
        "chain output {\ntype filter hook output priority 0;\n"
        'oifname "gx" counter name answered\n}\n}\n'
    )
    try:
        yield found
        for name in ("asked", "answered"):
            listing = gateway.run("nft", "list", "counter", "inet", "lab_wire", name)
            words = listing.stdout.split()
            setattr(found, name, int(words[words.index("packets") + 1]))
            setattr(found, f"{name}_bytes", int(words[words.index("bytes") + 1]))
    finally:
        gateway.nft("delete table inet lab_wire\n")


def of_strangers(watch: Watch, kind: str) -> list[Event]:
    return [
        e
        for e in watch.events("gateway")
        if e["event_type"] == kind
        and str(e["details"].get("remote", "")).startswith(STRANGERS)
    ]


def assert_unharmed(watch: Watch, seen: Fate) -> None:
    """Echoes went on; nothing was told of the honest session at either end."""
    assert seen.lost <= 0.01 * seen.sent, seen
    assert watch.story("client") == watch.story("gateway") == []
    assert watch.pair.client.status()["session"]["id"] == watch.session


def dropped(gateway: Daemon, cause: str) -> int:
    return int(gateway.status()["traffic"]["dropped"].get(cause, 0))


def test_a_hundred_reattaches_a_second_of_a_valid_client(
    stage: Stage, watch: Watch, elsewhere: Namespace
) -> None:
    """Each is a true request and a higher attempt. What passes the limiter of its source meets the
    bound of its session."""
    pair = watch.pair
    per_s, seconds = 100, 6
    secrets = parse_key(KEYS[0]), parse_key(pair.gateway_keys[1])
    with Liar(elsewhere, *secrets, GATEWAY) as liar, measured(stage) as wire:
        forget(watch)
        start = time.monotonic()
        for number in range(per_s * seconds):
            liar.send(liar.request())
            time.sleep(max(0, start + number / per_s - time.monotonic()))
        took_s = time.monotonic() - start
        seen = fate(watch)
        rows = [
            e["reason"]
            for e in watch.events("gateway")
            if e["event_type"] == "REATTACH_RESULT" and e["session_id"] == liar.session_id
        ]
    assert_unharmed(watch, seen)
    passed = c.SOURCE_BURST + c.SOURCE_RATE_PER_S * (took_s + 1)
    assert len(rows) <= passed
    assert rows.count("REATTACH_ACCEPT") == c.REBINDS_PER_MINUTE
    assert set(rows) == {"REATTACH_ACCEPT", "RATE_LIMITED"}
    assert dropped(pair.gateway, "reattach rate") >= per_s * seconds - passed
    told = of_strangers(watch, "SECURITY_EVENT")
    assert {(e["reason"], e["details"]["what"]) for e in told} == {
        ("SEC_ABUSE_CONTROL_PLANE", "reattach rate")
    }
    assert len(told) <= c.AUDIT_PER_S * (took_s + 2)
    assert wire.asked >= per_s * seconds
    assert 0 < wire.answered <= wire.asked
    assert wire.answered_bytes <= wire.asked_bytes


def junk(gateway_public: bytes) -> list[bytes]:
    """Garbage of every type, and INITs by somebody who knows the gateway's public key."""
    source = random.Random(23)
    packets = [
        bytes([kind]) + source.randbytes(source.choice((31, 139, 199, 400, 1300)))
        for kind in (*PacketType, 0, 255)
        for _ in range(40)
    ]
    packets += strangers_inits(gateway_public, 20)
    source.shuffle(packets)
    return packets


def test_ten_thousand_packets_of_garbage_a_second(
    stage: Stage, watch: Watch, elsewhere: Namespace
) -> None:
    """Counted where it is dropped; the rate of events is bounded; less goes out than came in."""
    gateway, total = watch.pair.gateway, 30_000
    packets = junk(parse_key(watch.pair.gateway_keys[1]))
    before = sum(gateway.status()["traffic"]["dropped"].values())
    with Sender(elsewhere) as sender, measured(stage) as wire:
        sender.send(GATEWAY, packets, per_s=10_000, total=2_000)  # buffers grow to their size
        forget(watch)
        start = time.monotonic()
        sender.send(GATEWAY, packets, per_s=10_000, total=total)
        took_s = time.monotonic() - start
        seen = fate(watch)
    after = gateway.status()["traffic"]["dropped"]
    assert_unharmed(watch, seen)
    assert sum(after.values()) - before >= 0.9 * total, "a queue may overflow, not more"
    told = of_strangers(watch, "SECURITY_EVENT")
    assert {e["details"]["what"] for e in told} == {"handshake rate", "unknown client key"}
    assert len(told) <= c.AUDIT_PER_S * (took_s + 2)
    assert wire.asked >= total
    assert 0 < wire.answered_bytes < 0.1 * wire.asked_bytes


def test_one_captured_request_from_everywhere(
    stage: Stage, watch: Watch, elsewhere: Namespace
) -> None:
    """A true request, played again from many addresses, each of which has tokens of its own: the
    trail of events must not be washed away."""
    goal = stage.other(watch.bound())
    with Listener(goal.router, "lan", PORT) as ear:
        done = watch.pair.client.ctl("switch", goal.device)
        assert done.returncode == 0, done.stderr
        watch.wait_attached()
        request = ear.wait_for(lambda d: d.type == PacketType.REATTACH_REQUEST).payload
    hosts = [f"192.0.2.{host}" for host in range(70, 250)]
    elsewhere.ip_batch(*(f"addr replace {host}/24 dev eth0" for host in hosts))
    replays = [Datagram((host, 5000), GATEWAY, request) for host in hosts]
    total = 6_000
    with Sender(elsewhere) as sender, measured(stage) as wire:
        forget(watch)
        start = time.monotonic()
        sender.send_forged(replays, per_s=2_000, total=total)
        took_s = time.monotonic() - start
        seen = fate(watch)
    assert_unharmed(watch, seen)
    told = watch.events("gateway")
    assert {e["reason"] for e in told} >= {"SEC_REPLAY_ATTEMPT"}
    assert len(told) <= 2 * c.AUDIT_PER_S * (took_s + 2)
    assert wire.answered_bytes < wire.asked_bytes
