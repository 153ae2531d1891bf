"""Starting, stopping, crashing, being refused: what is left on the hosts, what both ends tell."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from lab.daemons import PORT, Daemon, Pair, client_config, key_pair
from lab.namespace import Namespace
from lab.stage import Stage, Watch, assert_versions_rise_by_one, transitions, until
from lab.topology import OUTSIDE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

QUICK = "heartbeat_idle_ms = 300\nvolatile_after_ms = 600\nvolatile_to_degraded_ms = 1000\n"
SPLIT = '[routes]\nmode = "split"\nnetworks = ["10.20.0.0/16", "fd20::/32"]\n'
FULL = '[routes]\nmode = "full"\n'
BEYOND = ("198.51.100.9", "2001:db8:9::9")  # behind the gateway
SYSCTLS = (
    "net.ipv4.ip_forward",
    "net.ipv6.conf.all.forwarding",
    "net.ipv4.conf.all.src_valid_mark",
)
SHOWN = (
    "ip -j addr",
    "ip -j -4 route show table all",
    "ip -j -6 route show table all",
    "ip -j -4 rule",
    "ip -j -6 rule",
    "nft list ruleset",
    *(f"sysctl {key}" for key in SYSCTLS),
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture
def healed(stage: Stage) -> Stage:
    """The lab alone, without daemons."""
    stage.strike()
    stage.heal()
    for host in (stage.lab.client, stage.lab.gateway):
        until(partial(is_settled, host), "the kernel has given all link-local addresses")
    return stage


def is_settled(namespace: Namespace) -> bool:
    links = namespace.run("ip", "-o", "link").stdout.count("link/ether")
    local = namespace.run("ip", "-o", "-6", "addr", "show", "scope", "link").stdout
    return local.count("inet6 fe80") == links and "tentative" not in local


def snapshot(namespace: Namespace) -> dict[str, str]:
    """All that a daemon may change on its host."""
    return {command: namespace.run(*command.split()).stdout for command in SHOWN}


def way(namespace: Namespace, address: str) -> str:
    """The interface by which the host's own packets to an address leave."""
    words = namespace.run("ip", "route", "get", address).stdout.split()
    return words[words.index("dev") + 1]


def routed(namespace: Namespace, *addresses: str) -> None:
    until(lambda: all(way(namespace, a) == "jvpn0" for a in addresses), f"a way to {addresses}")


def all_ended(pids: Sequence[int]) -> bool:
    return all(has_ended(pid) for pid in pids)


def workers(daemon: Daemon) -> list[int]:
    assert daemon.process is not None
    pid = daemon.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children]


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize(
    ("routes", "routed_addresses"),
    [(SPLIT, ("10.20.0.1", "fd20::1")), (FULL, BEYOND)],
    ids=["split", "full"],
)
def test_sigterm_leaves_the_hosts_as_they_were(
    healed: Stage, routes: str, routed_addresses: tuple[str, ...]
) -> None:
    hosts = (healed.lab.client, healed.lab.gateway)
    before = [snapshot(host) for host in hosts]
    with Pair(*hosts, routes=routes) as pair:
        pair.start()
        routed(hosts[0], *routed_addresses)
        for daemon, clean in zip((pair.client, pair.gateway), before, strict=True):
            assert snapshot(daemon.namespace) != clean
            left = workers(daemon)
            assert len(left) == 2
            assert daemon.stop(signal.SIGTERM) == 0
            assert all_ended(left)
            assert snapshot(daemon.namespace) == clean
            assert not daemon.socket_file.exists()


def test_the_start_after_a_kill_goes_on_with_what_is_there_and_its_stop_removes_it(
    healed: Stage,
) -> None:
    host, gateway = healed.lab.client, healed.lab.gateway
    before = [snapshot(host), snapshot(gateway)]
    with Pair(host, gateway, routes=FULL) as pair:
        pair.start()
        routed(host, *BEYOND)
        for daemon in (pair.client, pair.gateway):
            orphans = workers(daemon)
            daemon.stop(signal.SIGKILL)
            until(partial(all_ended, orphans), "the workers have ended too")
        assert [way(host, address) for address in BEYOND] == ["jvpn0", "jvpn0"]  # nothing leaks
        pair.gateway.start()
        pair.client.start()
        pair.client.wait_state("ATTACHED")
        routed(host, *BEYOND)
        assert [d.stop() for d in (pair.client, pair.gateway)] == [0, 0]
    assert [snapshot(host), snapshot(gateway)] == before


def test_ready_means_that_it_answers_even_without_a_gateway(healed: Stage) -> None:
    with Pair(healed.lab.client, healed.lab.gateway) as pair:
        assert pair.client.ctl("status").returncode == 3  # not running
        pair.client.start()
        assert pair.client.status()["state"] == "BIRTH"
        assert pair.client.status()["interface"] == "jvpn0"
        pair.gateway.start()
        assert pair.gateway.status()["state"] == "LISTENING"
        pair.client.wait_state("ATTACHED")


@pytest.fixture
def beyond(healed: Stage) -> Iterator[Stage]:
    """Addresses behind the gateway that answer a ping only through the tunnel."""
    gateway = healed.lab.gateway
    for address, length in zip(BEYOND, (32, 128), strict=True):
        gateway.ip("addr", "add", f"{address}/{length}", "dev", "lo")
    gateway.nft(
        "table inet lab_beyond {\nchain input {\ntype filter hook input priority 0;\n"
        'iifname { "ga", "gb" } icmp type echo-request drop\n'
        'iifname { "ga", "gb" } icmpv6 type echo-request drop\n}\n}\n'
    )
    yield healed
    gateway.nft("delete table inet lab_beyond\n")
    for address, length in zip(BEYOND, (32, 128), strict=True):
        gateway.ip("addr", "del", f"{address}/{length}", "dev", "lo")


def pings(namespace: Namespace, address: str, wait_s: int = 10) -> bool:
    """Whether one of a few echo requests is answered."""
    command = ("ping", "-n", "-q", "-i", "0.2", "-w", str(wait_s), "-c", "1", address)
    return namespace.run(*command, check=False).returncode == 0


@pytest.mark.parametrize("version", [4, 6])
def test_a_full_tunnel_takes_everything_but_its_own_transport(beyond: Stage, version: int) -> None:
    host = beyond.lab.client
    assert not any(pings(host, address, wait_s=1) for address in BEYOND)
    with Pair(host, beyond.lab.gateway, version=version, routes=FULL) as pair:
        pair.start()
        routed(host, *BEYOND)
        targets = (*BEYOND, *OUTSIDE.values())  # the gateway's outer addresses too
        assert all(pings(host, address) for address in targets)
        watch = Watch(pair)
        beyond.uplink(watch.bound()).set_down()
        watch.wait_attached()
        assert all(pings(host, address) for address in BEYOND)
        watch.assert_same_session()


# --- the gateway comes back without its table ---


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_gateway_that_forgot_proves_it(healed: Stage, how: signal.Signals) -> None:
    """As after a reboot, which empties the runtime directory. No TTL is waited for: the session
    ends at once and its successor names it."""
    pair = healed.pair(client_policy=QUICK, gateway_policy=QUICK)
    with healed.watch(pair) as watch:
        pair.gateway.stop(how)
        pair.gateway.lose_table()
        pair.gateway.start()
        ended = pair.client.wait_state("TERMINATED", after=watch.seq())
        assert ended["reason"] == "SESSION_NOT_FOUND"
        created = pair.client.wait_for(
            lambda e: e["event_type"] == "SESSION_CREATED", after=ended["seq"]
        )
        assert created["details"]["supersedes"] == watch.session != created["session_id"]
        inner, story = watch.addresses, watch.story("client")
        assert story[-2].endswith(" -> RECOVERING TRANSPORT_DEAD")  # from VOLATILE, if it was slow
        assert story[-1] == "RECOVERING -> TERMINATED SESSION_NOT_FOUND"
        at_gateway = pair.gateway.wait_for(lambda e: e["event_type"] == "SESSION_CREATED")
        assert at_gateway["session_id"] == created["session_id"]
        assert at_gateway["details"]["supersedes"] == watch.session
        pair.client.wait_state("ATTACHED", after=created["seq"])
        watch.begin()
        assert watch.addresses == inner
        watch.assert_flows()
        watch.assert_same_session()


# --- two hosts with one key ---


@pytest.fixture(scope="module")
def elsewhere(stage: Stage) -> Namespace:
    """A host on another network."""
    return stage.lab.stranger()


@pytest.fixture
def copied(healed: Stage, elsewhere: Namespace) -> Iterator[tuple[Pair, Daemon]]:
    """A pair, and a second host with the client's key that has not been started yet."""
    pair = healed.pair(client_policy=QUICK, gateway_policy=QUICK)
    config = client_config(pair.gateway_keys[1], OUTSIDE[4], QUICK)
    copy = Daemon(elsewhere, config, pair.client_keys[0])
    try:
        yield pair, copy
    finally:
        copy.close()
        healed.strike()


def created_in(daemon: Daemon) -> list[str]:
    return [e["session_id"] for e in daemon.events() if e["event_type"] == "SESSION_CREATED"]


def assert_taken_over(pair: Pair, copy: Daemon, old: str) -> None:
    """The second host has the session, the first one rests, and neither fights."""
    new = copy.wait_state("ATTACHED")["session_id"]
    for daemon in (pair.gateway, pair.client):
        ended = daemon.wait_for(lambda e: e["event_type"] == "SESSION_TERMINATED")
        assert (ended["session_id"], ended["reason"]) == (old, "SUPERSEDED")
    assert pair.client.status()["resting"]
    time.sleep(2)  # a fight would show by now: a birth is due at once
    assert copy.status()["session"]["id"] == new
    assert copy.status()["state"] == "ATTACHED"
    assert pair.client.status()["state"] == "TERMINATED"
    assert created_in(pair.gateway) == [old, new]
    assert created_in(pair.client) == [old]
    assert pings(copy.namespace, "10.77.0.1")
    assert_versions_rise_by_one(pair.gateway.events())


def test_a_second_host_with_the_same_key_takes_over(copied: tuple[Pair, Daemon]) -> None:
    pair, copy = copied
    old = Watch(pair).session
    copy.start()
    assert_taken_over(pair, copy, old)


def test_a_host_that_was_away_while_superseded_rests_too(
    healed: Stage, copied: tuple[Pair, Daemon]
) -> None:
    """It did not hear the gateway's farewell, and learns of it when it asks to reattach."""
    pair, copy = copied
    old = Watch(pair).session
    for uplink in (healed.lab.a, healed.lab.b):
        uplink.set_down()
    copy.start()
    copy.wait_state("ATTACHED")
    healed.heal()
    assert_taken_over(pair, copy, old)


# --- an operator ends the session ---


def test_terminated_by_the_clients_operator(healed: Stage) -> None:
    pair = healed.pair()
    watch = Watch(pair)
    done = pair.client.ctl("terminate", watch.session)
    assert done.returncode == 0, done.stderr
    for daemon, seq in ((pair.client, watch.seq()), (pair.gateway, watch.seq("gateway"))):
        ended = daemon.wait_state("TERMINATED", after=seq)
        assert (ended["session_id"], ended["reason"]) == (watch.session, "OPERATOR_TERMINATION")
    assert pair.client.status()["resting"]
    assert pair.gateway.status()["sessions"] == []
    assert pair.client.ctl("terminate", watch.session).returncode == 1
    healed.strike()


def test_terminated_by_the_gateways_operator(healed: Stage) -> None:
    """That ends the session, not the client: a new one, which names the old, comes."""
    pair = healed.pair()
    watch = Watch(pair)
    done = pair.gateway.ctl("terminate", watch.session)
    assert done.returncode == 0, done.stderr
    for daemon, seq in ((pair.client, watch.seq()), (pair.gateway, watch.seq("gateway"))):
        ended = daemon.wait_state("TERMINATED", after=seq)
        assert (ended["session_id"], ended["reason"]) == (watch.session, "OPERATOR_TERMINATION")
        created = daemon.wait_for(
            lambda e: e["event_type"] == "SESSION_CREATED", after=ended["seq"]
        )
        assert created["details"]["supersedes"] == watch.session
    pair.client.wait_state("ATTACHED", after=watch.seq())
    assert pings(healed.lab.client, "10.77.0.1")


# --- those who may not ---


def count_answers(gateway: Namespace) -> None:
    gateway.nft(
        "table inet lab_count\ndelete table inet lab_count\ntable inet lab_count {\n"
        "counter asked {}\ncounter answered {}\n"
        "chain input {\ntype filter hook input priority 0;\n"
        f"udp dport {PORT} counter name asked\n}}\n"
        "chain output {\ntype filter hook output priority 0;\n"
        f"udp sport {PORT} counter name answered\nicmp type destination-unreachable "
        "counter name answered\n}\n}\n"
    )


def counted(gateway: Namespace, name: str) -> int:
    words = gateway.run("nft", "list", "counter", "inet", "lab_count", name).stdout.split()
    return int(words[words.index("packets") + 1])


@pytest.fixture
def counting(healed: Stage) -> Iterator[Stage]:
    count_answers(healed.lab.gateway)
    yield healed
    healed.lab.gateway.nft("delete table inet lab_count\n")


def assert_never_attached(client: Daemon) -> None:
    failed = client.wait_state("TERMINATED")
    assert (failed["from"], failed["reason"]) == ("BIRTH", "HANDSHAKE_FAIL")
    assert transitions(client.events())[0] == "BIRTH -> TERMINATED HANDSHAKE_FAIL"
    assert created_in(client) == []


def test_wrong_keys_get_no_answer_at_all(counting: Stage) -> None:
    """A client that expects another gateway, and one that the gateway does not know."""
    host, gateway = counting.lab.client, counting.lab.gateway
    with Pair(host, gateway) as pair:
        mistaken = Daemon(
            host, client_config(key_pair()[1], OUTSIDE[4]), pair.client_keys[0]
        )
        config = client_config(pair.gateway_keys[1], OUTSIDE[4]).replace("jvpn0", "jvpn1")
        unlisted = Daemon(host, config, key_pair()[0])
        try:
            pair.gateway.start()
            mistaken.start()
            unlisted.start()
            assert_never_attached(mistaken)
            assert_never_attached(unlisted)
        finally:
            mistaken.close()
            unlisted.close()
        assert counted(gateway, "asked") >= 8
        assert counted(gateway, "answered") == 0
        assert created_in(pair.gateway) == []
        seen = [e for e in pair.gateway.events() if e["event_type"] == "SECURITY_EVENT"]
        assert {e["details"]["what"] for e in seen} == {"unknown client key"}
        assert {e["reason"] for e in seen} == {"AUTH_FAIL"}
        assert pair.gateway.status()["traffic"]["dropped"]["bad INIT"] > 0


def give_psk(daemon: Daemon, key: str) -> None:
    """A pre-shared key for the one peer that the configuration names."""
    file = daemon.folder / "psk"
    file.write_text(key + "\n")
    file.chmod(0o600)
    config = daemon.config_file.read_text()
    if "preshared_key_file" not in config:
        line = r'\g<0>\npreshared_key_file = "psk"'
        config, changed = re.subn(r'^public_key = ".*"$', line, config, flags=re.MULTILINE)
        assert changed == 1
        daemon.config_file.write_text(config)


def test_a_wrong_pre_shared_key_does_not_attach(counting: Stage) -> None:
    host, gateway = counting.lab.client, counting.lab.gateway
    with Pair(host, gateway) as pair:
        secret, other = key_pair()[0], key_pair()[0]

        give_psk(pair.gateway, secret)
        give_psk(pair.client, other)
        pair.gateway.start()
        pair.client.start()
        assert_never_attached(pair.client)
        assert counted(gateway, "answered") > 0
        assert created_in(pair.gateway) == []
        assert pair.gateway.status()["sessions"] == []
        pair.client.stop()
        give_psk(pair.client, secret)
        pair.client.start()
        pair.client.wait_state("ATTACHED")
