"""Which paths a client wants: its uplinks times the endpoints that it knows, or was told."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

import pytest

from jvpnd.config import GatewayPeer
from jvpnd.core import effects
from jvpnd.core.policy import Policy
from jvpnd.net.uplinks import Uplink
from jvpnd.paths import ClientPaths
from jvpnd.transport.endpoint import Endpoint
from jvpnd.transport.proxy import Proxy

UDP = Endpoint("udp", "192.0.2.1", 7700, "gw.example")
TLS = Endpoint("tls", "gw.example", 443)
PROXY = Proxy("proxy.example", 3128, None)


class User:
    """Whom the paths are for: it has a session over this path, if any."""

    def __init__(self, policy: Policy | None = None, bound: str | None = None) -> None:
        self.policy = policy or Policy()
        self.is_resting = False
        self.bound = bound

    def bound_path(self) -> str | None:
        return self.bound


def with_paths(
    endpoints: list[Endpoint],
    look: Callable[[ClientPaths], None],
    proxy: Proxy | None = None,
    user: User | None = None,
) -> None:
    """`look` at paths over two uplinks, one of which has no IPv6, to these resolved endpoints."""

    async def body() -> None:
        peer = GatewayPeer(b"", tuple(endpoints), proxy=proxy)
        paths = ClientPaths(peer, 0, 1, user or User())  # type: ignore[arg-type]
        paths._endpoints = endpoints
        paths._uplinks = {
            "wlan0": Uplink("wlan0", 1, 1500, "10.0.0.2", "2001:db8::2"),
            "wwan0": Uplink("wwan0", 2, 1500, "10.1.0.2", None),
        }
        look(paths)
        await paths.close()

    asyncio.run(body())


def told(transport: str, address: str = "", port: int = 443) -> effects.Endpoint:
    return effects.Endpoint(transport, address, port)


def test_a_gateway_without_an_address_is_where_it_is_known_to_be() -> None:
    def look(paths: ClientPaths) -> None:
        paths._learned = (told("tls"), told("tcp", "2001:db8::7", 7700), told("udp", "", 7700))
        assert paths._all_endpoints() == [
            UDP,
            Endpoint("tls", "192.0.2.1", 443, "gw.example"),
            Endpoint("tcp", "2001:db8::7", 7700),
        ]

    with_paths([UDP], look)


def test_a_name_that_only_the_proxy_knows_is_for_tls_alone() -> None:
    def look(paths: ClientPaths) -> None:
        paths._learned = (told("udp", "", 7700), told("tls", "", 8443), told("tcp", "", 7700))
        assert paths._all_endpoints() == [TLS, Endpoint("tls", "gw.example", 8443)]
        assert {row.source for row in paths._wanted().values()} == {"10.0.0.2", "10.1.0.2"}

    with_paths([TLS], look, PROXY)


def test_quic_that_is_missing_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(paths: ClientPaths) -> None:
        paths._learned = (told("quic"),)
        assert len(paths._all_endpoints()) == 2
        monkeypatch.setitem(sys.modules, "aioquic", None)
        assert paths._all_endpoints() == [UDP]

    with_paths([UDP], look)


def test_paths_are_uplinks_times_endpoints_of_the_same_ip_version() -> None:
    def look(paths: ClientPaths) -> None:
        assert list(paths._wanted()) == [
            "wlan0/udp/192.0.2.1:7700",
            "wlan0/tcp/[2001:db8::7]:7700",
            "wwan0/udp/192.0.2.1:7700",
        ]

    with_paths([UDP, Endpoint("tcp", "2001:db8::7", 7700)], look)


def test_connections_are_warm_or_sought_or_carry_the_session() -> None:
    def look(paths: ClientPaths) -> None:
        def connected() -> set[str]:
            return paths._worth_connecting(paths._wanted())

        assert connected() == {"wlan0/tcp/192.0.2.1:7700"}
        paths._seeking = True
        assert connected() == {
            f"{uplink}/{way}/192.0.2.1:{port}"
            for uplink in ("wlan0", "wwan0")
            for way, port in (("tcp", 7700), ("tls", 443))
        }
        paths._seeking = False
        user.bound = "wwan0/tls/192.0.2.1:443"
        assert connected() == {"wlan0/tcp/192.0.2.1:7700", user.bound}
        user.policy = Policy(warm_connections=0)
        assert connected() == {user.bound}

    user = User(Policy(warm_connections=1))
    endpoints = [UDP, Endpoint("tls", "192.0.2.1", 443), Endpoint("tcp", "192.0.2.1", 7700)]
    with_paths(endpoints, look, user=user)
