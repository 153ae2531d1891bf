"""Which programs the daemon, as root, refuses to run. netns-tests run the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jvpnd.net.hook import unsafe


def test_a_program_of_roots_is_fine() -> None:
    assert unsafe(os.path.realpath("/bin/true")) is None


@pytest.mark.parametrize("path", ["hook", "../bin/true", "/usr/../usr/bin/true", ""])
def test_a_path_has_to_be_the_real_one(path: str) -> None:
    assert unsafe(path) == f"{path} has to be an absolute path without symbolic links"


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    assert unsafe(str(tmp_path / "none")) == f"{tmp_path}/none: No such file or directory"
    assert unsafe(str(tmp_path)) == f"{tmp_path} is no program (a regular file with the mode's x)"
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    assert unsafe(str(plain)) == f"{plain} is no program (a regular file with the mode's x)"
