"""The table [limits]: what it means, what is refused, and that docs/ has all of it."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from jvpnd.config import MAX_CLIENTS, ConfigError, load
from jvpnd.configlimits import (
    MAX_EVENTS,
    MAX_HALF_OPEN,
    MAX_SESSIONS,
    MAX_STRANGERS,
    MIN_EVENTS,
    LimitSettings,
)
from jvpnd.core.limits import Limits
from jvpnd.dataplane.counters import SLOTS
from jvpnd.transport.limits import MAX_CONNECTIONS, ConnectionLimits

from .test_config import CLIENT, DOCS, GATEWAY, ROOT, SECRET, write_key

# key: default, lowest, highest
RANGES = {
    "sessions": (10_000, 1, MAX_SESSIONS),
    "half_open": (1_024, 1, MAX_HALF_OPEN),
    "connections": (4_096, 2, MAX_CONNECTIONS),
    "strangers": (256, 1, MAX_STRANGERS),
    "strangers_of_source": (32, 1, MAX_STRANGERS),
    "events": (4_096, MIN_EVENTS, MAX_EVENTS),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_key(tmp_path / "private.key", SECRET)
    return tmp_path


def loaded(folder: Path, text: str, role: str = GATEWAY) -> LimitSettings:
    file = folder / "jvpnd.toml"
    file.write_text(role + "[limits]\n" + text)
    return load(file).limits


def told(settings: LimitSettings) -> dict[str, int]:
    """The settings by their keys."""
    parts = (settings.core, settings.connections)
    found = {each.name: getattr(part, each.name) for part in parts for each in fields(part)}
    return {**found, "events": settings.events}


@pytest.mark.parametrize("role", [CLIENT, GATEWAY])
def test_without_a_word_the_limits_are_the_defaults(folder: Path, role: str) -> None:
    settings = loaded(folder, "", role)
    assert settings == LimitSettings(Limits(), ConnectionLimits(), 4_096)
    assert told(settings) == {key: default for key, (default, _, _) in RANGES.items()}


def test_there_may_be_a_client_for_every_session() -> None:
    assert MAX_CLIENTS >= MAX_SESSIONS


def test_every_limit_can_be_set(folder: Path) -> None:
    text = "sessions = 11\nhalf_open = 12\nconnections = 15\nstrangers = 14\n"
    settings = loaded(folder, f"{text}strangers_of_source = 13\nevents = 65\n")
    assert settings == LimitSettings(Limits(11, 12), ConnectionLimits(15, 14, 13), 65)


def test_a_client_sets_how_many_events_it_keeps(folder: Path) -> None:
    assert loaded(folder, "events = 100\n", CLIENT) == replace(LimitSettings(), events=100)


@pytest.mark.parametrize("key", [key for key in RANGES if key != "events"])
def test_a_client_has_no_other_limit(folder: Path, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, f"{key} = 100\n", CLIENT)
    assert (caught.value.key, caught.value.allowed) == (f"limits.{key}", "events")
    assert "is for role = 'gateway'" in caught.value.problem


@pytest.mark.parametrize("key", RANGES)
def test_the_bounds_of_a_limit_are_inclusive(folder: Path, key: str) -> None:
    _, low, high = RANGES[key]
    beside = {"connections": MAX_CONNECTIONS, "strangers": MAX_STRANGERS, "strangers_of_source": 1}
    for value in (low, high):
        fitting = {**beside, key: value}
        if key == "connections" and value == low:
            fitting["strangers"] = 1
        text = "".join(f"{name} = {number}\n" for name, number in fitting.items())
        assert told(loaded(folder, text))[key] == value
    for value in (low - 1, high + 1):
        with pytest.raises(ConfigError) as caught:
            loaded(folder, f"{key} = {value}\n")
        assert caught.value.key == f"limits.{key}"
        assert f"{value} is out of range" in caught.value.problem
        assert caught.value.allowed == f"a whole number from {low} to {high}"


@pytest.mark.parametrize(
    ("text", "key", "problem", "allowed"),
    [
        ("clients = 1", "clients", "unknown key", "events, sessions"),
        ("sessions = true", "sessions", "wrong type", "a whole number"),
        ('events = "many"', "events", "wrong type", "a whole number"),
        ("connections = 256", "connections", "256 is not above strangers = 256", "257 or more"),
        ("strangers = 4096", "connections", "4096 is not above strangers = 4096", "4097 or more"),
        ("strangers = 31", "strangers", "31 is below strangers_of_source = 32", "32 or more"),
    ],
)
def test_what_is_wrong_with_a_limit_is_told(
    folder: Path, text: str, key: str, problem: str, allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, f"{text}\n")
    assert caught.value.key == f"limits.{key}"
    assert problem in caught.value.problem
    assert allowed in caught.value.allowed


def test_the_docs_have_every_limit_with_its_default_and_range() -> None:
    section = DOCS.read_text().split("## `[limits]`")[1].split("\n## ")[0]
    for key, (default, low, high) in RANGES.items():
        assert re.search(rf"^\| `{key}` \| {default} \| {low} to {high} \|", section, re.MULTILINE)


def test_the_page_of_limits_has_every_setting_and_names_what_there_is() -> None:
    page = (ROOT / "docs" / "limits.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| ")]
    bounds = [[cell.strip() for cell in row] for row in rows if row[0].strip() != "What"]
    assert len(bounds) > 20
    set_by = {key for row in bounds for key in re.findall(r"`\[limits\] (\w+)`", row[2])}
    assert set_by == RANGES.keys()
    sources = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "netns-tests").rglob("test_*.py")]
    written = {name for path in sources for name in re.findall(r"def (test_\w+)", path.read_text())}
    for what, _, setting, _, tests in bounds:
        named = re.findall(r"`(test_\w+)`", tests)
        assert named, what
        assert set(named) <= written, f"no such test: {set(named) - written}"
        for name, file in re.findall(r"`([A-Z_]+)` in `([\w/]+\.py)`", setting):
            text = (ROOT / "jvpnd" / file).read_text()
            assert re.search(rf"^{name}\b.*=", text, re.MULTILINE), f"no {name} in {file}"


def test_the_data_plane_has_a_slot_for_every_session_and_for_those_that_replace_one() -> None:
    assert MAX_SESSIONS + 256 < SLOTS
