"""The page of a timeline: everything at its place, bounded, and no word of a stranger trusted."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.observe.chart import MAX_MARKS, MAX_POINTS, Axis, clock, thinned
from jvpnd.observe.page import MAX_EVENTS, MAX_SESSIONS, page
from jvpnd.observe.samples import Sample
from jvpnd.observe.story import Stretch, bindings, states
from jvpnd.observe.timeline import timeline

T0 = 1_700_000_000_000
WIFI, LTE = "wlan0/udp/gw:7700", "wwan0/udp/gw:7700"
SESSION = "5f0c1a2b" + "00" * 12


class Events:
    """A log written by hand."""

    def __init__(self, session: str | None = SESSION) -> None:
        self.session = session
        self.rows: list[dict[str, Any]] = []

    def add(self, at_ms: int, kind: str, reason: str | None = None, **more: Any) -> None:
        states = {"from": more.pop("before", None), "to": more.pop("to", None)}
        self.rows.append(
            {
                "ts_ms": T0 + at_ms,
                "seq": len(self.rows) + 1,
                "event_type": kind,
                "session_id": self.session,
                "client": more.pop("client", "laptop"),
                "reason": reason,
                "details": more,
                **states,
            }
        )

    def change(self, at_ms: int, before: str, to: str, reason: str, **details: Any) -> None:
        self.add(at_ms, "STATE_CHANGE", reason, before=before, to=to, **details)


def story() -> Events:
    """Ten seconds on Wi-Fi, a death, mobile, and back home by order."""
    log = Events()
    log.add(0, "SESSION_CREATED", "HANDSHAKE_OK", path=WIFI, supersedes=None)
    log.change(0, "BIRTH", "ATTACHED", "HANDSHAKE_OK", path=WIFI)
    log.change(10_000, "ATTACHED", "RECOVERING", "TRANSPORT_DEAD", path=WIFI, why="uplink lost")
    log.change(
        10_040,
        "RECOVERING",
        "ATTACHED",
        "TRANSPORT_SWITCH_OK",
        path=LTE,
        recovery_ms=40.0,
        outage_ms=40.0,
    )
    log.add(12_000, "TRANSPORT_SWITCH_DENIED", "RATE_LIMITED", to_path=WIFI)
    log.change(20_000, "ATTACHED", "RECOVERING", "RECOVERY_START", to_path=WIFI)
    log.change(
        20_020,
        "RECOVERING",
        "ATTACHED",
        "TRANSPORT_SWITCH_OK",
        path=WIFI,
        recovery_ms=20.0,
        outage_ms=0,
    )
    return log


def rows(count: int, every_ms: int = 1_000, loss: float = 0.0) -> list[Sample]:
    return [Sample(T0 + n * every_ms, 20.0 + n % 3, 1.0, loss, None, loss) for n in range(count)]


def render(log: Events, samples: dict[str, list[Sample]] | None = None) -> str:
    return page(timeline(log.rows), samples or {}, "laptop", T0 + 30_000)


class Checker(HTMLParser):
    """Every element that is opened is closed in turn."""

    VOID = frozenset({"meta", "br", "rect", "line", "path", "circle"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID or not self.get_starttag_text().endswith("/>"):  # type: ignore[union-attr]
            if tag not in ("meta", "br"):
                self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, tag: str, kind: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.seen if t == tag and kind in (a.get("class") or "").split()]


def test_stretches_of_states_and_of_paths_follow_from_the_events() -> None:
    (session,) = timeline(story().rows).sessions
    assert [(s.begin_ms - T0, s.end_ms - T0, s.what) for s in states(session, T0 + 30_000)] == [
        (0, 10_000, "ATTACHED"),
        (10_000, 10_040, "RECOVERING"),
        (10_040, 20_000, "ATTACHED"),
        (20_000, 20_020, "RECOVERING"),
        (20_020, 30_000, "ATTACHED"),
    ]
    assert bindings(session, T0 + 30_000) == [
        Stretch(T0, T0 + 10_000, WIFI, "HANDSHAKE_OK"),
        Stretch(T0 + 10_040, T0 + 20_020, LTE, "TRANSPORT_SWITCH_OK"),  # it served until then
        Stretch(T0 + 20_020, T0 + 30_000, WIFI, "TRANSPORT_SWITCH_OK"),
    ]


def test_a_story_is_drawn_where_it_happened() -> None:
    found = Checker(render(story(), {WIFI: rows(31), LTE: rows(31, loss=0.1)}))
    axis = Axis(T0, T0 + 30_000)
    bands = found.of("rect", "state")
    assert [band["x"] for band in bands] == [
        str(axis.x(T0 + at)) for at in (0, 10_000, 10_040, 20_000, 20_020)
    ]
    assert all(float(band["width"] or 0) >= 2 for band in bands), "20 ms are seen too"
    assert len(found.of("rect", "carrier")) == 3
    assert len(found.of("path", "rtt")) == 2
    assert len(found.of("g", "w-ok")) == 2
    assert len(found.of("path", "arrow")) == 2
    assert len(found.of("path", "m-cross")) == 1
    text = " ".join(found.words)
    for word in ("TRANSPORT_DEAD", "RATE_LIMITED", "wlan0 udp", "wwan0 udp", "40 ms", SESSION):
        assert word in text


def test_the_page_is_whole_by_itself_and_runs_nothing() -> None:
    text = render(story(), {WIFI: rows(31)})
    Checker(text)
    assert "<script" not in text
    assert not re.search(r"(src|href)=|url\(|@import|https?://", text)


def test_words_of_strangers_stay_words() -> None:
    evil = '<script>alert(1)</script>"\'&\x1b[31m'
    log = Events()
    log.change(0, "BIRTH", "ATTACHED", evil, path=evil, client=evil)
    log.add(5, "SECURITY_EVENT", "AUTH_FAIL", what=evil, remote=evil)
    text = page(timeline(log.rows), {evil: rows(3)}, evil, T0)
    Checker(text)
    assert "<script" not in text
    assert "\x1b" not in text
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize("count", [0, 1, 2, 10_000])
def test_any_number_of_events_and_samples_gives_a_page_of_bounded_size(count: int) -> None:
    log = Events()
    for n in range(count):
        log.change(n * 100, "ATTACHED", "RECOVERING", "TRANSPORT_DEAD", path=WIFI, why="x" * 50)
    text = render(log, {WIFI: rows(count), LTE: rows(count)})
    found = Checker(text)
    assert len(text) < 2_000_000
    assert len(found.of("path", "mark")) <= MAX_MARKS
    assert text.count("<tr") <= MAX_EVENTS + MAX_MARKS + 10


def test_many_sessions_are_cut_to_the_newest() -> None:
    log = Events()
    for n in range(MAX_SESSIONS + 5):
        log.session = f"{n:032x}"
        log.change(n, "BIRTH", "TERMINATED", "HANDSHAKE_FAIL")
    text = render(log)
    assert text.count("<section>") == MAX_SESSIONS
    assert f"{MAX_SESSIONS + 4:032x}" in text
    assert f"{0:032x}" not in text


def test_events_without_a_session_have_a_table_and_no_drawing() -> None:
    log = Events(None)
    log.add(0, "SECURITY_EVENT", "SEC_ABUSE_CONTROL_PLANE", what="handshake rate")
    text = render(log)
    assert "Without a session" in text
    assert "<svg" not in text


@given(st.integers(1, 10**11), st.lists(st.integers(-(10**12), 10**12), max_size=20))
def test_an_axis_keeps_everything_inside_and_its_ticks_few(length: int, at: list[int]) -> None:
    axis = Axis(T0, T0 + length)
    assert all(190 <= axis.x(T0 + moment) <= 1180 for moment in at)
    assert len(list(axis.ticks())) <= 13


@given(st.integers(0, 5_000))
def test_thinning_keeps_the_worst(count: int) -> None:
    long = rows(count)
    if count:
        long[count // 2] = long[count // 2]._replace(loss=0.9)
    short = thinned(long)
    assert len(short) <= MAX_POINTS
    assert [row.ts_ms for row in short] == sorted(row.ts_ms for row in short)
    assert not count or max(row.loss for row in short) == 0.9


def test_a_clock_has_milliseconds_where_they_matter() -> None:
    assert re.fullmatch(r"\d\d:\d\d:\d\d", clock(T0))
    assert clock(T0 + 7, True).endswith(".007")
