"""The addresses of a cluster's clients follow their sessions from node to node: real kernels'
routes, ARP and NDP caches, the administrator's hook, and what a killed node leaves."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab.cluster import HOST, MACS, NODES, ClusterLan, frames
from lab.namespace import Namespace
from lab.node import LAN, TUN, Node
from lab.stage import until

from jvpnd.net.announcing import TIMES_S, gratuitous_arp, unsolicited_advertisement
from jvpnd.net.hostroutes import PROTOCOL

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

CLIENT = ("192.168.50.202", "fd50::c:2")  # of the LAN's own networks
REMOTE = ("10.77.0.2", "fd77::2")  # of the tunnel's
INNER = {"a": ["10.77.0.1/24", "fd77::1/64"], "b": ["10.77.0.1/24", "fd77::1/64"]}
Make = Callable[..., Node]


@pytest.fixture
def lan() -> Iterator[ClusterLan]:
    with ClusterLan() as lan:
        yield lan


@pytest.fixture
def make(lan: ClusterLan, tmp_path: Path) -> Make:
    """Starts a node; it ends with its namespace."""

    def start(label: str, first: list[dict[str, Any]] | None = None, **settings: Any) -> Node:
        runtime = tmp_path / label
        runtime.mkdir(exist_ok=True)
        settings = {"proxy_neighbours": [LAN], "addresses": INNER[label], **settings}
        node = Node(lan.nodes[label], label, runtime, **settings)
        node.start(first or [])
        return node

    return start


def pings(host: Namespace, address: str) -> bool:
    command = ("ping", "-n", "-q", "-i", "0.2", "-w", "5", "-c", "1", address)
    return host.run(*command, check=False).returncode == 0


def neighbour(host: Namespace, address: str) -> str | None:
    """The link address that the host's kernel sends to."""
    words = host.run("ip", "neigh", "show", address).stdout.split()
    return words[words.index("lladdr") + 1] if "lladdr" in words else None


def ours(host: Namespace) -> set[str]:
    """Routes with our protocol number."""
    found: set[str] = set()
    for version in ("-4", "-6"):
        shown = host.run("ip", version, "route", "show", "proto", str(PROTOCOL)).stdout
        # The kernel says `linkdown` a while after the tunnel's process has gone.
        found |= {" ".join(line.replace("linkdown", "").split()) for line in shown.splitlines()}
    return found


def ways(host: Namespace) -> dict[str, str]:
    """The same, each network with where it leads: an interface, or another host."""
    found = {}
    for line in ours(host):
        words = line.split()
        key = "via" if "via" in words else "dev"
        found[words[0]] = words[words.index(key) + 1]
    return found


def proxied(host: Namespace) -> set[str]:
    shown = host.run("ip", "neigh", "show", "proxy").stdout
    shown += host.run("ip", "-6", "neigh", "show", "proxy").stdout
    return {line.split()[0] for line in shown.splitlines()}


# --- in the LAN ---


def test_the_lans_caches_follow_from_one_owner_to_the_other(lan: ClusterLan, make: Make) -> None:
    a, b = make("a"), make("b")
    for new, old in ((a, b), (b, a), (a, b)):
        label = "a" if new is a else "b"
        before = {address: new.reached().get(address, 0) for address in CLIENT}
        ear = lan.listen()
        old.lend(*CLIENT, via=NODES[label], owner=label)
        new.own(*CLIENT)
        heard: list[bytes] = []
        mac = bytes.fromhex(MACS[label].replace(":", ""))
        wanted = announcements(mac)

        def complete(
            heard: list[bytes] = heard, ear: socket.socket = ear, wanted: set[bytes] = wanted
        ) -> bool:
            heard += [frame for frame in frames(ear) if about_client(frame)]
            return all(count(heard, each) == len(TIMES_S) for each in wanted)

        until(complete, "all announcements")
        ear.close()
        for address in CLIENT:
            if neighbour(lan.host, address) is not None:  # not so the first time
                assert neighbour(lan.host, address) == MACS[label]
            assert pings(lan.host, address)
            assert neighbour(lan.host, address) == MACS[label]
            assert new.reached()[address] > before[address]
        assert proxied(lan.nodes[label]) == set(CLIENT)
        assert proxied(old.namespace) == set()


def announcements(mac: bytes) -> set[bytes]:
    """What has to be in frames: both forms of ARP; the advertisement from its flags on."""
    return {*gratuitous_arp(mac, CLIENT[0]), unsolicited_advertisement(mac, CLIENT[1])[4:]}


def about_client(frame: bytes) -> bool:
    """Whether it is an announcement: to all hosts, or all nodes."""
    return frame[:6] in (b"\xff" * 6, bytes.fromhex("333300000001"))


def count(heard: list[bytes], wanted: bytes) -> int:
    return sum(wanted in frame for frame in heard)


def test_announcements_end_when_the_session_leaves(lan: ClusterLan, make: Make) -> None:
    a = make("a")
    ear = lan.listen()
    a.own(*CLIENT)
    a.lend(*CLIENT, via=NODES["b"])
    first = a.ask("told")["counts"]["announced"]
    assert first <= 3  # the first of each form, if at all
    others = [f"192.168.50.{n}" for n in range(203, 205)]
    a.own(*others)  # whose announcements are over after all that could have come
    all_of_them = first + 2 * 2 * len(TIMES_S)
    until(lambda: a.ask("told")["counts"]["announced"] == all_of_them, "the others")
    heard = frames(ear)
    ear.close()
    for wanted in announcements(bytes.fromhex(MACS["a"].replace(":", ""))):
        assert count(heard, wanted) <= 1


def test_only_chosen_interfaces_hear_of_it_and_somebody_elses_entry_stays(
    lan: ClusterLan, make: Make
) -> None:
    namespace = lan.nodes["a"]
    namespace.run("ip", "neigh", "add", "proxy", CLIENT[0], "dev", LAN)
    a = make("a", announce=["eth9"])
    a.own(*CLIENT)
    assert proxied(namespace) == set(CLIENT)
    assert a.ask("told")["counts"]["announced"] == 0
    a.ask("reload", proxy_neighbours=[LAN])  # as with another list of clients
    assert proxied(namespace) == set(CLIENT)
    a.forget(*CLIENT)
    assert proxied(namespace) == {CLIENT[0]}
    assert ours(namespace) == set()


# --- routes ---


def test_stray_packets_arrive_at_the_owner(lan: ClusterLan, make: Make) -> None:
    """The host knows the tunnel's networks behind node a; the session is at b."""
    a, b = make("a"), make("b")
    lan.host.ip("route", "add", "10.77.0.0/24", "via", NODES["a"][0])
    lan.host.ip("-6", "route", "add", "fd77::/64", "via", NODES["a"][1])
    for key in ("accept_redirects", "secure_redirects"):  # of a host that believes what it is told
        for device in ("all", "eth0"):
            lan.host.sysctl(f"net.ipv4.conf.{device}.{key}", str(int(key[0] == "a")))
    a.own(*REMOTE)
    assert all(pings(lan.host, address) for address in REMOTE)
    assert set(a.reached()) >= set(REMOTE)
    a.lend(*REMOTE, via=NODES["b"], owner="b")
    b.own(*REMOTE, networks=["192.168.60.0/24"])
    assert all(pings(lan.host, address) for address in REMOTE * 3)  # a redirect counts if repeated
    assert set(b.reached()) >= set(REMOTE)
    for address, gateway in zip(REMOTE, NODES["a"], strict=True):  # nobody was sent elsewhere
        assert f"via {gateway} " in lan.host.run("ip", "route", "get", address).stdout
    assert ways(lan.nodes["a"]) == dict(zip(REMOTE, NODES["b"], strict=True))
    assert ways(lan.nodes["b"]) == dict.fromkeys([*REMOTE, "192.168.60.0/24"], TUN)
    a.lend(*REMOTE, via=["192.168.50.77"], owner="c")  # of one version only
    assert ways(lan.nodes["a"]) == {REMOTE[0]: "192.168.50.77"}
    a.lend(*REMOTE, via=[], owner="d")
    assert ways(lan.nodes["a"]) == {}
    a.own(*REMOTE)
    assert ways(lan.nodes["a"]) == dict.fromkeys(REMOTE, TUN)
    a.forget(*REMOTE)
    assert ours(lan.nodes["a"]) == set()


def test_routes_of_others_stay_and_an_unreachable_node_is_told_of(
    lan: ClusterLan, make: Make
) -> None:
    namespace = lan.nodes["a"]
    foreign = ("10.77.0.2", "via", "192.168.50.9", "metric", "32", "proto", "bird")
    namespace.ip("route", "add", *foreign)
    a = make("a")
    a.own(*REMOTE)
    assert TUN in namespace.run("ip", "route", "get", REMOTE[0]).stdout
    a.lend(*REMOTE, via=["198.51.100.7"], owner="far")
    assert ours(namespace) == set()
    assert "192.168.50.9" in namespace.run("ip", "route", "get", REMOTE[0]).stdout
    (note,) = a.ask("told")["notes"]
    assert note == "no traffic to 10.77.0.2/32: 198.51.100.7 is in no network of this host"
    namespace.ip("route", "add", "default", "via", HOST[0])  # then the kernel's word is another
    a.lend(REMOTE[0], via=["198.51.100.8"], owner="farther")
    (note,) = a.ask("told")["notes"]
    assert note == "no traffic to 10.77.0.2/32: 198.51.100.8 is in no network of this host"
    a.forget(*REMOTE)
    assert a.ask("told")["notes"] == []
    assert "bird" in namespace.run("ip", "route", "show", "10.77.0.2").stdout


def test_what_an_interface_took_along_comes_back_with_it(lan: ClusterLan, make: Make) -> None:
    namespace = lan.nodes["a"]
    a = make("a")
    a.own(*CLIENT)
    a.lend(*REMOTE, via=NODES["b"])
    before = ways(namespace), proxied(namespace)
    namespace.ip("link", "set", LAN, "down")
    until(lambda: not proxied(namespace), "the kernel has dropped the entries")
    namespace.ip("addr", "replace", f"{NODES['a'][1]}/64", "dev", LAN, "nodad")
    namespace.ip("link", "set", LAN, "up")
    namespace.ip("addr", "replace", f"{NODES['a'][1]}/64", "dev", LAN, "nodad")
    until(lambda: (ways(namespace), proxied(namespace)) == before, "all is back")


def test_a_thousand_sessions_move_at_once(lan: ClusterLan, make: Make) -> None:
    many = [f"10.78.{n // 250}.{n % 250}" for n in range(1000)]
    many += [f"fd78::{n:x}" for n in range(1, 1001)]
    a = make("a")
    took_s = [
        a.ask("own", addresses=many, networks=[]),
        a.ask("lend", addresses=many, networks=[], via=NODES["b"], owner="b"),
        a.ask("own", addresses=many, networks=[]),
    ]
    assert ways(lan.nodes["a"]) == dict.fromkeys(many, TUN)
    print("own, lend, own again of 2,000 addresses:", took_s)
    assert max(took_s) < 5


# --- a node that is killed ---


def test_what_a_killed_node_leaves_serves_the_next_one_or_goes(
    lan: ClusterLan, make: Make, tmp_path: Path
) -> None:
    namespace = lan.nodes["a"]
    namespace.run("ip", "neigh", "add", "proxy", "192.168.50.77", "dev", LAN)
    a = make("a")
    a.own(CLIENT[0], REMOTE[0])
    a.lend(CLIENT[1], REMOTE[1], via=NODES["b"])
    before = ours(namespace)
    a.kill()
    assert ours(namespace) == before
    # It was restarted: one session is still its own, the others moved meanwhile, or ended.
    a = make("a", first=[{"do": "own", "addresses": [CLIENT[0]], "networks": []}])
    assert ways(namespace) == {CLIENT[0]: TUN}
    assert proxied(namespace) == {"192.168.50.77", CLIENT[0]}
    a.lend(*CLIENT, *REMOTE, via=NODES["b"])
    a.kill()
    a = make("a")
    assert ways(namespace) == {}
    a.own(*CLIENT)
    a.lend(*REMOTE, via=NODES["b"])
    a.ask("stop")
    assert ours(namespace) == set()
    assert proxied(namespace) == {"192.168.50.77"}
    assert switches(namespace) == ["0", "1"]
    a.kill()
    # And where no other run comes:
    a = make("a")
    a.own(*CLIENT)
    a.lend(*REMOTE, via=NODES["b"])
    a.kill()
    assert switches(namespace) == ["1", "0"]
    body = f"from jvpnd.cleanup import main; main({str(tmp_path / 'a')!r})"
    namespace.run(sys.executable, "-c", body)
    assert ours(namespace) == set()
    assert proxied(namespace) == {"192.168.50.77"}
    assert switches(namespace) == ["0", "1"]


def test_a_node_that_leaves_the_cluster_takes_its_routes_to_others_back(
    lan: ClusterLan, make: Make, tmp_path: Path
) -> None:
    a = make("a")
    a.own(REMOTE[0])
    a.lend(REMOTE[1], via=NODES["b"])
    a.kill()
    body = (
        "import asyncio, pathlib\nfrom jvpnd.net.routes import HostNetwork\n"
        "async def main():\n"
        f"    network = HostNetwork({TUN!r}, pathlib.Path({str(tmp_path / 'a')!r}))\n"
        "    await network.resume()\n"
        f"    await network.route('split', ['{REMOTE[0]}/32', '10.77.0.3/32'])\n"
        "asyncio.run(main())\n"
    )
    lan.nodes["a"].run(sys.executable, "-c", body)
    assert ways(lan.nodes["a"]) == dict.fromkeys([REMOTE[0], "10.77.0.3"], TUN)


def switches(namespace: Namespace) -> list[str]:
    keys = (f"net.ipv6.conf.{LAN}.proxy_ndp", f"net.ipv4.conf.{LAN}.send_redirects")
    return namespace.run("sysctl", "-n", *keys).stdout.split()


# --- the hook ---

_RECORDER = """#!/bin/sh
echo "$@ | $JVPN_NODE $JVPN_INTERFACE $JVPN_OWNER $JVPN_VIA | ${HOME-none}" >>{log}
{more}
"""


def hook_in(folder: Path, more: str = "") -> tuple[Path, Path]:
    """The program, and what it writes. Every directory above it has to be root's."""
    log, program = folder / "calls", folder / "hook"
    text = _RECORDER.replace("{log}", str(log)).replace("{more}", more)
    program.write_text(text)
    program.chmod(0o700)
    return program, log


def calls(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def test_the_hook_is_told_in_order_with_its_arguments(
    lan: ClusterLan, make: Make, tmp_path: Path
) -> None:
    program, log = hook_in(tmp_path)
    a = make("a", hook=str(program))
    a.own(*REMOTE, networks=["192.168.60.0/24"])
    until(lambda: len(calls(log)) == 1, "the first run")
    a.own(*REMOTE)  # nothing new
    a.lend(REMOTE[0], via=NODES["b"], owner="b")
    until(lambda: len(calls(log)) == 2, "the second run")
    a.forget(*REMOTE)
    until(lambda: len(calls(log)) == 3, "the third run")
    assert calls(log) == [
        "own 10.77.0.2/32 fd77::2/128 192.168.60.0/24 | a jvpn0 a  | none",
        "lend 10.77.0.2/32 | a jvpn0 b 192.168.50.2 fd50::2 | none",
        "forget 10.77.0.2/32 fd77::2/128 | a jvpn0   | none",
    ]
    assert a.ask("told")["counts"]["hook_failures"] == 0


def test_a_slow_hook_delays_nobody_and_hears_the_last_word_only(
    lan: ClusterLan, make: Make, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    program, log = hook_in(tmp_path, more=f"while [ ! -e {gate} ]; do sleep 0.05; done")
    a = make("a", hook=str(program))
    a.own(*REMOTE)
    until(lambda: len(calls(log)) == 1, "it hangs")
    for _ in range(3):
        a.lend(REMOTE[0], via=NODES["b"], owner="b")
        a.own(REMOTE[0])
    a.own("10.77.0.3")
    a.forget(REMOTE[1])
    assert ways(lan.nodes["a"]) == dict.fromkeys([REMOTE[0], "10.77.0.3"], TUN)
    assert len(calls(log)) == 1
    gate.touch()
    until(lambda: len(calls(log)) == 3, "the rest")
    assert [line.split(" |")[0] for line in calls(log)[1:]] == [
        "own 10.77.0.2/32 10.77.0.3/32",
        "forget fd77::2/128",
    ]


def test_a_hook_that_fails_or_hangs_is_counted_and_ended(
    lan: ClusterLan, make: Make, tmp_path: Path
) -> None:
    program, log = hook_in(tmp_path, more='case "$*" in *10.77.0.2/32*) exit 7;; esac; sleep 1000')
    a = make("a", hook=str(program))
    a.own(REMOTE[0])
    until(lambda: a.ask("told")["counts"]["hook_failures"] == 1, "the failure")
    assert "ended with status 7" in a.log.read_text()
    a.own("10.77.0.3")
    until(lambda: a.ask("told")["counts"]["hook_failures"] == 2, "the end", timeout_s=40)
    assert "was killed after 10 s" in a.log.read_text()
    assert lan.nodes["a"].run("pgrep", "-f", "sleep 1000", check=False).stdout.split() == []
    assert len(calls(log)) == 2


@pytest.mark.parametrize("fault", ["writable", "owner", "folder", "link", "mode"])
def test_a_hook_that_others_could_change_is_refused(
    lan: ClusterLan, make: Make, tmp_path: Path, fault: str
) -> None:
    folder = tmp_path / "hooks"
    folder.mkdir(mode=0o755)
    program, log = hook_in(folder)
    words = {
        "writable": f"{program} may be written by others than root (mode 720)",
        "owner": f"{program} has to be owned by root, not by uid 65534",
        "folder": f"{folder} may be written by others than root (mode 777)",
        "link": f"{folder}/link has to be an absolute path without symbolic links",
        "mode": f"{program} is no program",
    }
    a = make("a", hook=str(program))  # all was well when it started
    if fault == "writable":
        program.chmod(0o720)
    elif fault == "owner":
        os.chown(program, 65534, 0)
    elif fault == "folder":
        folder.chmod(0o777)
    elif fault == "mode":
        program.chmod(0o600)
    else:
        (folder / "link").symlink_to(program)
        program = folder / "link"
    if fault != "link":
        a.own(*REMOTE)
        until(lambda: a.ask("told")["counts"]["hook_failures"] == 1, "it is refused")
        assert words[fault] in a.log.read_text()
    a.kill()
    with pytest.raises(AssertionError, match="MissingFeature"):
        make("a", hook=str(program))
    assert words[fault] in a.log.read_text()
    assert calls(log) == []


# --- translated connections ---

_SYN, _RST, _PSH, _ACK = 0x02, 0x04, 0x08, 0x10


def segment(source: tuple[str, int], target: tuple[str, int], **fields: Any) -> bytes:
    """A TCP segment in an IP packet, with its checksums."""
    family = socket.AF_INET6 if ":" in source[0] else socket.AF_INET
    ends = b"".join(socket.inet_pton(family, each[0]) for each in (source, target))
    data, flags = fields.get("data", b""), fields["flags"]
    numbers = fields.get("seq", 1000), fields.get("ack", 2000)
    tcp = struct.pack(">HHIIBBHHH", source[1], target[1], *numbers, 0x50, flags, 65000, 0, 0)
    tcp += data
    pseudo = ends + struct.pack(">II", len(tcp), 6)
    tcp = tcp[:16] + struct.pack(">H", _checksum(pseudo + tcp)) + tcp[18:]
    if family == socket.AF_INET6:
        return struct.pack(">IHBB", 6 << 28, len(tcp), 6, 64) + ends + tcp
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0) + ends
    return head[:10] + struct.pack(">H", _checksum(head)) + head[12:] + tcp


def _checksum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def answers(node: Node, port: int) -> list[tuple[int, int, int]]:
    """TCP that came out of the tunnel for this port: flags, sequence and acknowledgement number."""
    found = []
    for text in node.ask("tcp"):
        packet = bytes.fromhex(text)
        at = 20 if packet[0] >> 4 == 4 else 40
        _, target, seq, ack, _, flags = struct.unpack_from(">HHIIBB", packet, at)
        if target == port:
            found.append((flags, seq, ack))
    return found


@pytest.mark.parametrize("version", [4, 6])
def test_a_translated_connection_of_another_node_is_reset_at_once(
    lan: ClusterLan, make: Make, version: int
) -> None:
    client, host = (REMOTE[version == 6], HOST[version == 6])
    a = make("a", nat=True, proxy_neighbours=False)
    a.own(*REMOTE)
    family = socket.AF_INET6 if version == 6 else socket.AF_INET

    def listening() -> socket.socket:
        return socket.create_server((host, 80), family=family)

    def send(port: int, flags: int, to: int = 80, **more: Any) -> None:
        packet = segment((client, port), (host, to), flags=flags, **more)
        a.ask("write", packet=packet.hex())

    lan.host.nft(  # lest the host itself resets what it does not know
        "table inet mute {\nchain input {\ntype filter hook input priority 0;\n"
        "tcp dport 81 drop\n}\n}\n"
    )

    with contextlib.closing(lan.host.within(listening)) as server:
        send(5001, _PSH | _ACK, to=81, data=b"GET /")  # it began elsewhere
        ((flags, seq, _),) = until(lambda: answers(a, 5001), "an answer")
        assert flags & _RST
        assert seq == 2000  # what the client waits for, so it is believed
        send(5002, _SYN)
        ((flags, seq, _),) = until(lambda: answers(a, 5002), "an answer")
        assert flags == _SYN | _ACK
        send(5002, _ACK, seq=1001, ack=seq + 1)
        send(5002, _PSH | _ACK, seq=1001, ack=seq + 1, data=b"hello")
        server.settimeout(10)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(10)
            assert connection.recv(100) == b"hello"  # a known one goes on
    rules = lan.nodes["a"].run("nft", "-j", "list", "ruleset").stdout
    counters = [
        each["counter"]["packets"]
        for rule in json.loads(rules)["nftables"]
        if "rule" in rule
        for each in rule["rule"]["expr"]
        if "counter" in each
    ]
    assert sum(counters) == 1


def test_without_translation_a_connection_goes_on_at_another_node(
    lan: ClusterLan, make: Make
) -> None:
    """The host takes the segment for one that it does not know: it comes from the client itself."""
    a = make("a")
    a.own(*REMOTE)
    lan.host.ip("route", "add", "10.77.0.0/24", "via", NODES["a"][0])
    ear = lan.listen()
    packet = segment((REMOTE[0], 5003), (HOST[0], 80), flags=_PSH | _ACK, data=b"on and on")
    a.ask("write", packet=packet.hex())
    until(lambda: any(b"on and on" in frame for frame in frames(ear)), "it arrives")
    ear.close()
