"""Sockets for several lanes: what the kernel does with them, on the loopback interface."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator

import pytest

from jvpnd.core.offloads import Offloads
from jvpnd.core.wire import HEADER, MAX_LANES, PacketType
from jvpnd.dataplane.counters import Counters
from jvpnd.dataplane.downlink import Downlink
from jvpnd.dataplane.errqueue import errors_from
from jvpnd.dataplane.messages import Report, ReportKind
from jvpnd.transport.group import SocketGroup, bind_group, steering
from jvpnd.transport.udp import open_listener

from .workers import run_until

HOSTS = ("127.0.0.1", "::1")
PATIENCE_MS = 5000
PLAIN = Offloads(vnet=False, tso=False, uso=False, udp_gso=False, udp_gro=False)
IP_RECVERR, IPV6_RECVERR = 11, 25


def packet(kind: int, lane: int) -> bytes:
    return HEADER.pack(kind, lane, 0, 0x01020304, 5) + bytes(40)


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def sender(host: str) -> Iterator[socket.socket]:
    with socket.socket(family_of(host), socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        yield sock


def family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def where(group: SocketGroup, sender: socket.socket, data: bytes) -> int:
    """The lane whose socket gets `data`; it must be one, and no more."""
    sender.sendto(data, group.sockets[0].getsockname())
    poll = select.poll()
    for sock in group.sockets:
        poll.register(sock, select.POLLIN)
    ((ready, _),) = poll.poll(PATIENCE_MS)
    lane = [sock.fileno() for sock in group.sockets].index(ready)
    assert group.sockets[lane].recv(100) == data
    return lane


@pytest.mark.parametrize("lanes", [2, 3, MAX_LANES])
def test_data_goes_to_the_lane_it_names_and_the_rest_to_the_first(
    host: str, sender: socket.socket, lanes: int
) -> None:
    with open_listener(host, 0, lanes) as group:
        assert len(group.sockets) == lanes
        for lane in (*range(MAX_LANES), 255):
            assert where(group, sender, packet(PacketType.DATA, lane)) == lane % lanes
        for kind in (0, *(set(PacketType) - {PacketType.DATA}), 9, 255):
            assert where(group, sender, packet(kind, 1)) == 0
        for short in (b"", b"\x08", b"\x07"):
            assert where(group, sender, short) == 0


def test_both_versions_are_steered_behind_a_wildcard() -> None:
    with open_listener("::", 0, 2) as group:
        port = group.sockets[0].getsockname()[1]
        for host in HOSTS:
            with socket.socket(family_of(host), socket.SOCK_DGRAM) as sender:
                for lane in (0, 1):
                    sender.sendto(packet(PacketType.DATA, lane), (host, port))
                    assert select.select([group.sockets[lane]], [], [], PATIENCE_MS / 1000)[0]
                    group.sockets[lane].recv(100)


def test_one_lane_is_one_plain_socket(host: str) -> None:
    with open_listener(host, 0) as group:
        (sock,) = group.sockets
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0


def test_every_lane_sends_with_a_ttl_of_its_own(host: str) -> None:
    with open_listener(host, 0, 3) as group:
        if ":" in host:
            option = (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
        else:
            option = (socket.IPPROTO_IP, socket.IP_TTL)
        ttls = [sock.getsockopt(*option) for sock in group.sockets]
        assert ttls == [ttls[0], ttls[0] - 1, ttls[0] - 2]


def test_nobody_joins_or_is_joined(host: str) -> None:
    """The port is ours alone: neither shared with who has it, nor with who comes."""
    with socket.socket(family_of(host), socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind((host, 0))
        with pytest.raises(OSError, match="another program has this port"):
            open_listener(host, other.getsockname()[1], 2)
    with open_listener(host, 0, 2) as group:
        port = group.sockets[0].getsockname()[1]
        for lanes in (1, 2):
            with pytest.raises(OSError, match="another program has this port"):
                open_listener(host, port, lanes)


def test_a_group_that_cannot_be_made_leaves_nothing_open(host: str) -> None:
    made: list[socket.socket] = []

    def prepare() -> socket.socket:
        if len(made) == 2:
            raise OSError(errno.EMFILE, "no more")
        made.append(socket.socket(family_of(host), socket.SOCK_DGRAM))
        return made[-1]

    with pytest.raises(OSError, match="no more"):
        bind_group(prepare, (host, 0), 3)
    assert [sock.fileno() for sock in made] == [-1, -1]


def test_program_is_as_the_kernel_defines_its_instructions() -> None:
    """linux/bpf_common.h: LD 0, ALU 4, JMP 5, RET 6; B 0x10, ABS 0x20; JEQ 0x10, MOD 0x90."""
    assert steering(5) == (
        (0x00 | 0x10 | 0x20, 0, 0, 0),
        (0x05 | 0x10, 0, 3, 8),
        (0x00 | 0x10 | 0x20, 0, 0, 1),
        (0x04 | 0x90, 0, 0, 5),
        (0x06 | 0x10, 0, 0, 0),
        (0x06, 0, 0, 0),
    )


# --- errors of sockets that are not connected -----------------------------------------------


@pytest.fixture
def queueing(host: str) -> Iterator[socket.socket]:
    with socket.socket(family_of(host), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        if ":" in host:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        sock.bind((host, 0))
        yield sock


def closed_port(host: str) -> int:
    with socket.socket(family_of(host), socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


def shows_an_error(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


def test_errors_about_the_peer_are_told_and_others_are_not(
    queueing: socket.socket, host: str
) -> None:
    peer = (host, closed_port(host))
    for to, told in ((peer, [errno.ECONNREFUSED]), ((host, closed_port(host)), [])):
        queueing.sendto(b"x", to)  # on the loopback the answer is there at once
        assert shows_an_error(queueing)
        with pytest.raises(ConnectionRefusedError):
            queueing.recv(1)
        assert shows_an_error(queueing), "the queue shows, not what recv has told"
        assert errors_from(queueing, peer if told else (host, 1)) == told
        assert not shows_an_error(queueing)
    assert errors_from(queueing, peer) == []


def test_errors_of_our_own_sends_are_not_told_twice(queueing: socket.socket, host: str) -> None:
    with pytest.raises(OSError, match="too long"):
        queueing.sendto(bytes(65530), (host, 9))
    assert errors_from(queueing, (host, 9)) == []


def test_downlink_of_an_unconnected_socket_tells_errors_and_hears_its_peer_only(
    queueing: socket.socket, host: str
) -> None:
    """And it does not spin: what is in an error queue shows until it is taken."""
    counters, fd = Counters.create()
    os.close(fd)
    reports: list[Report] = []
    tun, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    downlink = Downlink(tun.fileno(), PLAIN, 0, counters, reports.append)
    own = queueing.getsockname()
    with socket.socket(family_of(host), socket.SOCK_DGRAM) as peer, tun, kernel:
        peer.bind((host, 0))
        address = peer.getsockname()[:2]
        downlink.add_socket([queueing.detach()], 1, address)
        with socket.socket(family_of(host), socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"\x07 stranger", own)
        peer.sendto(b"\x07 peer", own)

        def told() -> bool:
            return bool(reports)

        run_until(downlink, told, "the peer is heard")
        assert [report.payload for report in reports] == [b"\x07 peer"]
        assert counters.drops() == {"foreign": 1}
        out = socket.socket(fileno=os.dup(downlink._inlets[1].socket.fileno()))
    with out:
        out.sendto(b"x", address)  # nobody is there any more
        reports.clear()
        run_until(downlink, told, "the error is told")
        assert not shows_an_error(out)
    assert [(r.kind, r.other) for r in reports] == [(ReportKind.SOCKET_ERROR, errno.ECONNREFUSED)]
    downlink.remove_socket(1)
