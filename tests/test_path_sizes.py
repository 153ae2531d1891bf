"""Size probes: what is a good one, how a client follows the answers, what a gateway gives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd import pathsizes
from jvpnd.core.effects import Origin, Send
from jvpnd.core.halves import in_halves
from jvpnd.core.noise import public_key
from jvpnd.core.packets import stealth_key
from jvpnd.core.path import PathInfo
from jvpnd.core.sizeprobe import SMALLEST, size_packet, size_token
from jvpnd.core.wire import SAFE_DATAGRAM, PacketType, datagram_len
from jvpnd.narrowpaths import MAX_KNOWN, PROBE_BURST, NarrowPaths
from jvpnd.paths import OpenPath
from jvpnd.pathsizes import PathSizes, sizes_towards
from jvpnd.transport.quicsize import TRIES

SECRET = b"\x11" * 32
PUBLIC = public_key(SECRET)
KEY = stealth_key(PUBLIC)
TOKEN = b"12345678"
FULL = datagram_len(1400)
HERE = Origin(1, ("192.0.2.1", 7700))


@given(st.integers(SMALLEST, 9000))
def test_a_probe_is_as_long_as_it_says_and_no_other(length: int) -> None:
    packet = size_packet(PacketType.SIZE_PROBE, TOKEN, length, KEY)
    assert len(packet) == length
    assert size_token(packet, KEY) == TOKEN
    for other in (packet[:-1], packet + b"\0", b"\x0b" + packet[1:]):
        assert size_token(other, KEY) is None
    assert size_token(packet, bytes(32)) is None


@given(st.binary(max_size=200))
def test_junk_is_no_probe(junk: bytes) -> None:
    assert size_token(junk, KEY) is None


def test_sizes_lead_to_what_the_tunnel_sends() -> None:
    assert sizes_towards("192.0.2.1:7700", FULL) == (1252, 1372, 1432, FULL)
    assert sizes_towards("[2001:db8::1]:7700", FULL) == (1352, 1412, FULL)
    assert sizes_towards("192.0.2.1:7700", 9037)[-2:] == (1472, 9037)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first probe does not wait as long as for a real gateway."""
    monkeypatch.setattr(pathsizes, "CALL_S", 0.01)


def knowing(*origins: Origin) -> NarrowPaths:
    """A gateway that has answered clients there."""
    gateway = NarrowPaths(SECRET)
    for origin in origins:
        gateway.packets(Send(origin, bytes([PacketType.CONTROL])))
    return gateway


class Network:
    """A gateway behind a path that carries datagrams up to `limit`; `lost` if nothing comes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.sent: list[int] = []
        self.told: list[int] = []
        self.gateway = knowing(HERE)
        self.path = cast(OpenPath, self)
        self.transport, self.socket_id = self, 7
        self.info = PathInfo("p", "udp", "eth0", "192.0.2.2:1", "192.0.2.1:7700")
        self.sizes = PathSizes(PUBLIC, FULL, lambda _: True, self.tell)

    def tell(self, socket_id: int, limit: int) -> None:
        assert socket_id == self.socket_id
        self.told.append(limit)

    def send(self, packet: bytes) -> None:
        self.sent.append(len(packet))
        if len(packet) <= self.limit:
            self.gateway.answer(HERE, packet, self._reply)

    def _reply(self, effect: Send) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(self.sizes.answered, self.path, effect.data)


def probing(limit: int, body: Callable[[Network], object]) -> Network:
    """`body`, an asynchronous test, with a network of its own."""

    async def run() -> Network:
        network = Network(limit)
        network.sizes.opened(network.path)
        result = body(network)
        if asyncio.iscoroutine(result):
            await result
        network.sizes.close()
        return network

    return asyncio.run(run())


async def settled(network: Network, wanted: int) -> None:
    async with asyncio.timeout(20):
        while not network.told or network.told[-1] != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("limit", "size"), [(9000, FULL), (FULL, FULL), (1400, 1372), (1252, 1252), (1240, 1232)]
)
def test_the_data_plane_is_told_what_the_path_carries(limit: int, size: int) -> None:
    network = probing(limit, lambda network: settled(network, size))
    assert network.told[0] == SAFE_DATAGRAM  # before anything is known
    assert network.sizes.limit(network.path) is None  # closed


def test_a_path_that_became_narrow_falls_back_and_finds_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pathsizes, "TRY_S", 0.02)
    monkeypatch.setattr(pathsizes, "BUSY_REST_S", 0.02)

    async def body(network: Network) -> None:
        await settled(network, FULL)
        network.limit = 1300
        await settled(network, 1252)
        network.limit = 1500
        await settled(network, FULL)

    network = probing(1500, body)
    assert SAFE_DATAGRAM in network.told[1:]


def test_a_path_that_is_silent_is_not_taken_for_a_narrow_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That is for others to judge; its size may be as before."""
    monkeypatch.setattr(pathsizes, "TRY_S", 0.01)
    monkeypatch.setattr(pathsizes, "BUSY_REST_S", 0.01)

    async def body(network: Network) -> None:
        await settled(network, FULL)
        network.limit = 0
        before = len(network.sent)
        while len(network.sent) < before + 3 * 2 * TRIES:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert network.told[-1] == FULL

    probing(1500, body)


def test_only_who_was_asked_can_answer() -> None:
    async def body(network: Network) -> None:
        for length in (FULL, 1372):
            forged = size_packet(PacketType.SIZE_REPLY, TOKEN, length, KEY)
            network.sizes.answered(network.path, forged)
        await asyncio.sleep(0)
        assert network.sizes.limit(network.path) == SAFE_DATAGRAM

    probing(0, body)


def test_a_handshake_goes_whole_once_and_then_in_halves_where_it_may_not_fit() -> None:
    async def body(network: Network) -> None:
        needs = network.sizes.needs_halves
        assert not needs(network.path, 1200)
        assert not needs(network.path, 1400)
        assert needs(network.path, 1400)

    probing(0, body)


# --- the gateway ---


def test_a_gateway_answers_good_probes_with_as_many_bytes_and_strangers_not_at_all() -> None:
    gateway, sent = knowing(HERE), list[Send]()
    probe = size_packet(PacketType.SIZE_PROBE, TOKEN, 1400, KEY)
    gateway.answer(HERE, probe, sent.append)
    assert [(each.to, len(each.data)) for each in sent] == [(HERE, 1400)]
    assert size_token(sent[0].data, KEY) == TOKEN
    for bad in (probe[:-1], size_packet(PacketType.SIZE_PROBE, TOKEN, 1400, bytes(32))):
        gateway.answer(HERE, bad, sent.append)
    gateway.answer(Origin(1, ("192.0.2.1", 1), "tcp"), probe, sent.append)
    assert len(sent) == 1
    assert gateway.dropped == {"bad size probe": 2, "size probe of a stranger": 1}


def test_answers_to_one_source_are_bounded() -> None:
    elsewhere = Origin(1, ("192.0.2.99", 7700))
    gateway, sent = knowing(HERE, elsewhere), list[Send]()
    probe = size_packet(PacketType.SIZE_PROBE, TOKEN, SMALLEST, KEY)
    for _ in range(3 * PROBE_BURST):
        gateway.answer(HERE, probe, sent.append)
    assert len(sent) < 2 * PROBE_BURST
    assert gateway.dropped == {"size probe rate": 3 * PROBE_BURST - len(sent)}
    gateway.answer(elsewhere, probe, sent.append)
    assert sent[-1].to == elsewhere


def test_who_knows_the_gateways_key_but_is_no_client_is_not_answered() -> None:
    """Nor is who was only refused, or asked for a cookie."""
    gateway, sent = NarrowPaths(SECRET), list[Send]()
    probe = size_packet(PacketType.SIZE_PROBE, TOKEN, 1400, KEY)
    for kind in (PacketType.RETRY, PacketType.REATTACH_REJECT):
        gateway.packets(Send(HERE, bytes([kind])))
        gateway.answer(HERE, probe, sent.append)
    assert sent == []


def test_those_who_are_known_are_bounded() -> None:
    origins = [Origin(number, ("192.0.2.1", 7700)) for number in range(MAX_KNOWN + 1)]
    gateway, sent = knowing(*origins), list[Send]()
    probe = size_packet(PacketType.SIZE_PROBE, TOKEN, 1400, KEY)
    gateway.answer(origins[0], probe, sent.append)
    assert sent == []
    gateway.answer(origins[1], probe, sent.append)
    assert len(sent) == 1


def test_who_asks_in_halves_is_answered_in_halves() -> None:
    gateway = NarrowPaths(SECRET)
    whole = bytes([PacketType.HANDSHAKE_INIT]) + bytes(1400)
    answer = Send(HERE, bytes([PacketType.HANDSHAKE_RESPONSE]) + bytes(1400))
    first, second = in_halves(whole)
    assert gateway.whole(HERE, first) is None
    assert gateway.whole(HERE, second) == whole
    assert list(gateway.packets(answer)) == list(in_halves(answer.data))
    elsewhere = Send(Origin(1, ("192.0.2.9", 1)), answer.data)
    assert list(gateway.packets(elsewhere)) == [answer.data]
    assert list(gateway.packets(Send(HERE, b"\x07 short"))) == [b"\x07 short"]
    assert gateway.whole(HERE, whole) == whole
    assert list(gateway.packets(answer)) == [answer.data]
