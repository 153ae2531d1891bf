"""What a page of docs/ names is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from jvpnd.cli.main import main

ROOT = Path(__file__).parent.parent


def test_every_test_and_file_that_the_invariants_name_is_there() -> None:
    page = (ROOT / "docs" / "invariants.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    sources = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "netns-tests").rglob("test_*.py")]
    written = {name for path in sources for name in re.findall(r"def (test_\w+)", path.read_text())}
    assert len(named) > 40
    assert named <= written, f"no such test: {sorted(named - written)}"
    files = set(re.findall(r"`(\w+/\w+\.py)`", page))
    missing = [name for name in files if not (ROOT / "jvpnd" / name).is_file()]
    assert len(files) > 15
    assert missing == []


def test_each_invariant_has_a_place_and_a_test_that_tries_to_break_it() -> None:
    page = (ROOT / "docs" / "invariants.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| ")]
    invariants = [row for row in rows if len(row) == 3 and row[0].strip() != "Invariant"]
    assert len(invariants) > 30
    for words, place, tests in invariants:
        assert "`" in place or "`" in words, words
        assert re.search(r"`test_\w+`", tests), words


def test_every_page_is_linked_from_somewhere() -> None:
    pages = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}
    pages["README.md"] = (ROOT / "README.md").read_text()
    for name in pages.keys() - {"README.md"}:
        linked = [other for other, text in pages.items() if other != name and name in text]
        assert linked, f"nobody finds {name}"


def test_the_page_of_jvpnctl_has_every_command_with_every_option() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for words, command in commands(main):
        told = " ".join(row for row in rows if re.match(rf"\| `{words}\b", row))
        assert told, f"no row for jvpnctl {words}"
        assert command.help, f"no help for jvpnctl {words}"
        for option in command.params:
            if isinstance(option, click.Option) and option.opts != ["--json"]:
                known = any(name in told for name in option.opts)
                assert known, f"jvpnctl {words}: {option.opts} is not on the page"


def commands(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    """All of them, each with its words."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from ((f"{name} {rest}", each) for rest, each in commands(command))
        else:
            yield name, command
