"""What a page of docs/ names is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from jvpnd.cli.main import main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def test_each_invariant_has_a_place_and_a_test_that_tries_to_break_it() -> None:
    page = (ROOT / "docs" / "invariants.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| ")]
    invariants = [row for row in rows if len(row) == 3 and row[0].strip() != "Invariant"]
    assert len(invariants) > 30
    for words, place, tests in invariants:
        assert "`" in place or "`" in words, words
        assert re.search(r"`test_\w+`", tests), words


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


def test_the_index_has_every_page() -> None:
    index = (DOCS / "README.md").read_text()
    files = [path for path in DOCS.iterdir() if path.suffix in (".md", ".json", ".yml")]
    made = {"README.md", "throughput.json"}  # the latter is performance.md's
    missing = [path.name for path in files if f"({path.name})" not in index]
    assert set(missing) <= made, f"not in docs/README.md: {sorted(set(missing) - made)}"


def test_no_link_of_any_page_is_broken() -> None:
    pages = [ROOT / "README.md", *DOCS.glob("*.md")]
    headings = {page: anchors(page.read_text()) for page in pages}
    broken = []
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if "://" in link:
                continue
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.exists() or (anchor and anchor not in headings.get(target, set())):
                broken.append(f"{page.name}: {link}")
    assert broken == []


def anchors(page: str) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_test_that_any_page_names_is_there() -> None:
    sources = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "netns-tests").rglob("*.py")]
    known = {path.stem for path in sources}
    known |= {name for path in sources for name in re.findall(r"def (test_\w+)", path.read_text())}
    known |= {"test_matrix_x", "test_transports_x"}  # patterns of the failure matrix
    count = 0
    for page in DOCS.glob("*.md"):
        named = set(re.findall(r"`(test_\w+)`", page.read_text()))
        assert named <= known, f"{page.name}: no such test: {sorted(named - known)}"
        count += len(named)
    assert count > 200


def test_every_place_in_the_code_that_any_page_names_is_there() -> None:
    count = 0
    for page in DOCS.glob("*.md"):
        for name in set(re.findall(r"`((?:[\w-]+/)+\w+\.(?:py|c))`", page.read_text())):
            places = (ROOT / name, ROOT / "jvpnd" / name)
            pattern = name.endswith("_x.py")  # of the failure matrix
            assert pattern or any(place.is_file() for place in places), f"{page.name}: no {name}"
            count += 1
    assert count > 80


def test_there_is_something_to_do_at_every_alert() -> None:
    named = set(re.findall(r"- alert: (\w+)", (DOCS / "alerts.yml").read_text()))
    page = (DOCS / "operations.md").read_text()
    assert len(named) > 10
    rows = " ".join(line for line in page.splitlines() if line.startswith("| Jvpn"))
    assert {name for name in named if not re.search(rf"\b{name}\b", rows)} == set()


def test_what_the_security_model_claims_has_a_place_and_a_test() -> None:
    page = (DOCS / "security.md").read_text()
    table = page.split("## What holds")[1].split("## What does not hold")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    for _, claim, place, tests in rows:
        assert re.search(r"`\w+/\w+\.py`", place), claim
        assert re.search(r"`(tests/)?test_\w+(\.py)?`", tests), claim


def test_the_comparison_has_a_source_for_every_number_in_brackets() -> None:
    text, sources = (DOCS / "comparison.md").read_text().split("## Sources")
    cited = {int(number) for number in re.findall(r"\[(\d+)\]", text)}
    _, *listed = re.split(r"^(\d+)\. ", sources, flags=re.MULTILINE)
    assert [int(number) for number in listed[::2]] == list(range(1, len(cited) + 1))
    assert cited == set(range(1, len(cited) + 1))
    assert all("<https://" in source for source in listed[1::2])
