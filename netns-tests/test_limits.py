"""`[limits]` of a real gateway: what it says holds, is counted, and gives way again."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest
from lab.daemons import PORTS, Pair, key_pair
from lab.liar import Liar
from lab.namespace import Namespace
from lab.stage import until
from lab.topology import OUTSIDE, Lab

from jvpnd.control.client import ControlClient
from jvpnd.keyfile import parse_key

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

KEYS = key_pair()
LIMITS = (
    "[limits]\nsessions = 1\nhalf_open = 2\n"
    "connections = 8\nstrangers = 4\nstrangers_of_source = 3\nevents = 64\n"
)
TCP = OUTSIDE[4], PORTS["tcp"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def stranger(lab: Lab) -> Namespace:
    return lab.stranger()


@pytest.fixture
def pair(lab: Lab) -> Iterator[Pair]:
    """The gateway is up, the client is not."""
    others = {"other": KEYS[1]}
    ways = ("udp", "tcp")
    with Pair(
        lab.client, lab.gateway, transports=ways, gateway_policy=LIMITS, others=others
    ) as pair:
        pair.gateway.start()
        yield pair


def dropped(pair: Pair, cause: str) -> int:
    return int(pair.gateway.status()["traffic"]["dropped"].get(cause, 0))


def test_a_full_gateway_refuses_a_client_and_takes_it_once_there_is_room(
    pair: Pair, stranger: Namespace
) -> None:
    keys = parse_key(KEYS[0]), parse_key(pair.gateway_keys[1])
    with Liar(stranger, *keys, (OUTSIDE[4], PORTS["udp"])) as other:
        pair.client.start()
        told = pair.gateway.wait_for(lambda e: e["event_type"] == "SECURITY_EVENT")
        assert (told["reason"], told["details"]["what"]) == (
            *("SEC_ABUSE_CONTROL_PLANE", "too many sessions"),
        )
        assert dropped(pair, "too many sessions") > 0
        (session,) = pair.gateway.ask("sessions")
        assert (session["client"], session["id"]) == ("other", other.session_id)
        assert pair.gateway.ctl("terminate", other.session_id).returncode == 0
        pair.client.wait_state("ATTACHED", timeout_s=60)
    (session,) = pair.gateway.ask("sessions")
    assert session["client"] == "laptop"


def test_strangers_are_as_few_as_configured(pair: Pair, stranger: Namespace) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            sock = stranger.within(lambda: socket.create_connection(TCP, timeout=5))
            stack.enter_context(sock)
        until(lambda: dropped(pair, "too many connections of one source") == 2, "two are refused")
        assert pair.gateway.status()["connections"] == {"open": 3, "strangers": 3}


def test_events_are_kept_as_many_as_configured(pair: Pair) -> None:
    with ControlClient(pair.gateway.socket_file) as control:
        for _ in range(80):  # an event each
            control.ask("policy_apply", table={})
    seen = pair.gateway.status()["events"]
    assert (seen["kept"], seen["limit"]) == (64, 64)
    kept = pair.gateway.events()
    assert len(kept) == 64
    assert kept[0]["seq"] == seen["forgotten"] + 1
