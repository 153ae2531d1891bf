"""Every event is as docs/events.schema.json says, and that is what code and docs/events.md say."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from lab.schema import SCHEMA, assert_valid, faults

from jvpnd.core.messages import Cause
from jvpnd.core.peer import Stored
from jvpnd.core.policy import Policy
from jvpnd.core.reasons import Reason
from jvpnd.core.states import TABLE, State
from jvpnd.core.wire import Suite
from jvpnd.observe.log import SCHEMA as VERSION
from jvpnd.observe.log import EventLog
from jvpnd.shell import CoreDriver

from .simulation.player import Player
from .simulation.story import Story
from .simulation.teller import tell
from .simulation.test_retold import STORIES

Event = dict[str, Any]
PAGE = (Path(__file__).parent.parent / "docs" / "events.md").read_text()
TYPES: list[str] = SCHEMA["properties"]["event_type"]["enum"]

APPLIED = 'at 2000 apply client {"loss_floor":0.3}\nat 2100 apply gateway {"loss_floor":0.3}'
MORE = {
    "a sleep, with the switches used up, and a policy": f"""
        seed 6
        paths 2
        client {{"max_switches_per_minute": 1}}
        {APPLIED}
        at 3000 switch best
        at 4000 freeze client
        at 14000 thaw client
        """,
    "an attacker": "seed 7\npaths 2\nat 1000 attack 7 400\nat 9000 attack 8 400\nat 20000 wait",
}


def told_by(story: Story) -> list[Event]:
    """Both ends' events."""
    player = Player(story)
    player.play()
    histories = (player.net.client_history, player.net.gateway_history)
    return [event for history in histories for event in history.retold.events()]


@pytest.fixture(scope="module")
def told() -> list[Event]:
    scripts = {**STORIES, **MORE}.values()
    return [event for script in scripts for event in told_by(Story.parse(script))]


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_the_events_of_stories_are_valid(told: list[Event]) -> None:
    assert_valid(told)
    assert len(told) > 100
    seen = {event["event_type"] for event in told}
    of_the_shell = {"WORKER_RESTARTED", "TELEMETRY_DEGRADED", "TELEMETRY_RECOVERED"}
    assert seen == set(TYPES) - of_the_shell - {"EVENTS_DROPPED"}


@pytest.mark.parametrize("seed", [1, 3, 8, 13])
def test_the_events_of_a_made_up_story_are_valid(seed: int) -> None:
    assert_valid(told_by(tell(seed)))


@pytest.mark.parametrize("why", ["hung", "signal SIGKILL", "exit status 1"])
@pytest.mark.parametrize("name", ["uplink", "lane 3 downlink"])
def test_a_restarted_worker_is_a_valid_event(name: str, why: str) -> None:
    class Core:
        policy = Policy()

    async def restart() -> None:
        CoreDriver(Core(), log, {}, lambda _: None, 1000).worker_restarted(name, why)  # type: ignore[arg-type]

    log = EventLog("laptop", lambda: 1)
    asyncio.run(restart())
    assert_valid(log.recent())
    assert log.recent()[0]["details"] == {"worker": name, "why": why}


def test_drops_are_a_valid_event() -> None:
    async def lag() -> Event:
        log = EventLog("laptop", lambda: 1)
        with log.subscribe(capacity=1) as slow:
            for _ in range(3):
                log.append("REKEY", "ab" * 16, "laptop", reason="HANDSHAKE_OK")
            return await anext(slow)

    assert_valid([asyncio.run(lag())])


# --- what it refuses ---

RENAMED = {"reason": "BECAUSE", "event_type": "STATE_CHANGED", "from": "ALIVE", "session_id": "5F"}


def spoiled(event: Event) -> Iterator[Event]:
    """The same with one thing wrong, in every way."""
    for name in event:
        yield {key: value for key, value in event.items() if key != name}
    yield {**event, "severity": 3}
    yield {**event, "schema": VERSION + 1}
    yield {**event, "seq": 0}
    for name, wrong in RENAMED.items():
        yield {**event, name: wrong}
    yield {**event, "details": {**event["details"], "mood": "bad"}}
    for name, value in event["details"].items():
        if value is not None:
            yield {**event, "details": {**event["details"], name: [value]}}


def test_an_event_with_anything_wrong_is_refused(told: list[Event]) -> None:
    kinds = {event["event_type"]: event for event in told}
    for event in kinds.values():
        for wrong in spoiled(event):
            assert faults(wrong), wrong


REQUIRED: dict[str, set[str]] = {
    "SESSION_CREATED": {"supersedes", "suite"},
    "STATE_CHANGE": {"epoch"},
    "REATTACH_ATTEMPT": {"attempt", "path", "cause"},
    "TRANSPORT_SWITCH": {"attempt"},
    "TRANSPORT_LOST": {"path", "why", "silent_ms"},
    "REKEY": {"epoch"},
    "OWNERSHIP": {"store"},
}


def test_details_that_a_type_must_have_are_missed(told: list[Event]) -> None:
    for kind, names in REQUIRED.items():
        event = next(e for e in told if e["event_type"] == kind)
        for name in names:
            left = {key: value for key, value in event["details"].items() if key != name}
            assert faults({**event, "details": left}), (kind, name)


def test_a_new_binding_says_where_it_leads(told: list[Event]) -> None:
    for event in told:
        if event["to"] == "ATTACHED" and event["reason"] in ("HANDSHAKE_OK", "TRANSPORT_SWITCH_OK"):
            assert faults({**event, "details": {"epoch": 1}})


# --- it agrees ---


def words(name: str) -> list[str]:
    found: list[str] = SCHEMA["$defs"][name]["enum"]
    return found


@pytest.mark.parametrize(
    ("schema_has", "code_has"),
    [
        (lambda: words("reason"), [str(each) for each in Reason]),
        (lambda: words("state"), [str(each) for each in State]),
        (lambda: words("cause"), [each.name for each in Cause]),
        (lambda: details("SESSION_CREATED")["suite"]["enum"], [each.name for each in Suite]),
        (
            lambda: details("OWNERSHIP")["store"]["enum"],
            [each.value for each in Stored if each is not Stored.OK],
        ),
        (
            lambda: SCHEMA["$defs"]["STATE_CHANGE"]["properties"]["reason"]["enum"],
            {str(reason) for _, reason in TABLE.values()},
        ),
        (lambda: words("transport"), list(Policy().allowed_transports)),
    ],
    ids=["reasons", "states", "causes", "suites", "store", "transitions", "transports"],
)
def test_words_of_the_schema_are_those_of_the_code(
    schema_has: Callable[[], list[str]], code_has: list[str] | set[str]
) -> None:
    assert sorted(schema_has()) == sorted(code_has)


def details(kind: str) -> dict[str, Any]:
    """The properties of a type's details."""
    found: dict[str, Any] = SCHEMA["$defs"][kind]["properties"]["details"]
    parts = found.get("oneOf", [found])
    return {name: value for part in parts for name, value in part["properties"].items()}


def rows() -> dict[str, str]:
    """The page's table of event types: what it says of each one's details."""
    section = PAGE.split("## Event types")[1].split("\n## ")[0]
    cells = [line.split("|") for line in section.splitlines() if line.startswith("| `")]
    return {row[1].strip().strip("`"): row[3] for row in cells}


def test_the_page_has_the_same_types_and_details() -> None:
    assert list(rows()) == TYPES == [n for n in SCHEMA["$defs"] if n.isupper()]
    for kind, text in rows().items():
        if kind == "SESSION_TERMINATED":  # those of the transition
            assert details(kind) == {
                name: value for name, value in details("STATE_CHANGE").items() if name != "epoch"
            }
            continue
        named = set(re.findall(r"`(\w+)`", text))
        assert set(details(kind)) <= named, f"{kind}: {set(details(kind)) - named} not on the page"


def test_the_page_names_every_field_and_its_example_is_valid() -> None:
    fields = PAGE.split("## Event types")[0]
    listed = re.findall(r"^\| (`[^|]+) \|", fields, flags=re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(listed)) == list(SCHEMA["properties"])
    example = json.loads(fields.split("```json")[1].split("```")[0].replace("5f0c1a2b…", "5f" * 16))
    assert_valid([example])
    assert list(example) == list(SCHEMA["properties"])
