"""The asking end of the control socket: synchronous, for the command line."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from jvpnd.control.protocol import MAX_REQUEST, Refused, encode

TIMEOUT_S: Final = 10.0  # for each answer
_READ: Final = 64 * 1024


class NotRunning(Exception):  # noqa: N818 - a fact, not a fault
    """No daemon answers: there is none, it hung up, or it is stuck."""


class ControlClient:
    """One connection to a daemon. Use as a context manager.

    Every method raises Refused where the daemon says no (or where the socket may not be opened:
    PERMISSION_DENIED) and NotRunning where no daemon answers.
    """

    def __init__(self, path: Path | str, timeout_s: float = TIMEOUT_S) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        self._buffer = b""
        try:
            self._socket.connect(str(path))
        except PermissionError:
            self.close()
            text = f"you may not open {path}: be root or in its group"
            raise Refused("PERMISSION_DENIED", text) from None
        except OSError as error:
            self.close()
            text = f"the daemon is not running: {path}: {error.strerror or error}"
            raise NotRunning(text) from None

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def ask(self, command: str, **args: Any) -> Any:
        """The result of one command."""
        self._send(command, args)
        return self._answer()["result"]

    def stream(self, command: str, follow: bool, **args: Any) -> Iterator[Any]:
        """The items of a command that answers with a stream; with `follow`, until it hangs up."""
        self._send(command, {"follow": follow, **args})
        if follow:
            self._socket.settimeout(None)  # the next one may be hours away
        answer = self._answer()
        while answer.get("more"):
            yield answer["result"]
            answer = self._answer()

    def _send(self, command: str, args: dict[str, Any]) -> None:
        line = encode({"command": command, "args": args})
        if len(line) > MAX_REQUEST:
            raise Refused("USAGE", f"a request has at most {MAX_REQUEST} bytes")
        with contextlib.suppress(OSError):  # it hung up, perhaps with a word why: reading tells
            self._socket.sendall(line)

    def _answer(self) -> dict[str, Any]:
        answer = json.loads(self._line())
        if not answer["ok"]:
            raise Refused(answer["error"]["reason"], answer["error"]["message"])
        assert isinstance(answer, dict)
        return answer

    def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            try:
                data = self._socket.recv(_READ)
            except TimeoutError:
                raise NotRunning(f"the daemon does not answer on {self._path}") from None
            except OSError as error:
                raise NotRunning(f"the daemon hung up: {error.strerror}") from None
            if not data:
                raise NotRunning("the daemon hung up")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line
