"""What both ends of TLS agree to: version 1.3, and nobody's name."""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Sequence


def client_context(alpn: Sequence[str]) -> ssl.SSLContext:
    """For a connection to a gateway. Raises ValueError if `alpn` has what none can be."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # the session handshake inside authenticates the gateway; a certificate adds nothing to it
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return _common(context, alpn)


def server_context(pem: int, alpn: Sequence[str]) -> ssl.SSLContext:
    """For accepted connections; `pem` is a descriptor of certificates and their private key.

    Raises ValueError if there is something in it that cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(f"/proc/self/fd/{pem}")  # OpenSSL takes nothing but a path
    except ssl.SSLError as error:
        raise ValueError(reason_of(error)) from None
    return _common(context, alpn)


def pem_file(pem: bytes) -> int:
    """A descriptor of a file in memory, for server_context; close it."""
    fd = os.memfd_create("pem")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(pem)
    return fd


def sni(server_name: str | None) -> str | None:
    """The name to show on the wire, None for none: an address is not a name (RFC 6066)."""
    if server_name is None:
        return None
    try:
        ipaddress.ip_address(server_name)
    except ValueError:
        return server_name
    return None


def reason_of(error: ssl.SSLError) -> str:
    """OpenSSL's reason in words."""
    return (error.reason or "unknown error").lower().replace("_", " ")


def _common(context: ssl.SSLContext, alpn: Sequence[str]) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if alpn:
        context.set_alpn_protocols(alpn)
    return context
