"""An agent's whole state as JSON, and back.

A recording may come from anybody, so nothing in it is trusted: only classes of jvpnd.core are made,
without calling them, and a fault is a SnapshotError. What the state shares or holds in circles it
still does afterwards. *Holes* are objects that belong to the shell, left out and filled in by name.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, Final, TypeAlias

import jvpnd.core

Json: TypeAlias = Any
Holes: TypeAlias = Mapping[str, object]

_FILES: Final = pkgutil.iter_modules(jvpnd.core.__path__)
_MODULES: Final = frozenset(f"jvpnd.core.{module.name}" for module in _FILES)
_CONTAINERS: Final[dict[str, type]] = {"list": list, "set": set, "dict": dict, "odict": OrderedDict}
_NAMES: Final = {kind: name for name, kind in _CONTAINERS.items()}


class SnapshotError(ValueError):
    """What was read is no snapshot of ours."""


def encode(root: object, holes: Holes) -> Json:
    """`root` and all it holds. TypeError for what has no place in a core's state."""
    return _Encoder(holes).whole(root)


def decode(data: Json, holes: Holes) -> Any:
    """The object that was encoded. SnapshotError for anything else."""
    try:
        return _Decoder(data, holes).value(data["root"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise SnapshotError(f"no snapshot of this version: {error}") from error


def plain(value: object) -> Json:
    """A value for a digest, where it does not matter who shares what."""
    return _Encoder({}).whole(value)


class _Encoder:
    def __init__(self, holes: Holes) -> None:
        self._holes = {id(thing): name for name, thing in holes.items()}
        self._numbers: dict[int, int] = {}
        self._objects: list[Json] = []
        self._kept: list[object] = []  # so that no id is used twice

    def whole(self, root: object) -> Json:
        value = self._value(root)
        return {"root": value, "objects": self._objects}

    def _value(self, thing: object) -> Json:
        if isinstance(thing, Enum):
            return ["enum", _class_name(type(thing)), thing.name]
        if thing is None or isinstance(thing, bool | int | str):
            return thing
        if isinstance(thing, float):
            return thing if math.isfinite(thing) else ["float", str(thing)]
        if isinstance(thing, bytes):
            return ["bytes", thing.hex()]
        if isinstance(thing, tuple):
            return ["tuple", [self._value(each) for each in thing]]
        if id(thing) in self._holes:
            return ["hole", self._holes[id(thing)]]
        return ["@", self._number(thing)]

    def _number(self, thing: object) -> int:
        number = self._numbers.get(id(thing))
        if number is None:
            number = self._numbers[id(thing)] = len(self._objects)
            self._kept.append(thing)
            self._objects.append(None)
            self._objects[number] = self._object(thing)
        return number

    def _object(self, thing: object) -> Json:
        if isinstance(thing, deque):
            return ["deque", thing.maxlen, self._values(thing)]
        if isinstance(thing, array):
            return ["array", thing.typecode, thing.tolist()]
        name = _NAMES.get(type(thing))
        if isinstance(thing, dict) and name is not None:
            return [name, self._values(thing), self._values(thing.values())]
        if isinstance(thing, list) and name is not None:
            return [name, self._values(thing)]
        if isinstance(thing, set) and name is not None:
            return [name, sorted(self._values(thing), key=repr)]
        attributes = _attributes(thing)
        return ["of", _class_name(type(thing)), list(attributes), self._values(attributes.values())]

    def _values(self, things: Iterable[object]) -> list[Json]:
        return [self._value(each) for each in things]


class _Decoder:
    """Makes every object empty first, then fills all: so circles are no matter."""

    def __init__(self, data: Json, holes: Holes) -> None:
        self._holes = holes
        rows = data["objects"]
        self._made = [_empty(row) for row in rows]
        for made, row in zip(self._made, rows, strict=True):
            self._fill(made, row)

    def value(self, data: Json) -> Any:
        if not isinstance(data, list):
            return data
        kind, first = data[0], data[1]
        if kind == "@":
            return self._made[first]
        readers: dict[str, Callable[[], Any]] = {
            "enum": lambda: _class(first, Enum)[data[2]],
            "float": lambda: {"inf": math.inf, "-inf": -math.inf}[first],
            "bytes": lambda: bytes.fromhex(first),
            "tuple": lambda: tuple(self._values(first)),
            "hole": lambda: self._holes[first],
        }
        return readers[kind]()

    def _values(self, data: Json) -> list[Any]:
        return [self.value(each) for each in data]

    def _fill(self, made: Any, row: Json) -> None:
        kind, *rest = row
        if kind == "deque":
            made.extend(self._values(rest[1]))
        elif kind == "array":
            made.extend(rest[1])
        elif kind == "list":
            made.extend(self._values(rest[0]))
        elif kind in ("dict", "odict"):
            made.update(zip(self._values(rest[0]), self._values(rest[1]), strict=True))
        elif kind == "set":
            made.update(self._values(rest[0]))
        else:
            for name, value in zip(rest[1], self._values(rest[2]), strict=True):
                if not name.isidentifier() or name.startswith("__"):
                    raise ValueError(f"attribute {name!r}")
                object.__setattr__(made, name, value)


def _empty(row: Json) -> Any:
    kind = row[0]
    if kind == "deque":
        return deque(maxlen=row[1])
    if kind == "array":
        return array(row[1])
    if kind in _CONTAINERS:
        return _CONTAINERS[kind]()
    if kind != "of":
        raise ValueError(f"kind {kind!r}")
    cls = _class(row[1], object)
    return cls.__new__(cls)


def _attributes(thing: object) -> dict[str, object]:
    """By name, in the order of the class: slots where it has them, else what it was given."""
    slots = [n for cls in reversed(type(thing).__mro__) for n in getattr(cls, "__slots__", ())]
    found = {name: getattr(thing, name) for name in slots if hasattr(thing, name)}
    return found | getattr(thing, "__dict__", {})


def _class_name(cls: type) -> str:
    if cls.__module__ not in _MODULES:
        raise TypeError(f"{cls.__module__}.{cls.__qualname__} has no place in a core's state")
    return f"{cls.__module__}:{cls.__qualname__}"


def _class(name: str, base: type) -> Any:
    module, _, word = name.partition(":")
    if module not in _MODULES:
        raise ValueError(f"module {module!r}")
    cls = vars(importlib.import_module(module))[word]
    if not isinstance(cls, type) or not issubclass(cls, base) or cls.__module__ != module:
        raise ValueError(f"class {name!r}")
    return cls
