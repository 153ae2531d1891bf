"""What tells a LAN where an address is, byte by byte."""

from __future__ import annotations

from jvpnd.net.announcing import gratuitous_arp, unsolicited_advertisement

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
