"""The daemon's answers as a network engineer likes to read them. JSON in, text out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from jvpnd.cli.text import (
    NONE,
    ago,
    bold,
    clean,
    details,
    duration,
    fields,
    moment,
    paint,
    plural,
    rate,
    size,
    table,
)
from jvpnd.core.reasons import Reason
from jvpnd.observe.report import Recoveries, Report, Times
from jvpnd.observe.timeline import LIMITS, Recovery, SessionTimeline, Timeline
from jvpnd.observe.verify import Verdict
from jvpnd.recording.player import Replay

Json = Mapping[str, Any]


def status(answer: Json) -> str:
    """A client or a gateway as a whole."""
    head = f"{answer['role']} {bold(clean(answer['node']))}: {paint(clean(answer['state']))}"
    if answer.get("interface"):
        head += f" on {clean(answer['interface'])}"
    body = _gateway(answer) if answer["role"] == "gateway" else _client(answer)
    return f"{head}\n{body}"


def sessions(rows: Sequence[Json]) -> str:
    """One session a line; a gateway's have clients and traffic."""
    if not rows:
        return "no sessions"
    is_gateway = "client" in rows[0]
    header = ["SESSION", "STATE", "ATTACHED", "SWITCHES", "EPOCH", "INNER", "TRANSPORT", "REMOTE"]
    if is_gateway:
        header = ["CLIENT", *header, "HEARD", "RECEIVED", "SENT"]
    return table(header, [_session_row(row, is_gateway) for row in rows])


def paths(rows: Sequence[Json]) -> str:
    """One path a line, the bound one first as the daemon sorts them; why, where one is closed."""
    if not rows:
        return "no paths: no uplink is up, or the gateway's name does not resolve"
    header = ["PATH", "STATE", "RTT", "LOSS", "UP", "DOWN", "JITTER", "HEARD", "LOCAL"]
    cells = [_path_row(row) for row in rows]
    if any(row.get("why") for row in rows):
        header = [*header, "WHY"]
        cells = [[*cell, row.get("why") or ""] for cell, row in zip(cells, rows, strict=True)]
    return table(header, cells)


def policy(answer: Json) -> str:
    """Every field, times also in words."""
    rows = []
    for name, value in answer.items():
        text = ", ".join(value) if isinstance(value, list) else str(value)
        words = duration(value) if name.endswith("_ms") and value else ""
        off = name.endswith("_floor_ms") and not value
        rows.append((name, text, "off" if off else words))
    return table(["POLICY", "VALUE", ""], rows)


def event(row: Json) -> str:
    """One event on one line."""
    moved = f"{paint(clean(row['from']))} -> {paint(clean(row['to']))}" if row.get("to") else ""
    who = clean((row.get("session_id") or "")[:8])
    parts = [
        moment(row["ts_ms"]),
        paint(clean(row["event_type"])),
        moved,
        clean(row.get("reason") or ""),
        " ".join(filter(None, (clean(row.get("client") or ""), who))),
        details(row["details"]),
    ]
    return "  ".join(filter(None, parts))


def timeline(found: Timeline) -> str:
    """Every session with its events, recoveries, latencies and limits."""
    if not found.sessions:
        return "no events"
    return "\n\n".join(_session_timeline(session) for session in found.sessions)


def replay(found: Replay) -> str:
    """What a recording holds, its transitions, and whether the core still decides the same."""
    header, first_ms = found.header, found.first_ms or 0.0
    lines = [
        f"recorded by {clean(str(header.get('node')))}, jvpn {clean(str(header.get('version')))}: "
        f"{plural(found.inputs, 'input')} in {duration(found.last_ms - first_ms)}"
    ]
    for at_ms, change in found.decisions:
        moved = f"{paint(clean(str(change.get('from'))))} -> {paint(clean(str(change.get('to'))))}"
        told = f"{clean(str(change.get('reason')))}  {details(change.get('details') or {})}"
        lines.append(f"  +{(at_ms - first_ms) / 1000:.3f}s  {moved}  {told}")
    unlike = found.difference
    if unlike is None:
        outputs, states = plural(found.outputs, "output"), plural(found.snapshots, "snapshot")
        return "\n".join([*lines, f"identical: {outputs}, {states}, byte for byte"])
    at = f"line {unlike.line}, +{(unlike.at_ms - first_ms) / 1000:.3f}s"
    return "\n".join(
        [
            *lines,
            f"DIFFERENT at {at}: {unlike.what}",
            f"  recorded: {clean(str(unlike.recorded))}",
            f"  replayed: {clean(str(unlike.replayed))}",
        ]
    )


def audit(found: Verdict) -> str:
    """Whether an audit trail holds, from when to when, and up to which hash."""
    if found.finding is not None:
        where = f"{clean(found.finding.file)}:{found.finding.line}"
        return f"{bold('BROKEN')}: {where}: {clean(found.finding.problem)}"
    lines = [f"ok: {plural(found.lines, 'line')} in {plural(found.files, 'file')}"]
    if found.first_ms is not None and found.last_ms is not None:
        lines.append(f"  from {moment(found.first_ms)} to {moment(found.last_ms)}")
    lines.append(f"  head {found.head}")
    if not found.is_complete:
        lines.append("  the trail began in a file that is not among these")
    if found.dropped:
        lines.append(f"  {plural(found.dropped, 'event')} dropped, as the trail itself says")
    if found.unfinished:
        lines.append(f"  the last line is not complete ({found.unfinished} bytes)")
    return "\n".join(lines)


def report(found: Report) -> str:
    """A line for all recoveries, one for each reason, and what was denied."""
    if found.since_ms is None or found.until_ms is None:
        return "no events"
    span = duration(found.until_ms - found.since_ms)
    lines = [
        f"{plural(found.sessions, 'session')}, {moment(found.since_ms)} and {span} on",
        "",
    ]
    if found.all.count:
        header = ["RECOVERIES", "COUNT", "OK", *_times("RECOVERY"), *_times("OUTAGE"), "FAILED"]
        rows = [("all", found.all)] if len(found.by_reason) > 1 else []
        lines.append(
            table(header, [_report_row(*row) for row in [*rows, *found.by_reason.items()]])
        )
    else:
        lines.append("no recovery")
    lines += [
        f"denied: {reason}, {plural(times, 'time')}" for reason, times in found.denied.items()
    ]
    return "\n".join(lines)


def _times(of: str) -> list[str]:
    return [f"{of}: MEDIAN", "P95", "WORST"]


def _report_row(name: str, found: Recoveries) -> list[object]:
    ended = {k: n for k, n in found.outcomes.items() if k != Reason.TRANSPORT_SWITCH_OK}
    failed = ", ".join(f"{times} {reason}" for reason, times in ended.items())
    return [
        name,
        found.count,
        found.succeeded,
        *_three(found.recovery_ms),
        *_three(found.outage_ms),
        failed or NONE,
    ]


def _three(times: Times | None) -> list[str]:
    if times is None:
        return [NONE] * 3
    return [duration(ms) for ms in (times.median, times.p95, times.worst)]


# --- status ---


def _client(answer: Json) -> str:
    session, rows = answer.get("session"), []
    if session is not None:
        rows += _session_fields(session)
    if answer.get("resting"):
        rows.append(("resting", "no new session until jvpnd is started again"))
    rows.append(("kill switch", _kill_switch(answer.get("kill_switch", {}))))
    rows.append(("names", _dns(answer.get("dns"))))
    rows += _common_fields(answer)
    return f"{fields(rows)}\n\n{paths(answer['paths'])}"


def _kill_switch(state: Mapping[str, Any]) -> str | None:
    """Nothing where there is none and shall be none."""
    if state.get("configured"):
        return "on" if state["on"] else "OFF: packets may leave beside the tunnel"
    return "on, though not configured" if state.get("on") else None


def _dns(dns: Mapping[str, Any] | None) -> str | None:
    """Who is asked for which names; nothing where that is none of ours."""
    if not dns:
        return None
    if dns["problem"]:
        return f"name servers are not set: {clean(dns['problem'])}"
    if not dns["is_set"]:
        return "as without the tunnel, until there is a session"
    names = dns["domains"] if dns["manager"] == "resolved" else []  # others cannot tell them apart
    which = ", ".join(map(clean, names)) or "all"
    return f"{which} from {', '.join(map(clean, dns['servers']))} (by {clean(dns['manager'])})"


def _gateway(answer: Json) -> str:
    found = answer["sessions"]
    configured = answer.get("clients_configured")
    of = f" of {plural(configured, 'client')}" if configured is not None else ""
    rows = [
        ("listening", ", ".join(answer["listen"]) if answer.get("listen") else None),
        ("sessions", f"{len(found)}{of}"),
        ("ciphers", _suites(found)),
        ("store", _store(answer.get("store", {}))),
        *(("note", clean(note)) for note in answer.get("notes", [])),
        *_common_fields(answer),
    ]
    return f"{fields(rows)}\n\n{sessions(found)}"


def _store(store: Mapping[str, Any]) -> str | None:
    """Why the session table takes nothing; nothing if all is well."""
    problem = store.get("problem")
    return f"nothing new is bound: {clean(problem)}" if problem else None


def _suites(found: Sequence[Json]) -> str | None:
    """The cipher suites in use, and how many sessions use each."""
    counts = Counter(clean(row["suite"]) for row in found if row.get("suite"))
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or None


def _session_fields(session: Json) -> list[tuple[str, str | None]]:
    binding, since = session.get("binding"), session.get("attached_since_ms")
    bound = "none" if binding is None else f"{binding['path']} from {binding['local']}"
    counts = [
        f"epoch {session['epoch']}",
        plural(session["switches"], "switch"),
        plural(session["rekeys"], "rekey"),
    ]
    return [
        ("session", session["id"] or "not named yet"),
        ("bound to", bound),
        ("attached" if binding else "last attached", f"{ago(since)} ({', '.join(counts)})"),
        ("inner", ", ".join(session["inner_addresses"]) or None),
        ("cipher", session.get("suite")),
    ]


def _common_fields(answer: Json) -> list[tuple[str, str | None]]:
    traffic = answer["traffic"]
    dropped = {name: count for name, count in traffic["dropped"].items() if count}
    words = ", ".join(f"{name} {count:,}" for name, count in sorted(dropped.items()))

    def carried(way: str) -> str:
        packets = plural(traffic[f"{way}_packets"], "packet")
        now = rate(traffic.get(f"{way}_bytes_per_s", 0))
        return f"{size(traffic[f'{way}_bytes'])} ({packets}), now {now}"

    return [
        ("sent", carried("tx")),
        ("received", carried("rx")),
        ("dropped", words or None),
        ("policy", f"version {answer['policy_version']}"),
        ("lanes", _lanes(answer.get("lanes", []))),
        ("telemetry", _telemetry(answer.get("telemetry", {}))),
        ("offloads", _offloads(answer["offloads"], answer.get("offloads_off", {}))),
    ]


def _lanes(rows: Sequence[Mapping[str, int]]) -> str | None:
    """How many, and what each carries; nothing of a single one."""
    if len(rows) < 2:
        return None
    packets = [row["tx_packets"] + row["rx_packets"] for row in rows]
    shares = " ".join(f"{100 * count / max(1, sum(packets)):.0f}%" for count in packets)
    return f"{len(rows)} (packets: {shares})"


def _telemetry(exporters: Mapping[str, Json]) -> str | None:
    """Which exporters there are, what they lost, and why one does not work."""
    words = []
    for name, row in exporters.items():
        lost = f", {plural(row['dropped'], 'event')} lost" if row.get("dropped") else ""
        why = f"degraded: {clean(row['degraded'])}" if row["degraded"] else "ok"
        words.append(f"{clean(name)} {why}{lost}")
    return "; ".join(words) or None


def _offloads(offloads: Mapping[str, bool], why: Mapping[str, str]) -> str:
    """Which are on, and by reason those that are not."""
    on = " ".join(clean(name) for name, value in offloads.items() if value) or "none"
    off: dict[str, list[str]] = {}
    for name, reason in why.items():
        off.setdefault(clean(reason), []).append(clean(name))
    return "; ".join([on, *(f"{reason}: {' '.join(names)}" for reason, names in off.items())])


def _session_row(row: Json, is_gateway: bool) -> list[object]:
    binding = row.get("binding") or {}
    cells: list[object] = [
        (row["id"] or NONE)[:8],
        row["state"],
        duration(row.get("attached_since_ms")),
        row["switches"],
        row["epoch"],
        ", ".join(row["inner_addresses"]) or NONE,
        binding.get("transport"),
        binding.get("remote"),
    ]
    if is_gateway:
        traffic = row.get("traffic") or {}
        heard = ago(row.get("last_heard_ms"))
        received, sent = size(traffic.get("rx_bytes")), size(traffic.get("tx_bytes"))
        cells = [row["client"], *cells, heard, received, sent]
    return cells


def _path_row(row: Json) -> list[object]:
    return [
        row["id"],
        row["state"],
        duration(row["rtt_ms"]),
        *(_share(row.get(name)) for name in ("loss", "loss_up", "loss_down")),
        duration(row["jitter_ms"]),
        ago(row["last_heard_ms"]),
        row.get("local"),
    ]


def _share(ratio: float | None) -> str:
    return NONE if ratio is None else f"{ratio:.1%}"


# --- timeline ---


def _session_timeline(session: SessionTimeline) -> str:
    parts = [_title(session)]
    if session.session_id is not None and not session.is_complete:
        parts.append("  its beginning is no longer in the log")
    parts += _entries(session.entries)
    if session.recoveries:
        header = ["WHEN", "CAUSE", "FROM", "TO", "ATTEMPTS", "OUTCOME", "RECOVERY", "OUTAGE"]
        rows = [_recovery_row(recovery) for recovery in session.recoveries]
        parts += ["", table(header, rows, "  ")]
    latencies = session.latencies_ms()
    if latencies:
        worst, middle = duration(max(latencies)), duration(median(latencies))
        switches = plural(len(latencies), "switch")
        parts.append(f"  {switches}: median {middle}, worst {worst}")
    parts += [
        f"  limit: {LIMITS[reason]} ({reason}, {plural(times, 'time')})"
        for reason, times in session.limits.items()
    ]
    return "\n".join(parts)


def _entries(found: Sequence[Json]) -> list[str]:
    """One event a line, in columns: when, what, why, and the rest of it."""
    whats = [_what(row) for row in found]
    whys = [clean(row["reason"] or "") for row in found]
    wide = max((len(" -> ".join(words)) for words in whats), default=0)
    wider = max(map(len, whys), default=0)
    lines = []
    for row, words, why in zip(found, whats, whys, strict=True):
        blanks = " " * (wide - len(" -> ".join(words)))
        what, rest = " -> ".join(map(paint, words)), details(row["details"])
        line = f"  {moment(row['ts_ms'])}  {what}{blanks}  {paint(why.ljust(wider))}  {rest}"
        lines.append(line.rstrip())
    return lines


def _what(row: Json) -> list[str]:
    """A transition is its two states, anything else its type."""
    moved = [row["from"], row["to"]] if row.get("to") else [row["event_type"]]
    return [clean(word) for word in moved]


def _title(session: SessionTimeline) -> str:
    if session.session_id is None:
        return bold("without a session")
    words = [f"session {bold(clean(session.session_id))}"]
    if session.client:
        words.append(clean(session.client))
    if session.state:
        words.append(paint(session.state))
    if session.supersedes:
        words.append(f"supersedes {clean(session.supersedes)}")
    return ", ".join(words)


def _recovery_row(recovery: Recovery) -> list[object]:
    return [
        moment(recovery.began_ms),
        recovery.cause,
        recovery.from_path,
        recovery.to_path,
        recovery.attempts or NONE,
        recovery.outcome or "under way",
        duration(recovery.recovery_ms),
        duration(recovery.outage_ms),
    ]
