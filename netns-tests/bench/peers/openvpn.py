"""OpenVPN over UDP with AES-256-GCM, without its kernel module, as its manual's small setup has it.

Self-signed certificates, each end knows the other's fingerprint (openvpn-examples(5)).
"""

from __future__ import annotations

import contextlib
import datetime
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bench.link import GATEWAY, Link
from bench.peers.base import Peer, Tunnel, folder, output, running

NETWORK, INNER_GATEWAY = "10.88.0.0 255.255.255.0", "10.88.0.1"
PORT = 1194
COMMON = (
    "dev tun\nproto udp4\ndisable-dco\ndata-ciphers AES-256-GCM\nkeepalive 10 60\n"
    "persist-key\npersist-tun\nverb 3\n"
)


class OpenVpn(Peer):
    name = "openvpn"
    family = "OpenVPN"

    def __init__(self) -> None:
        # Debian has it where only root's PATH looks.
        self._binary = shutil.which("openvpn") or shutil.which("openvpn", path="/usr/sbin") or ""
        self.label = "OpenVPN"
        if self._binary:
            self.label = f"OpenVPN {self.version()}"

    def version(self) -> str:
        found = re.search(r"OpenVPN ([0-9.]+)", output(self._binary, "--version"))
        return found.group(1) if found else "0"

    def missing(self) -> str:
        return "" if self._binary else "no such program"

    @contextlib.contextmanager
    def start(self, link: Link) -> Iterator[Tunnel]:
        with folder() as room, contextlib.ExitStack() as stack:
            prints = {end: _certificate(room, end) for end in ("gateway", "client")}
            roles = {
                "gateway": f"server {NETWORK}\ntopology subnet\ndh none\nport {PORT}\n",
                "client": f"client\nremote {GATEWAY} {PORT}\nnobind\n",
            }
            pids = {}
            for end, other, host in (
                ("gateway", "client", link.gateway),
                ("client", "gateway", link.client),
            ):
                config = room / f"{end}.conf"
                config.write_text(
                    f"{roles[end]}{COMMON}cert {room}/{end}.crt\nkey {room}/{end}.key\n"
                    f"peer-fingerprint {prints[other]}\n"
                )
                log = room / f"{end}.log"
                command = (self._binary, "--config", str(config))
                pids[end] = stack.enter_context(running(host, log, *command)).pid
            yield Tunnel(INNER_GATEWAY, (pids["client"],), (pids["gateway"],))


def _certificate(room: Path, name: str) -> str:
    """A key and a certificate of its own in NAME.key and NAME.crt; the fingerprint."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (room / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    (room / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return certificate.fingerprint(hashes.SHA256()).hex(":")
