"""Looks at the host. Changes nothing; each function is as thin as can be."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import importlib
import ipaddress
import os
import queue
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final

from jvpnd.config import Config
from jvpnd.configendpoint import ip_of
from jvpnd.doctor.machine import ClockFacts, TunFacts
from jvpnd.doctor.network import LinkFacts, RouteFacts, RuleFacts
from jvpnd.net.hoststate import read_sysctl
from jvpnd.transport.endpoint import Listen

NAMES_WAIT_S: Final = 5.0
_TUNGETFEATURES: Final = 0x800454CF
_UDP_OPTIONS: Final = {"UDP_SEGMENT": 103, "UDP_GRO": 104}
_NEEDED: Final = (
    *("click", "cryptography.hazmat.primitives.asymmetric.mlkem"),
    *("nacl", "pyroute2", "pytun"),
)
_EXTRAS: Final = {
    **{"quic": "aioquic", "cluster": "etcd3gw", "metrics": "prometheus_client"},
    **{"top": "rich", "qr": "segno"},
}
_INET: Final = {socket.AF_INET: 4, socket.AF_INET6: 6}
_UNICAST: Final = 1  # RTN_UNICAST


def tun() -> TunFacts:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return TunFacts(error.errno or errno.EIO)
    try:
        (features,) = struct.unpack("I", fcntl.ioctl(fd, _TUNGETFEATURES, bytes(4)))
        return TunFacts(0, features)
    except OSError:
        return TunFacts(0)
    finally:
        os.close(fd)


def missing_udp_offloads() -> list[str]:
    missing = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for name, option in _UDP_OPTIONS.items():
            try:
                probe.setsockopt(socket.SOL_UDP, option, 0)
            except OSError:
                missing.append(name)
    return missing


def nft_problem() -> str | None:
    if shutil.which("nft") is None:
        return "the nft command is missing"
    done = subprocess.run(
        ["nft", "list", "tables"], capture_output=True, text=True, check=False, timeout=10
    )
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"nft ended with status {done.returncode}"])[0]


def capabilities() -> int:
    """The effective ones of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def libraries() -> tuple[dict[str, str | None], dict[str, str | None]]:
    """Those needed, and the optional ones by their extra: why each cannot be imported."""
    needed = {name.split(".")[0]: _import_problem(name) for name in _NEEDED}
    return needed, {extra: _import_problem(name) for extra, name in _EXTRAS.items()}


def _import_problem(name: str) -> str | None:
    try:
        importlib.import_module(name)
    except ImportError as error:
        return str(error)
    return None


def clock() -> ClockFacts:
    timex = ctypes.create_string_buffer(512)  # struct timex; modes = 0 only asks
    done = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    # modes u32, then on 64 bits (padded) offset, freq, maxerror, esterror as long, and status
    offset = struct.calcsize("@I l l l l")
    status = struct.unpack_from("@i", timex.raw, offset)[0] if done >= 0 else None
    return ClockFacts(status, time.time(), Path(__file__).stat().st_mtime)


# --- links, routes, rules ---


class Netlink:
    """Links, routes and rules of one moment."""

    def __init__(self) -> None:
        from pyroute2 import IPRoute  # slow to import

        with IPRoute() as ip:
            names = {row["index"]: row for row in ip.get_links()}
            self.links = [_link(row) for row in names.values()]
            devices = {index: row.get_attr("IFLA_IFNAME") for index, row in names.items()}
            self.routes = [
                found
                for row in ip.get_routes()
                if row["type"] == _UNICAST
                for found in _route(row, devices)
            ]
            self.rules = [_rule(row) for family in _INET for row in ip.get_rules(family=family)]


def _link(row: Any) -> LinkFacts:
    about = row.get_attr("IFLA_LINKINFO")
    kind = about.get_attr("IFLA_INFO_KIND") if about is not None else ""
    return LinkFacts(row.get_attr("IFLA_IFNAME"), row.get_attr("IFLA_MTU") or 0, kind or "")


def _route(row: Any, devices: dict[int, str]) -> Iterable[RouteFacts]:
    """One for each way that it has."""
    hops = row.get_attr("RTA_MULTIPATH") or ()
    indexes = [hop["oif"] for hop in hops] or [row.get_attr("RTA_OIF")]
    to, table = row.get_attr("RTA_DST"), row.get_attr("RTA_TABLE") or row["table"]
    network = ipaddress.ip_network(f"{to}/{row['dst_len']}", strict=False) if to else None
    if row["family"] in _INET:
        for index in indexes:
            if index in devices:
                yield RouteFacts(devices[index], network, table, _INET[row["family"]])


def _rule(row: Any) -> RuleFacts:
    priority, table = row.get_attr("FRA_PRIORITY") or 0, row.get_attr("FRA_TABLE") or row["table"]
    return RuleFacts(priority, table, row.get_attr("FRA_PROTOCOL") or 0)


def reverse_path(names: Iterable[str]) -> dict[str, int]:
    """rp_filter as it counts, by interface."""

    def value(name: str) -> int:
        return int(read_sysctl(f"net/ipv4/conf/{name}/rp_filter") or 0)

    return {name: max(value("all"), value(name)) for name in names}


def ipv6_is_disabled() -> bool | None:
    """None: the kernel has no IPv6."""
    value = read_sysctl("net/ipv6/conf/all/disable_ipv6")
    return None if value is None else value != "0"


# --- ports and names ---


def refused_ports(listen: Iterable[Listen]) -> dict[str, str]:
    """Where nobody can listen, and why. Nothing is accepted meanwhile."""
    refused = {}
    for each in listen:
        datagrams = each.transport in ("udp", "quic")
        six = ":" in each.address
        family = socket.AF_INET6 if six else socket.AF_INET
        kind = socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM
        try:
            with socket.socket(family, kind) as probe:
                if six:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, each.address != "::")
                if not datagrams:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((each.address, each.port))
        except OSError as error:
            refused[f"{each.transport} {each.address} port {each.port}"] = str(error.strerror)
    return refused


def resolver() -> tuple[str, list[str]]:
    """What /etc/resolv.conf really is, and the servers in it."""
    file = Path("/etc/resolv.conf")
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError as error:
        return f"/etc/resolv.conf ({error.strerror})", []
    target = str(file.resolve())
    if any("generated by NetworkManager" in line.casefold() for line in lines[:5]):
        target = f"{target} (NetworkManager)"
    words = [line.split() for line in lines]
    return target, [row[1] for row in words if len(row) > 1 and row[0] == "nameserver"]


def endpoint_names(config: Config) -> list[str]:
    """Of a client's endpoints, those that are no addresses."""
    endpoints = config.gateway.endpoints if config.gateway is not None else ()
    return sorted({each.address for each in endpoints if ip_of(each.address) is None})


def unresolved(names: Collection[str]) -> dict[str, str]:
    """Those that do not resolve within NAMES_WAIT_S, all asked at once."""
    answers: queue.Queue[tuple[str, str]] = queue.Queue()

    def ask(name: str) -> None:
        try:
            socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
            answers.put((name, ""))
        except OSError as error:
            answers.put((name, error.strerror or str(error)))

    found = dict.fromkeys(names, f"no answer within {NAMES_WAIT_S:g} s")
    for name in names:
        threading.Thread(target=ask, args=(name,), daemon=True).start()
    deadline = time.monotonic() + NAMES_WAIT_S
    for _ in names:
        try:
            name, why = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        found[name] = why
    return {name: why for name, why in found.items() if why}
