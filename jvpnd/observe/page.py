"""A timeline as one self-contained page: no script, nothing from elsewhere, light or dark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib import resources
from statistics import median
from typing import Any, Final

from jvpnd.observe.chart import Axis, Samples, chart, clock, esc, mark_of, short
from jvpnd.observe.story import span
from jvpnd.observe.timeline import LIMITS, Event, SessionTimeline, Timeline

MAX_SESSIONS: Final = 100  # the newest
MAX_EVENTS: Final = 400  # of one session, the newest
MAX_SWITCHES: Final = 200

_KEY: Final = """<div class="key">
<span><i style="background:var(--ok)"></i>carries the session</span>
<span><i style="background:var(--rtt);height:2px;vertical-align:middle"></i>round trip</span>
<span><i style="background:var(--up)"></i>loss up</span>
<span><i style="background:var(--down)"></i>loss down</span>
<span>&#9312; switch</span><span>&#9650; limit</span><span>&#10005; denied or lost</span>
<span>&#9632; policy, resume</span><span>&#9670; security</span></div>"""


def page(found: Timeline, samples: Samples, node: str, now_ms: int) -> str:
    """The whole document. `now_ms`: wall clock, for the heading."""
    moment = datetime.fromtimestamp(now_ms / 1000).astimezone()
    made = moment.strftime("%Y-%m-%d %H:%M:%S %Z (UTC%z)")
    shown = found.sessions[-MAX_SESSIONS:]
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>Timeline of {esc(node)}</title><style>{_style()}</style></head><body>",
        f"<h1>Timeline of {esc(node)}</h1><p>Jumping VPN, {esc(made)}</p>",
    ]
    if not shown:
        parts.append("<p>There are no events.</p>")
    elif len(shown) < len(found.sessions):
        parts.append(f"<p>The newest {len(shown)} of {len(found.sessions)} sessions.</p>")
    for session in reversed(shown):
        parts += _session(session, samples)
    return "\n".join([*parts, "</body></html>\n"])


def _style() -> str:
    return (resources.files("jvpnd.observe") / "page.css").read_text(encoding="utf-8")


def _session(session: SessionTimeline, samples: Samples) -> Iterator[str]:
    yield "<section>"
    if session.session_id is None:
        yield "<h2>Without a session</h2>"
    else:
        client = f", {esc(session.client)}" if session.client else ""
        yield f"<h2>Session <code>{esc(session.session_id)}</code>{client}</h2>"
        yield _facts(session)
        yield from _drawing(session, samples)
        yield from _switch_table(session)
    yield from _event_table(session.entries)
    yield "</section>"


def _facts(session: SessionTimeline) -> str:
    latencies = session.latencies_ms()
    begin_ms, end_ms = span([session], ())
    rows = [
        (session.state or "?", "now" if session.state != "TERMINATED" else "in the end"),
        (_length(end_ms - begin_ms), "told of" if session.is_complete else "since the log begins"),
        (session.switches, "switches"),
    ]
    if latencies:
        rows += [(_length(median(latencies)), "median"), (_length(max(latencies)), "worst")]
    cells = (f"<div><b>{esc(value)}</b><span>{esc(name)}</span></div>" for value, name in rows)
    before = session.supersedes
    after = f"<p>supersedes <code>{esc(before)}</code></p>" if before else ""
    limits = "; ".join(
        f"{reason} {times} times ({LIMITS[reason]})" for reason, times in session.limits.items()
    )
    told = f"<p>Limits that triggered: {esc(limits)}</p>" if limits else ""
    return f'<div class="facts">{"".join(cells)}</div>{after}{told}'


def _drawing(session: SessionTimeline, samples: Samples) -> Iterator[str]:
    begin_ms, end_ms = span([session], ())
    if session.state != "TERMINATED":  # it goes on: so does the drawing
        end_ms = max([end_ms, *(rows[-1].ts_ms for rows in samples.values() if rows)])
    mine = {
        path: rows
        for path, rows in samples.items()
        if any(begin_ms <= row.ts_ms <= end_ms for row in rows)
    }
    yield f'<div class="scroll">{chart(session, mine, Axis(begin_ms, end_ms))}</div>{_KEY}'


def _switch_table(session: SessionTimeline) -> Iterator[str]:
    if not session.recoveries:
        return
    yield "<table><thead><tr><th>#</th><th>when</th><th>cause</th><th>from</th><th>to</th>"
    yield "<th>outcome</th><th>attempts</th><th>recovery</th><th>outage</th></tr></thead><tbody>"
    for number, row in enumerate(session.recoveries[:MAX_SWITCHES], start=1):
        kind = "ok" if row.succeeded else "bad"
        cells: list[Any] = [
            number,
            clock(row.began_ms, True),
            row.cause,
            short(row.from_path or "-"),
            short(row.to_path or "-"),
        ]
        ends = [row.attempts or "-", _length(row.recovery_ms), _length(row.outage_ms)]
        outcome = f'<td class="{kind}">{esc(row.outcome or "under way")}</td>'
        yield f"<tr>{_cells(cells)}{outcome}{_cells(ends)}</tr>"
    yield "</tbody></table>"


def _event_table(entries: list[Event]) -> Iterator[str]:
    shown = entries[-MAX_EVENTS:]
    of = f"the newest {len(shown)} of " if len(shown) < len(entries) else ""
    yield f"<details><summary>{of}{len(entries)} events</summary>"
    yield "<table><thead><tr><th>when</th><th>event</th><th>reason</th><th>details</th></tr>"
    yield "</thead><tbody>"
    for event in shown:
        what = event["event_type"]
        if event["to"]:
            what = f"{event['from']} → {event['to']}"
        when = clock(event["ts_ms"], True)
        told = _cells([when, what, event["reason"] or "", _details(event["details"])])
        yield f'<tr{" class=bad" if mark_of(event) else ""}>{told}</tr>'
    yield "</tbody></table></details>"


def _cells(values: list[Any]) -> str:
    return "".join(f"<td>{esc(value)}</td>" for value in values)


def _details(details: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in details.items() if value is not None)


def _length(ms: float | None) -> str:
    """Short, for a table."""
    if ms is None:
        return "-"
    if ms < 1000:
        return f"{ms:.3g} ms"
    if ms < 120_000:
        return f"{ms / 1000:.1f} s"
    minutes = int(ms // 60_000)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
