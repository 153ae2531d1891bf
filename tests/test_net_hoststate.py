"""What is put back, and what is not, after changes of our own and of others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jvpnd.net import hoststate
from jvpnd.net.errors import MissingFeature
from jvpnd.net.hoststate import HostState

FORWARD = "net/ipv4/ip_forward"
REDIRECTS = "net/ipv4/conf/all/accept_redirects"


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in the place of /proc/sys with two sysctls."""
    root = tmp_path / "sys"
    for key, value in ((FORWARD, "0\n"), (REDIRECTS, "1\n")):
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_text(value)
    monkeypatch.setattr(hoststate, "_PROC_SYS", root)
    return root


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "network.json"


def value(proc: Path, key: str = FORWARD) -> str:
    return (proc / key).read_text().strip()


def test_a_sysctl_is_set_and_put_back(proc: Path, path: Path) -> None:
    state = HostState(path)
    state.set_sysctl(FORWARD, "1")
    assert value(proc) == "1"
    state.restore_sysctls()
    assert value(proc) == "0"


def test_a_later_run_puts_back_what_a_killed_one_changed(proc: Path, path: Path) -> None:
    killed = HostState(path)
    killed.note("jvpn0", filtered=True)
    killed.set_sysctl(FORWARD, "1")
    later = HostState(path)
    later.load()
    assert (later.interface, later.filtered) == ("jvpn0", True)
    later.restore_sysctls()
    later.forget()
    assert value(proc) == "0"
    assert not path.exists()


def test_a_sysctl_that_was_right_already_is_left_alone(proc: Path, path: Path) -> None:
    (proc / FORWARD).write_text("1\n")
    state = HostState(path)
    state.set_sysctl(FORWARD, "1")
    state.restore_sysctls()
    assert value(proc) == "1"
    assert not path.exists()


def test_what_somebody_else_changed_since_is_left_alone(proc: Path, path: Path) -> None:
    state = HostState(path)
    state.set_sysctl(FORWARD, "1")
    (proc / FORWARD).write_text("2\n")
    state.restore_sysctls()
    assert value(proc) == "2"


def test_a_side_effect_is_put_back_whatever_it_became(proc: Path, path: Path) -> None:
    state = HostState(path)
    state.keep_sysctl(REDIRECTS)
    state.set_sysctl(FORWARD, "1")
    (proc / REDIRECTS).write_text("0\n")
    later = HostState(path)
    later.load()
    later.restore_sysctls()
    assert value(proc, REDIRECTS) == "1"


def test_one_sysctl_can_be_put_back_alone(proc: Path, path: Path) -> None:
    state = HostState(path)
    state.set_sysctl(FORWARD, "1")
    state.set_sysctl(REDIRECTS, "0")
    state.restore_sysctls(REDIRECTS)
    assert (value(proc), value(proc, REDIRECTS)) == ("1", "1")
    assert list(json.loads(path.read_text())["sysctls"]) == [FORWARD]


def test_a_sysctl_that_cannot_be_set_is_named(proc: Path, path: Path) -> None:
    with pytest.raises(MissingFeature, match=r"net\.ipv4\.nowhere\.at to 1"):
        HostState(path).set_sysctl("net/ipv4/nowhere/at", "1")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"sysctls": 3}',
        '{"sysctls": {"net/ipv4/ip_forward": "1"}}',
        '{"sysctls": {"net/ipv4/ip_forward": ["1"]}}',
        '{"sysctls": {"net/../kernel/hostname": ["1", "0"]}}',
        '{"sysctls": {"kernel/hostname": ["1", "0"]}}',
        '{"sysctls": {}, "interface": 7}',
        '{"sysctls": {}, "lent": 7}',
        '{"sysctls": {}, "lent": [7]}',
        "\x00",
    ],
)
def test_a_damaged_file_changes_nothing(proc: Path, path: Path, content: str) -> None:
    path.write_text(content)
    state = HostState(path)
    state.load()
    state.restore_sysctls()
    assert state.interface is None
    assert value(proc) == "0"


def test_a_later_run_knows_the_table_and_the_neighbours_of_a_killed_one(path: Path) -> None:
    killed = HostState(path)
    killed.note_forwarding("jvpn0", forwards=True, neighbours={("192.0.2.9", "eth1")})
    later = HostState(path)
    later.load()
    assert (later.interface, later.forwards) == ("jvpn0", True)
    assert later.neighbours == {("192.0.2.9", "eth1")}
    later.forget()
    assert (later.forwards, later.neighbours) == (False, frozenset())


def test_a_later_run_knows_what_a_killed_one_owned_and_lent(path: Path) -> None:
    killed = HostState(path)
    killed.note_forwarding("jvpn0", forwards=True, neighbours=())
    killed.note_owned("jvpn0", {("192.0.2.9", "eth1")}, {"10.77.0.2/32"})
    later = HostState(path)
    later.load()
    assert (later.interface, later.forwards) == ("jvpn0", True)
    assert (later.neighbours, later.lent) == ({("192.0.2.9", "eth1")}, {"10.77.0.2/32"})
    later.forget()
    assert (later.neighbours, later.lent) == (frozenset(), frozenset())
