"""The results as Markdown, which reads well in a terminal too."""

from __future__ import annotations

from bench.metrics import METRICS, Metric, ratio, summary
from bench.peers.base import Peer
from bench.results import Results


def medians(results: Results) -> str:
    """A row a metric, a column a contender: median and spread."""
    peers = results.measured()
    rows = [["", "", *(peer.label for peer in peers)]]
    for metric in METRICS:
        cells = [_cell(results, peer, metric) for peer in peers]
        rows.append([metric.label, metric.unit, *cells])
    return aligned(rows)


def _cell(results: Results, peer: Peer, metric: Metric) -> str:
    found = summary(results.values(peer.name).get(metric.key, ()))
    if found is None:
        return "-"
    middle, least, most = (
        f"{value:.{metric.digits}f}" for value in (found.median, found.least, found.most)
    )
    limit = "≥ " if results.sender_limited(peer.name, metric.key) else ""
    return f"{limit}{middle}" if least == most else f"{limit}{middle} ({least}-{most})"


def ratios(results: Results) -> str:
    """How many times better each of ours is than each rival; empty without one of both."""
    ours = [peer for peer in results.measured() if peer.family == "jvpn"]
    pairs = [(peer, rival) for peer in ours for rival in results.rivals()]
    if not pairs:
        return ""
    short = [f"{a.label.removeprefix('Jumping VPN, ')} / {b.label}" for a, b in pairs]
    rows = [["times better (above 1: ours is better)", *short]]
    for metric in METRICS:
        found = [ratio(metric, results.values(a.name), results.values(b.name)) for a, b in pairs]
        rows.append([metric.label, *("-" if r is None else f"{r:.2f}" for r in found)])
    return aligned(rows)


def aligned(rows: list[list[str]]) -> str:
    """A Markdown table, the first row its head, numbers to the right."""
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    numeric = [all(_is_number(row[i]) for row in rows[1:]) for i in range(len(rows[0]))]

    def line(row: list[str]) -> str:
        cells = zip(row, widths, numeric, strict=True)
        return "| " + " | ".join(f"{c:>{w}}" if n else f"{c:<{w}}" for c, w, n in cells) + " |"

    rule = "|".join(
        "-" * (w + 1) + (":" if n else "-") for w, n in zip(widths, numeric, strict=True)
    )
    return "\n".join([line(rows[0]), f"|{rule}|", *(line(row) for row in rows[1:])])


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.removeprefix("≥ ")[:1].isdigit()
