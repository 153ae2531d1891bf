"""The section of docs/performance.md that one command makes anew."""

from __future__ import annotations

from pathlib import Path

from bench import table
from bench.results import Results

BEGIN, END = "<!-- make bench: begin -->", "<!-- make bench: end -->"


def section(results: Results) -> str:
    about = results.machine
    lines = [
        "![VPNs compared](throughput.svg)",
        "",
        f"Made by `{results.command}` at {about['date']}, commit {about['commit'] or 'unknown'}: "
        f"{about['cpu']}, {about['cores']} cores, Linux {about['kernel']}, {about['system']}, "
        f"Python {about['python']}, {about['link']}, {about['tcp_congestion_control']}, "
        f"load average {about['load_average']} when it began. "
        "Median (least-most) of the rounds; every value is in [throughput.json](throughput.json).",
        "",
        table.medians(results),
    ]
    if compared := table.ratios(results):
        lines += ["", "The same as ratios of the medians:", "", compared]
    if results.skipped:
        skipped = "; ".join(f"{name} ({why})" for name, why in results.skipped.items())
        lines += ["", f"Not measured: {skipped}."]
    return "\n".join(lines)


def rewrite(page: Path, text: str) -> None:
    """Put `text` between the two markers of the page; ValueError if they are not there once."""
    old = page.read_text()
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise ValueError(f"{page}: wants {BEGIN} and then {END}, once each")
    head, _, rest = old.partition(BEGIN)
    tail = rest.partition(END)[2]
    page.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")
