"""What nodes put into etcd: a few clear fields, and all else sealed under the cluster key.

A value is a JSON object; "sealed" is base64 of XChaCha20-Poly1305 over a JSON object, and what the
value is about and its clear fields are authenticated with it.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from jvpnd.core.packets import XNONCE_LEN, seal, unseal

MAX_VALUE: Final = 65536  # bytes; a row has about two thousand


class Sealer:
    """Seals under the first key, and opens under any of them."""

    def __init__(
        self, keys: Sequence[bytes], draw: Callable[[int], bytes] = os.urandom
    ) -> None:
        self._keys = tuple(keys)
        self._draw = draw

    def sealed(self, name: str, clear: Mapping[str, Any], secret: Mapping[str, Any]) -> bytes:
        """The value of the key `name`."""
        body, nonce = json.dumps(secret).encode(), self._draw(XNONCE_LEN)
        box = seal(self._keys[0], nonce, body, _bound(name, clear))
        return json.dumps({**clear, "sealed": base64.b64encode(box).decode()}).encode()

    def opened(self, name: str, value: bytes) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """(clear, secret) of what was sealed for `name`, None if that was not done by a node."""
        if len(value) > MAX_VALUE:
            return None
        try:
            clear = json.loads(value)
            box = base64.b64decode(clear.pop("sealed"), validate=True)
            bound = _bound(name, clear)
            for key in self._keys:
                body = unseal(key, box, bound)
                if body is not None:
                    secret = json.loads(body)
                    return (clear, secret) if isinstance(secret, dict) else None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        return None


def _bound(name: str, clear: Mapping[str, Any]) -> bytes:
    return json.dumps([name, clear], sort_keys=True, separators=(",", ":")).encode()
