"""A real etcd on loopback ports: one member or three, each of which can be killed and started."""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from jvpnd.configcluster import EtcdAccess
from jvpnd.store.etcdclient import Connection, Login, Refused

BINARY = shutil.which("etcd")
needs_etcd = pytest.mark.skipif(BINARY is None, reason="no etcd: apt-get install etcd-server")
START_S = 20.0


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    port: int
    peer_port: int


class Etcd:
    """A cluster; `access` is how a client reaches it."""

    def __init__(
        self, folder: Path, members: int = 1, tls: bool = False, address: str = "127.0.0.1"
    ) -> None:
        """`folder`: for data, logs and certificates. `address`: of all members."""
        self._folder = folder
        self._address = address
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        ports = _free_ports(2 * members, address)
        self.members = [Member(f"m{n}", *ports[2 * n : 2 * n + 2]) for n in range(members)]
        self._scheme = "https" if tls else "http"
        ends = tuple((self._scheme, address, each.port) for each in self.members)
        self.access = EtcdAccess(ends)
        if tls:
            pems = _certificates(folder, address)
            self.access = EtcdAccess(ends, pems["ca"], (pems["end"], pems["end.key"]))

    def start(self, *numbers: int) -> None:
        """These members, or all; returns when the cluster answers."""
        for number in numbers or range(len(self.members)):
            self._start(number)
        self.wait()

    def wait(self) -> None:
        with contextlib.closing(self.connection()) as connection, contextlib.suppress(Refused):
            connection.ask("kv/range", {"key": _text("x")}, START_S)

    def kill(self, number: int = 0) -> None:
        """As a power cut does."""
        process = self._running.pop(number)
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    def close(self) -> None:
        for number in list(self._running):
            self.kill(number)

    def connection(self, access: EtcdAccess | None = None) -> Connection:
        return Connection(access or self.access, Login())

    def dump(self) -> dict[str, bytes]:
        """Every key with its value."""
        everything = {"key": _text("\0"), "range_end": _text("\0")}
        with contextlib.closing(self.connection()) as connection:
            kvs = connection.ask("kv/range", everything, START_S).get("kvs", [])
        return {
            base64.b64decode(kv["key"]).decode(): base64.b64decode(kv.get("value", ""))
            for kv in kvs
        }

    def put(self, key: str, value: bytes) -> None:
        with contextlib.closing(self.connection()) as connection:
            body = {"key": _text(key), "value": base64.b64encode(value).decode()}
            connection.ask("kv/put", body, START_S)

    @property
    def missing(self) -> list[int]:
        """Members that do not run."""
        return [n for n in range(len(self.members)) if n not in self._running]

    def leader(self) -> int:
        """The number of the member that leads."""
        for number in self._running:
            only = replace(self.access, endpoints=(self.access.endpoints[number],))
            with contextlib.closing(self.connection(only)) as connection:
                said = connection.ask("maintenance/status", {}, START_S)
            if said["leader"] == said["header"]["member_id"]:
                return number
        raise AssertionError("no member leads")

    def compact(self) -> None:
        """Forget all revisions but the last."""
        with contextlib.closing(self.connection()) as connection:
            now = connection.ask("kv/range", {"key": _text("x")}, START_S)["header"]["revision"]
            connection.ask("kv/compaction", {"revision": now, "physical": True}, START_S)

    def _start(self, number: int) -> None:
        member = self.members[number]
        client, peer = (
            f"{scheme}://{self._address}:{port}"
            for scheme, port in ((self._scheme, member.port), ("http", member.peer_port))
        )
        peers = (f"{m.name}=http://{self._address}:{m.peer_port}" for m in self.members)
        command = [
            *(BINARY or "etcd", "--name", member.name),
            *("--data-dir", str(self._folder / member.name)),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", ",".join(peers)),
            *("--heartbeat-interval", "30", "--election-timeout", "300", "--log-level", "error"),
        ]
        if self._scheme == "https":
            ca, pem = self.access.ca_file, self.access.certificate
            assert ca is not None
            assert pem is not None
            command += ["--trusted-ca-file", str(ca), "--client-cert-auth"]
            command += ["--cert-file", str(pem[0]), "--key-file", str(pem[1])]
        with (self._folder / f"{member.name}.log").open("ab") as log:
            self._running[number] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )


@contextlib.contextmanager
def etcd(
    folder: Path, members: int = 1, tls: bool = False, address: str = "127.0.0.1"
) -> Iterator[Etcd]:
    """One that answers."""
    cluster = Etcd(folder, members, tls, address)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


def _text(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _free_ports(count: int, address: str) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((address, 0))
        return [each.getsockname()[1] for each in sockets]


def _certificates(folder: Path, address: str) -> dict[str, Path]:
    """An authority, and one certificate for members and clients."""
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ca")])
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "end")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)

    def signed(subject: x509.Name, public: ec.EllipticCurvePublicKey, ca: bool) -> bytes:
        builder = x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number())
        builder = builder.not_valid_before(now - day).not_valid_after(now + day)
        builder = builder.add_extension(x509.BasicConstraints(ca, None), True)
        alternatives = x509.SubjectAlternativeName(
            [x509.IPAddress(ipaddress.ip_address(address))]
        )
        if not ca:
            builder = builder.add_extension(alternatives, False)
        return builder.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM)

    files = {
        "ca": signed(issuer, ca_key.public_key(), True),
        "end": signed(name, key.public_key(), False),
        "end.key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    }
    for each, pem in files.items():
        (folder / each).write_bytes(pem)
        os.chmod(folder / each, 0o600)
    return {each: folder / each for each in files}
