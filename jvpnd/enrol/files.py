"""Configuration and key files: made whole or not at all, and changed by one at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jvpnd.config import Config, ConfigError, load
from jvpnd.enrol.errors import EnrolError

CONFIG_FILE = Path("/etc/jvpn/jvpnd.toml")
_DIRECTORY_MODE = 0o755  # files with a secret have a mode of their own


@contextlib.contextmanager
def told(file: Path) -> Iterator[None]:
    """What the kernel says about a file, as one line for the user."""
    try:
        yield
    except OSError as error:
        raise EnrolError(f"{file}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise EnrolError(f"{file}: is not UTF-8") from None


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Nobody else who asks so changes `file` meanwhile. Its directory is locked: the file itself is
    another one after each change."""
    descriptor = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def create_secret(file: Path, text: str) -> None:
    """A new file for its owner alone. Raises EnrolError, also where it is there already."""
    with told(file):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(file, flags, 0o600), "w") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())


def create(
    file: Path,
    text: str,
    key_file: Path,
    make_key: Callable[[], str],
    force: bool,
    more_keys: Sequence[Path] = (),
) -> bool:
    """A new configuration and, where there are none yet, the key files that it names; the directory
    too. Returns whether `key_file` is new.

    Raises EnrolError where the configuration is there, unless `force` or it has nothing but
    comments, and ConfigError where it would not be valid; then no file is left.
    """
    with told(file.parent):
        file.parent.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
    with told(file), locked(file):
        if not force and file.exists() and not _is_empty(file):
            raise EnrolError(f"{file}: is there already (--force replaces it)")
        fresh = [each for each in (key_file, *more_keys) if not each.exists()]
        try:
            for each in fresh:
                create_secret(each, f"{make_key()}\n")
            _put(file, text, 0o600, None)
        except BaseException:
            for each in fresh:
                each.unlink(missing_ok=True)
            raise
    return key_file in fresh


def edit(file: Path, change: Callable[[str, Config], str]) -> None:
    """Change a configuration file; `change` gets its text and what that says. Owner and mode stay.

    Raises EnrolError, and ConfigError where the file is not valid before or would not be after;
    then it is as it was.
    """
    with told(file):
        file = file.resolve(strict=True)  # a link stays one
        with locked(file):
            config = load(file)
            try:
                text = change(file.read_bytes().decode(), config)
            except EnrolError as error:
                raise EnrolError(f"{file}: {error}") from None
            status = file.stat()
            _put(file, text, status.st_mode & 0o7777, (status.st_uid, status.st_gid))


def check(text: str, what: str) -> None:
    """Whether a configuration with its keys in it would be valid. It never reaches a disk.

    Raises ConfigError, which calls it `what`."""
    descriptor = os.memfd_create("jvpnd.toml", os.MFD_CLOEXEC)
    with open(descriptor, "wb") as out:
        os.fchmod(descriptor, 0o600)
        out.write(text.encode())
        out.flush()
        try:
            load(Path(f"/proc/self/fd/{descriptor}"))
        except ConfigError as error:
            raise ConfigError(Path(what), error.key, error.problem, error.allowed) from None


def _is_empty(file: Path) -> bool:
    """Whether it configures nothing."""
    try:
        return not tomllib.loads(file.read_bytes().decode())
    except ValueError:
        return False


def _put(file: Path, text: str, mode: int, owner: tuple[int, int] | None) -> None:
    """Put a valid configuration in place of `file`."""
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    fresh = Path(name)
    try:
        with open(descriptor, "wb") as out:
            out.write(text.encode())
            out.flush()
            if owner is not None:
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        try:
            load(fresh)
        except ConfigError as error:
            raise ConfigError(file, error.key, error.problem, error.allowed) from None
        fresh.replace(file)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some file systems cannot
        directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
