"""The tunnel over paths that are narrower than its datagrams: told of by ICMP, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from lab.daemons import INNER
from lab.namespace import Namespace
from lab.narrow import swallow, tell, widen
from lab.stage import Stage, Watch, until
from lab.topology import Uplink
from lab.traffic import Traffic
from lab.transfer import transfer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

LONGEST = {4: 1400 - 28, 6: 1400 - 48}  # of an echo request that fits the tunnel's MTU


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture
def wide(stage: Stage) -> Iterator[Stage]:
    yield stage
    stage.strike()
    for uplink in (stage.lab.a, stage.lab.b):
        widen(uplink)


def pings(host: Namespace, address: str, size: int, wait_s: int = 10) -> bool:
    """Whether an echo request with so much in it comes back, unfragmented inside."""
    command = ("ping", "-n", "-q", "-M", "do", "-i", "0.2", "-w", str(wait_s), "-c", "1")
    return host.run(*command, "-s", str(size), address, check=False).returncode == 0


def assert_carries_all(stage: Stage) -> None:
    """Packets as long as the tunnel's MTU, both versions, and content in bulk both ways."""
    client = stage.lab.client
    for address in INNER["gateway"]:
        longest = LONGEST[6 if ":" in address else 4]
        assert pings(client, address, 56)
        assert pings(client, address, longest), f"{longest} bytes to {address}"
    for address in INNER["gateway"]:
        assert transfer(client, stage.lab.gateway, address, 3_000_000) == []


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mtu", [1280, 1492])
@pytest.mark.parametrize("narrow", [tell, swallow])
def test_a_session_begins_and_carries_all_over_a_narrow_path(
    wide: Stage, narrow: Callable[[Uplink, int], None], mtu: int, version: int
) -> None:
    for uplink in (wide.lab.a, wide.lab.b):
        narrow(uplink, mtu)
    wide.pair(version=version)
    assert_carries_all(wide)


def carried(tcp: Traffic, timeout_s: float = 20) -> None:
    """The one connection goes on, with the right content."""
    tcp.report()
    reports = tcp.wait_until("bytes", above=500_000, timeout_s=timeout_s)
    assert {report["problem"] for report in reports} == {""}


@pytest.mark.parametrize("version", [4, 6])
def test_a_transfer_goes_on_over_paths_of_different_mtu(wide: Stage, version: int) -> None:
    """From wide to narrow and back, the narrow one without a word: it is known before the move."""
    lab = wide.lab
    swallow(lab.b, 1280)
    pair = wide.pair(version=version)
    with Traffic("tcp", lab.client, lab.gateway, INNER["gateway"][0]) as tcp:
        carried(tcp)
        for target in ("up-b", "up-a", "up-b"):
            watch = Watch(pair)
            if watch.bound() == target:
                continue
            path = next(p["id"] for p in pair.client.status()["paths"] if p["uplink"] == target)
            ordered = ("switch", path)  # not within the cooldown of the switch before
            until(lambda o=ordered: pair.client.ctl(*o).returncode == 0, f"ordered to {target}")
            until(lambda target=target, watch=watch: watch.bound() == target, f"bound to {target}")
            carried(tcp)
            assert pings(lab.client, INNER["gateway"][0], LONGEST[4])
        watch.assert_same_session()


@pytest.mark.parametrize("narrow", [tell, swallow])
def test_a_path_that_becomes_narrow_under_a_transfer_is_noticed(
    wide: Stage, narrow: Callable[[Uplink, int], None]
) -> None:
    lab = wide.lab
    pair = wide.pair()
    watch = Watch(pair)
    with Traffic("tcp", lab.client, lab.gateway, INNER["gateway"][0]) as tcp:
        carried(tcp)
        for uplink in (lab.a, lab.b):
            narrow(uplink, 1280)
        carried(tcp, timeout_s=40)
        carried(tcp)
        watch.assert_same_session()
