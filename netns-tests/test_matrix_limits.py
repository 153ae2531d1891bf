"""The failure matrix: bounds that hold on the gateway against a client that keeps none of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest
from lab.capture import Listener
from lab.daemons import PORT, Daemon, Event, Pair, key_pair
from lab.liar import Liar
from lab.namespace import Namespace
from lab.stage import Stage, Watch, transitions, until
from lab.story import BACK, DIED, LATE, RETRIED, SILENT, WINDOW, fate
from lab.topology import OUTSIDE

from jvpnd.core.messages import Cause
from jvpnd.core.packets import request_ticket
from jvpnd.core.wire import PacketType
from jvpnd.keyfile import parse_key

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

GATEWAY = (OUTSIDE[4], PORT)
SWITCHES = 3
STRICT = (
    f"max_switches_per_minute = {SWITCHES}\nswitch_cooldown_ms = 20000\n"
    'allowed_transports = ["udp"]\nproof_max_age_ms = 1000\n'
)
SHORT = (
    "volatile_after_ms = 1000\nheartbeat_idle_ms = 300\nvolatile_to_degraded_ms = 1500\n"
    "max_recovery_window_ms = 500\ntransport_loss_ttl_ms = 3000\n"
)
KEYS = key_pair()


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture(scope="module")
def elsewhere(stage: Stage) -> Namespace:
    return stage.lab.stranger()


@pytest.fixture
def watch(stage: Stage) -> Iterator[Watch]:
    """An honest client, under traffic, which must not notice."""
    pair = stage.pair(client_policy=STRICT, gateway_policy=STRICT, others={"liar": KEYS[1]})
    with stage.watch(pair) as watch:
        yield watch
        assert fate(watch).lost == 0
        assert watch.pair.client.status()["session"]["id"] == watch.session
        assert "TERMINATED" not in str(watch.story("gateway"))


def new_liar(pair: Pair, host: Namespace) -> Liar:
    return Liar(host, parse_key(KEYS[0]), parse_key(pair.gateway_keys[1]), GATEWAY)


@pytest.fixture
def liar(watch: Watch, elsewhere: Namespace) -> Iterator[Liar]:
    with new_liar(watch.pair, elsewhere) as liar:
        yield liar


def story(gateway: Daemon, liar: Liar) -> list[str]:
    return transitions(gateway.events(), liar.session_id)[1:]  # without its birth


def results(gateway: Daemon, liar: Liar) -> list[str]:
    """What the gateway says that it decided about each request."""
    return [
        e["reason"]
        for e in gateway.events()
        if e["event_type"] == "REATTACH_RESULT" and e["session_id"] == liar.session_id
    ]


def test_more_switches_than_the_policy_allows(watch: Watch, liar: Liar) -> None:
    """Even if each is said to be a death, which overrides the cooldown."""
    for _ in range(SWITCHES):
        assert liar.ask(liar.request()) == "ACK"
        assert liar.is_answered()
    refused = [liar.ask(liar.request(cause)) for cause in Cause]
    assert refused == ["RATE_LIMITED"] * len(Cause)
    gateway = watch.pair.gateway
    assert story(gateway, liar) == [DIED, BACK] * SWITCHES
    assert results(gateway, liar) == ["REATTACH_ACCEPT"] * SWITCHES + refused
    assert liar.is_answered()  # the last binding stays


def test_a_switch_by_choice_within_the_cooldown(watch: Watch, liar: Liar) -> None:
    assert liar.ask(liar.request()) == "ACK"
    assert liar.is_answered()
    assert liar.ask(liar.request(Cause.SWITCH)) == "POLICY_DENY"
    assert story(watch.pair.gateway, liar) == [DIED, BACK]
    assert liar.is_answered()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda liar: liar.request(transport="tcp"), "POLICY_DENY"),
        (lambda liar: liar.request(age_ms=1200), "FRESHNESS_INVALID"),
        (lambda liar: liar.request(age_ms=-5000), "FRESHNESS_INVALID"),
        (lambda liar: liar.request(attempt=1), "FRESHNESS_INVALID"),
    ],
    ids=["transport", "old proof", "proof of the future", "old attempt"],
)
def test_a_request_that_no_client_may_make(
    watch: Watch, liar: Liar, make: Callable[[Liar], bytes], reason: str
) -> None:
    time.sleep(1.3)  # so old must a session be whose proofs can be
    assert liar.ask(make(liar)) == reason
    assert story(watch.pair.gateway, liar) == []
    assert results(watch.pair.gateway, liar) == [reason]
    assert liar.ask(liar.request()) == "ACK"


def security(watch: Watch, session: str | None) -> list[Event]:
    return [
        e
        for e in watch.events("gateway")
        if e["event_type"] == "SECURITY_EVENT" and e["session_id"] == session
    ]


def test_a_bad_proof_is_not_answered(watch: Watch, liar: Liar) -> None:
    assert liar.ask(liar.request(root=os.urandom(32))) == "silence"
    (told,) = security(watch, None)
    assert (told["reason"], told["details"]["what"]) == ("AUTH_FAIL", "bad proof for liar")
    assert told["details"]["remote"].startswith("192.0.2.66:")
    assert results(watch.pair.gateway, liar) == []
    assert liar.ask(liar.request()) == "ACK"


def test_a_ticket_from_the_wire_is_worth_nothing_to_another_client(
    stage: Stage, watch: Watch, liar: Liar
) -> None:
    goal = stage.other(watch.bound())
    with Listener(goal.router, "lan", PORT) as ear:
        done = watch.pair.client.ctl("switch", goal.device)
        assert done.returncode == 0, done.stderr
        watch.wait_attached()
        request = ear.wait_for(lambda d: d.type == PacketType.REATTACH_REQUEST)
    stolen = request_ticket(request.payload)
    before = watch.pair.gateway.status()["sessions"]
    assert liar.ask(liar.request(ticket=stolen)) == "silence"
    (told,) = security(watch, None)
    assert (told["reason"], told["details"]["what"]) == ("AUTH_FAIL", "bad proof for laptop")
    after = watch.pair.gateway.status()["sessions"]
    assert [row["epoch"] for row in after] == [row["epoch"] for row in before]
    assert [row["binding"]["remote"] for row in after] == [
        row["binding"]["remote"] for row in before
    ]


def test_nobody_rekeys_the_session_of_another(watch: Watch, liar: Liar) -> None:
    def counted() -> int:
        dropped = watch.pair.gateway.status()["traffic"]["dropped"]
        return int(dropped.get("rekey of an unknown session", 0))

    before = counted()
    assert liar.ask(liar.init(bytes.fromhex(watch.session))) == "silence"
    until(lambda: counted() == before + 1, "it is counted")
    assert not [e for e in watch.events("gateway") if e["event_type"] == "REKEY"]


# --- time ---


def test_who_is_silent_is_given_up_within_the_bounds(stage: Stage, elsewhere: Namespace) -> None:
    """The recovery window and the transport-loss TTL are the gateway's own; what comes after is
    answered with the truth."""
    pair = stage.pair(client_policy=SHORT, gateway_policy=SHORT, others={"liar": KEYS[1]})
    gateway = pair.gateway
    with new_liar(pair, elsewhere) as liar:
        since = gateway.last_seq()
        gateway.wait_for(lambda e: is_to(e, liar, "DEGRADED"), after=since)
        assert story(gateway, liar) == [LATE, SILENT, WINDOW]
        assert liar.ask(liar.request()) == "ACK"
        assert story(gateway, liar) == [LATE, SILENT, WINDOW, RETRIED, BACK]
        since = gateway.last_seq()
        ended = gateway.wait_for(lambda e: is_to(e, liar, "TERMINATED"), after=since)
        assert ended["reason"] == "TTL_TRANSPORT_LOSS_EXPIRED"
        assert liar.ask(liar.request()) == "SESSION_EXPIRED"
        assert not liar.is_answered()


def is_to(event: Event, liar: Liar, state: str) -> bool:
    return (event["session_id"], event["to"]) == (liar.session_id, state)


def test_who_goes_on_after_the_session_ttl(stage: Stage, elsewhere: Namespace) -> None:
    policy = SHORT + "session_ttl_ms = 3000\n"
    pair = stage.pair(client_policy=SHORT, gateway_policy=policy, others={"liar": KEYS[1]})
    with new_liar(pair, elsewhere) as liar:
        while liar.is_answered():
            time.sleep(0.1)  # a client that keeps alive what has an end
        ended = pair.gateway.wait_for(lambda e: is_to(e, liar, "TERMINATED"))
        assert ended["reason"] == "TTL_SESSION_EXPIRED"
        assert liar.ask(liar.request()) == "SESSION_EXPIRED"
        assert story(pair.gateway, liar) == ["ATTACHED -> TERMINATED TTL_SESSION_EXPIRED"]
