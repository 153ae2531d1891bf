"""CONTROL packets: each counts once, and only under its own keys."""

from __future__ import annotations

from jvpnd.core.channel import ControlChannel
from jvpnd.core.wire import SealedHeader, decode_sealed_header

UP, DOWN = b"u" * 32, b"d" * 32


def ends() -> tuple[ControlChannel, ControlChannel]:
    return ControlChannel(2, UP, 1, DOWN), ControlChannel(1, DOWN, 2, UP)


def header(packet: bytes) -> SealedHeader:
    found = decode_sealed_header(packet)
    assert found is not None
    return found


def test_a_control_packet_counts_once() -> None:
    client, gateway = ends()
    packets = [client.seal(bytes([n])) for n in range(5)]
    for n in (3, 0, 4, 1):  # in any order
        assert gateway.open(packets[n], header(packets[n])) == bytes([n])
        assert gateway.open(packets[n], header(packets[n])) is None, "a replay"
    assert gateway.open(packets[2], header(packets[2])) == b"\x02"


def test_a_forged_packet_uses_no_counter_up() -> None:
    client, gateway = ends()
    packet = client.seal(b"body")
    for at in range(len(packet)):
        forged = bytearray(packet)
        forged[at] ^= 1
        found = decode_sealed_header(bytes(forged))
        assert found is None or gateway.open(bytes(forged), found) is None
    assert gateway.open(packet, header(packet)) == b"body"


def test_what_we_sent_ourselves_is_not_taken_back() -> None:
    client, gateway = ends()
    packet = client.seal(b"body")
    assert client.open(packet, header(packet)) is None
    assert gateway.open(packet, header(packet)) == b"body"
