"""Our dataclass does what the standard one does, for any fields."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import FrozenInstanceError, asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.core.dataclass import dataclass, field

NAMES = ("a", "b", "c", "self_", "name", "value")
# What comes behind a default has one too.
SHAPES = st.tuples(
    st.integers(0, 2), st.lists(st.sampled_from(("default", "factory", "hidden")), max_size=3)
)
VALUES = st.lists(st.integers() | st.text() | st.lists(st.integers()), min_size=6, max_size=6)


def made(by: Any, field_by: Any, shape: tuple[int, list[str]], frozen: bool, eq: bool) -> Any:
    plain, rest = shape
    names = NAMES[: plain + len(rest)]
    body: dict[str, Any] = {"__annotations__": dict.fromkeys(names, "Any")}
    for name, kind in zip(names[plain:], rest, strict=True):
        body[name] = {
            "default": 7,
            "factory": field_by(default_factory=list),
            "hidden": field_by(default="secret", repr=False),
        }[kind]
    body["doubled"] = lambda self: [getattr(self, name) * 2 for name in names]
    return by(frozen=frozen, slots=True, eq=eq)(type("Made", (), body))


def outcome(call: Any) -> Any:
    """What comes out, or which error."""
    try:
        return call()
    except Exception as error:
        return type(error)


@given(SHAPES, VALUES, VALUES, st.integers(0, 5), st.booleans(), st.booleans())
def test_it_behaves_as_the_standard_one(
    shape: tuple[int, list[str]],
    one: list[Any],
    other: list[Any],
    count: int,
    frozen: bool,
    eq: bool,
) -> None:
    def seen(by: Any, field_by: Any) -> list[Any]:
        cls = made(by, field_by, shape, frozen, eq)
        first = outcome(lambda: cls(*one[:count]))
        if isinstance(first, type):
            return [first]
        second, names = cls(*other[:count]), [each.name for each in fields(cls)]
        same, kept = cls(*one[:count]), copy.copy(first)
        found = [
            *(repr(first), first.doubled(), asdict(first), cls.__slots__, cls.__match_args__),
            *(first == same, first == second, first != second, first == 7),
            *(isinstance(outcome(lambda: hash(first)), int), asdict(copy.deepcopy(first))),
            *(asdict(kept), type(kept) is cls, cls.__qualname__, cls.__module__),
            isinstance(outcome(lambda: setattr(first, "nowhere", 1)), type),  # its kind varies
            *(outcome(lambda: vars(first)), dataclasses.is_dataclass(cls)),
            outcome(lambda: cls(nowhere=1)),
        ]
        for name in names:
            found += [asdict(replace(first, **{name: 1}))]
            found += [outcome(lambda n=name: setattr(first, n, 2)), asdict(first)]  # type: ignore[misc]
        return found

    ours, standard = seen(dataclass, field), seen(dataclasses.dataclass, dataclasses.field)
    assert ours == standard


@dataclass(frozen=True, slots=True)
class Point:
    """With a method of its own."""

    x: int
    secret: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"at {self.x}"


@dataclass(slots=True)
class Tally:
    counts: list[int] = field(default_factory=list)
    total: int = 0

    def __post_init__(self) -> None:
        self.total = sum(self.counts)


def test_what_a_class_defines_itself_stays() -> None:
    assert str(Point(3)) == "at 3"
    assert repr(Point(3, "x")) == "Point(x=3)"
    assert Point.__doc__ == "With a method of its own."
    assert Tally([1, 2]).total == 3
    assert Tally().counts is not Tally().counts


def test_equal_ones_are_one_key_and_survive_pickling() -> None:
    assert {Point(1): "here"}[Point(1)] == "here"
    assert pickle.loads(pickle.dumps(Point(1, "x"))) == Point(1, "x")


def test_a_frozen_one_cannot_change() -> None:
    point = Point(1)
    with pytest.raises(FrozenInstanceError):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del point.x  # type: ignore[misc]
    assert point.x == 1
