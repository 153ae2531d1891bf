"""Certificates of the TLS transport: made, loaded, and refused in one clear line."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from jvpnd.transport.certificate import load_certificate, self_signed
from jvpnd.transport.tlscontext import client_context, pem_file, server_context, sni

MARK = b"-----BEGIN PRIVATE KEY-----"


def files(directory: Path) -> tuple[Path, Path]:
    """A certificate and its key, apart."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    pem = self_signed("gw")
    certificate.write_bytes(pem[: pem.index(MARK)])
    key.write_bytes(pem[pem.index(MARK) :])
    return certificate, key


def handshake(pem: bytes) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    fd = pem_file(pem)
    server = server_context(fd, ["h2"]).wrap_bio(to_server, to_client, server_side=True)
    client = client_context(["h2"]).wrap_bio(to_client, to_server, server_hostname="some.name")
    for end in (client, server, client, server):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return client, server


def test_a_certificate_made_here_serves_tls_1_3() -> None:
    client, server = handshake(self_signed("gw"))
    assert client.version() == server.version() == "TLSv1.3"
    assert client.selected_alpn_protocol() == server.selected_alpn_protocol() == "h2"


def test_a_certificate_made_here_says_its_name_alone() -> None:
    certificate = x509.load_pem_x509_certificate(self_signed("gw-berlin"))
    assert certificate.subject.rfc4514_string() == "CN=gw-berlin"
    assert certificate.issuer == certificate.subject
    assert list(certificate.extensions) == []
    now = datetime.datetime.now(datetime.UTC)
    assert certificate.not_valid_before_utc < now
    assert certificate.not_valid_after_utc > now + datetime.timedelta(days=3650)


def test_each_is_another() -> None:
    first, second = (x509.load_pem_x509_certificate(self_signed("gw")) for _ in range(2))
    assert first.public_key() != second.public_key()
    assert first.serial_number != second.serial_number


@pytest.mark.parametrize("name", ["x" * 200, "ü" * 60])
def test_a_long_name_is_cut(name: str) -> None:
    certificate = x509.load_pem_x509_certificate(self_signed(name))
    (attribute,) = certificate.subject
    assert isinstance(attribute.value, str)
    assert name.startswith(attribute.value)
    assert len(attribute.value.encode()) <= 64


def test_it_is_loaded_from_one_file_or_two(tmp_path: Path) -> None:
    certificate, key = files(tmp_path)
    handshake(load_certificate(certificate, key))
    both = tmp_path / "both.pem"
    for order in ((certificate, key), (key, certificate)):
        both.write_bytes(b"".join(path.read_bytes() for path in order))
        handshake(load_certificate(both, None))


def test_those_that_lead_to_the_issuer_come_with_it(tmp_path: Path) -> None:
    certificate, key = files(tmp_path)
    other = self_signed("issuer")
    certificate.write_bytes(certificate.read_bytes() + other[: other.index(MARK)])
    pem = load_certificate(certificate, key)
    assert len(x509.load_pem_x509_certificates(pem)) == 2
    handshake(pem)


def refusal(certificate: Path, key: Path | None) -> str:
    with pytest.raises(ValueError, match=r".") as refused:
        load_certificate(certificate, key)
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    certificate, key = files(tmp_path)
    nothing = tmp_path / "nothing.pem"
    assert refusal(nothing, key) == f"{nothing}: No such file or directory"
    assert refusal(certificate, nothing) == f"{nothing}: No such file or directory"
    assert refusal(tmp_path, None) == f"{tmp_path}: Is a directory"
    assert refusal(certificate, None) == f"{certificate}: no private key in PEM form"
    assert refusal(key, key) == f"{key}: no certificate in PEM form"


def test_what_is_in_a_file_is_not_trusted_to_be_what_it_should(tmp_path: Path) -> None:
    certificate, key = files(tmp_path)
    junk, cut = tmp_path / "junk.pem", tmp_path / "cut.pem"
    junk.write_bytes(bytes(range(256)))
    cut.write_bytes(certificate.read_bytes()[:100])
    for each in (junk, cut):
        assert refusal(each, key) == f"{each}: no certificate in PEM form"
        assert refusal(certificate, each) == f"{each}: no private key in PEM form"
    endless = Path("/dev/zero")
    assert refusal(endless, None) == f"{endless}: too long for a certificate or a key"


def test_a_key_must_belong_to_its_certificate(tmp_path: Path) -> None:
    certificate, key = files(tmp_path)
    other = ec.generate_private_key(ec.SECP256R1())
    key.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    why = f"{key}: not the key of the first certificate in {certificate}"
    assert refusal(certificate, key) == why


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_nobody_is_asked_for_a_password(tmp_path: Path, form: PrivateFormat) -> None:
    certificate, key = files(tmp_path)
    secret = load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(secret.private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"x")))
    assert refusal(certificate, key) == f"{key}: the private key is encrypted; decrypt it"


def test_a_key_that_openssl_takes_for_weak_is_found_out_before_it_serves(tmp_path: Path) -> None:
    path = tmp_path / "weak.pem"
    weak = rsa.generate_private_key(65537, 1024)
    path.write_bytes(signed_by(weak))
    assert refusal(path, None) == f"{path}: cannot be used: ee key too small"


def signed_by(key: rsa.RSAPrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "weak")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    return certificate + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_an_address_is_no_server_name() -> None:
    assert sni("vpn.example") == "vpn.example"
    assert sni("192.0.2.1") is sni("2001:db8::1") is sni(None) is None
