"""Copies of a whole world, with cores and all, quickly enough to make one at every turn."""

from __future__ import annotations

import io
import marshal
import pickle
import sys
import types
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

_SHARED: dict[int, object] = {}  # by id(), and kept so that no id is used twice


def freeze(world: object) -> bytes:
    file = io.BytesIO()
    _Freezer(file, pickle.HIGHEST_PROTOCOL).dump(world)
    return file.getvalue()


def thaw(frozen: bytes) -> Any:
    """A copy of what was frozen in this process."""
    return pickle.loads(frozen)


class _Freezer(pickle.Pickler):
    """What cannot change is shared by all worlds; what waits for the table's answer (a closure) is
    copied with all that it refers to."""

    def reducer_override(self, thing: object) -> Any:
        params = getattr(thing, "__dataclass_params__", None)
        if isinstance(thing, MLKEM768PrivateKey) or (
            params is not None and params.frozen and not isinstance(thing, type)
        ):
            _SHARED[id(thing)] = thing
            return _shared, (id(thing),)
        if isinstance(thing, types.FunctionType) and thing.__closure__:
            code = marshal.dumps(thing.__code__)
            cells = [cell.cell_contents for cell in thing.__closure__]
            return _new_closure, (code, thing.__module__, len(cells)), cells, None, None, _fill
        return NotImplemented


def _shared(number: int) -> object:
    return _SHARED[number]


def _new_closure(code: bytes, module: str, cells: int) -> types.FunctionType:
    empty = tuple(types.CellType() for _ in range(cells))
    return types.FunctionType(marshal.loads(code), vars(sys.modules[module]), closure=empty)


def _fill(closure: types.FunctionType, contents: list[object]) -> None:
    for cell, content in zip(closure.__closure__ or (), contents, strict=True):
        cell.cell_contents = content
