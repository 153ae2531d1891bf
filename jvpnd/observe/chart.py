"""One session drawn as SVG: states, the active path, RTT and loss of each path, switches, limits.

Every text that comes from elsewhere goes through `esc`. Nothing is told by colour alone: stretches
and marks have words or shapes, and each has a <title>.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from html import escape
from typing import Any, Final, TypeAlias

from jvpnd.core.dataclass import dataclass
from jvpnd.observe.samples import FINE_MS, Sample
from jvpnd.observe.story import Stretch, bindings, states
from jvpnd.observe.timeline import LIMITS, Event, Recovery, SessionTimeline

Samples: TypeAlias = Mapping[str, Sequence[Sample]]

WIDTH: Final = 1180
LEFT: Final = 190  # for names
RIGHT: Final = 56  # for scales
BAND: Final = 26
LANE: Final = 74
GAP: Final = 10
MAX_POINTS: Final = 600  # of one line
MAX_MARKS: Final = 200
MIN_WIDTH: Final = 2.0  # a stretch of milliseconds must still be seen
STALE_MS: Final = 5 * FINE_MS  # a longer hole in the samples is not bridged by a line
_STEPS_S: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800)


@dataclass(frozen=True, slots=True)
class Axis:
    """Wall clock to x."""

    begin_ms: int
    end_ms: int

    def x(self, ts_ms: float) -> float:
        share = (ts_ms - self.begin_ms) / max(1, self.end_ms - self.begin_ms)
        return round(LEFT + (WIDTH - LEFT - RIGHT) * min(max(share, 0.0), 1.0), 1)

    def ticks(self) -> Iterator[int]:
        """Round moments, at most a dozen."""
        seconds = (self.end_ms - self.begin_ms) / 1000
        step_ms = next((s for s in _STEPS_S if seconds / s <= 12), 86_400) * 1000
        step_ms *= max(1, math.ceil(seconds * 1000 / step_ms / 12))
        first = math.ceil(self.begin_ms / step_ms) * step_ms
        return iter(range(first, self.end_ms + 1, step_ms))


def esc(text: object) -> str:
    """For a text node or an attribute in double quotes; what cannot be printed becomes a mark."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in str(text))
    return escape(shown, quote=True)


def clock(ts_ms: float, millis: bool = False) -> str:
    """Local time of day."""
    moment = datetime.fromtimestamp(ts_ms / 1000).astimezone()
    return moment.strftime("%H:%M:%S") + (f".{moment.microsecond // 1000:03d}" if millis else "")


def short(path: str) -> str:
    """`wlan0/udp/203.0.113.7:7700` as `wlan0 udp`."""
    return " ".join(path.split("/")[:2]) if path.count("/") >= 2 else path


def chart(session: SessionTimeline, samples: Samples, axis: Axis) -> str:
    """The drawing of one session."""
    carried = bindings(session, axis.end_ms)
    lanes = list(dict.fromkeys([*(stretch.what for stretch in carried), *samples]))
    top_of = {path: 2 * BAND + 3 * GAP + n * (LANE + GAP) for n, path in enumerate(lanes)}
    height = 2 * BAND + 3 * GAP + len(lanes) * (LANE + GAP) + 24
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" preserveAspectRatio="xMinYMin">',
        f"<title>Session {esc((session.session_id or 'none')[:8])} over time</title>",
        f"<desc>{esc(_in_words(session))}</desc>",
        *_grid(axis, height),
        *_states(states(session, axis.end_ms), axis),
        *_marks(session.entries, axis),
    ]
    for path, top in top_of.items():
        parts += _lane(path, top, [s for s in carried if s.what == path], samples, axis)
    parts += _switches(session.recoveries, top_of, axis, height)
    return "\n".join([*parts, "</svg>"])


def _in_words(session: SessionTimeline) -> str:
    limits = ", ".join(session.limits) or "none"
    return f"{session.switches} switches; now {session.state}; limits that triggered: {limits}"


def _grid(axis: Axis, height: int) -> Iterator[str]:
    for tick in axis.ticks():
        x = axis.x(tick)
        yield f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="{height - 18}"/>'
        yield f'<text class="tick" x="{x}" y="{height - 4}">{clock(tick)}</text>'


def _states(found: Sequence[Stretch], axis: Axis) -> Iterator[str]:
    yield _label("state", BAND / 2 + 4)
    for stretch in found:
        x, width = _extent(stretch, axis)
        yield (
            f'<g><rect class="state s-{esc(stretch.what)}" x="{x}" y="0" width="{width}" '
            f'height="{BAND}"/>{_title(stretch, axis)}'
        )
        if width > 10 * len(stretch.what):
            yield f'<text class="on" x="{x + width / 2}" y="{BAND - 8}">{esc(stretch.what)}</text>'
        yield "</g>"


def _extent(stretch: Stretch, axis: Axis) -> tuple[float, float]:
    x = axis.x(stretch.begin_ms)
    return x, round(max(axis.x(stretch.end_ms) - x, MIN_WIDTH), 1)


def _title(stretch: Stretch, axis: Axis) -> str:
    length = timedelta(milliseconds=stretch.end_ms - stretch.begin_ms)
    words = f"{stretch.what} from {clock(stretch.begin_ms, True)} for {length} ({stretch.reason})"
    return f"<title>{esc(words)}</title>"


def _label(text: str, y: float, more: str = "") -> str:
    told = f"<title>{esc(more)}</title>" if more else ""
    return f'<text class="name" x="{LEFT - 10}" y="{y}">{esc(text[:26])}{told}</text>'


# --- limits, refusals, policies, security ---


def mark_of(event: Event) -> tuple[str, str] | None:
    """(shape, word) of an event that deserves a mark, else None."""
    if event["event_type"] == "SECURITY_EVENT":
        return "diamond", "security"
    if event["event_type"] == "AUDIT_EVENT":
        return "square", str(event["details"].get("what", "audit"))
    if event["event_type"] in ("TRANSPORT_SWITCH_DENIED", "TRANSPORT_LOST"):
        return "cross", "denied" if event["event_type"].endswith("DENIED") else "lost"
    return ("triangle", "limit") if event["reason"] in LIMITS else None


_SHAPES: Final = {
    "triangle": "M0,-6 L6,5 L-6,5 Z",
    "diamond": "M0,-7 L6,0 L0,7 L-6,0 Z",
    "square": "M-5,-5 H5 V5 H-5 Z",
    "cross": "M-5,-5 L5,5 M-5,5 L5,-5",
}


def _marks(entries: Iterable[Event], axis: Axis) -> Iterator[str]:
    y = BAND + GAP + BAND / 2
    yield _label("limits, security", y + 4)
    marked = ((event, mark) for event in entries if (mark := mark_of(event)))
    for event, (shape, word) in itertools.islice(marked, MAX_MARKS):
        told = f"{clock(event['ts_ms'], True)} {word}: {event['reason'] or ''} {event['details']}"
        yield (
            f'<path class="mark m-{shape}" d="{_SHAPES[shape]}" '
            f'transform="translate({axis.x(event["ts_ms"])} {y})"><title>{esc(told)}</title></path>'
        )


# --- a path ---


def _lane(
    path: str, top: int, carried: Sequence[Stretch], samples: Samples, axis: Axis
) -> Iterator[str]:
    rows = [row for row in samples.get(path, ()) if axis.begin_ms <= row.ts_ms <= axis.end_ms]
    rows = thinned(rows)
    bottom = top + LANE
    whole = WIDTH - LEFT - RIGHT
    yield f'<rect class="lane" x="{LEFT}" y="{top}" width="{whole}" height="{LANE}"/>'
    yield _label(short(path), top + 16, path)
    for stretch in carried:
        x, width = _extent(stretch, axis)
        yield f'<g><rect class="active" x="{x}" y="{top}" width="{width}" height="{LANE}"/>'
        yield f'<rect class="carrier" x="{x}" y="{bottom - 5}" width="{width}" height="5"/>'
        yield f"{_title(stretch, axis)}</g>"
    if not rows:
        yield f'<text class="note" x="{LEFT + 8}" y="{top + 16}">no samples of this path</text>'
        return
    most_ms = _round_up(max((row.rtt_ms or 0.0 for row in rows), default=0.0))
    losses = [(row, max(row.loss_up or 0.0, row.loss_down or 0.0, row.loss)) for row in rows]
    worst = max(loss for _, loss in losses)
    scale = 1.0 if worst > 0.25 else 0.25
    for name, of in (("up", "loss_up"), ("down", "loss_down")):
        points = [(row.ts_ms, getattr(row, of)) for row in rows]
        yield _area(f"loss-{name}", points, scale, top, bottom, axis)
    yield _line("rtt", [(row.ts_ms, row.rtt_ms) for row in rows], most_ms, top, bottom, axis)
    right = WIDTH - RIGHT + 6
    yield f'<text class="scale rtt-text" x="{right}" y="{top + 10}">{most_ms:g} ms</text>'
    yield f'<text class="scale loss-text" x="{right}" y="{top + 24}">{scale:.0%}</text>'
    yield _label(_summary(rows, worst), top + 34)
    yield _label(f"jitter ≤ {max(row.jitter_ms for row in rows):.1f} ms", top + 50)


def _summary(rows: Sequence[Sample], worst: float) -> str:
    known = sorted(row.rtt_ms for row in rows if row.rtt_ms is not None)
    middle = f"{known[len(known) // 2]:.1f} ms" if known else "no answer"
    return f"RTT {middle}, loss ≤ {worst:.1%}"


def thinned(rows: Sequence[Sample]) -> list[Sample]:
    """At most MAX_POINTS rows: of neighbours the one that is worse."""
    size = math.ceil(len(rows) / MAX_POINTS) or 1
    groups = (rows[at : at + size] for at in range(0, len(rows), size))
    return [max(group, key=lambda row: (row.loss, row.rtt_ms or 0.0)) for group in groups]


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ..."""
    power: float = 10.0 ** math.floor(math.log10(max(value, 1.0)))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)


def _y(value: float, most: float, top: int, bottom: int) -> float:
    return round(bottom - 6 - (bottom - top - 10) * min(value / most, 1.0), 1)


def _runs(points: Sequence[tuple[int, float | None]]) -> Iterator[list[tuple[int, float]]]:
    """Parts without a hole."""
    usual = min((b[0] - a[0] for a, b in itertools.pairwise(points)), default=0)
    run: list[tuple[int, float]] = []
    for ts_ms, value in points:
        if run and (value is None or ts_ms - run[-1][0] > max(STALE_MS, 3 * usual, 70_000)):
            yield run
            run = []
        if value is not None:
            run.append((ts_ms, value))
    if run:
        yield run


def _line(
    kind: str,
    points: Sequence[tuple[int, float | None]],
    most: float,
    top: int,
    bottom: int,
    axis: Axis,
) -> str:
    drawn = (
        "M" + " L".join(f"{axis.x(ts_ms)},{_y(value, most, top, bottom)}" for ts_ms, value in run)
        for run in _runs(points)
    )
    return f'<path class="{kind}" d="{" ".join(drawn)}"/>'


def _area(
    kind: str,
    points: Sequence[tuple[int, float | None]],
    most: float,
    top: int,
    bottom: int,
    axis: Axis,
) -> str:
    shapes = []
    for run in _runs(points):
        edge = " L".join(f"{axis.x(t)},{_y(value, most, top, bottom)}" for t, value in run)
        foot = bottom - 6
        shapes.append(f"M{axis.x(run[0][0])},{foot} L{edge} L{axis.x(run[-1][0])},{foot} Z")
    return f'<path class="{kind}" d="{" ".join(shapes)}"/>'


# --- switches ---


def _switches(
    recoveries: Sequence[Recovery], top_of: Mapping[str, int], axis: Axis, height: int
) -> Iterator[str]:
    for number, recovery in enumerate(recoveries[:MAX_MARKS], start=1):
        x = axis.x(recovery.began_ms)
        told = f"{number}: {recovery.cause} at {clock(recovery.began_ms, True)}"
        outcome = recovery.outcome or "under way"
        kind = "ok" if recovery.succeeded else "failed"
        yield f'<g class="switch w-{kind}"><title>{esc(f"{told}, {outcome}")}</title>'
        yield f'<line x1="{x}" x2="{x}" y1="0" y2="{height - 18}"/>'
        ends = [top_of.get(path or "") for path in (recovery.from_path, recovery.to_path)]
        if ends[0] is not None and ends[1] is not None and ends[0] != ends[1]:
            begin, end = (top + LANE / 2 for top in ends if top is not None)
            head = 7 if end > begin else -7
            yield f'<path class="arrow" d="M{x},{begin} V{end}"/>'
            tip = f"M{x - 5},{end - head} L{x},{end} L{x + 5},{end - head} Z"
            yield f'<path class="head" d="{tip}"/>'
        yield f'<circle cx="{x}" cy="{BAND + GAP - 2}" r="8"/>'
        yield f'<text class="number" x="{x}" y="{BAND + GAP + 2}">{number}</text></g>'


def path_samples(answer: Mapping[str, Sequence[Sequence[Any]]]) -> dict[str, list[Sample]]:
    """What the daemon's `samples` command says, as rows."""
    return {path: [Sample(*row) for row in rows] for path, rows in answer.items()}
