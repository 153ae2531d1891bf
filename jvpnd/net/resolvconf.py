"""A managed /etc/resolv.conf: the file itself holds what was there before, as comments.

So there is no second file to lose or to outlive the first, and whatever ends the daemon or the
host, whoever comes next can put it back. A sum tells whether somebody changed it meanwhile: then it
is theirs.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from jvpnd.core.dataclass import dataclass

RESOLV_CONF: Final = Path("/etc/resolv.conf")
MAX_BYTES: Final = 64 * 1024  # of what was there; nobody has so many name servers

_TITLE: Final = "# By jvpnd for {}; `jvpnctl dns restore` puts back what was here before.\n"
_SUM: Final = "# sha256 {}\n"
_HEAD: Final = re.compile(
    (
        re.escape(_TITLE).replace(r"\{\}", "([!-~]{1,15})")
        + re.escape(_SUM).replace(r"\{\}", "([0-9a-f]{64})")
    ).encode()
)
_BEFORE: Final = b"# What was here before: "
_LINE: Final = b"#|"
_FILE, _LINK, _NOTHING = b"file", b"link", b"nothing"
# It is a mount point (as in containers), or its folder is not ours to write in: then in place.
_IN_PLACE: Final = (errno.EBUSY, errno.EROFS, errno.EACCES, errno.EPERM, errno.EXDEV)


class NotOurs(Exception):  # noqa: N818 - what it is, not an error of ours
    """Somebody else has changed the file: it is left as it is."""


@dataclass(frozen=True, slots=True)
class Before:
    """What was there: a file with this content, a link with this target, or nothing. `owner`: the
    tunnel interface for which it has been replaced."""

    owner: str
    kind: bytes
    content: bytes = b""


def rendered(servers: Sequence[str], search: Sequence[str], before: Before) -> bytes:
    """The managed file."""
    lines = [f"nameserver {server}\n" for server in servers]
    if search:
        lines.append(f"search {' '.join(search)}\n")
    held = b"".join(_LINE + line + b"\n" for line in before.content.split(b"\n"))
    body = "".join(lines).encode() + _BEFORE + before.kind + b"\n" + held
    title = _TITLE.format(before.owner) + _SUM.format(hashlib.sha256(body).hexdigest())
    return title.encode() + body


def parse(content: bytes) -> Before | None:
    """What was there before this managed file; None for any other file. Raises NotOurs for a
    managed one that was changed."""
    title = _HEAD.match(content)
    if title is None:
        return None
    body = content[title.end() :]
    if title[2].decode() != hashlib.sha256(body).hexdigest():
        raise NotOurs
    kind, _, held = body.partition(_BEFORE)[2].partition(b"\n")
    lines = held.removesuffix(b"\n").split(b"\n")
    return Before(title[1].decode(), kind, b"\n".join(line[len(_LINE) :] for line in lines))


class ResolvConf:
    """The file at `path`. Every method may raise OSError."""

    def __init__(self, path: Path = RESOLV_CONF) -> None:
        self._path = path

    def put(self, owner: str, servers: Sequence[str], search: Sequence[str]) -> None:
        """Make it a managed one. Raises NotOurs, and ValueError where it is too large to keep."""
        before = self.held()
        if before is None or before.owner != owner:
            before = self._found(owner)
        try:
            self._replace(rendered(servers, search, before))
        except OSError as error:
            if error.errno not in _IN_PLACE:
                raise
            if before.kind == _LINK:  # it is written through the link
                before = Before(owner, _FILE, self._content())
            self._overwrite(rendered(servers, search, before))

    def restore(self, owner: str | None) -> bool:
        """Put back what was there; False where the file is not a managed one of this owner (None:
        of any). Raises NotOurs."""
        before = self.held()
        if before is None or owner not in (None, before.owner):
            return False
        if before.kind == _NOTHING:
            self._path.unlink()
            return True
        try:
            if before.kind == _LINK:
                self._link(before.content)
            else:
                self._replace(before.content)
        except OSError as error:
            if error.errno not in _IN_PLACE or before.kind == _LINK:
                raise
            self._overwrite(before.content)
        return True

    def held(self) -> Before | None:
        """What a managed file holds; None where it is none. Raises NotOurs."""
        return parse(self._content())

    def servers(self) -> list[str]:
        """The name servers that it names."""
        words = (line.split() for line in self._content().decode(errors="replace").splitlines())
        return [row[1] for row in words if len(row) > 1 and row[0] == "nameserver"]

    def _found(self, owner: str) -> Before:
        if self._path.is_symlink():
            return Before(owner, _LINK, os.fsencode(os.readlink(self._path)))
        if not self._path.exists():
            return Before(owner, _NOTHING)
        content = self._content()
        if len(content) > MAX_BYTES:
            raise ValueError(f"{self._path} has more than {MAX_BYTES} bytes")
        return Before(owner, _FILE, content)

    def _content(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                return file.read(4 * MAX_BYTES)
        except FileNotFoundError:
            return b""

    def _replace(self, content: bytes) -> None:
        """In one step, so that nobody ever reads half of it."""
        with self._new() as fresh:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            with open(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(fd, 0o644)
                if self._path.exists() and not self._path.is_symlink():
                    like = self._path.stat()
                    os.fchmod(fd, like.st_mode & 0o7777)
                    os.fchown(fd, like.st_uid, like.st_gid)
                os.fsync(fd)
            os.replace(fresh, self._path)

    def _link(self, target: bytes) -> None:
        with self._new() as fresh:
            os.symlink(os.fsdecode(target), fresh)
            os.replace(fresh, self._path)

    @contextlib.contextmanager
    def _new(self) -> Iterator[Path]:
        """A name beside it, for what shall take its place."""
        fresh = self._path.with_name(f".{self._path.name}.jvpn")
        fresh.unlink(missing_ok=True)
        try:
            yield fresh
        finally:
            fresh.unlink(missing_ok=True)

    def _overwrite(self, content: bytes) -> None:
        """The same file stays."""
        fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        with open(fd, "wb") as file:
            file.write(content)
            file.truncate()
