"""The daemon's end of the control socket. Who may open it is said by its mode: root and a group."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import grp
import logging
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from jvpnd.control import protocol
from jvpnd.control.protocol import MAX_REQUEST, Refused

__all__ = ["AlreadyRunning", "ControlServer", "Handler", "Refused"]

Args: TypeAlias = Mapping[str, Any]
# Awaited for one answer, or iterated over for a stream of them. Raises Refused to say no.
Handler: TypeAlias = Callable[[Args], Awaitable[Any] | AsyncIterator[Any]]

MAX_CONNECTIONS: Final = 32
ROOT_ALONE: Final = frozenset({"record"})  # a recording holds keys
IDLE_TIMEOUT_S: Final = 30.0  # without a request
WRITE_TIMEOUT_S: Final = 5.0  # for a reader that does not read
_UCRED: Final = struct.Struct("=iII")
_log = logging.getLogger("jvpnd")


class AlreadyRunning(Exception):  # noqa: N818 - a fact, not a fault
    """Another daemon answers on this socket."""


class _HungUp(Exception):  # noqa: N818
    """The other end has gone, idles or does not read: nothing more to say to it."""


class ControlServer:
    """Answers requests with `handlers`, which may be set after the start."""

    def __init__(
        self,
        path: Path | str,
        handlers: Mapping[str, Handler] | None = None,
        group: str = "jvpn",
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        write_timeout_s: float = WRITE_TIMEOUT_S,
    ) -> None:
        self.handlers: Mapping[str, Handler] = handlers or {}
        self._path = Path(path)
        self._group = group
        self._idle_timeout_s = idle_timeout_s
        self._write_timeout_s = write_timeout_s
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take the socket and listen; AlreadyRunning, or OSError where the path is no good."""
        listener = _listen(self._path, self._group)
        self._server = await asyncio.start_unix_server(
            self._accept,
            sock=listener,
            limit=MAX_REQUEST - 1,  # its end not included
        )

    async def close(self) -> None:
        """Hang up on everyone and remove the socket."""
        if self._server is None:
            return
        self._path.unlink(missing_ok=True)
        self._server.close()
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._server = None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            text = f"{MAX_CONNECTIONS} connections are open already"
            writer.write(protocol.refusal(Refused("RATE_LIMITED", text)))
            writer.close()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: requests in turn until it ends, idles, or breaks the rules."""
        writer.transport.set_write_buffer_limits(0)  # drain() then means that all is sent
        try:
            try:
                while line := await self._next_line(reader):
                    await self._answer(line, reader, writer)
            except Refused as refused:
                await self._write(writer, protocol.refusal(refused))
        except _HungUp:
            writer.transport.abort()
        finally:
            writer.close()

    async def _next_line(self, reader: asyncio.StreamReader) -> bytes:
        """The next request, empty at the end of the connection."""
        try:
            async with asyncio.timeout(self._idle_timeout_s):
                return await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            return b""
        except OSError as error:  # TimeoutError is one
            raise _HungUp from error
        except asyncio.LimitOverrunError:
            raise Refused("USAGE", f"a request has at most {MAX_REQUEST} bytes") from None

    async def _answer(
        self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        command = "?"
        try:
            request = protocol.decode_request(line)
            command = request.command
            _require_root(command, writer)
            handling = self._handler(command)(request.args)
            if isinstance(handling, AsyncIterator):
                await self._stream(handling, reader, writer)
                result = None
            else:
                result = await handling
            await self._write(writer, protocol.answer(result))
        except Refused as refused:
            await self._write(writer, protocol.refusal(refused))
        except _HungUp:
            raise
        except Exception:
            _log.exception("control command %.40r failed", command)
            told = Refused("INTERNAL", "the daemon failed at this command; its log has the trace")
            await self._write(writer, protocol.refusal(told))

    def _handler(self, command: str) -> Handler:
        if not self.handlers:
            raise Refused("STARTING", "the daemon is starting: ask again in a moment")
        try:
            return self.handlers[command]
        except KeyError:
            known = ", ".join(sorted(self.handlers))
            raise Refused("USAGE", f"no command {command[:40]!r}; known: {known}") from None

    async def _stream(
        self,
        items: AsyncIterator[Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Send items until they end or the client hangs up, which only reading from it tells."""
        gone = asyncio.ensure_future(reader.read(1))
        sending = asyncio.ensure_future(self._send_all(items, writer))
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                raise _HungUp
            sending.result()
        finally:
            for task in (gone, sending):
                task.cancel()
            await asyncio.gather(gone, sending, return_exceptions=True)
            if hasattr(items, "aclose"):
                await items.aclose()

    async def _send_all(self, items: AsyncIterator[Any], writer: asyncio.StreamWriter) -> None:
        async for item in items:
            await self._write(writer, protocol.item(item))

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await writer.drain()
        except OSError as error:
            raise _HungUp from error


def _require_root(command: str, writer: asyncio.StreamWriter) -> None:
    """What the group may not have: struct ucred of the peer, socket(7)."""
    if command not in ROOT_ALONE:
        return
    sock = writer.get_extra_info("socket")
    _pid, uid, _gid = _UCRED.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    if uid not in (0, os.geteuid()):
        raise Refused("PERMISSION_DENIED", f"{command}: what it gives holds keys, so be root")


def _listen(path: Path, group: str) -> socket.socket:
    """A listening socket at `path` that root and `group` may open, and nobody else ever could."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _locked(path.parent):
            _remove_stale(path)
            mask = os.umask(0o117)
            try:
                listener.bind(str(path))
            finally:
                os.umask(mask)
            with contextlib.suppress(KeyError):  # no such group: root alone
                os.chown(path, -1, grp.getgrnam(group).gr_gid)
            listener.listen(MAX_CONNECTIONS)
    except BaseException:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Of two daemons that start at the same time, one waits here and then finds the other."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on. Anything else at `path` is left for bind to hit."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # its queue is full: it lives
    raise AlreadyRunning(f"already running: a daemon answers on {path}")
