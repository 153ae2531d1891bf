"""The results as an SVG picture: a row a VPN, a column a metric, each column a scale of its own."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from bench.metrics import METRICS, Metric, Summary, summary
from bench.results import Results

# The columns, and what stands above each.
COLUMNS = {
    "tcp1_up": "TCP, 1 stream",
    "tcp4_up": "TCP, 4 streams",
    "udp64": "UDP, 64 bytes",
    "load_median": "RTT under load",
}
LABELS, COLUMN, BAR, VALUE = 252, 184, 118, 6  # widths in pixels; VALUE: from a bar to its figure
ROW, THICK, TOP, MARGIN, FOOT = 30, 14, 84, 20, 44
FONT = "ui-sans-serif, system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
STYLE = f"""
  text {{ font: 13px {FONT}; fill: #1f2328; }}
  .title {{ font-weight: 600; }}
  .quiet {{ font-size: 11px; fill: #656d76; }}
  .page {{ fill: #ffffff; stroke: #d1d9e0; }}
  .ours {{ fill: #0e8a7d; }}
  .theirs {{ fill: #a3adb8; }}
  .spread {{ stroke: #1f2328; stroke-opacity: 0.55; }}
  .axis {{ stroke: #d1d9e0; }}
  @media (prefers-color-scheme: dark) {{
    text {{ fill: #e6edf3; }}
    .quiet {{ fill: #9198a1; }}
    .page {{ fill: #0d1117; stroke: #3d444d; }}
    .ours {{ fill: #2fb8a6; }}
    .theirs {{ fill: #6b7684; }}
    .spread {{ stroke: #e6edf3; }}
    .axis {{ stroke: #3d444d; }}
  }}
"""


@dataclass(frozen=True)
class Bar:
    """One VPN's figure; `atleast`: the sender could not go higher."""

    found: Summary | None
    ours: bool
    atleast: bool


def chart(results: Results) -> str:
    """Every VPN that was measured; the bare cable would dwarf them all and is in the table."""
    peers = [peer for peer in results.measured() if peer.family != "plain"]
    metrics = [metric for metric in METRICS if metric.key in COLUMNS]
    width = LABELS + COLUMN * len(metrics) + MARGIN
    height = TOP + ROW * len(peers) + FOOT
    parts = [_page(width, height), _foot(results, height)]
    for number, peer in enumerate(peers):
        weight = ' class="title"' if peer.family == "jvpn" else ""
        parts.append(_text(MARGIN, TOP + ROW * number + THICK - 2, peer.label, weight))
    for number, metric in enumerate(metrics):
        bars = [
            Bar(
                summary(results.values(peer.name).get(metric.key, ())),
                peer.family == "jvpn",
                results.sender_limited(peer.name, metric.key),
            )
            for peer in peers
        ]
        parts += _column(LABELS + COLUMN * number, metric, bars)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="Throughput of VPNs compared">\n'
        f"<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _page(width: int, height: int) -> str:
    box = f'x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"'
    return f'<rect class="page" {box}/>'


def _foot(results: Results, height: int) -> str:
    about = results.machine
    text = (
        f"{about['cpu']}, {about['cores']} cores for both ends and the traffic; "
        f"Linux {about['kernel']}; medians, lines from least to most"
    )
    return _text(MARGIN, height - 16, text, ' class="quiet"')


def _column(left: int, metric: Metric, bars: list[Bar]) -> list[str]:
    longest = max((bar.found.most for bar in bars if bar.found), default=0) or 1
    bottom = TOP + ROW * (len(bars) - 1) + THICK + 5
    parts = [
        _text(left, 32, COLUMNS[metric.key], ' class="title"'),
        _text(left, 50, f"{metric.unit}, {metric.better} is better", ' class="quiet"'),
        f'<line class="axis" x1="{left}" y1="{TOP - 5}" x2="{left}" y2="{bottom}"/>',
    ]
    for number, bar in enumerate(bars):
        if bar.found is not None:
            parts += _bar(left, TOP + ROW * number, metric, bar, bar.found, BAR / longest)
    return parts


def _bar(left: int, top: int, metric: Metric, bar: Bar, found: Summary, scale: float) -> list[str]:
    length, least, most = (scale * value for value in (found.median, found.least, found.most))
    middle = top + THICK / 2
    figure = f"{'≥ ' if bar.atleast else ''}{found.median:.{metric.digits}f}"
    side = "ours" if bar.ours else "theirs"
    box = f'x="{left}" y="{top}" width="{max(1, length):.1f}" height="{THICK}" rx="2"'
    line = f'x1="{left + least:.1f}" y1="{middle}" x2="{left + most:.1f}" y2="{middle}"'
    return [
        f'<rect class="{side}" {box}/>',
        f'<line class="spread" {line}/>',
        _text(left + max(length, most) + VALUE, top + THICK - 2, figure),
    ]


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(text)}</text>'
