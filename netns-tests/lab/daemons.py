"""Real daemons with real configuration files, started and asked as a user would."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jvpnd.control.client import ControlClient
from lab.namespace import Namespace
from lab.topology import OUTSIDE

Event = dict[str, Any]
PORT = 7700
ALL = ("udp", "tcp", "tls", "quic")
PORTS = {"udp": PORT, "tcp": PORT, "tls": 443, "quic": 443}
UDP = ("udp",)
INNER = {"gateway": ("10.77.0.1", "fd77::1"), "client": ("10.77.0.2", "fd77::2")}


def jvpnctl(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jvpnd.cli.main", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def key_pair() -> tuple[str, str]:
    """(private, public), base64, made by jvpnctl."""
    private = jvpnctl("keygen").stdout.strip()
    return private, jvpnctl("pubkey", stdin=private).stdout.strip()

# By itself a client takes the interfaces with a default route; the plain links of tests have none.
ONLY_ETH0 = '[uplinks]\ninterfaces = ["eth0"]\n'


class Daemon:
    """One jvpnd in one namespace, with a directory of its own."""

    def __init__(self, namespace: Namespace, config: str, private_key: str) -> None:
        self.namespace = namespace
        self._folder = tempfile.TemporaryDirectory(prefix="jvpn-lab-")
        self.folder = Path(self._folder.name)
        self.runtime = self.folder / "run"
        self.config_file = self.folder / "jvpnd.toml"
        self.log_file = self.folder / "log"
        key_file = self.folder / "private.key"
        key_file.write_text(private_key + "\n")
        key_file.chmod(0o600)
        self.config_file.write_text(config)
        # More variables, for the next start. A proxy of the host's own is none of the lab's, and a
        # daemon that hangs is to say where.
        self.environment = {"https_proxy": "", "PYTHONFAULTHANDLER": "1"}
        self.process: subprocess.Popen[str] | None = None

    @property
    def socket_file(self) -> Path:
        return self.runtime / "control.sock"

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def use_lanes(self, number: int) -> None:
        """Configure so many lanes; before the start."""
        self.config_file.write_text(f"lanes = {number}\n{self.config_file.read_text()}")

    def start(self, timeout_s: float = 20) -> None:
        """Start and wait until it says READY=1, as a service manager would."""
        notify_file = self.folder / "notify"
        notify_file.unlink(missing_ok=True)
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
            self.log_file.open("a") as log,
        ):
            notify.bind(str(notify_file))
            notify.settimeout(0.1)
            command = (sys.executable, "-m", "jvpnd", "--config", str(self.config_file))
            self.process = self.namespace.popen(
                *command,
                *("--runtime-dir", str(self.runtime)),
                stdout=log.fileno(),
                stderr=log.fileno(),
                env={"NOTIFY_SOCKET": str(notify_file), **self.environment},
            )
            deadline = time.monotonic() + timeout_s
            while time.monotonic() < deadline:
                if self.process.poll() is not None:
                    break
                try:
                    if b"READY=1" in notify.recv(256):
                        return
                except TimeoutError:
                    continue
        status = self.process.poll()
        if status is None:
            self.stop(signal.SIGABRT)
        raise AssertionError(f"jvpnd did not come up (exit status {status}):\n{self.log}")

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 20) -> int:
        """End it and return its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        return self.process.wait(timeout_s)

    def lose_table(self) -> None:
        """The session table goes, as it does at a reboot."""
        for file in self.runtime.glob("sessions.db*"):
            file.unlink()

    def close(self) -> None:
        """End it, and remove the device that a daemon leaves that is killed."""
        if self.process is not None and self.process.poll() is None:
            self.stop(signal.SIGKILL)
        if self.process is not None and self.folder.exists():
            name = tomllib.loads(self.config_file.read_text())["interface"]["name"]
            self.namespace.run("ip", "link", "del", name, check=False)
        self._folder.cleanup()

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """jvpnctl on this daemon's socket."""
        return jvpnctl("--socket", str(self.socket_file), *arguments)

    def ask(self, command: str) -> Any:
        """What jvpnctl would be answered, without the time that its start takes."""
        with ControlClient(self.socket_file) as control:
            return control.ask(command)

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.ask("status")
        return answer

    def follow(self, timeout_s: float) -> Iterator[Event]:
        """Events, those of the past first, then as they come; TimeoutError when time is up."""
        deadline = time.monotonic() + timeout_s
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            stream.connect(str(self.socket_file))
            request = {"command": "events", "args": {"follow": True}}
            stream.sendall(json.dumps(request).encode() + b"\n")
            pending = b""
            while True:
                stream.settimeout(max(0.001, deadline - time.monotonic()))
                chunk = stream.recv(65536)
                if not chunk:
                    raise AssertionError(f"the daemon hung up:\n{self.log}")
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    answer = json.loads(line)
                    if "result" in answer:
                        yield answer["result"]

    def wait_for(
        self, wanted: Callable[[Event], bool], timeout_s: float = 15, after: int = 0
    ) -> Event:
        """The first event after seq `after` that is `wanted`."""
        try:
            for event in self.follow(timeout_s):
                if event["seq"] > after and wanted(event):
                    return event
        except TimeoutError:
            raise AssertionError(f"no such event within {timeout_s} s:\n{self.log}") from None
        raise AssertionError("unreachable")

    def wait_state(self, state: str, timeout_s: float = 15, after: int = 0) -> Event:
        return self.wait_for(
            lambda e: e["event_type"] == "STATE_CHANGE" and e["to"] == state, timeout_s, after
        )

    def events(self) -> list[Event]:
        """All events so far."""
        rows: list[Event] = self.ask("timeline")
        return rows

    def last_seq(self) -> int:
        return int(self.events()[-1]["seq"])


def _endpoints(table: str, transports: Iterable[str], outside: str) -> str:
    rows = (
        f'[[{table}]]\ntransport = "{each}"\naddress = "{outside}"\nport = {PORTS[each]}\n'
        for each in transports
    )
    return "".join(rows)


def gateway_config(
    client_publics: dict[str, str],
    outside: str,
    policy: str = "",
    transports: Iterable[str] = UDP,
) -> str:
    """A gateway for these clients: the first gets .2, the next .3 and so on."""
    clients = "".join(
        f'[[client]]\nname = "{name}"\npublic_key = "{public}"\n'
        f'address = ["10.77.0.{n}", "fd77::{n}"]\n'
        for n, (name, public) in enumerate(client_publics.items(), start=2)
    )
    return (
        'role = "gateway"\nnode = "gw1"\n'
        '[interface]\nname = "jvpn0"\naddress = ["10.77.0.1/24", "fd77::1/64"]\n'
        '[identity]\nprivate_key_file = "private.key"\n'
        f"{_endpoints('listen', transports, outside)}"
        f"{clients}[policy]\n{policy}"
    )


def client_config(
    gateway_public: str,
    outside: str,
    policy: str = "",
    routes: str = "",
    uplinks: str = "",
    transports: Iterable[str] = UDP,
    proxy: str = "",
) -> str:
    through = f'proxy = "{proxy}"\n' if proxy else ""
    return (
        'role = "client"\nnode = "laptop"\n'
        '[interface]\nname = "jvpn0"\n'
        '[identity]\nprivate_key_file = "private.key"\n'
        f'[gateway]\npublic_key = "{gateway_public}"\n{through}'
        f"{_endpoints('gateway.endpoint', transports, outside)}"
        f"{uplinks}{routes}[policy]\n{policy}"
    )


def disabling(*features: str) -> str:
    """Features switched off by configuration; goes behind the policy, as TOML."""
    return f"[debug]\ndisable = {json.dumps(features)}\n"


class Pair:
    """A gateway and a client that know each other."""

    def __init__(
        self,
        client: Namespace,
        gateway: Namespace,
        version: int = 4,
        client_policy: str = "",
        gateway_policy: str = "",
        routes: str = "",
        transports: Iterable[str] = UDP,
        client_transports: Iterable[str] | None = None,
        proxy: str = "",
        others: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`others`: public keys, by name, of more clients that the gateway lists.

        The client is configured with `client_transports`, if that is not all of `transports`, and
        with this HTTP proxy.
        """
        outside = OUTSIDE[version]
        self.gateway_keys, self.client_keys = key_pair(), key_pair()
        self.gateway = Daemon(
            gateway,
            gateway_config(
                {"laptop": self.client_keys[1], **others}, outside, gateway_policy, transports
            ),
            self.gateway_keys[0],
        )
        self.client = Daemon(
            client,
            client_config(
                self.gateway_keys[1],
                outside,
                client_policy,
                routes,
                transports=transports if client_transports is None else client_transports,
                proxy=proxy,
            ),
            self.client_keys[0],
        )

    def start(self) -> None:
        """Both up, and the client attached."""
        self.gateway.start()
        self.client.start()
        self.client.wait_state("ATTACHED")

    def close(self) -> None:
        self.client.close()
        self.gateway.close()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
