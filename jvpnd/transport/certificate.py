"""The gateway's TLS certificate: its operator's, or one made on the spot. Nobody checks it but
those who look on; see docs/tls.md."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from jvpnd.transport.tlscontext import pem_file, server_context

VALID: Final = datetime.timedelta(days=20 * 365)
MAX_COMMON_NAME: Final = 64  # X.520, ub-common-name
MAX_FILE: Final = 1024 * 1024


def self_signed(node_name: str) -> bytes:
    """A new certificate and its key, PEM. It says `node_name`, and not what it is used for."""
    key = ec.generate_private_key(ec.SECP256R1())
    text = node_name.encode()[:MAX_COMMON_NAME].decode(errors="ignore")
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # somebody's clock may be behind
        .not_valid_after(now + VALID)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM) + private


def load_certificate(file_cert: Path, file_key: Path | None) -> bytes:
    """A certificate, those that lead to its issuer, and its private key, PEM.

    Without `file_key` the key is looked for behind the certificates. Raises ValueError: one line
    that names the file and what is wrong with it.
    """
    pem = _read(file_cert)
    file_secret = file_cert if file_key is None else file_key
    secret = pem if file_key is None else _read(file_key)
    if _public_of_key(file_secret, secret) != _public_of_certificate(file_cert, pem):
        raise ValueError(f"{file_secret}: not the key of the first certificate in {file_cert}")
    whole = pem if file_key is None else pem + b"\n" + secret
    fd = pem_file(whole)
    try:
        server_context(fd, [])
    except ValueError as error:  # what OpenSSL alone minds, such as keys too short for today
        raise ValueError(f"{file_cert}: cannot be used: {error}") from None
    finally:
        os.close(fd)
    return whole


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ValueError(f"{path}: {os.strerror(error.errno or 0)}") from None
    if len(data) > MAX_FILE:
        raise ValueError(f"{path}: too long for a certificate or a key")
    return data


def _public_of_certificate(path: Path, pem: bytes) -> bytes:
    try:
        first = x509.load_pem_x509_certificates(pem)[0]
        return first.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"{path}: no certificate in PEM form") from None


def _public_of_key(path: Path, pem: bytes) -> bytes:
    try:
        key = load_pem_private_key(pem, None)
    except TypeError:  # it wants a password
        raise ValueError(f"{path}: the private key is encrypted; decrypt it") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"{path}: no private key in PEM form") from None
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
