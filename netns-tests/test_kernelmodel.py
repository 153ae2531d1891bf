"""The model of the kernel, held against the running one: what it says is what Linux does."""

from __future__ import annotations

import os

import kernelmodel as kernel
import superpackets as stack
from hypothesis import given, settings
from hypothesis import strategies as st
from namespaced import in_namespace, run
from twoplanes import open_tun

from jvpnd.core.offloads import Offloads


def forwarded(packet: bytes) -> bytes:
    """The packet one hop on, without its header's checksum."""
    at, hop = (8, packet[8] - 1) if packet[0] >> 4 == 4 else (7, packet[7] - 1)
    packet = packet[:at] + bytes([hop]) + packet[at + 1 :]
    return without_checksum(packet)


def without_checksum(packet: bytes) -> bytes:
    return packet[:10] + b"\0\0" + packet[12:] if packet[0] >> 4 == 4 else packet


@in_namespace
def test_linux_cuts_and_completes_as_the_model_says() -> None:
    """Frames written to one TUN are forwarded to another, which has no offload at all."""
    for key in ("ipv4.ip_forward=1", "ipv6.conf.all.forwarding=1"):
        run(f"sysctl -qw net.{key}")
    run("sysctl -qw net.ipv6.conf.default.addr_gen_mode=1")  # no chatter of the kernel's own
    run("sysctl -qw net.ipv4.conf.default.rp_filter=0")
    into = open_tun(Offloads(True, True, True, True, True), ("10.77.0.1/24", "fd77::1/64"))
    run("ip link set t0 name t1")
    out = open_tun(Offloads(False, False, False, False, False), ("10.90.0.254/24", "fd90::fe/64"))
    for name in ("t0", "t1"):
        run(f"ip link set {name} mtu 65535 txqueuelen 5000 up")
    seen = set[int]()

    def cut(frame: bytes) -> list[bytes]:
        os.write(into, frame)
        packets: list[bytes] = []
        while True:
            try:
                packet = os.read(out, 1 << 17)
            except BlockingIOError:
                return packets
            if packet[16:19] == b"\x0a\x5a\0" or packet[24:26] == b"\xfd\x90":
                packets.append(without_checksum(packet))  # else the kernel's own multicast

    @given(st.one_of(stack.super_frames(), stack.single_frames(), stack.odd_frames()))
    @settings(max_examples=400, deadline=None, database=None)
    def body(frame: bytes) -> None:
        seen.add(frame[1])
        expected = [forwarded(packet) for packet in kernel.on_the_wire(frame)]
        assert cut(frame) == expected

    body()
    assert {0, kernel.TCPV4, kernel.TCPV6, kernel.UDP_L4} <= seen
