"""Makes the manual pages of the project's documentation: DOCS OUTPUT, both folders.

Understands the Markdown that docs/ is written in: headings, paragraphs, lists, fenced blocks,
tables (each row becomes an entry with its first cell as the term), and code, bold and links within
them. Anything else ends with an error, so that no page is quietly wrong.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SEE = "jvpnd(8), jvpnctl(1), jvpnd.toml(5)"
UNIT = ("What is kept where", "The service", "Several instances", "The private key as a credential")
_LINK = re.compile(r"\[((?:`[^`]*`|[^\]`])+)\]\([^)]+\)")
WHOLE = "/usr/share/doc/jvpn has all of the documentation."


@dataclass(frozen=True)
class Page:
    """A manual page: its sections come from `sources`, (file, which of its `##`s; none: all but
    those of the other pages)."""

    name: str
    section: int
    about: str
    sources: tuple[tuple[str, tuple[str, ...]], ...]


PAGES = (
    Page("jvpnd", 8, "the Jumping VPN daemon", (("cli.md", ("jvpnd",)), ("install.md", UNIT))),
    Page("jvpnctl", 1, "steer and watch the Jumping VPN daemon", (("cli.md", ()),)),
    Page("jvpnd.toml", 5, "configuration of the Jumping VPN daemon", (("configuration.md", ()),)),
)


def main(docs: Path, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    taken = {(file, title) for page in PAGES for file, titles in page.sources for title in titles}
    for page in PAGES:
        text = f'.TH "{page.name.upper()}" "{page.section}" "" "Jumping VPN" ""\n'
        text += f".SH NAME\n{page.name} \\- {page.about}\n"
        for file, titles in page.sources:
            for title, lines in _sections((docs / file).read_text()):
                if title in titles or (not titles and (file, title) not in taken):
                    text += f".SH {_inline(title).upper() or 'DESCRIPTION'}\n"
                    text += "".join(_blocks(lines))
        text += f".SH SEE ALSO\n{SEE}\n.PP\n{WHOLE}\n"
        (output / f"{page.name}.{page.section}").write_text(text)


def _sections(text: str) -> Iterator[tuple[str, list[str]]]:
    """Title ("" for what comes before the first) and lines of each `##`."""
    title, lines, fenced = "", [], False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("## ") and not fenced:
            yield title, lines
            title, lines = line[3:].replace("`", ""), []
        elif fenced or not line.startswith("# "):
            lines.append(line)
    yield title, lines


def _blocks(lines: list[str]) -> Iterator[str]:
    rest = list(lines)
    while rest:
        line = rest.pop(0)
        if not line.strip():
            continue
        if line.startswith("```"):
            end = next(i for i, each in enumerate(rest) if each.startswith("```"))
            inside = "".join(_verbatim(each) for each in rest[:end])
            yield f".PP\n.RS 4\n.nf\n{inside}.fi\n.RE\n"
            del rest[: end + 1]
        elif line.startswith("### "):
            yield f".SS {_inline(line[4:])}\n"
        elif line.startswith("|"):
            rows = [_cells(each) for each in [line, *_take(rest, r"\|")]]
            yield "".join(_entry(rows[0], row) for row in rows[2:])
        elif mark := re.match(r"[*-] |\d+\. ", line):
            tag = r"\(bu" if mark[0] in ("* ", "- ") else mark[0].strip()
            words = [line[len(mark[0]) :], *_take(rest, "  ")]
            yield f'.IP "{tag}" 4\n{_inline(" ".join(word.strip() for word in words))}\n'
        elif re.match(r"[#<>!]", line):
            raise ValueError(f"no Markdown that this understands: {line!r}")
        else:
            words = [line, *_take(rest, r"(?!```|\||#|[*-] |\d+\. )\S")]
            yield f".PP\n{_inline(' '.join(words))}\n"


def _take(rest: list[str], pattern: str) -> list[str]:
    """Those of the next lines that match, taken away."""
    taken = []
    while rest and re.match(pattern, rest[0]):
        taken.append(rest.pop(0))
    return taken


def _cells(line: str) -> list[str]:
    cells = re.split(r"(?<!\\)\|", line.strip())[1:-1]
    return [cell.strip().replace(r"\|", "|") for cell in cells]


def _entry(head: list[str], row: list[str]) -> str:
    """The last cell explains the first; those between are named by the table's head."""
    between = [f"{name}: {cell}" for name, cell in zip(head[1:-1], row[1:-1], strict=True)]
    words = [part for part in (_inline("; ".join(between)), _inline(row[-1])) if part]
    return f".TP\n{_inline(row[0])}\n" + "\n.br\n".join(words) + "\n"


def _inline(text: str) -> str:
    """Code and bold are bold, a link is its text; the rest is escaped."""
    out = []
    for part in re.split(r"(`[^`]+`|\*\*.+?\*\*)", _LINK.sub(r"\1", text)):
        bold = part.startswith(("`", "**")) and len(part) > 2
        inner = _escape(part.strip("`*") if bold else part.replace("*", ""))
        out.append(rf"\fB{inner}\fR" if bold else inner)
    joined = "".join(out)
    return rf"\&{joined}" if joined.startswith((".", "'")) else joined


def _verbatim(line: str) -> str:
    escaped = _escape(line)
    return (rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", r"\e").replace("-", r"\-")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
