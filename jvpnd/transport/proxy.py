"""HTTP proxies: their URL, the CONNECT request, and its response (RFC 9110, 9.3.6). No IO."""

from __future__ import annotations

import base64
import re
from typing import Final
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

from jvpnd.core.dataclass import dataclass

MAX_HEADER: Final = 8192
MAX_REASON: Final = 100

_ALLOWED: Final = "allowed is http://[user:password@]host[:port]"
_END_OF_HEADER: Final = re.compile(rb"\n\r?\n")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: ([^\r\n]*))?\r?\n")


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where a proxy is, and the value of Proxy-Authorization that it wants, if any."""

    host: str
    port: int
    authorization: str | None


class ProxyError(Exception):
    """Why there is no way through the proxy: one short sentence of printable ASCII."""


def parse_proxy(url: str) -> Proxy:
    """Raises ValueError, which says what is allowed but not what the password is."""
    if not re.fullmatch(r"[!-~]*", url):
        raise ValueError(f"a character that no URL has; {_ALLOWED}")
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        raise ValueError(f"no URL; {_ALLOWED}") from None
    if parts.scheme != "http":
        raise ValueError(f"scheme {parts.scheme!r}; {_ALLOWED}")
    if not host:
        raise ValueError(f"no host; {_ALLOWED}")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"something behind the port; {_ALLOWED}")
    return Proxy(host, _port_of(parts), _basic(parts.username, parts.password))


def from_environment() -> Proxy | None:
    """What https_proxy says, as other programs understand it. Raises ValueError."""
    from urllib.request import getproxies_environment  # slow to import, and clients' alone

    url = getproxies_environment().get("https")
    return parse_proxy(url if "://" in url else f"http://{url}") if url else None


def _port_of(parts: SplitResult) -> int:
    try:
        port = 80 if parts.port is None else parts.port
    except ValueError:  # it would tell the password where that has a "/"
        port = 0
    if port == 0:
        raise ValueError("the port must be 1 to 65535")
    return port


def _basic(user: str | None, password: str | None) -> str | None:
    if user is None:
        return None
    pair = unquote_to_bytes(user) + b":" + unquote_to_bytes(password or "")
    return "Basic " + base64.b64encode(pair).decode()


def connect_request(target: str, authorization: str | None) -> bytes:
    """The request for a way to `target`, "host:port"."""
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if authorization is not None:
        lines.append(f"Proxy-Authorization: {authorization}")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


class ConnectResponse:
    """Takes the proxy's answer in pieces; what comes of it does not depend on how it was cut."""

    def __init__(self) -> None:
        self._header = bytearray()

    def feed(self, data: bytes) -> int | None:
        """Once the way is open: how many bytes of `data` were the proxy's own. None: more.

        Raises ProxyError if it refuses, or does not speak HTTP.
        """
        known = len(self._header)
        self._header += data[: MAX_HEADER - known]
        self._check_status()
        # a body is never behind a 2xx answer to CONNECT, whatever its header says
        end = _END_OF_HEADER.search(self._header, max(known - 2, 0))
        if end is not None:
            return end.end() - known
        if len(self._header) == MAX_HEADER:
            raise ProxyError("the proxy's answer does not end")
        return None

    def _check_status(self) -> None:
        line_end = self._header.find(b"\n")
        if line_end < 0:
            return
        status = _STATUS_LINE.match(self._header)
        if status is None:
            raise ProxyError("the proxy does not speak HTTP")
        if not status[1].startswith(b"2"):
            phrase = _printable(b" ".join(filter(None, status.groups())))
            raise ProxyError(f"the proxy refused: {phrase}")


def _printable(text: bytes) -> str:
    """For a log: nothing that could move its cursor, or fill it."""
    return re.sub(r"[^ -~]", "?", text[:MAX_REASON].decode("latin-1"))
