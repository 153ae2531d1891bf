"""How a node asks its clients to go to another one."""

from __future__ import annotations

from jvpnd.core import constants as c
from jvpnd.core.effects import Send
from jvpnd.core.gateway import Gateway

from .test_restoring import many, settled, started

COUNT = 3 * c.MOVES_AT_ONCE


def leaving() -> Gateway:
    entries, rows = many(COUNT)
    gateway, _, _ = started(rows, *entries, now_ms=1_000)
    for now_ms in range(1_000, 2_000, c.TELL_GAP_MS):  # it tells them all that it has started
        gateway.timer(now_ms)
    settled(gateway, 2_000)
    for peer in gateway.sessions.values():  # as if all had come back
        peer.is_restored = False
    gateway.leave(2_000, True)
    return gateway


def asked(gateway: Gateway, now_ms: float) -> int:
    gateway.timer(now_ms)
    effects = settled(gateway, now_ms)
    return sum(isinstance(effect, Send) for effect in effects)


def end_some(gateway: Gateway, now_ms: float, count: int) -> None:
    for session_id in list(gateway.sessions)[:count]:
        assert gateway.terminate(now_ms, session_id)
    settled(gateway, now_ms)


def test_the_next_are_asked_as_others_have_left() -> None:
    gateway = leaving()
    assert asked(gateway, 2_000) == c.MOVES_AT_ONCE
    assert asked(gateway, 2_000 + c.TELL_GAP_MS) == 0
    end_some(gateway, 2_015, 5)
    assert asked(gateway, 2_000 + 2 * c.TELL_GAP_MS) == 5


def test_who_does_not_go_holds_nobody_up_for_long_and_is_asked_again() -> None:
    gateway, rounds = leaving(), COUNT // c.MOVES_AT_ONCE
    each_ms = c.MOVE_AGAIN_MS + c.TELL_GAP_MS
    told = [asked(gateway, 2_000.0 + number * each_ms) for number in range(rounds + 1)]
    assert told == [c.MOVES_AT_ONCE] * (rounds + 1)


def test_who_stays_after_all_asks_nobody() -> None:
    gateway = leaving()
    gateway.leave(2_000, False)
    assert asked(gateway, 2_000) == 0
