"""Faults under a running TCP connection: what the user sees, and what both ends tell of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.daemons import Daemon
from lab.stage import Stage, Watch, until
from lab.wire import Conditions

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

DIED = "ATTACHED -> RECOVERING TRANSPORT_DEAD"
REBOUND = "ATTACHED -> RECOVERING NAT_REBIND"
ORDERED = "ATTACHED -> RECOVERING RECOVERY_START"
BACK = "RECOVERING -> ATTACHED TRANSPORT_SWITCH_OK"
OFTEN = "max_switches_per_minute = 600\n"  # tests switch more often than a user would
SHARED = {"client_policy": OFTEN, "gateway_policy": OFTEN}


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    for uplink in (stage.lab.a, stage.lab.b):
        uplink.translate()
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture
def watch(stage: Stage) -> Iterator[Watch]:
    """The shared daemons under traffic."""
    with stage.watch(stage.pair(**SHARED)) as watch:
        yield watch


def assert_went(watch: Watch, expected: list[str], at_gateway: list[str] | None = None) -> None:
    """The connection goes on, the session is the same, and both ends tell this story.

    On a busy machine an ACK may come after the client's time-out. The client then asks again,
    and the gateway tells of one more switch for each such request.
    """
    watch.assert_flows()
    watch.assert_same_session()
    assert watch.story("client") == expected
    at_gateway = expected if at_gateway is None else at_gateway
    told = watch.story("gateway")
    asked = [e for e in watch.events("client") if e["event_type"] == "REATTACH_ATTEMPT"]
    retries = sum(e["details"]["cause"] == "RETRY" for e in asked)
    if not retries:
        assert told == at_gateway
    else:
        assert set(told) <= {*at_gateway, DIED}
        assert told[1::2] == [BACK] * (len(told) // 2)
        assert 2 <= len(told) <= 2 * (1 + retries)


def test_link_down_and_back(stage: Stage, watch: Watch) -> None:
    lost = watch.bound()
    stage.uplink(lost).set_down()
    watch.wait_attached()
    assert watch.bound() == stage.other(lost).device
    assert_went(watch, [DIED, BACK])
    stage.uplink(lost).set_up()
    stage.wait_paths(2)
    assert_went(watch, [DIED, BACK])  # a candidate that comes back moves nothing


def test_blackhole_that_no_interface_tells_of(stage: Stage, watch: Watch) -> None:
    lost = watch.bound()
    stage.uplink(lost).silence()
    watch.wait_attached()
    assert watch.bound() == stage.other(lost).device
    assert_went(watch, [DIED, BACK])
    (died,) = [e for e in watch.events("client") if e["to"] == "RECOVERING"]
    assert died["details"]["why"] == "silent while another path answers"


@pytest.mark.parametrize("ports", ["40000-49999", "20000-29999"])
def test_nat_rebinding_under_traffic(stage: Stage, watch: Watch, ports: str) -> None:
    stage.uplink(watch.bound()).rebind(ports)
    watch.wait_attached()
    assert_went(watch, [REBOUND, BACK])


def test_nat_rebinding_while_idle(stage: Stage) -> None:
    pair = stage.pair(**SHARED)
    uplink = stage.uplink(Watch(pair).bound())

    def is_idle() -> bool:
        sent = pair.client.status()["traffic"]["tx_packets"]
        time.sleep(1.2)  # the state to test is: nothing sent for more than a second
        return bool(pair.client.status()["traffic"]["tx_packets"] == sent)

    until(is_idle, "no traffic")
    watch = Watch(pair)
    uplink.rebind("50000-59999")
    watch.wait_attached()
    with stage.watch(pair) as after:
        after.assert_flows()
    watch.assert_same_session()
    assert watch.story("client") == watch.story("gateway") == [REBOUND, BACK]


def test_a_new_address_on_the_only_uplink(stage: Stage, watch: Watch) -> None:
    only = stage.uplink(watch.bound())
    stage.other(only.device).set_down()
    stage.wait_paths(1)
    for host in (77, 2):
        watch.begin()
        only.change_address(host)
        watch.wait_attached()
        assert_went(watch, [DIED, BACK])
        local = watch.pair.client.status()["session"]["binding"]["local"]
        assert local == f"10.{only.number}.0.{host}"


def test_a_lost_address_is_certain(stage: Stage, watch: Watch) -> None:
    lost = stage.uplink(watch.bound())
    stage.lab.client.ip("addr", "del", f"10.{lost.number}.0.2/24", "dev", lost.device)
    watch.wait_attached()
    assert watch.bound() == stage.other(lost.device).device
    assert_went(watch, [DIED, BACK])


def test_a_lost_default_route_is_certain(stage: Stage, watch: Watch) -> None:
    lost = watch.bound()
    stage.lab.client.ip("route", "del", "default", "dev", lost)
    watch.wait_attached()
    assert watch.bound() == stage.other(lost).device
    assert_went(watch, [DIED, BACK])


def refuse(stage: Stage, device: str, how: str) -> None:
    """Port unreachable, for some or all of the tunnel's packets of one uplink."""
    n = stage.uplink(device).number
    stage.lab.gateway.nft(
        "table ip lab_refuse\ndelete table ip lab_refuse\ntable ip lab_refuse {\n"
        "chain input {\ntype filter hook input priority 0;\n"
        f"ip saddr {{ 10.{n}.0.0/24, 172.16.{n}.0/24 }} udp dport 7700 {how} "
        "counter reject with icmp port-unreachable\n}\n}\n"
    )


@pytest.fixture
def refusals(stage: Stage) -> Iterator[None]:
    yield
    stage.lab.gateway.nft("table ip lab_refuse\ndelete table ip lab_refuse\n")


@pytest.mark.usefixtures("refusals")
def test_a_refused_packet_is_only_a_suspicion(stage: Stage, watch: Watch) -> None:
    refuse(stage, watch.bound(), "limit rate 5/second burst 5 packets")
    listing = ("nft", "list", "table", "ip", "lab_refuse")

    def refused() -> bool:
        words = stage.lab.gateway.run(*listing).stdout.split()
        return int(words[words.index("packets", words.index("counter")) + 1]) >= 10

    until(refused, "ten packets refused")
    assert_went(watch, [])


@pytest.mark.usefixtures("refusals")
def test_a_path_that_only_refuses_is_left(stage: Stage, watch: Watch) -> None:
    lost = watch.bound()
    refuse(stage, lost, "")
    watch.wait_attached()
    assert watch.bound() == stage.other(lost).device
    assert_went(watch, [DIED, BACK])


def test_a_planned_switch_loses_no_packet(stage: Stage, watch: Watch) -> None:
    assert watch.echo is not None
    reports = [watch.echo.report()]
    for _ in range(3):
        goal = stage.other(watch.bound()).device
        watch.begin()
        done = watch.pair.client.ctl("switch", goal)
        assert done.returncode == 0, done.stderr
        watch.wait_attached()
        assert watch.bound() == goal
        assert watch.story("client") == [ORDERED, BACK]
        reports += watch.echo.wait_until("received", above=100)
    sent, received = (sum(r[what] for r in reports) for what in ("sent", "received"))
    assert sent == received
    watch.begin()
    assert_went(watch, [])


def test_heavy_loss_on_every_path_is_no_death(stage: Stage, watch: Watch) -> None:
    for uplink in (stage.lab.a, stage.lab.b):
        uplink.wire.set_both(Conditions(loss=0.3))
    time.sleep(3)  # the fault's length is the test
    for uplink in (stage.lab.a, stage.lab.b):
        uplink.wire.set_both(Conditions())
    watch.assert_flows(timeout_s=60)  # TCP may be in a long back-off of its own
    watch.assert_same_session()
    for side in ("client", "gateway"):
        reasons = {line.split()[-1] for line in watch.story(side)}
        assert "TRANSPORT_DEAD" not in reasons
        assert not any("TERMINATED" in line for line in watch.story(side))


def worker(daemon: Daemon, role: str) -> int:
    """Pid of one of a daemon's data-plane processes."""
    assert daemon.process is not None
    pid = daemon.process.pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        if "jvpnd.dataplane.worker" in words and role in words:
            return int(child)
    raise AssertionError(f"no {role} worker of {pid}:\n{daemon.log}")


@pytest.mark.parametrize("role", ["uplink", "downlink"])
@pytest.mark.parametrize("side", ["client", "gateway"])
def test_a_killed_worker_is_replaced(watch: Watch, side: str, role: str) -> None:
    daemon: Daemon = getattr(watch.pair, side)
    epoch = watch.pair.client.status()["session"]["epoch"]
    old = worker(daemon, role)
    os.kill(old, signal.SIGKILL)
    watch.wait_attached()
    assert_went(watch, [DIED if side == "client" else REBOUND, BACK])
    assert worker(daemon, role) != old
    assert watch.pair.client.status()["session"]["epoch"] > epoch
    assert restarts(watch, side) == [{"worker": role, "why": "signal SIGKILL"}]


def restarts(watch: Watch, side: str) -> list[dict[str, str]]:
    return [e["details"] for e in watch.events(side) if e["event_type"] == "WORKER_RESTARTED"]


@pytest.mark.parametrize("role", ["uplink", "downlink"])
@pytest.mark.parametrize("side", ["client", "gateway"])
def test_a_hung_worker_is_found_by_its_heartbeat_and_replaced(
    watch: Watch, side: str, role: str
) -> None:
    daemon: Daemon = getattr(watch.pair, side)
    epoch = watch.pair.client.status()["session"]["epoch"]
    old = worker(daemon, role)
    os.kill(old, signal.SIGSTOP)
    daemon.wait_for(lambda e: e["event_type"] == "WORKER_RESTARTED", after=watch.seq(side))
    until(lambda: watch.pair.client.status()["session"]["epoch"] > epoch, "a new epoch")
    watch.wait_attached()
    watch.assert_flows(timeout_s=60)  # TCP may be in a back-off of its own
    watch.assert_same_session()
    assert worker(daemon, role) != old
    assert restarts(watch, side) == [{"worker": role, "why": "hung"}]
    assert restarts(watch, "gateway" if side == "client" else "client") == []


def test_both_paths_dead_for_a_while(stage: Stage, watch: Watch) -> None:
    lost = watch.bound()
    stage.other(lost).set_down()  # this one first: nothing to switch to
    stage.wait_paths(1)
    stage.uplink(lost).set_down()
    watch.pair.client.wait_state("RECOVERING", after=watch.seq())
    until(lambda: not watch.pair.client.status()["paths"], "no path is left")
    stage.lab.b.set_up()
    watch.wait_attached()
    assert_went(watch, [DIED, BACK])


QUICK = "heartbeat_idle_ms = 300\nvolatile_after_ms = 600\nvolatile_to_degraded_ms = 1000\n"


def test_silence_beyond_the_recovery_window(stage: Stage) -> None:
    policy = OFTEN + QUICK + "max_recovery_window_ms = 1000\n"
    pair = stage.pair(client_policy=policy, gateway_policy=policy)
    with stage.watch(pair) as watch:
        lost = watch.bound()
        stage.other(lost).silence()  # this one first, and for long: it is no witness any more
        until(lambda: pair.client.status()["paths"][-1]["last_heard_ms"] > 1000, "it is silent")
        stage.uplink(lost).silence()
        for daemon in (pair.client, pair.gateway):
            seq = watch.seq("client" if daemon is pair.client else "gateway")
            daemon.wait_state("DEGRADED", after=seq)
        for uplink in (stage.lab.a, stage.lab.b):
            uplink.wire.set_both(Conditions())
        watch.wait_attached()
        watch.assert_flows(timeout_s=60)
        watch.assert_same_session()
        silent = [
            "ATTACHED -> VOLATILE VOLATILITY_SIGNAL",
            "VOLATILE -> RECOVERING TRANSPORT_DEAD",
            "RECOVERING -> DEGRADED RECOVERY_BOUNDS_EXCEEDED",
        ]
        retried = ["DEGRADED -> RECOVERING RECOVERY_RETRY"]
        client = watch.story("client")
        assert client[:4] == silent + retried
        assert client[-1] == BACK
        assert watch.story("gateway") == [*silent, *retried, BACK]


def assert_succeeded(watch: Watch, reason: str) -> None:
    """The session ended for this reason and a new one, which says so, carries on."""
    client = watch.pair.client
    created = client.wait_for(lambda e: e["event_type"] == "SESSION_CREATED", after=watch.seq())
    assert created["details"]["supersedes"] == watch.session
    ended = watch.story("client")[-1]
    assert ended.endswith(f"-> TERMINATED {reason}")
    at_gateway = watch.pair.gateway.wait_for(
        lambda e: e["event_type"] == "SESSION_CREATED", after=watch.seq("gateway")
    )
    assert at_gateway["session_id"] == created["session_id"] != watch.session
    assert at_gateway["details"]["supersedes"] == watch.session
    inner = watch.addresses
    watch.begin()
    assert watch.session == created["session_id"]
    assert watch.addresses == inner


def test_dead_for_longer_than_the_transport_loss_ttl(stage: Stage) -> None:
    policy = OFTEN + QUICK + "transport_loss_ttl_ms = 1500\n"
    pair = stage.pair(client_policy=policy, gateway_policy=policy)
    with stage.watch(pair) as watch:
        for uplink in (stage.lab.a, stage.lab.b):
            uplink.set_down()
        for daemon in (pair.client, pair.gateway):
            seq = watch.seq("client" if daemon is pair.client else "gateway")
            ended = daemon.wait_state("TERMINATED", after=seq)
            assert ended["reason"] == "TTL_TRANSPORT_LOSS_EXPIRED"
            assert ended["session_id"] == watch.session
        for uplink in (stage.lab.a, stage.lab.b):
            uplink.set_up()
        assert_succeeded(watch, "TTL_TRANSPORT_LOSS_EXPIRED")
        assert_went(watch, [])


def test_session_ttl_of_the_policy(stage: Stage) -> None:
    """The gateway's bound holds for a client that would allow itself more."""
    bound = "session_ttl_ms = 6000\ntransport_loss_ttl_ms = 6000\n"
    pair = stage.pair(client_policy=OFTEN, gateway_policy=OFTEN + bound)
    with stage.watch(pair) as watch:
        for daemon in (pair.client, pair.gateway):
            seq = watch.seq("client" if daemon is pair.client else "gateway")
            ended = daemon.wait_state("TERMINATED", after=seq)
            assert ended["reason"] == "TTL_SESSION_EXPIRED"
            assert ended["session_id"] == watch.session
        assert_succeeded(watch, "TTL_SESSION_EXPIRED")
        watch.assert_flows()


def test_rekeys_under_traffic_lose_nothing(stage: Stage) -> None:
    policy = OFTEN + "rekey_after_ms = 1000\n"
    pair = stage.pair(client_policy=policy, gateway_policy=policy)
    with stage.watch(pair) as watch:
        assert watch.echo is not None
        watch.echo.report()

        def rekeys(side: str) -> list[int]:
            found = [e for e in watch.events(side) if e["event_type"] == "REKEY"]
            return [e["details"]["epoch"] for e in found]

        until(lambda: len(rekeys("client")) >= 3, "three rekeys")
        epochs = rekeys("client")
        assert epochs == sorted(set(epochs))
        until(lambda: rekeys("gateway")[: len(epochs)] == epochs, "the same at the gateway")
        reports = watch.echo.wait_until("received", above=100)
        assert sum(r["sent"] for r in reports) == sum(r["received"] for r in reports)
        assert_went(watch, [])


def test_ipv6_outside_and_inside(stage: Stage) -> None:
    pair = stage.pair(version=6, **SHARED)
    with stage.watch(pair, family=1) as watch:
        lost = watch.bound()
        assert pair.client.status()["session"]["binding"]["remote"].startswith("[2001:db8:7::7]")
        stage.uplink(lost).set_down()
        watch.wait_attached()
        assert_went(watch, [DIED, BACK])
        stage.uplink(lost).set_up()
        stage.wait_paths(2)
        watch.begin()
        stage.uplink(watch.bound()).silence()
        watch.wait_attached()
        assert watch.bound() == lost
        assert_went(watch, [DIED, BACK])
