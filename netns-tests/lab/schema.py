"""docs/events.schema.json, ready to judge events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

FILE = Path(__file__).parents[2] / "docs" / "events.schema.json"
SCHEMA: dict[str, Any] = json.loads(FILE.read_text())
VALIDATOR = Draft202012Validator(SCHEMA)


def faults(event: Mapping[str, Any]) -> list[str]:
    """What is wrong with an event, nothing for a good one."""
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(event)]


def assert_valid(events: Iterable[Mapping[str, Any]]) -> None:
    """Each event is as the schema says."""
    for event in events:
        assert faults(event) == [], event
