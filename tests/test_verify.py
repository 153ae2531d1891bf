"""Whatever is done to an audit trail, the first line that is wrong is named."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jvpnd.observe.audit import AuditFile
from jvpnd.observe.chain import sealed, unsealed
from jvpnd.observe.log import EventLog
from jvpnd.observe.verify import in_order, trail_in, verify

Place = tuple[int, int]  # file and line, from 0, oldest first
Trail = list[list[bytes]]


def written() -> Trail:
    """A trail of several files and of three runs of a daemon: its lines, oldest first."""
    with tempfile.TemporaryDirectory() as name:
        clock = itertools.count(1_000)
        for count in (9, 14, 12):
            log = EventLog("gw1", lambda: next(clock))
            audit = AuditFile(Path(name) / "audit.jsonl", 3000, 20, "gw1", lambda: next(clock))
            audit.write(deque(log.append("REKEY", details={"epoch": n}) for n in range(count)))
            audit.close()
        return [file.read_bytes().splitlines() for file in trail_in(Path(name))]


TRAIL = written()
PLACES = [(f, n) for f, lines in enumerate(TRAIL) for n in range(len(lines))]
LAST = PLACES[-1]
HEAD = unsealed(TRAIL[-1][-1]).hash


def found(trail: Trail, head: str | None = None) -> tuple[Place, str] | None:
    """Where the first wrong line is, and what is wrong with it."""
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / f"audit.jsonl.{len(trail) - n}" for n in range(len(trail))]
        for file, lines in zip(files, trail, strict=True):
            file.write_bytes(b"".join(line + b"\n" for line in lines))
        assert trail_in(Path(name)) == files
        finding = verify(files, head).finding
        if finding is None:
            return None
        at = [str(file) for file in files].index(finding.file)
        return (at, finding.line - 1), finding.problem


def copy() -> Trail:
    return [list(lines) for lines in TRAIL]


def after(trail: Trail, place: Place) -> Place:
    """The first line that there is at a place or behind it."""
    file, line = place
    while line >= len(trail[file]):
        file, line = file + 1, 0
    return file, line


places = st.sampled_from(PLACES)


def test_the_trail_of_these_tests_is_sound_and_has_several_files() -> None:
    assert len(TRAIL) >= 4
    assert found(TRAIL) is None
    assert found(TRAIL, HEAD) is None


@given(places, st.data())
@settings(deadline=None)
def test_a_changed_line_is_found_where_it_is(place: Place, data: st.DataObject) -> None:
    trail = copy()
    line = bytearray(trail[place[0]][place[1]])
    at = data.draw(st.integers(0, len(line) - 1))
    new = data.draw(st.integers(0, 255).filter(lambda byte: byte not in (line[at], ord("\n"))))
    line[at] = new
    trail[place[0]][place[1]] = bytes(line)
    where, problem = found(trail) or (None, "")
    assert where == place
    assert "changed" in problem or "not a line" in problem


@given(places.filter(lambda place: place != LAST))
@settings(deadline=None)
def test_a_missing_line_is_found_at_the_one_behind_it(place: Place) -> None:
    trail = copy()
    del trail[place[0]][place[1]]
    where, problem = found(trail) or (None, "")
    assert where == after(trail, place)
    assert "missing" in problem


@given(places, places)
@settings(deadline=None)
def test_two_lines_in_each_others_place_are_found_at_the_first(one: Place, other: Place) -> None:
    first, second = sorted((one, other))
    trail = copy()
    a, b = trail[first[0]][first[1]], trail[second[0]][second[1]]
    trail[first[0]][first[1]], trail[second[0]][second[1]] = b, a
    if first == second:
        assert found(trail) is None
        return
    where, problem = found(trail) or (None, "")
    assert where == first
    assert "out of order" in problem or "first line" in problem


@given(places, places)
@settings(deadline=None)
def test_a_repeated_line_is_found_where_it_repeats_or_comes_too_early(
    source: Place, target: Place
) -> None:
    trail = copy()
    trail[target[0]].insert(target[1], TRAIL[source[0]][source[1]])
    where, problem = found(trail) or (None, "")
    if source == target:  # then the second of the two is the copy
        assert where == after(trail, (target[0], target[1] + 1))
    else:
        assert where == target
    assert "repeats" in problem or "out of order" in problem or "first line" in problem


@given(places, st.binary(max_size=80).filter(lambda text: b"\n" not in text))
@settings(deadline=None)
def test_a_line_that_was_put_in_is_found(place: Place, text: bytes) -> None:
    trail = copy()
    trail[place[0]].insert(place[1], text)
    where, problem = found(trail) or (None, "")
    assert where == place
    assert "not a line" in problem


@given(places.filter(lambda place: place != LAST))
@settings(deadline=None)
def test_a_line_that_was_forged_with_a_seal_is_found_at_the_one_behind_it(place: Place) -> None:
    """Who knows how the chain is made can seal a line; the next one still seals the old one."""
    trail = copy()
    line = unsealed(trail[place[0]][place[1]])
    record = {k: v for k, v in line.record.items() if k not in ("prev", "hash")}
    forged, _ = sealed({**record, "client": "somebody else"}, line.prev)
    trail[place[0]][place[1]] = forged[:-1]
    where, problem = found(trail) or (None, "")
    assert where == after(trail, (place[0], place[1] + 1))
    assert "missing" in problem


@given(places.filter(lambda place: place[1] > 0))
@settings(deadline=None)
def test_an_end_that_was_cut_off_is_found_by_who_knows_its_hash(place: Place) -> None:
    trail = [*TRAIL[: place[0]], TRAIL[place[0]][: place[1]]]
    assert found(trail) is None, "the chain alone cannot tell"
    where, problem = found(trail, HEAD) or (None, "")
    assert where == place
    assert "cut off" in problem


def test_the_hash_of_any_line_will_do_as_the_trail_has_grown_since() -> None:
    for file, line in PLACES:
        assert found(TRAIL, unsealed(TRAIL[file][line]).hash) is None


def test_a_whole_file_that_is_missing_is_found_unless_it_is_the_oldest() -> None:
    for gone in range(1, len(TRAIL) - 1):
        trail = copy()
        del trail[gone]
        where, problem = found(trail) or (None, "")
        assert where == (gone, 0)
        assert "missing" in problem
    assert found(copy()[1:]) is None, "rotation removes the oldest"


def test_a_rotated_file_that_ends_in_the_middle_of_a_line_is_found(tmp_path: Path) -> None:
    files = [tmp_path / "audit.jsonl.1", tmp_path / "audit.jsonl"]
    files[0].write_bytes(b"\n".join(TRAIL[0])[:-5])
    files[1].write_bytes(b"\n".join(TRAIL[1]) + b"\n")
    finding = verify(files).finding
    assert finding is not None
    assert (finding.file, finding.line) == (str(files[0]), len(TRAIL[0]))


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"ts_ms": 1, "seq": "1", "event_type": "REKEY", "details": {}},
        {"ts_ms": 1, "seq": True, "event_type": "REKEY", "details": {}},
        {"ts_ms": 1, "seq": 1, "event_type": "EVENTS_DROPPED", "details": {}},
        {"ts_ms": 1, "seq": 1, "event_type": "REKEY", "details": []},
        {"ts_ms": 10**18, "seq": 1, "event_type": "REKEY", "details": {}},
        {"ts_ms": None, "seq": 1, "event_type": "REKEY", "details": {}},
        {"ts_ms": 1, "seq": None, "event_type": "AUDIT_FILE", "details": {"what": 3}},
    ],
)
def test_a_sealed_line_that_is_no_event_is_refused(record: dict[str, object]) -> None:
    line, _ = sealed(record, "0" * 64)
    with pytest.raises(ValueError, match="not a line of an audit file"):
        unsealed(line[:-1])


def test_a_seal_around_what_is_no_json_is_refused() -> None:
    from hashlib import sha256

    for body in (b"[1", b"", b"[" * 100_000, b'{"a":\xff'):
        line = body + b',"hash":"' + sha256(body).hexdigest().encode() + b'"}'
        with pytest.raises(ValueError, match="not a line of an audit file"):
            unsealed(line)


def names(files: Sequence[Path]) -> Iterator[str]:
    return (file.name for file in files)


def test_files_are_taken_in_the_order_of_their_rotation() -> None:
    shuffled = [Path(f"a.jsonl{tail}") for tail in ("", ".1", ".10", ".2")]
    assert [*names(in_order(shuffled))] == ["a.jsonl.10", "a.jsonl.2", "a.jsonl.1", "a.jsonl"]
    other = [Path("b.jsonl"), Path("a.jsonl.7")]
    assert in_order(other) == other


def test_a_folder_must_have_one_trail(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no audit file"):
        trail_in(tmp_path)
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "notes.txt").touch()
    assert [*names(trail_in(tmp_path))] == ["a.jsonl"]
    (tmp_path / "b.jsonl.3").touch()
    with pytest.raises(ValueError, match=r"a\.jsonl, b\.jsonl"):
        trail_in(tmp_path)


def test_every_field_of_the_event_is_under_the_seal() -> None:
    line = TRAIL[0][-1]
    body = json.loads(line)
    assert list(body)[-2:] == ["prev", "hash"]
