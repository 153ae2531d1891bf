"""The simulated network itself: it must be deterministic and do to packets what it is told to."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .world import BLACKHOLE, Conditions, Line, Packet, Peer, StuckError, Whereabouts, World

HOME = ("198.51.100.1", 40000)
MOBILE = ("203.0.113.9", 50000)


class Pinger:
    """Sends a numbered ping every `every_ms` over each of its paths and logs what comes back."""

    def __init__(self, random: Random, paths: list[str], every_ms: int = 10) -> None:
        self.paths, self.every_ms = paths, every_ms
        self.name = random.randbytes(2)
        self.number = 0
        self.deadline_ms: int | None = None
        self.sent_ms: dict[bytes, int] = {}
        self.log: list[tuple[int, Whereabouts, bytes]] = []
        self.out: list[Packet] = []

    def start(self, now_ms: int) -> None:
        self.deadline_ms = now_ms + self.every_ms

    def receive(self, now_ms: int, source: Whereabouts, data: bytes) -> None:
        self.log.append((now_ms, source, data))

    def next_timer_ms(self) -> int | None:
        return self.deadline_ms

    def timer(self, now_ms: int) -> None:
        assert now_ms == self.deadline_ms
        for path in self.paths:
            data = self.name + self.number.to_bytes(4, "big")
            self.sent_ms[data] = now_ms
            self.out.append(Packet(path, data))
            self.number += 1
        self.deadline_ms = now_ms + self.every_ms

    def drain(self) -> list[Packet]:
        out, self.out = self.out, []
        return out


class Echo:
    """Answers every packet to where it came from and remembers that."""

    def __init__(self, _: Random) -> None:
        self.log: list[tuple[int, Peer, bytes]] = []
        self.out: list[Packet] = []

    def start(self, now_ms: int) -> None:
        pass

    def receive(self, now_ms: int, source: Whereabouts, data: bytes) -> None:
        assert isinstance(source, Peer)
        self.log.append((now_ms, source, data))
        self.out.append(Packet(source, data))

    def next_timer_ms(self) -> int | None:
        return None

    def timer(self, now_ms: int) -> None:
        raise AssertionError("asked for no timer")

    def drain(self) -> list[Packet]:
        out, self.out = self.out, []
        return out


def build(
    seed: int = 1,
    up: Conditions = Conditions(),  # noqa: B008
    down: Conditions = Conditions(),  # noqa: B008
    paths: tuple[str, ...] = ("home",),
) -> World:
    world = World(seed)
    world.add_node("gateway", Echo)
    addresses = {"home": HOME, "mobile": MOBILE}
    for name in paths:
        world.add_path(name, "client", "gateway", addresses[name], up=up, down=down)
    world.add_node("client", lambda random: Pinger(random, list(paths)))
    return world


ROUGH = Conditions(delay_ms=15, jitter_ms=40, loss=0.2, duplicate=0.1)


def eventful_run(seed: int) -> tuple[list[Line], object, object]:
    world = build(seed, ROUGH, ROUGH, ("home", "mobile"))
    world.at(300, lambda: world.crash("client"))
    world.at(400, lambda: world.restart("client"))
    world.at(500, lambda: world.rebind("home") and None)
    world.at(600, world.paths["mobile"].cut)
    world.run(1000)
    return world.trace, world.endpoint("client").log, world.endpoint("gateway").log


@given(st.integers(0, 2**32))
@settings(max_examples=10)
def test_the_same_seed_gives_the_same_run_and_another_seed_another(seed: int) -> None:
    assert eventful_run(seed) == eventful_run(seed)
    assert eventful_run(seed) != eventful_run(seed + 1)


def test_packets_take_the_delay_of_each_direction() -> None:
    world = build(up=Conditions(delay_ms=7), down=Conditions(delay_ms=30))
    world.run(200)
    client, gateway = world.endpoint("client"), world.endpoint("gateway")
    assert [at for at, _, _ in gateway.log] == [17 + 10 * n for n in range(len(gateway.log))]
    assert gateway.log[0][1] == Peer(0, HOME)
    assert len(client.log) == 16
    for at_ms, path, data in client.log:
        assert path == "home"
        assert at_ms - client.sent_ms[data] == 37


def test_loss_is_as_frequent_as_asked_for() -> None:
    world = build(up=Conditions(loss=0.25))
    world.run(40_000)
    client, gateway = world.endpoint("client"), world.endpoint("gateway")
    assert world.count("send", "home up") == client.number
    assert world.count("lost", "home up") == pytest.approx(0.25 * client.number, rel=0.1)
    assert world.count("lost", "home down") == 0
    assert len(client.log) == pytest.approx(len(gateway.log), abs=4)  # the rest is on its way


def test_jitter_reorders_within_its_bound() -> None:
    world = build(up=Conditions(delay_ms=20, jitter_ms=50))
    world.run(5000)
    client, gateway = world.endpoint("client"), world.endpoint("gateway")
    order = [data for _, _, data in gateway.log]
    assert order != sorted(order)
    delays_ms = {at_ms - client.sent_ms[data] for at_ms, _, data in gateway.log}
    assert (min(delays_ms), max(delays_ms)) == (20, 70)


def test_without_jitter_the_order_is_kept() -> None:
    world = build(up=Conditions(loss=0.3, duplicate=0.3))
    world.run(5000)
    order = [data for _, _, data in world.endpoint("gateway").log]
    assert order == sorted(order)


def test_duplicates_are_as_frequent_as_asked_for() -> None:
    world = build(up=Conditions(duplicate=0.5, jitter_ms=5))
    world.run(20_000)
    copies = Counter(data for _, _, data in world.endpoint("gateway").log)
    assert set(copies.values()) == {1, 2}
    assert sum(n == 2 for n in copies.values()) == pytest.approx(len(copies) / 2, rel=0.1)


def test_a_one_way_blackhole_stops_that_way_only() -> None:
    world = build()
    world.run(100)
    world.paths["home"].down = BLACKHOLE
    world.run(200)
    heard, echoed = len(world.endpoint("client").log), len(world.endpoint("gateway").log)
    world.run(1000)
    assert len(world.endpoint("client").log) == heard
    assert len(world.endpoint("gateway").log) == echoed + 80
    world.paths["home"].down = Conditions()
    world.run(1100)
    assert len(world.endpoint("client").log) > heard


def test_conditions_of_one_path_leave_the_packets_of_another_alone() -> None:
    def mobile(home: Conditions) -> list[tuple[int, Whereabouts, bytes]]:
        world = build(7, ROUGH, ROUGH, ("home", "mobile"))
        world.paths["home"].up = home
        world.run(3000)
        return [entry for entry in world.endpoint("client").log if entry[1] == "mobile"]

    assert mobile(ROUGH) == mobile(BLACKHOLE) == mobile(Conditions(duplicate=1.0))


def test_rebinding_changes_the_source_and_kills_answers_to_the_old_one() -> None:
    world = build(up=Conditions(delay_ms=20), down=Conditions(delay_ms=20))
    world.run(1000)
    before = world.endpoint("gateway").log[-1][1]
    new = world.rebind("home")
    assert (before.remote, new) == (HOME, (HOME[0], HOME[1] + 1))
    world.run(1100)
    assert {peer.remote for at, peer, _ in world.endpoint("gateway").log if at > 1020} == {new}
    # Sent at 990 and 1000, heard under the old source (980: answered at 1000, in flight).
    assert world.count("no mapping", "home down") == 2
    assert world.count("no mapping", "gateway") == 2
    lost = {world.endpoint("client").sent_ms[data] for _, _, data in world.endpoint("gateway").log}
    heard = {world.endpoint("client").sent_ms[data] for _, _, data in world.endpoint("client").log}
    assert sorted(t for t in lost - heard if t < 1040) == [970, 980, 990, 1000]


def test_rebinding_does_not_take_the_port_of_another_path() -> None:
    world = World(1)
    world.add_node("gateway", Echo)
    world.add_path("a", "client", "gateway", ("198.51.100.1", 65535))
    world.add_path("b", "client", "gateway", ("198.51.100.1", 1))
    assert world.rebind("a") == ("198.51.100.1", 2)
    with pytest.raises(ValueError, match="taken"):
        world.add_path("c", "client", "gateway", ("198.51.100.1", 1))


def test_a_crashed_node_neither_hears_nor_acts() -> None:
    world = build()
    world.run(500)
    world.crash("gateway")
    world.run(1000)
    assert world.endpoint("gateway") is None
    assert world.count("node down", "home up") == 50
    world.crash("client")
    sent = world.count("send", "home up")
    world.run(2000)
    assert world.count("send", "home up") == sent
    world.call("client", lambda *_: pytest.fail("a node that is down was called"))


def test_a_restart_boots_afresh_with_other_randomness_and_no_old_timer() -> None:
    world = build()
    world.run(505)
    old = world.endpoint("client")
    world.restart("client")
    new = world.endpoint("client")
    assert new is not old
    assert new.name != old.name
    world.run(520)
    assert list(new.sent_ms.values()) == [515]  # not at 510, where the old timer was due
    world.run(600)
    assert [data for _, _, data in new.log if data[:2] == new.name]


def test_what_boot_keeps_outside_survives_a_crash() -> None:
    disk: list[int] = []

    def boot(random: Random) -> Echo:
        disk.append(random.getrandbits(32))
        return Echo(random)

    world = World(3)
    world.add_node("gateway", boot)
    world.crash("gateway")
    world.restart("gateway")
    world.restart("gateway")
    assert len(set(disk)) == 3


def test_an_injected_packet_arrives_and_can_lie_about_its_source() -> None:
    world = build()
    liar = ("192.0.2.66", 6666)
    world.inject("home", "up", b"forged", remote=liar)
    world.inject("home", "up", b"spoofed")
    world.inject("home", "down", b"answer")
    world.run(0)
    assert world.endpoint("gateway").log == [
        (0, Peer(0, liar), b"forged"),
        (0, Peer(0, HOME), b"spoofed"),
    ]
    assert world.endpoint("client").log == [(0, "home", b"answer")]
    world.run(100)
    assert world.count("no mapping", "gateway") == 1  # the answer to the liar has no way back


def test_scripted_actions_happen_at_their_time_and_in_their_order() -> None:
    world, seen = World(1), list[tuple[str, int]]()
    for time_ms, name in ((30, "c"), (10, "a"), (10, "b")):
        world.at(time_ms, lambda name=name: seen.append((name, world.now_ms)))  # type: ignore[misc]
    world.run(20)
    assert seen == [("a", 10), ("b", 10)]
    assert world.now_ms == 20
    world.run(30)
    assert seen[2:] == [("c", 30)]


def test_run_until_stops_with_the_event_or_says_what_happened_instead() -> None:
    world = build()
    assert world.run_until(lambda: len(world.endpoint("client").log) == 3, 1000) == 70
    with pytest.raises(StuckError, match=r"(?s)2000 ms.*home up"):
        world.run_until(lambda: False, 2000)


def test_an_endpoint_that_rearms_in_the_past_for_ever_is_found() -> None:
    class Spinner(Echo):
        def next_timer_ms(self) -> int:
            return 5

        def timer(self, now_ms: int) -> None:
            pass

    world = World(1)
    world.add_node("spinner", Spinner)
    with pytest.raises(StuckError, match="events at 5 ms"):
        world.run(10)


def test_a_timer_can_be_moved_and_switched_off() -> None:
    class Alarm(Echo):
        deadline_ms: int | None = 50

        def next_timer_ms(self) -> int | None:
            return self.deadline_ms

        def timer(self, now_ms: int) -> None:
            self.log.append((now_ms, Peer(0, HOME), b""))
            self.deadline_ms = None

    def move(to_ms: int | None) -> None:
        world.call("alarm", lambda alarm, _: setattr(alarm, "deadline_ms", to_ms))

    world = World(1)
    world.add_node("alarm", Alarm)
    move(80)
    move(50)
    move(30)
    world.run(40)
    move(60)
    move(None)
    world.run(1000)
    assert [at for at, _, _ in world.endpoint("alarm").log] == [30]


def test_a_node_cannot_send_over_the_path_of_another() -> None:
    world = build()
    world.endpoint("gateway").out.append(Packet("home", b"x"))
    with pytest.raises(ValueError, match="a path of client"):
        world.call("gateway", lambda *_: None)
