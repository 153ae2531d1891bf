"""A client that was written from docs/protocol.md alone gets along with the real gateway."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from jvpnd.core.gateway import Gateway
from jvpnd.core.messages import Cause, reason_from_wire
from jvpnd.core.noise import public_key
from jvpnd.core.peer import ClientEntry
from jvpnd.core.policy import Policy
from jvpnd.core.record import row_of
from jvpnd.core.states import State
from jvpnd.core.wire import Suite
from jvpnd.entropy import SystemEntropy

from .otherclient import OtherClient
from .vectors import AWAY, CLIENT_SECRET, GATEWAY_SECRET, HOME, PSK, answers, given, opened_by

PROBE = struct.pack("<BBBBI", 1, 1, 1, 0, 1)
ADDRESS = "10.77.0.2/24"
NOW_MS = 1_000.0


def gateway_of(*, has_aes: bool = False) -> Gateway:
    entry = ClientEntry("laptop", public_key(CLIENT_SECRET), (ADDRESS,), (), PSK)
    return Gateway("gw", GATEWAY_SECRET, [entry], Policy(), SystemEntropy(), has_aes)


def born(gateway: Gateway, *, aes: bool = False) -> OtherClient:
    client = OtherClient(CLIENT_SECRET, public_key(GATEWAY_SECRET), PSK)
    (response,) = given(gateway, NOW_MS, HOME, client.init(1_000_000, aes))
    client.response(response)
    assert gateway.sessions == {}
    (reply,) = given(gateway, NOW_MS, HOME, client.epoch.control(PROBE))
    assert client.epoch.opened(reply)[:8] == bytes([2]) + PROBE[1:]
    assert gateway.sessions[client.session_id].session.state is State.ATTACHED
    return client


def test_it_uses_nothing_of_ours() -> None:
    source = (Path(__file__).parent / "otherclient.py").read_text()
    assert not re.search(r"^\s*(from|import) +(jvpnd|\.)", source, re.MULTILINE)


@pytest.mark.parametrize("aes", [False, True])
def test_a_birth_and_data_under_each_suite(aes: bool) -> None:
    gateway = gateway_of(has_aes=True)
    client = born(gateway, aes=aes)
    assert client.suite == (2 if aes else 1)
    assert client.rest == bytes([1, 4, 24, 10, 77, 0, 2, 0])
    assert client.bounds[:4] == (1, 86_400_000, 60_000, 8_000)
    (peer,) = gateway.sessions.values()
    record = client.epoch.data(b"\0\x03\0\0\0abc", client.suite, 7)
    opened = opened_by(Suite(client.suite), peer.keys.receive.data, peer.keys.index, record)
    assert opened == b"\0\x03\0\0\0abc"


def test_a_move_and_another_one_whose_first_ack_was_lost() -> None:
    gateway = gateway_of()
    client = born(gateway)
    (ack,) = given(gateway, NOW_MS + 1_000, AWAY, client.request(1_000))
    client.ack(ack)
    (reply,) = given(gateway, NOW_MS + 1_010, AWAY, client.epoch.control(PROBE))
    assert client.epoch.opened(reply)[0] == 2
    given(gateway, NOW_MS + 3_000, HOME, client.request(3_000))  # nobody hears the answer
    (ack,) = given(gateway, NOW_MS + 3_250, HOME, client.request(3_250, Cause.RETRY))
    client.ack(ack)
    (reply,) = given(gateway, NOW_MS + 3_260, HOME, client.epoch.control(PROBE))
    assert client.epoch.opened(reply)[0] == 2
    (peer,) = gateway.sessions.values()
    assert (peer.session.epoch, peer.session.id) == (4, client.session_id)


def test_a_rekey_of_which_the_next_request_is_the_first_word() -> None:
    gateway = gateway_of()
    client = born(gateway)
    (response,) = given(gateway, NOW_MS + 500, HOME, client.init(1_500_000))
    session_id, before = client.session_id, client.root
    client.response(response)
    assert client.session_id == session_id
    assert client.root != before
    (ack,) = given(gateway, NOW_MS + 900, AWAY, client.request(400))
    client.ack(ack)
    (peer,) = gateway.sessions.values()
    assert (peer.session.rekeys, peer.session.root) == (1, client.root)


def test_refusals_are_proven() -> None:
    gateway = gateway_of()
    client = born(gateway)
    (reject,) = given(gateway, NOW_MS + 10, AWAY, client.request(10, attempt=1))
    assert reason_from_wire(client.reject(reject) or 0) == "FRESHNESS_INVALID"
    (reject,) = given(gateway_of(), NOW_MS + 20, AWAY, client.request(20, attempt=2))
    assert reason_from_wire(client.reject(reject) or 0) == "SESSION_NOT_FOUND"
    forged = reject[:1] + bytes([3]) + reject[2:]
    assert client.reject(forged) is None


def test_a_cookie_is_brought_back() -> None:
    gateway = gateway_of()
    client = OtherClient(CLIENT_SECRET, public_key(GATEWAY_SECRET), PSK)
    for number in range(1, 60):
        (answer,) = given(gateway, NOW_MS, HOME, client.init(number))
        if answer[0] == 3:
            break
    client.retry(answer)
    (response,) = given(gateway, NOW_MS, HOME, client.init(100))
    client.response(response)


def test_a_gateway_that_was_started_again_is_understood() -> None:
    gateway = gateway_of()
    client = born(gateway)
    (peer,) = gateway.sessions.values()
    again = gateway_of()
    again.restore(NOW_MS + 500, [row_of(peer, "gw")])
    again.timer(NOW_MS + 500)
    (notice,) = answers(again, NOW_MS + 500)
    assert client.epoch.notice(notice) == bytes([3])
    (ack,) = given(again, NOW_MS + 600, HOME, client.request(600))
    client.ack(ack)
    assert again.sessions[client.session_id].session.state is State.ATTACHED


def test_a_close_of_either_end() -> None:
    gateway = gateway_of()
    client = born(gateway)
    gateway.terminate(NOW_MS + 10, client.session_id)
    (close,) = answers(gateway, NOW_MS + 10)
    assert client.epoch.opened(close) == bytes([4, 1])
    other = gateway_of()
    client = born(other)
    assert given(other, NOW_MS + 10, HOME, client.epoch.control(bytes([4, 1]))) == []
    assert other.sessions == {}
