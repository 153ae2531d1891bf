"""wireguard-go, set up with `wg` the way `wg-quick` does it. Newer ones use GSO and GRO."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from lab.namespace import Namespace

from bench.link import GATEWAY, Link
from bench.peers.base import Peer, Tunnel, folder, output, running

INNER = {"gateway": "10.66.0.1", "client": "10.66.0.2"}
PORT = 51820
MTU = 1420  # its own default, and wg-quick's over IPv4 and IPv6
START_S = 10.0


class WireguardGo(Peer):
    family = "wireguard-go"

    def __init__(self, name: str, binary: str) -> None:
        self.name = name
        self._binary = shutil.which(binary) or ""
        self.label = "wireguard-go"
        if self._binary:
            self.label = f"wireguard-go {self.version()}"

    def version(self) -> str:
        found = re.search(r"v([0-9.]+)", output(self._binary, "--version"))
        return found.group(1) if found else "0"

    def missing(self) -> str:
        if not self._binary:
            return "no such program"
        return "" if shutil.which("wg") else "wg (wireguard-tools) is missing"

    @contextlib.contextmanager
    def start(self, link: Link) -> Iterator[Tunnel]:
        keys = {end: output("wg", "genkey").strip() for end in INNER}
        public = {end: _public(key) for end, key in keys.items()}
        with contextlib.ExitStack() as stack:
            room = stack.enter_context(folder())
            pids = {}
            for end, other, host in (
                ("gateway", "client", link.gateway),
                ("client", "gateway", link.client),
            ):
                endpoint = f"Endpoint = {GATEWAY}:{PORT}\n" if end == "client" else ""
                config = room / f"{end}.conf"
                config.write_text(
                    f"[Interface]\nPrivateKey = {keys[end]}\nListenPort = {PORT}\n"
                    f"[Peer]\nPublicKey = {public[other]}\n"
                    f"AllowedIPs = {INNER[other]}/32\n{endpoint}"
                )
                log = room / f"{end}.log"
                pids[end] = stack.enter_context(self._end(host, end, config, log))
            yield Tunnel(INNER["gateway"], (pids["client"],), (pids["gateway"],))

    @contextlib.contextmanager
    def _end(self, host: Namespace, end: str, config: Path, log: Path) -> Iterator[int]:
        # Control sockets of all namespaces are in one folder: the name must be ours alone.
        device = f"jvb{os.getpid()}{end[0]}"
        control = Path(f"/var/run/wireguard/{device}.sock")
        try:
            with running(host, log, self._binary, "--foreground", device) as process:
                _wait_for(control, process, log)
                host.run("wg", "setconf", device, str(config))
                host.ip("addr", "add", f"{INNER[end]}/24", "dev", device)
                host.ip("link", "set", device, "mtu", str(MTU), "up")
                yield process.pid
        finally:
            control.unlink(missing_ok=True)  # a killed one leaves it


def _public(private: str) -> str:
    done = subprocess.run(
        ["wg", "pubkey"], input=private, capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def _wait_for(control: Path, process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not control.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"wireguard-go did not come up:\n{log.read_text()}")
        time.sleep(0.02)
