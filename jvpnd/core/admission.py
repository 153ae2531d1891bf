"""What others may cost a gateway: a token per source or session, a cookie when it is busy."""

from __future__ import annotations

from jvpnd.core import constants as c
from jvpnd.core.effects import Origin
from jvpnd.core.ratelimit import CookieJar, TokenBuckets, source_key

_ALL = b""  # key of a bucket that everybody shares


class Admission:
    """Decides before any key exchange; bounded memory, no state for unproven sources."""

    def __init__(self, secret: bytes) -> None:
        self._jar = CookieJar(secret)
        self._sources = TokenBuckets(c.SOURCE_RATE_PER_S, c.SOURCE_BURST, c.SOURCE_TABLE_SIZE)
        self._exchanges = TokenBuckets(c.COOKIE_LOAD_PER_S, c.COOKIE_LOAD_PER_S, 1)
        self._probes = TokenBuckets(c.PROBE_RATE_PER_S, c.PROBE_BURST, c.SOURCE_TABLE_SIZE)
        self._audits = TokenBuckets(c.AUDIT_PER_S, c.AUDIT_PER_S, 1)
        self._refusals = TokenBuckets(c.AUDIT_PER_S, c.AUDIT_PER_S, c.SOURCE_TABLE_SIZE)
        self._loaded_until_ms = 0.0

    def is_loaded(self, now_ms: float) -> bool:
        """Whether only sources that have shown their address go on."""
        return now_ms < self._loaded_until_ms

    def has_cookie(self, now_ms: float, origin: Origin, cookie: bytes) -> bool:
        return self._jar.verify(cookie, *origin.remote, int(now_ms))

    def cookie(self, now_ms: float, origin: Origin) -> bytes:
        return self._jar.make(*origin.remote, int(now_ms))

    def count_exchange(self, now_ms: float) -> None:
        """A key exchange is about to be made: too many a second are a load."""
        if not self._exchanges.allow(_ALL, int(now_ms)):
            self._loaded_until_ms = now_ms + 1000

    def admits(self, now_ms: float, origin: Origin, proven: bool) -> bool:
        """Whether this source has a token left.

        `proven`: it brought a cookie or a ticket. Such packets have tokens of their own, which
        nobody uses up by forging the source's address.
        """
        key = bytes([proven]) + source_key(origin.remote[0])
        return self._sources.allow(key, int(now_ms))

    def may_probe(self, now_ms: float, session_id: bytes) -> bool:
        """Whether one more probe of this session is answered."""
        return self._probes.allow(session_id, int(now_ms))

    def may_audit(self, now_ms: float) -> bool:
        """Security events are bounded in rate: a flood must not become a flood of events."""
        return self._audits.allow(_ALL, int(now_ms))

    def may_tell_refusal(self, now_ms: float, session_id: bytes) -> bool:
        """The same for one session's refusals: a request replayed from a thousand addresses hides
        its own ones only."""
        return self._refusals.allow(session_id, int(now_ms))
