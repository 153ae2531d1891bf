"""`dataclass` and `field` as in the standard library, but made in a fifth of the time.

A start makes a hundred such classes: with the standard one that was a third of what a restart waits
for, since it compiles each method of each class by itself, and imports `inspect`. Here they share
all methods but `__init__`. The standard `replace`, `fields` and `asdict` know them. They have
slots, and no other dataclass as a base.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

__all__ = ["dataclass", "field"]

_MISSING: Final = object()


class _Field:
    """What `field` was told."""

    __slots__ = ("default", "default_factory", "repr")

    def __init__(self, default: Any, default_factory: Any, repr: bool) -> None:
        self.default = default
        self.default_factory = default_factory
        self.repr = repr


def _field(
    *, default: Any = _MISSING, default_factory: Any = _MISSING, repr: bool = True
) -> _Field:
    return _Field(default, default_factory, repr)


def _dataclass(
    *, slots: bool, frozen: bool = False, eq: bool = True
) -> Callable[[type], type]:
    if not slots:
        raise TypeError("dataclass: slots=True is all there is here")
    shared = _SHARED | (_FROZEN if frozen else {})
    if eq:
        shared |= _EQUAL | {"__hash__": _hash if frozen else None}

    def make(cls: type) -> type:
        own = {n: v for n, v in vars(cls).items() if n not in ("__dict__", "__weakref__")}
        fields = {name: _field_of(own, name) for name in own.get("__annotations__", ())}
        names = tuple(fields)
        made = {
            "__qualname__": cls.__qualname__,
            "__slots__": names,
            "__match_args__": names,
            "__init__": _init(cls, fields, frozen),
            "__dataclass_fields__": _StandardFields(fields),
            "_dataclass_values": attrgetter(*names) if names else staticmethod(_no_values),
            "_dataclass_shown": tuple(name for name, each in fields.items() if each.repr),
        }
        return type(cls)(cls.__name__, cls.__bases__, {**shared, **own, **made})

    return make


def _field_of(own: dict[str, Any], name: str) -> _Field:
    """The default goes from the class, where a slot takes its place."""
    given = own.pop(name, _MISSING)
    return given if isinstance(given, _Field) else _field(default=given)


def _init(cls: type, fields: dict[str, _Field], frozen: bool) -> Any:
    names: dict[str, Any] = {"_set": object.__setattr__, "_MISSING": _MISSING}
    parameters, lines = ["self"], []
    for name, each in fields.items():
        value, parameter = name, name
        if each.default_factory is not _MISSING:
            names[f"_new_{name}"] = each.default_factory
            parameter = f"{name}=_MISSING"
            value = f"_new_{name}() if {name} is _MISSING else {name}"
        elif each.default is not _MISSING:
            names[f"_default_{name}"] = each.default
            parameter = f"{name}=_default_{name}"
        parameters.append(parameter)
        lines.append(f"_set(self, {name!r}, {value})" if frozen else f"self.{name} = {value}")
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    exec(f"def __init__({', '.join(parameters)}):\n " + "\n ".join(lines or ["pass"]), names)
    names["__init__"].__qualname__ = f"{cls.__qualname__}.__init__"
    return names["__init__"]


class _StandardFields:
    """`__dataclass_fields__`, made when the standard library first asks for it."""

    def __init__(self, fields: dict[str, _Field]) -> None:
        self._fields = fields

    def __get__(self, instance: object, cls: type) -> Any:
        import dataclasses

        def standard(each: _Field) -> Any:
            if each.default_factory is not _MISSING:
                return dataclasses.field(default_factory=each.default_factory, repr=each.repr)
            if each.default is not _MISSING:
                return dataclasses.field(default=each.default, repr=each.repr)
            return dataclasses.field(repr=each.repr)

        types = cls.__annotations__
        told = [(name, types[name], standard(each)) for name, each in self._fields.items()]
        made: Any = dataclasses.make_dataclass(cls.__name__, told)
        found = made.__dataclass_fields__
        setattr(cls, "__dataclass_fields__", found)  # noqa: B010
        return found


def _no_values(_self: object) -> tuple[()]:
    return ()


def _repr(self: Any) -> str:
    shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._dataclass_shown)
    return f"{type(self).__qualname__}({shown})"


def _eq(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return self._dataclass_values(self) == self._dataclass_values(other)


def _hash(self: Any) -> int:
    return hash(self._dataclass_values(self))


def _refuse(self: object, name: str, *_value: object) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _get_state(self: Any) -> list[Any]:
    return [getattr(self, name) for name in self.__slots__]


def _set_state(self: Any, state: list[Any]) -> None:
    for name, value in zip(self.__slots__, state, strict=True):
        object.__setattr__(self, name, value)


_SHARED: Final[dict[str, Any]] = {
    "__repr__": _repr,
    "__getstate__": _get_state,
    "__setstate__": _set_state,
}
_FROZEN: Final[dict[str, Any]] = {"__setattr__": _refuse, "__delattr__": _refuse}
_EQUAL: Final[dict[str, Any]] = {"__eq__": _eq}

if TYPE_CHECKING:
    from dataclasses import dataclass, field
else:
    dataclass, field = _dataclass, _field
