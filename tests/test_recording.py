"""A snapshot brings back what was there and nothing else, whoever wrote the file."""

from __future__ import annotations

import contextlib
import json
from collections import OrderedDict, deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.core.path import Path, PathInfo
from jvpnd.core.policy import Policy
from jvpnd.core.rtt import RttEstimator
from jvpnd.core.session import Session
from jvpnd.core.states import State
from jvpnd.core.wire import Suite
from jvpnd.recording.player import RecordingError, replay
from jvpnd.recording.snapshot import SnapshotError, decode, encode
from jvpnd.recording.tape import Tape

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.sampled_from([State.VOLATILE, Suite.AES_256_GCM])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner)
    | st.lists(inner).map(tuple)
    | st.lists(inner).map(lambda items: deque(items, maxlen=99))
    | st.dictionaries(st.text() | st.binary(), inner)
    | st.dictionaries(st.integers(), inner).map(OrderedDict)
    | st.sets(st.integers() | st.text()),
    max_leaves=20,
)


def there_and_back(thing: Any) -> Any:
    """As through a file."""
    return decode(json.loads(json.dumps(encode(thing, {}))), {})


@given(values)
def test_values_come_back_as_they_were(value: Any) -> None:
    back = there_and_back([value])[0]
    assert back == value
    assert type(back) is type(value)


def test_objects_of_the_core_come_back_with_what_they_share() -> None:
    path = Path(PathInfo("a", "udp", "a", "-", "-"), 1, 0.0, Policy())
    path.probe_answered(path.probe_sent(5.0), 25.0)
    session = Session(b"s" * 16, "laptop", 1.5, root=b"r", switched_at_ms=[1.0])
    circle: dict[str, Any] = {"bound": path, "paths": [path], "session": session}
    circle["itself"] = circle
    back = there_and_back(circle)
    assert back["itself"] is back
    assert back["bound"] is back["paths"][0]
    assert back["session"] == session
    assert encode(back, {}) == encode(circle, {})
    assert back["bound"].rtt.srtt_ms == 20.0


def test_what_belongs_to_the_shell_is_left_out_and_filled_in_again() -> None:
    secret, mine, other = object(), RttEstimator(), RttEstimator()
    data = encode([mine, secret], {"entropy": mine, "secret": secret})
    assert "object" not in json.dumps(data["root"])
    assert decode(data, {"entropy": other, "secret": 7}) == [other, 7]


@pytest.mark.parametrize("thing", [object(), open, lambda: 0, type])
def test_what_has_no_place_in_a_core_is_a_bug(thing: object) -> None:
    with pytest.raises(TypeError, match="no place"):
        encode([thing], {})


def of(name: str, *attributes: str) -> dict[str, Any]:
    return {"root": ["@", 0], "objects": [["of", name, list(attributes), [1] * len(attributes)]]}


@pytest.mark.parametrize(
    "data",
    [
        of("os:system"),
        of("subprocess:Popen"),
        of("jvpnd.daemon:RuntimeDirError"),
        of("jvpnd.core.rtt:math"),
        of("jvpnd.core.rtt:RttEstimator", "__class__"),
        of("jvpnd.core.rtt:RttEstimator", "a b"),
        of("jvpnd.core.path:PathInfo", "nothing_of_the_kind"),
        of("jvpnd.core.policy:fields"),
        of("jvpnd.core.policy:Mapping"),
        {"root": ["@", 3], "objects": []},
        {"root": ["hole", "entropy"], "objects": []},
        {"root": ["enum", "jvpnd.core.states:State", "NONE"], "objects": []},
        {"root": ["enum", "jvpnd.core.path:PathInfo", "x"], "objects": []},
        {"root": ["bytes", "zz"], "objects": []},
        {"root": ["what", 1], "objects": []},
        {"root": ["@", 0], "objects": [["list"]]},
        {"root": ["@", 0], "objects": [["dict", [["@", 0]], [1]]]},
        {"root": 1},
        {},
        [],
        None,
    ],
)
def test_a_hostile_snapshot_makes_nothing_and_is_told(data: Any) -> None:
    with pytest.raises(SnapshotError, match="no snapshot"):
        decode(data, {})


@given(st.recursive(scalars.filter(lambda v: not isinstance(v, bytes)), st.lists, max_leaves=30))
def test_any_json_is_a_snapshot_or_told(value: Any) -> None:
    for data in (value, {"root": value, "objects": [value, ["of", value, value, value]]}):
        with contextlib.suppress(SnapshotError):
            decode(data, {})


def test_a_tape_is_bounded_and_begins_with_a_snapshot() -> None:
    tape = Tape("laptop", half_bytes=10_000)
    for number in range(10_000):
        if tape.wants_snapshot():
            tape.begin_half({"at": number})
        tape.write({"in": "timer", "t": number})
    lines = tape.lines()
    assert sum(map(len, lines)) < 21_000
    assert json.loads(lines[0])["jvpn_recording"] == 1
    assert "snapshot" in json.loads(lines[1])
    assert json.loads(lines[-1])["t"] == 9_999


HEADER = '{"jvpn_recording":1}'


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], "line 1 is damaged"),
        (["[]"], "line 1 is damaged"),
        (["{}"], "no recording"),
        (['{"jvpn_recording":2}'], "format 2"),
        ([HEADER], "no snapshot"),
        ([HEADER, "{"], "line 2 is damaged"),
        ([HEADER, '{"in":"timer","t":1}'], "without a snapshot"),
        ([HEADER, "[" * 100_000], "line 2 is damaged"),
    ],
)
def test_what_is_no_recording_is_told_in_one_line(lines: list[str], told: str) -> None:
    with pytest.raises(RecordingError, match=told):
        replay(lines)


@pytest.mark.parametrize("snapshot", [of("jvpnd.core.rtt:RttEstimator"), of("os:system"), 7])
def test_a_snapshot_of_something_else_is_refused(snapshot: Any) -> None:
    with pytest.raises(RecordingError, match="snapshot"):
        replay([HEADER, json.dumps({"snapshot": snapshot})])
