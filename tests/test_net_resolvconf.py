"""A managed resolv.conf: what was there comes back, byte for byte, and nothing of others goes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jvpnd.net.resolvconf import MAX_BYTES, Before, NotOurs, ResolvConf, parse, rendered

SERVERS, SEARCH = ["10.77.0.1", "fd77::1"], ["corp.example"]
THEIRS = b"nameserver 192.168.1.1\nsearch home\noptions edns0\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "resolv.conf"


@given(st.binary(max_size=400), st.sampled_from([b"file", b"link"]))
def test_what_was_there_is_in_the_file_byte_for_byte(content: bytes, kind: bytes) -> None:
    before = Before("jvpn0", kind, content)
    assert parse(rendered(SERVERS, SEARCH, before)) == before


@given(st.binary(max_size=400))
def test_what_was_there_is_a_comment_whatever_it_is(content: bytes) -> None:
    managed = rendered(SERVERS, SEARCH, Before("jvpn0", b"file", content))
    lines = [line for line in managed.split(b"\n") if line and not line.startswith(b"#")]
    assert lines == [b"nameserver 10.77.0.1", b"nameserver fd77::1", b"search corp.example"]


@given(st.binary(max_size=200), st.data())
def test_a_managed_file_that_was_changed_is_nobodys_but_theirs(
    content: bytes, data: st.DataObject
) -> None:
    managed = rendered(SERVERS, [], Before("jvpn0", b"file", content))
    at = data.draw(st.integers(0, len(managed) - 1))
    other_byte = bytes([managed[at] ^ data.draw(st.integers(1, 255))])
    changed = managed[:at] + other_byte + managed[at + 1 :]
    for other in (changed, managed[:at], managed + b"nameserver 1.1.1.1\n"):
        try:
            before = parse(other)
        except NotOurs:
            continue
        assert before is None or before.owner != "jvpn0"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.sampled_from([0o644, 0o600]), st.integers(1, 3))
def test_a_file_comes_back_with_its_mode_however_often_it_was_put(
    tmp_path: Path, content: bytes, mode: int, times: int
) -> None:
    path = tmp_path / "resolv.conf"
    path.write_bytes(content)
    path.chmod(mode)
    file = ResolvConf(path)
    for number in range(times):
        file.put("jvpn0", SERVERS[number % 2 :], [])
        assert file.servers() == SERVERS[number % 2 :]
        assert path.stat().st_mode & 0o777 == mode
    assert file.restore("jvpn0")
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == mode
    assert not file.restore("jvpn0")
    assert os.listdir(tmp_path) == ["resolv.conf"]


@pytest.mark.parametrize("target", ["../run/resolv.conf", "elsewhere"])
def test_a_link_comes_back_and_its_target_is_never_written(path: Path, target: str) -> None:
    """One that dangles, too."""
    (path.parent / "elsewhere").write_bytes(THEIRS)
    path.symlink_to(target)
    file = ResolvConf(path)
    file.put("jvpn0", SERVERS, [])
    assert not path.is_symlink()
    assert (path.parent / "elsewhere").read_bytes() == THEIRS
    assert file.restore("jvpn0")
    assert os.readlink(path) == target


def test_where_there_was_nothing_there_is_nothing_again(path: Path) -> None:
    file = ResolvConf(path)
    assert not file.restore(None)
    file.put("jvpn0", SERVERS, [])
    assert path.stat().st_mode & 0o777 == 0o644
    assert file.restore("jvpn0")
    assert os.listdir(path.parent) == []


def test_what_somebody_changed_since_is_left(path: Path) -> None:
    path.write_bytes(THEIRS)
    file = ResolvConf(path)
    file.put("jvpn0", SERVERS, [])
    with path.open("ab") as opened:
        opened.write(b"nameserver 1.1.1.1\n")
    changed = path.read_bytes()
    with pytest.raises(NotOurs):
        file.restore("jvpn0")
    with pytest.raises(NotOurs):
        file.put("jvpn0", SERVERS, [])
    assert path.read_bytes() == changed
    path.write_bytes(THEIRS + b"# by a DHCP client\n")
    assert not file.restore("jvpn0")
    assert path.read_bytes() == THEIRS + b"# by a DHCP client\n"


def test_of_another_tunnel_it_is_put_back_by_that_one_or_by_hand(path: Path) -> None:
    path.write_bytes(THEIRS)
    file = ResolvConf(path)
    file.put("jvpn0", SERVERS, [])
    assert not file.restore("jvpn1")
    file.put("jvpn1", ["10.78.0.1"], [])
    assert not file.restore("jvpn0")
    assert file.restore(None)
    assert file.restore(None)
    assert path.read_bytes() == THEIRS


def test_what_is_too_large_to_keep_is_left(path: Path) -> None:
    path.write_bytes(bytes(MAX_BYTES + 1))
    with pytest.raises(ValueError, match="more than 65536 bytes"):
        ResolvConf(path).put("jvpn0", SERVERS, [])
    assert path.read_bytes() == bytes(MAX_BYTES + 1)
    path.write_bytes(b"\n" * MAX_BYTES)  # the most lines that there can be
    ResolvConf(path).put("jvpn0", SERVERS, [])
    assert ResolvConf(path).restore("jvpn0")
    assert path.read_bytes() == b"\n" * MAX_BYTES


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EROFS, errno.EACCES])
def test_where_it_cannot_be_replaced_it_is_written_in_place(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(code, os.strerror(code))

    real = path.parent / "real"
    real.write_bytes(THEIRS)
    path.symlink_to("real")
    monkeypatch.setattr(os, "replace", refuse)
    inode = real.stat().st_ino
    file = ResolvConf(path)
    file.put("jvpn0", SERVERS, SEARCH)
    assert file.servers() == SERVERS
    assert (path.is_symlink(), real.stat().st_ino) == (True, inode)
    assert file.restore("jvpn0")
    assert (real.read_bytes(), real.stat().st_ino) == (THEIRS, inode)
    assert sorted(os.listdir(path.parent)) == ["real", "resolv.conf"]


def test_a_full_disk_leaves_what_is_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(THEIRS)

    def refuse(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        ResolvConf(path).put("jvpn0", SERVERS, [])
    assert path.read_bytes() == THEIRS
    assert os.listdir(path.parent) == ["resolv.conf"]
