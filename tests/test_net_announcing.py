"""What tells a LAN where an address is, byte by byte."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from jvpnd.net.announcing import Announcer, gratuitous_arp, unsolicited_advertisement

MAC = bytes.fromhex("02000000000a")


def test_gratuitous_arp_is_a_request_and_a_reply_about_oneself() -> None:
    """RFC 5227, section 3, and RFC 826: sender and target protocol address are the same."""
    head, address = "0001080006040001", "c0a832ca"
    request, reply = gratuitous_arp(MAC, "192.168.50.202")
    assert request.hex() == head + MAC.hex() + address + "00" * 6 + address
    assert reply.hex() == head[:-1] + "2" + MAC.hex() + address + MAC.hex() + address


def test_an_advertisement_overrides_and_is_nobodys_answer() -> None:
    """RFC 6275, section 10.4.1: neither a router's (R) nor solicited (S), but override (O)."""
    sent = unsolicited_advertisement(MAC, "fd50::c:2")
    target = "fd50000000000000" + "00000000000c0002"
    assert sent.hex() == "88000000" + "20000000" + target + "0201" + MAC.hex()


def test_where_packet_sockets_are_forbidden_that_is_told_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the package's unit forbids them."""
    made, refused = socket.socket, asyncio.Event()

    def refusing(family: int = -1, *more: int) -> socket.socket:
        if family == socket.AF_PACKET:
            refused.set()
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return made(family, *more)

    async def body() -> Announcer:
        announcer = Announcer()
        monkeypatch.setattr(socket, "socket", refusing)
        monkeypatch.setattr("jvpnd.net.announcing._mac_of", lambda _: MAC)
        announcer.announce([("192.168.50.202", "lo")])
        async with asyncio.timeout(5):
            await refused.wait()
        announcer.close()
        return announcer

    announcer = asyncio.run(body())
    assert announcer.sent == 0
    assert announcer.problem.startswith("IPv4 addresses are not announced: AF_PACKET")
