"""TUN device, UDP sockets and uplink watcher against a real kernel, each in a namespace."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import pytun
from namespaced import in_namespace, new_namespace, private_mounts, run

from jvpnd.net.errors import MissingFeature
from jvpnd.net.links import LinkWatcher, Uplink
from jvpnd.net.tun import add_queue, open_tun
from jvpnd.transport.backlog import MIN_BYTES, limit_unsent, send_ahead
from jvpnd.transport.udp import ListenError, PathError, open_listener, open_path

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

TUNGETIFF, TUNSETOFFLOAD, IFF_VNET_HDR = 0x800454D2, 0x400454D0, 0x4000
RECEIVE_BUFFER = 2 * 8 * 2**20  # the kernel doubles what it is asked for


# TUN


@in_namespace
def test_a_tun_has_its_flags_and_goes_with_its_descriptor() -> None:
    tun = open_tun("jx0")
    request = fcntl.ioctl(tun.fd, TUNGETIFF, bytes(40))
    name, flags = struct.unpack_from("16sH", request)
    assert name.rstrip(b"\0") == b"jx0"
    wanted = 0x1 | 0x1000 | 0x4000  # IFF_TUN, IFF_NO_PI, IFF_VNET_HDR
    assert flags & wanted == wanted
    assert tun.index == socket.if_nametoindex("jx0")
    assert not os.get_blocking(tun.fd)
    assert not os.get_inheritable(tun.fd)
    with pytest.raises(BlockingIOError):
        os.read(tun.fd, 2048)
    os.close(tun.fd)
    assert "jx0" not in [name for _, name in socket.if_nameindex()]


@in_namespace
def test_a_tun_hands_over_super_packets_when_it_says_so() -> None:
    tun = open_tun("jx0")
    assert tun.offloads.tso
    run("ip addr add 10.1.0.1/24 dev jx0")
    run("ip link set jx0 up")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        if tun.offloads.udp_gso:
            sender.setsockopt(socket.IPPROTO_UDP, 103, 1000)
        sender.sendto(bytes(3000 if tun.offloads.udp_gso else 1000), ("10.1.0.2", 9))
    frames = []
    while True:
        try:
            frame = os.read(tun.fd, 65600)
        except BlockingIOError:
            break
        if frame[10] >> 4 == 4:
            frames.append(frame)
    longest = max(len(frame) for frame in frames)
    assert longest == 10 + 28 + (3000 if tun.offloads.uso else 1000)


def flags_of(fd: int) -> int:
    return int(struct.unpack_from("16xH", fcntl.ioctl(fd, TUNGETIFF, bytes(40)))[0])


@in_namespace
def test_what_is_disabled_is_not_asked_for() -> None:
    full = open_tun("jx0").offloads
    for number, name in enumerate(("tso", "uso", "udp_gro", "spans"), start=1):
        assert open_tun(f"jx{number}", disabled={name}).offloads == replace(full, **{name: False})
    single = open_tun("jx8", disabled={"udp_gso"})
    assert single.offloads == replace(full, udp_gso=False, spans=False)
    plain = open_tun("jx9", disabled={"vnet"})
    assert plain.offloads == replace(full, vnet=False, tso=False, uso=False)
    assert not flags_of(plain.fd) & IFF_VNET_HDR


@in_namespace
def test_more_queues_have_the_headers_of_the_first() -> None:
    for name, disabled in (("jx0", set()), ("jx1", {"vnet"})):
        tun = open_tun(name, multi_queue=True, disabled=disabled)
        second = add_queue(tun)
        assert bool(flags_of(second) & IFF_VNET_HDR) == tun.offloads.vnet


@in_namespace
def test_a_kernel_that_grants_less_leaves_the_rest() -> None:
    full = open_tun("jx0").offloads
    real = fcntl.ioctl
    csum, tso, uso = 0x01, 0x06, 0x60  # linux/if_tun.h
    for number, known in enumerate((csum | tso, csum | uso, csum, 0), start=1):

        def refuses(fd: int, request: int, value: Any, known: int = known) -> Any:
            if request == TUNSETOFFLOAD and value & ~known:
                raise OSError(errno.EINVAL, "no such offload")
            return real(fd, request, value)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fcntl, "ioctl", refuses)
            granted = open_tun(f"jx{number}").offloads
        # USO is younger than TSO: a kernel without TSO is not asked for USO alone.
        assert granted == replace(full, tso=bool(known & tso), uso=False)


@in_namespace
def test_a_kernel_without_vnet_headers_gives_a_plain_tun() -> None:
    full, real = open_tun("jx0").offloads, pytun.TunTapDevice

    def refuses(name: str, flags: int) -> Any:
        if flags & IFF_VNET_HDR:
            raise pytun.Error(errno.EINVAL, "Invalid argument")
        return real(name=name, flags=flags)

    def ignores(name: str, flags: int) -> Any:
        return real(name=name, flags=flags & ~IFF_VNET_HDR)

    for number, kernel in enumerate((refuses, ignores), start=1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pytun, "TunTapDevice", kernel)
            tun = open_tun(f"jx{number}")
        assert tun.offloads == replace(full, vnet=False, tso=False, uso=False)
        assert not flags_of(tun.fd) & IFF_VNET_HDR


@in_namespace
def test_old_udp_sockets_are_taken_as_they_are() -> None:
    full, real = open_tun("jx0").offloads, socket.socket.setsockopt

    class Old(socket.socket):
        def setsockopt(self, level: int, option: int, *value: Any) -> None:
            if level == socket.IPPROTO_UDP and option in (103, 104):  # UDP_SEGMENT, UDP_GRO
                raise OSError(errno.ENOPROTOOPT, "Protocol not available")
            real(self, level, option, *value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", Old)
        tun = open_tun("jx1")
    assert tun.offloads == replace(full, udp_gso=False, udp_gro=False, spans=False)


@in_namespace
def test_a_multi_queue_tun_takes_more_queues_but_no_second_owner() -> None:
    tun = open_tun("jx0", multi_queue=True)
    second = add_queue(tun)
    assert second != tun.fd
    assert not os.get_blocking(second)
    with pytest.raises(MissingFeature, match="jx0 is in use"):
        open_tun("jx0", multi_queue=True)


@in_namespace
def test_a_name_that_is_busy_or_bad_is_named() -> None:
    open_tun("jx0")
    with pytest.raises(MissingFeature, match="jx0 is in use"):
        open_tun("jx0")
    with pytest.raises(MissingFeature, match="lo exists already"):
        open_tun("lo")
    for bad in ("", "a b", "tun%d", "x" * 16, "a/b", "..", "\u00fcber"):
        with pytest.raises(MissingFeature, match="is not allowed"):
            open_tun(bad)


@in_namespace
def test_without_privilege_the_message_names_it() -> None:
    os.setresuid(65534, 65534, 65534)
    with pytest.raises(MissingFeature, match="CAP_NET_ADMIN"):
        open_tun("jx0")


@in_namespace
def test_without_the_device_node_the_message_names_it() -> None:
    private_mounts()
    run("mount -t tmpfs none /dev/net")
    with pytest.raises(MissingFeature, match="/dev/net/tun is missing"):
        open_tun("jx0")


# UDP sockets


def two_uplinks() -> None:
    for name, net in (("upa", 1), ("upb", 2)):
        run(f"ip link add {name} type veth peer name p{name}")
        run(f"ip addr add 192.0.{net}.5/24 dev {name}")
        run(f"ip -6 addr add 2001:db8:{net}::5/64 dev {name} nodad")
        run(f"ip link set p{name} up")
        run(f"ip link set {name} up")


@in_namespace
def test_a_path_socket_is_tied_to_its_uplink_source_and_mark() -> None:
    two_uplinks()
    for source, remote in (("192.0.1.5", "192.0.1.9"), ("2001:db8:1::5", "2001:db8:1::9")):
        with open_path("upa", source, (remote, 7700), 0x6A760001) as path:
            (sock,) = path.sockets
            device = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
            assert device.rstrip(b"\0") == b"upa"
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0x6A760001
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == RECEIVE_BUFFER
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == MIN_BYTES
            assert sock.getsockname()[0] == source
            assert sock.getpeername()[:2] == (remote, 7700)
            assert sock.gettimeout() == 0.0


def _send_until_refused(sock: socket.socket) -> None:
    for _ in range(1000):
        send_ahead(sock, bytes(1400))


@in_namespace
def test_controls_packets_get_past_a_full_socket() -> None:
    two_uplinks()
    run("tc qdisc add dev upa root tbf rate 8kbit burst 2k limit 100m")
    run("ip neigh add 192.0.1.9 lladdr 02:00:00:00:00:09 dev upa")
    with open_path("upa", "192.0.1.5", ("192.0.1.9", 7700), 1) as path:
        (sock,) = path.sockets
        for limit in (MIN_BYTES, 4 * MIN_BYTES):
            limit_unsent(sock, limit)
            queued = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    queued += sock.send(bytes(1400))
            assert queued < limit
            for _ in range(20):
                send_ahead(sock, b"\x07probe")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == limit
            with pytest.raises(BlockingIOError):
                sock.send(bytes(1400))
            # Twice over is full for control too
            with pytest.raises(BlockingIOError):
                _send_until_refused(sock)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == limit


@in_namespace
def test_every_lane_of_a_path_is_tied_like_the_first() -> None:
    two_uplinks()
    for source, remote in (("192.0.1.5", "192.0.1.9"), ("2001:db8:1::5", "2001:db8:1::9")):
        with open_path("upa", source, (remote, 7700), 0x6A760001, 3) as path:
            assert path.peer == (remote, 7700)
            assert len({sock.getsockname()[:2] for sock in path.sockets}) == 1
            for sock in path.sockets:
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)[:3] == b"upa"
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0x6A760001
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == RECEIVE_BUFFER
                assert sock.getsockname()[0] == source
                assert sock.gettimeout() == 0.0


@in_namespace
def test_a_path_that_is_not_there_is_named() -> None:
    two_uplinks()
    with pytest.raises(PathError, match=r"gone \(192\.0\.1\.5\) to 192\.0\.1\.9:7700") as caught:
        open_path("gone", "192.0.1.5", ("192.0.1.9", 7700), 1)
    assert caught.value.errno == errno.ENODEV
    with pytest.raises(PathError) as caught:
        open_path("upa", "192.0.1.77", ("192.0.1.9", 7700), 1)
    assert caught.value.errno == errno.EADDRNOTAVAIL
    run("ip link set upa down")
    for lanes in (1, 2):
        with pytest.raises(PathError) as caught:
            open_path("upa", "192.0.1.5", ("192.0.1.9", 7700), 1, lanes)
        assert caught.value.errno == errno.ENETUNREACH


@in_namespace
def test_a_listener_on_both_versions_hears_both() -> None:
    with open_listener("::", 7700) as listener:
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"hello", (host, 7700))
            assert listener.sockets[0].recv(100) == b"hello"
        with pytest.raises(ListenError, match=r"127\.0\.0\.1:7700: another program has this port"):
            open_listener("127.0.0.1", 7700)


@in_namespace
def test_a_listen_address_that_is_taken_or_not_here_is_named() -> None:
    with open_listener("127.0.0.1", 7700, 2), open_listener("::1", 7700):
        with pytest.raises(ListenError, match=r"^cannot listen on UDP 127.*: another"):
            open_listener("127.0.0.1", 7700, 2)  # sockets of ours are not shared either
        with pytest.raises(ListenError, match=r"^cannot listen on UDP \[::1\]:7700: another"):
            open_listener("::1", 7700)
        with pytest.raises(ListenError, match=r"192\.0\.2\.1:7700: this host has no such address"):
            open_listener("192.0.2.1", 7700)


# Uplinks


class Recorder:
    """Collects what the watcher reports and waits for a state, not for a time."""

    def __init__(self) -> None:
        self.states: list[dict[str, Uplink]] = []
        self.times: list[float] = []
        self._changed = asyncio.Event()

    def __call__(self, uplinks: dict[str, Uplink]) -> None:
        self.states.append(uplinks)
        self.times.append(time.perf_counter())
        self._changed.set()

    async def until(self, wanted: Callable[[dict[str, Uplink]], bool]) -> dict[str, Uplink]:
        async with asyncio.timeout(10):
            while not (self.states and wanted(self.states[-1])):
                self._changed.clear()
                await self._changed.wait()
        return self.states[-1]


async def call(command: str) -> None:
    await asyncio.to_thread(run, command)


def default_routes() -> None:
    run("ip route add default via 192.0.1.1 dev upa metric 100")
    run("ip route add default via 192.0.2.1 dev upb metric 200")
    run("ip -6 route add default via 2001:db8:2::1 dev upb")


async def watching(
    body: Callable[[LinkWatcher, Recorder], object], interfaces: list[str] | None = None
) -> None:
    recorder = Recorder()
    watcher = LinkWatcher(interfaces, ["jx0"], recorder)
    await watcher.start()
    try:
        await body(watcher, recorder)  # type: ignore[misc]
    finally:
        await watcher.close()


@in_namespace
def test_every_interface_with_a_default_route_is_found_at_start() -> None:
    two_uplinks()
    default_routes()

    async def body(watcher: LinkWatcher, recorder: Recorder) -> None:
        index = socket.if_nametoindex
        assert watcher.uplinks() == {
            "upa": Uplink("upa", index("upa"), 1500, "192.0.1.5", None),
            "upb": Uplink("upb", index("upb"), 1500, "192.0.2.5", "2001:db8:2::5"),
        }
        assert recorder.states == []

    asyncio.run(watching(body))


@in_namespace
def test_link_down_up_and_new_default_route_are_reported() -> None:
    two_uplinks()
    default_routes()

    async def body(watcher: LinkWatcher, recorder: Recorder) -> None:
        await call("ip link set upa down")
        await recorder.until(lambda uplinks: set(uplinks) == {"upb"})
        assert set(watcher.uplinks()) == {"upb"}
        await call("ip link set upa up")
        await call("ip route add default via 192.0.1.1 dev upa metric 100")
        await recorder.until(lambda uplinks: set(uplinks) == {"upa", "upb"})
        assert all(set(state) in ({"upb"}, {"upa", "upb"}) for state in recorder.states)

    asyncio.run(watching(body))


@in_namespace
def test_carrier_loss_is_link_down() -> None:
    two_uplinks()
    default_routes()

    async def body(watcher: LinkWatcher, recorder: Recorder) -> None:
        await call("ip link set pupa down")
        await recorder.until(lambda uplinks: set(uplinks) == {"upb"})
        await call("ip link set pupa up")
        await recorder.until(lambda uplinks: set(uplinks) == {"upa", "upb"})

    asyncio.run(watching(body))


@in_namespace
def test_address_change_mtu_change_and_interface_removal_are_reported() -> None:
    two_uplinks()

    async def body(watcher: LinkWatcher, recorder: Recorder) -> None:
        assert watcher.uplinks()["upa"].ipv4 == "192.0.1.5"
        await call("ip addr del 192.0.1.5/24 dev upa")
        await recorder.until(lambda uplinks: uplinks["upa"].ipv4 is None)
        await call("ip addr add 192.0.1.6/24 dev upa")
        await recorder.until(lambda uplinks: uplinks["upa"].ipv4 == "192.0.1.6")
        await call("ip link set upa mtu 1400")
        await recorder.until(lambda uplinks: uplinks["upa"].mtu == 1400)
        await call("ip link del upa")
        await recorder.until(lambda uplinks: "upa" not in uplinks)

    asyncio.run(watching(body, ["upa"]))


@in_namespace
def test_a_default_route_that_vanishes_with_its_address_is_noticed() -> None:
    # the kernel sends no DELROUTE for an IPv4 route that goes with the last address
    two_uplinks()
    default_routes()

    async def body(watcher: LinkWatcher, recorder: Recorder) -> None:
        await call("ip addr del 192.0.1.5/24 dev upa")
        await recorder.until(lambda uplinks: "upa" not in uplinks)
        await call("ip addr add 192.0.1.5/24 dev upa")
        await call("ip link set upb mtu 1400")
        await recorder.until(lambda uplinks: uplinks["upb"].mtu == 1400)
        assert "upa" not in watcher.uplinks()  # it has an address but no route again
        await call("ip route add default via 192.0.1.1 dev upa")
        await recorder.until(lambda uplinks: "upa" in uplinks)

    asyncio.run(watching(body))


@in_namespace
def test_multipath_default_routes_and_nexthop_objects_make_uplinks_too() -> None:
    two_uplinks()

    async def body(watcher: LinkWatcher, recorder: Recorder) -> None:
        assert watcher.uplinks() == {}
        await call(
            "ip route add default nexthop via 192.0.1.1 dev upa nexthop via 192.0.2.1 dev upb"
        )
        await recorder.until(lambda uplinks: set(uplinks) == {"upa", "upb"})
        await call("ip route del default")
        await recorder.until(lambda uplinks: not uplinks)
        await call("ip nexthop add id 7 via 192.0.1.1 dev upa")
        await call("ip route add default nhid 7")
        await recorder.until(lambda uplinks: set(uplinks) == {"upa"})
        await call("ip nexthop del id 7")
        await recorder.until(lambda uplinks: not uplinks)

    asyncio.run(watching(body))


@in_namespace
def test_an_overflow_of_events_loses_nothing() -> None:
    two_uplinks()
    default_routes()

    async def body(watcher: LinkWatcher, recorder: Recorder) -> None:
        assert watcher._events is not None
        watcher._events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        first = watcher._events
        # while the loop is held here nothing is read, so the queue must overflow
        run("ip link set upa down")
        for number in range(40):
            run(f"ip addr add 192.0.2.{100 + number}/24 dev upb")
        run("ip link set upb mtu 1300")
        state = await recorder.until(lambda uplinks: set(uplinks) == {"upb"})
        assert state["upb"].mtu == 1300
        assert watcher._events is not first  # it did overflow
        await call("ip link set upb down")
        await recorder.until(lambda uplinks: not uplinks)

    asyncio.run(watching(body))


@in_namespace
def test_after_close_nothing_is_reported() -> None:
    two_uplinks()
    default_routes()

    async def body() -> None:
        recorder = Recorder()
        watcher = LinkWatcher(None, [], recorder)
        await watcher.start()
        await watcher.close()
        await call("ip link set upa down")
        later = LinkWatcher(None, [], recorder)
        await later.start()
        assert "upa" not in later.uplinks()
        await later.close()
        assert recorder.states == []

    asyncio.run(body())


def measure_link_down(runs: int = 20) -> list[float]:
    """Milliseconds from the SIOCSIFFLAGS that takes a link down to on_change, sorted."""
    new_namespace()
    two_uplinks()
    default_routes()
    control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    spent: list[float] = []

    def down() -> float:
        before = time.perf_counter()
        fcntl.ioctl(control, 0x8914, struct.pack("16sH22x", b"upa", 0))
        return before

    async def body(watcher: LinkWatcher, recorder: Recorder) -> None:
        for _ in range(runs):
            before = await asyncio.to_thread(down)
            await recorder.until(lambda uplinks: "upa" not in uplinks)
            spent.append((recorder.times[-1] - before) * 1000)
            await call("ip link set upa up")
            await call("ip route add default via 192.0.1.1 dev upa metric 100")
            await recorder.until(lambda uplinks: "upa" in uplinks)

    asyncio.run(watching(body))
    return sorted(spent)


if __name__ == "__main__":
    print([round(each, 2) for each in measure_link_down()])
