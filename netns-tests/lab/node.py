"""A node of a cluster without its sessions: the real network side of a gateway, and inside its
tunnel somebody who answers echo requests for whichever client they are.

    python -m lab.node NAME RUNTIME SETTINGS     (JSON; then one command a line, one answer a line)
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ipaddress
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jvpnd.net.forwardplan import Forwarding
from jvpnd.net.ownership import OwnedAddresses
from jvpnd.net.routes import HostNetwork
from jvpnd.net.tun import Tun, open_tun, set_persistent
from lab.namespace import Namespace

TUN = "jvpn0"
LAN = "eth1"
_ENV = {"PYTHONPATH": str(Path(__file__).parents[1])}
_ECHO = {8: 0, 128: 129}  # request: reply; ICMP, ICMPv6


class Node:
    """The process, from outside. It keeps its runtime directory, so that it can be killed."""

    def __init__(self, namespace: Namespace, label: str, runtime: Path, **settings: Any) -> None:
        """`settings`: of OwnedAddresses (`announce`, `hook`) and of Forwarding."""
        self.namespace = namespace
        self._command = (sys.executable, "-m", "lab.node", label, str(runtime))
        self._settings = settings
        self._process: subprocess.Popen[str] | None = None
        self.log = runtime / "log"

    def start(self, first: Iterable[dict[str, Any]] = ()) -> None:
        """`first`: what is asked for before the start."""
        given = json.dumps({**self._settings, "first": list(first)})
        with self.log.open("a") as log:
            self._process = self.namespace.popen(
                *self._command, given, stdin=subprocess.PIPE, stderr=log.fileno(), env=_ENV
            )
        self._answer("ready")

    def ask(self, do: str, **arguments: Any) -> Any:
        """The answer to one command."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer(do)

    def own(self, *addresses: str, networks: Iterable[str] = ()) -> None:
        self.ask("own", addresses=addresses, networks=list(networks))

    def lend(self, *addresses: str, via: Iterable[str], owner: str = "other") -> None:
        self.ask("lend", addresses=addresses, networks=[], via=list(via), owner=owner)

    def forget(self, *addresses: str) -> None:
        self.ask("forget", addresses=addresses, networks=[])

    def reached(self) -> dict[str, int]:
        """Packets that went into the tunnel, by destination."""
        return dict(self.ask("reached"))

    def kill(self) -> None:
        """As kill -9 does it: the device stays."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _answer(self, what: str) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"{what}: {self.log.read_text()}"
        return json.loads(line)


class _Inside:
    """Whoever is behind the tunnel."""

    def __init__(self, tun: Tun) -> None:
        self._fd = tun.fd
        self.reached: collections.Counter[str] = collections.Counter()
        self.tcp: list[str] = []  # hex
        asyncio.get_running_loop().add_reader(tun.fd, self._read)

    def write(self, packet: bytes) -> None:
        os.write(self._fd, packet)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._take(os.read(self._fd, 65536))

    def _take(self, packet: bytes) -> None:
        if packet[0] >> 4 == 4:
            at, size, first, protocol = 20, 4, 12, packet[9]
        else:
            at, size, first, protocol = 40, 16, 8, packet[6]
        source, target = packet[first : first + size], packet[first + size : first + 2 * size]
        if target[0] in (0xFF, *range(224, 240)) and (size == 16 or target[0] >= 224):
            return
        self.reached[str(ipaddress.ip_address(target))] += 1
        if protocol == 6:
            self.tcp.append(packet.hex())
        if protocol in (1, 58) and packet[at] in _ECHO:
            reply = bytearray(packet)
            reply[first : first + 2 * size] = target + source
            reply[at] = _ECHO[packet[at]]
            (checksum,) = struct.unpack_from(">H", packet, at + 2)
            checksum += (packet[at] - reply[at]) << 8  # RFC 1624
            checksum = (checksum & 0xFFFF) + (checksum >> 16)
            struct.pack_into(">H", reply, at + 2, checksum)
            os.write(self._fd, bytes(reply))


async def _serve(label: str, runtime: Path, settings: dict[str, Any]) -> None:
    first, addresses = settings.pop("first"), settings.pop("addresses")
    chosen = {key: settings.pop(key) for key in ("announce", "hook") if key in settings}
    forwarding = Forwarding(**settings, cluster=True)
    network = HostNetwork(TUN, runtime)
    await network.resume()
    tun = open_tun(TUN, disabled={"vnet"}, ours=network.is_left)
    set_persistent(tun, True)
    inside = _Inside(tun)
    await network.forward(forwarding, addresses, [])
    await network.configure(addresses, 1400)
    network.enable_forwarding()
    owned = OwnedAddresses(TUN, label, network.state, forwarding, **chosen)
    for each in first:
        getattr(owned, each.pop("do"))(**each)
    await owned.start()
    print(json.dumps("ready"), flush=True)
    reader = asyncio.StreamReader(limit=2**24)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        print(json.dumps(await _do(owned, inside, network, **json.loads(line))), flush=True)


async def _do(
    owned: OwnedAddresses, inside: _Inside, network: HostNetwork, do: str, **given: Any
) -> Any:
    if do == "reached":
        return inside.reached
    if do == "tcp":
        found, inside.tcp[:] = list(inside.tcp), []
        return found
    if do == "write":
        return inside.write(bytes.fromhex(given["packet"]))
    if do == "told":
        return {"notes": owned.notes, "counts": owned.counts}
    if do == "reload":
        return await network.forward(Forwarding(**given, cluster=True), ["10.77.0.1/24"], [])
    if do == "stop":
        await owned.close()
        return await network.remove()
    began_s = asyncio.get_running_loop().time()
    getattr(owned, do)(**given)
    await owned.settled()
    return asyncio.get_running_loop().time() - began_s


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])))
