"""A filter lets through what fits all of it, and never hides that events were lost."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.schema import SCHEMA

from jvpnd.core.reasons import Reason
from jvpnd.observe.filter import REASONS, TYPES, Filter
from jvpnd.observe.log import Event, EventLog

AA, AB = "aa" * 16, "ab" * 16


def log() -> list[Event]:
    now_ms = 0

    def clock() -> int:
        nonlocal now_ms
        now_ms += 1000
        return now_ms

    found = EventLog("gw1", clock)
    for session, client in ((AA, "laptop"), (AB, "phone"), (None, None)):
        for kind, reason in (("REKEY", "HANDSHAKE_OK"), ("TRANSPORT_LOST", "TRANSPORT_DEAD")):
            found.append(kind, session, client, reason=reason)
    return found.recent()


@pytest.mark.parametrize(
    ("args", "seqs"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"types": []}, [1, 2, 3, 4, 5, 6]),
        ({"types": ["REKEY"]}, [1, 3, 5]),
        ({"types": ["REKEY", "TRANSPORT_LOST"]}, [1, 2, 3, 4, 5, 6]),
        ({"reasons": ["TRANSPORT_DEAD"]}, [2, 4, 6]),
        ({"types": ["REKEY"], "reasons": ["TRANSPORT_DEAD"]}, []),
        ({"session": "a"}, [1, 2, 3, 4]),
        ({"session": "ab"}, [3, 4]),
        ({"client": "laptop"}, [1, 2]),
        ({"client": "lap"}, []),
        ({"since_ms": 3000}, [3, 4, 5, 6]),
        ({"since_ms": 3000, "client": "phone", "types": ["TRANSPORT_LOST"]}, [4]),
    ],
)
def test_an_event_has_to_fit_everything_that_is_said(args: dict[str, Any], seqs: list[int]) -> None:
    wanted = Filter.of(args)
    assert [event["seq"] for event in log() if wanted.passes(event)] == seqs


@given(
    st.lists(st.sampled_from(TYPES)), st.none() | st.text(), st.none() | st.text(), st.integers(0)
)
def test_lost_events_are_told_of_whatever_is_wanted(
    types: list[str], session: str | None, client: str | None, since_ms: int
) -> None:
    args = {"types": types, "session": session, "client": client, "since_ms": since_ms}
    event = {**dict.fromkeys(log()[0]), "ts_ms": 1, "event_type": "EVENTS_DROPPED"}
    assert Filter.of(args).passes(event)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"types": ["WEATHER"]}, "types must be a list of: SESSION_CREATED, "),
        ({"types": "REKEY"}, "types must be a list of: SESSION_CREATED, "),
        ({"types": [["REKEY"]]}, "types must be a list of: SESSION_CREATED, "),
        ({"reasons": ["BECAUSE"]}, "reasons must be a list of: HANDSHAKE_OK, "),
        ({"session": 7}, "session must be a string or null"),
        ({"client": ["laptop"]}, "client must be a string or null"),
        ({"since_ms": "1h"}, "since_ms must be a whole number of ms since 1970, or null"),
        ({"since_ms": True}, "since_ms must be a whole number of ms since 1970, or null"),
    ],
)
def test_what_is_no_filter_is_refused_with_what_is_allowed(
    args: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        Filter.of(args)


def test_it_knows_every_type_and_every_reason() -> None:
    assert list(TYPES) == SCHEMA["properties"]["event_type"]["enum"]
    assert set(REASONS) == set(Reason)
