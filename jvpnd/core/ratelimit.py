"""What strangers may cost a gateway: token buckets by source prefix, stateless retry cookies."""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections import OrderedDict
from ipaddress import IPv4Address, IPv6Address, ip_address

COOKIE_LEN = 16
COOKIE_SLOT_MS = 60_000

_TOKEN = 1000  # milli-tokens, so that whole rates and times keep the sums exact
_COOKIE_INPUT = struct.Struct("<Hq")


def source_key(host: str) -> bytes:
    """The prefix that is one source: IPv4 /32 (4 bytes), IPv6 /64 (8 bytes).

    An IPv4-mapped address (dual-stack sockets show them) is its IPv4 address. ValueError if `host`
    is no address.
    """
    address = _address(host)
    return address.packed if isinstance(address, IPv4Address) else address.packed[:8]


def _address(host: str) -> IPv4Address | IPv6Address:
    address = ip_address(host)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


class TokenBuckets:
    """One bucket a key. Each holds `burst` tokens at most and gains `rate_per_s`; a use costs one.

    A key gets at most burst + rate_per_s * seconds uses, as long as its bucket is remembered. When
    more than `max_entries` keys are about, the one unused for longest is forgotten (and would start
    full again); refused uses count as uses, so that who floods stays remembered.
    """

    def __init__(self, rate_per_s: float, burst: float, max_entries: int) -> None:
        if not (rate_per_s > 0 and burst >= 1 and max_entries >= 1):
            raise ValueError(
                f"rate_per_s {rate_per_s} must be above 0, "
                f"burst {burst} and max_entries {max_entries} at least 1"
            )
        self._rate_per_s = rate_per_s
        self._full = burst * _TOKEN
        self._max_entries = max_entries
        self._buckets: OrderedDict[bytes, tuple[float, int]] = OrderedDict()  # milli-tokens, at ms

    def __len__(self) -> int:
        return len(self._buckets)

    def allow(self, key: bytes, now_ms: int) -> bool:
        """Take a token if there is one. `now_ms` is monotonic; going back in time earns nothing."""
        tokens, last_ms = self._buckets.pop(key, (self._full, now_ms))
        now_ms = max(now_ms, last_ms)
        tokens = min(self._full, tokens + (now_ms - last_ms) * self._rate_per_s)
        allowed = tokens >= _TOKEN
        self._buckets[key] = (tokens - _TOKEN if allowed else tokens, now_ms)
        if len(self._buckets) > self._max_entries:
            self._buckets.popitem(last=False)
        return allowed


class CookieJar:
    """Cookies that prove a source can hear us, without keeping anything per source.

    Keyed BLAKE2b-128 over the address, the port and a time slot of COOKIE_SLOT_MS. A cookie is good
    for the rest of its slot and all of the next one.
    """

    def __init__(self, secret: bytes) -> None:
        """`secret`: 32 random bytes of this run of the daemon, shared with nobody."""
        if len(secret) != 32:
            raise ValueError(f"cookie secret: {len(secret)} bytes, must be 32")
        self._secret = secret

    def make(self, host: str, port: int, now_ms: int) -> bytes:
        """The cookie (COOKIE_LEN bytes) for this source now; ValueError if `host` is no address."""
        return self._cookie(host, port, now_ms // COOKIE_SLOT_MS)

    def verify(self, cookie: bytes, host: str, port: int, now_ms: int) -> bool:
        """Whether we made this cookie for this source in this slot or the one before."""
        slot = now_ms // COOKIE_SLOT_MS
        return any(
            hmac.compare_digest(cookie, self._cookie(host, port, made)) for made in (slot, slot - 1)
        )

    def _cookie(self, host: str, port: int, slot: int) -> bytes:
        # The address is last and its length follows from it, so no two inputs look the same.
        data = _COOKIE_INPUT.pack(port, slot) + _address(host).packed
        return hashlib.blake2b(
            data, key=self._secret, digest_size=COOKIE_LEN, person=b"jvp1 cookie"
        ).digest()
