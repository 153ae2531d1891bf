"""Every code that a user can meet is documented, and nothing else is."""

from __future__ import annotations

import re
from pathlib import Path

from jvpnd.core.policy import Policy
from jvpnd.core.reasons import Reason
from jvpnd.observe.timeline import LIMITS

DOCS = Path(__file__).parent.parent / "docs"
ROOT = Path(__file__).parent.parent / "jvpnd"


def rows(page: str, heading: str) -> set[str]:
    """The codes in the first column of the tables under the headings that begin so."""
    text = (DOCS / page).read_text()
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    wanted = [section for section in sections if section.startswith(heading)]
    assert wanted, f"{page} has no section {heading}"
    return set(re.findall(r"^\| `([A-Z_]+)` \|", "".join(wanted), flags=re.MULTILINE))


def test_reason_codes_are_documented_one_by_one() -> None:
    assert rows("reason-codes.md", "Events") == {str(reason) for reason in Reason}


def test_the_codes_with_which_jvpnctl_is_refused_are_documented() -> None:
    said = set()
    control = (f"control/{name}.py" for name in ("server", "protocol", "client"))
    for file in ("commands.py", "reloading.py", *control):
        said |= set(re.findall(r'Refused\(\s*"?([A-Z_]+)\b', (ROOT / file).read_text()))
    documented = rows("reason-codes.md", "Refusals") | {str(reason) for reason in Reason}
    assert said <= documented
    assert rows("reason-codes.md", "Refusals") <= said


def test_event_types_that_the_core_emits_are_documented() -> None:
    emitted = set()
    for file in (ROOT / "core").glob("*.py"):
        text = file.read_text()
        emitted |= set(re.findall(r'Emit\(\s*"([A-Z_]+)"', text))
        emitted |= set(re.findall(r'note\([^"()]*"([A-Z_]+)"', text))
    shell = (ROOT / "shell.py").read_text()
    emitted |= set(re.findall(r'append\(\s*"([A-Z_]+)"', shell))
    assert len(emitted) > 5
    told = {"EVENTS_DROPPED", "TELEMETRY_DEGRADED", "TELEMETRY_RECOVERED"}
    assert emitted | told == rows("events.md", "Event types")


def test_limits_name_fields_of_the_policy() -> None:
    for bound in LIMITS.values():
        assert all(hasattr(Policy(), name) for name in bound.split(", "))
