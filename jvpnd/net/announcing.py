"""Tells the hosts of a LAN at once that an address is here now: gratuitous ARP, and unsolicited
neighbour advertisements as a mobile node's home agent sends them (RFC 6275, section 10.4.1).

Hosts replace what they have in their caches; nobody gets a new entry by it.
"""

from __future__ import annotations

import asyncio
import fcntl
import heapq
import itertools
import logging
import socket
import struct
from collections.abc import Iterable
from typing import Final

from jvpnd.net.forwardplan import Neighbour

_log = logging.getLogger(__name__)

# Three times (MAX_NEIGHBOR_ADVERTISEMENT, RFC 4861, section 10; ANNOUNCE_NUM of RFC 5227 is 2), but
# the second one sooner than either says: a frame that is lost shall not cost a second.
TIMES_S: Final = (0.0, 0.3, 1.0)
CHUNK: Final = 64  # addresses at once, lest the queues of those who hear it overflow
PAUSE_S: Final = 0.01

_ETH_P_ARP: Final = 0x0806
_BROADCAST: Final = b"\xff" * 6
_ARP: Final = struct.Struct(">HHBBH6s4s6s4s")  # RFC 826, for IPv4 on Ethernet
_REQUEST, _REPLY = 1, 2
_ADVERTISEMENT: Final = struct.Struct(">BBHI16sBB6s")  # RFC 4861, sections 4.4 and 4.6.1
_OVERRIDE: Final = 0x20000000
_ALL_NODES: Final = "ff02::1"
_ICMP6_FILTER: Final = 1  # linux/icmpv6.h
_SIOCGIFHWADDR: Final = 0x8927
_IFREQ: Final = struct.Struct("16sH6s")
_ARPHRD_ETHER: Final = 1


def gratuitous_arp(mac: bytes, address: str) -> tuple[bytes, bytes]:
    """As a request (RFC 5227, section 3), and as a reply, since some hosts heed only one."""
    packed = socket.inet_pton(socket.AF_INET, address)
    head = (1, 0x0800, 6, 4)
    return (
        _ARP.pack(*head, _REQUEST, mac, packed, bytes(6), packed),
        _ARP.pack(*head, _REPLY, mac, packed, mac, packed),
    )


def unsolicited_advertisement(mac: bytes, address: str) -> bytes:
    """ICMPv6, without its checksum, which the kernel fills in."""
    packed = socket.inet_pton(socket.AF_INET6, address)
    return _ADVERTISEMENT.pack(136, 0, 0, _OVERRIDE, packed, 2, 1, mac)


class Announcer:
    """Announces what it is told to, until that is withdrawn."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count()
        self._current: dict[Neighbour, int] = {}  # the number of its latest announcement
        self._due: list[tuple[float, int, int, Neighbour]] = []  # when, number, round: a heap
        self._timer: asyncio.TimerHandle | None = None
        self._arp: socket.socket | None = None
        self._icmp: socket.socket | None = None
        self.sent = 0  # frames
        self.problem = ""  # why IPv4 addresses are not announced

    def announce(self, those: Iterable[Neighbour]) -> None:
        """From now on, TIMES_S."""
        now_s = self._loop.time()
        for each in sorted(those):
            number = self._current[each] = next(self._numbers)
            heapq.heappush(self._due, (now_s, number, 0, each))
        self._schedule()

    def withdraw(self, those: Iterable[Neighbour]) -> None:
        """Not one frame more for them."""
        for each in those:
            self._current.pop(each, None)

    def close(self) -> None:
        """Nothing is sent any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._due.clear()
        self._current.clear()
        for sock in (self._arp, self._icmp):
            if sock is not None:
                sock.close()

    def _schedule(self, not_before_s: float = 0.0) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._due:
            self._timer = self._loop.call_at(max(self._due[0][0], not_before_s), self._tick)

    def _tick(self) -> None:
        now_s = self._loop.time()
        macs: dict[str, bytes | None] = {}
        for _ in range(CHUNK):
            if not self._due or self._due[0][0] > now_s:
                break
            when_s, number, turn, each = heapq.heappop(self._due)
            if self._current.get(each) != number:
                continue
            self._send(each, macs)
            if turn + 1 < len(TIMES_S):
                later_s = when_s + TIMES_S[turn + 1] - TIMES_S[turn]
                heapq.heappush(self._due, (later_s, number, turn + 1, each))
            else:
                del self._current[each]
        self._schedule(now_s + PAUSE_S)

    def _send(self, neighbour: Neighbour, macs: dict[str, bytes | None]) -> None:
        address, interface = neighbour
        try:
            if interface not in macs:
                macs[interface] = _mac_of(interface)
            mac = macs[interface]
            if mac is None:
                return
            if ":" in address:
                self._advertise(address, interface, mac)
                self.sent += 1
                return
            arp = self._arp_socket()
            if arp is None:
                return
            for frame in gratuitous_arp(mac, address):
                arp.sendto(frame, (interface, _ETH_P_ARP, 0, 0, _BROADCAST))
                self.sent += 1
        except OSError as error:  # a full queue, or the interface is down or gone
            macs[interface] = None
            _log.warning("cannot announce %s on %s: %s", address, interface, error.strerror)

    def _advertise(self, address: str, interface: str, mac: bytes) -> None:
        if self._icmp is None:
            self._icmp = _icmp_socket()
        target = (_ALL_NODES, 0, 0, socket.if_nametoindex(interface))
        self._icmp.sendto(unsolicited_advertisement(mac, address), target)

    def _arp_socket(self) -> socket.socket | None:
        """It hears nothing: its protocol is 0. None where the unit forbids it, which is told."""
        if self._arp is None and not self.problem:
            try:
                self._arp = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
            except OSError as error:
                self.problem = f"IPv4 addresses are not announced: AF_PACKET: {error.strerror}"
                _log.warning("%s", self.problem)
                return None
            self._arp.setblocking(False)
        return self._arp


def _icmp_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, b"\xff" * 32)  # it hears nothing
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)  # RFC 4861, 7.1.2
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
    return sock


def _mac_of(interface: str) -> bytes | None:
    """None where there are no link addresses of Ethernet's kind. Raises OSError."""
    request = _IFREQ.pack(interface.encode(), 0, bytes(6)) + bytes(16)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        _, kind, mac = _IFREQ.unpack_from(fcntl.ioctl(sock, _SIOCGIFHWADDR, request))
    return bytes(mac) if kind == _ARPHRD_ETHER else None
