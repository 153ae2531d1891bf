"""What the package is made from fits the project: versions, libraries, manual pages, units."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jvpnd.core.wire import MAX_LANES

ROOT = Path(__file__).parent.parent
PACKAGING = ROOT / "packaging"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_package_has_the_version_of_the_project() -> None:
    first = (PACKAGING / "debian" / "changelog").read_text().splitlines()[0]
    assert first.startswith(f"jvpn ({PROJECT['version']}) ")


def test_each_dependency_is_in_the_lock_and_each_line_there_has_a_hash() -> None:
    lines = (PACKAGING / "requirements.txt").read_text().splitlines()
    rows = [re.fullmatch(r"([\w.-]+)==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in lines[2:]]
    locked = {row[1] for row in rows if row}
    assert len(locked) == len(lines) - 2
    assert lines[1] == "--only-binary=:all:"
    needed = list(PROJECT["dependencies"])
    for extra in re.findall(r'"(\w+)"', _line_of("EXTRAS", PACKAGING / "lock.py")):
        needed += PROJECT["optional-dependencies"][extra]
    names = {re.split(r"[><=]", each)[0].lower() for each in needed}
    assert names <= locked, f"`make lock`: {sorted(names - locked)}"


def test_the_manual_pages_have_every_section_of_the_documentation(tmp_path: Path) -> None:
    script = PACKAGING / "manpages.py"
    subprocess.run([sys.executable, str(script), str(ROOT / "docs"), str(tmp_path)], check=True)
    for page, source in (("jvpnctl.1", "cli.md"), ("jvpnd.toml.5", "configuration.md")):
        text = (tmp_path / page).read_text().replace(r"\-", "-")
        for title in re.findall(r"^## (.+)$", (ROOT / "docs" / source).read_text(), re.M):
            if title != "jvpnd":
                assert f".SH {title.replace('`', '').upper()}\n" in text, (page, title)
    assert r"\fB\-\-runtime\-dir\fR" in (tmp_path / "jvpnd.8").read_text()
    for name in ("jvpnctl.1", "jvpnd.toml.5", "jvpnd.8"):
        assert not re.search(r"\]\(|^\|", (tmp_path / name).read_text(), re.M), name


def test_an_instance_is_the_service_with_names_of_its_own() -> None:
    """Two files that have to be changed together."""
    for name in ("jvpnd", "jvpn-kill-switch"):
        one, many = (_settings(PACKAGING / "systemd" / f"{name}{at}.service") for at in ("", "@"))
        assert len(one) == len(many)
        for ours, theirs in zip(one, many, strict=True):
            assert ours == theirs or "%i" in theirs, (ours, theirs)


def test_no_unit_may_change_its_uid_or_signal_others() -> None:
    for unit in (PACKAGING / "systemd").glob("*.service"):
        kept = re.findall(r"^CapabilityBoundingSet=(.+)$", unit.read_text(), re.M)
        allowed = {"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE"}
        assert kept, unit.name
        assert set(" ".join(kept).split()) <= allowed, unit.name


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_the_daemons_units_are_as_hard_as_the_documentation_says() -> None:
    text = (ROOT / "docs" / "install.md").read_text()
    (said,) = re.findall(r"`systemd-analyze security jvpnd` says ([\d.]+)\.\s", text)
    assert float(said) <= 2.0
    for name in ("jvpnd", "jvpnd@"):
        unit = PACKAGING / "systemd" / f"{name}.service"
        command = ("systemd-analyze", "security", "--no-pager", "--offline=true", str(unit))
        done = subprocess.run(command, capture_output=True, text=True)
        assert re.findall(r"Overall exposure level for \S+ ([\d.]+)", done.stdout) == [said]


def test_what_the_unit_keeps_is_enough_for_every_lane() -> None:
    unit = (PACKAGING / "systemd" / "jvpnd.service").read_text()
    (room,) = re.findall(r"^FileDescriptorStoreMax=(\d+)$", unit, re.M)
    assert int(room) >= MAX_LANES


def _settings(unit: Path) -> list[str]:
    return [line for line in unit.read_text().splitlines() if line and not line.startswith("#")]


def _line_of(name: str, file: Path) -> str:
    return next(line for line in file.read_text().splitlines() if line.startswith(name))
