"""jvpnctl doctor."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jvpnd.cli.options import Options, config_option, json_option
from jvpnd.cli.text import clean

if TYPE_CHECKING:
    from jvpnd.doctor.finding import Finding

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@config_option
@json_option
@click.pass_obj
def doctor(options: Options, config_file: Path) -> None:
    """Look for what keeps the tunnel from working, and say what to do. Changes nothing.

    Exit status 0 if nothing is wrong but for warnings, 1 if something is.
    """
    from jvpnd.doctor.examine import examine  # all that the daemon needs is loaded, too

    found = examine(config_file, options.ask)
    is_well = all(each.level != "fail" for each in found)
    answer = {"ok": is_well, "checks": [asdict(each) for each in found]}
    options.show(answer, lambda _: _text(found))
    if not is_well:
        sys.exit(1)


def _text(found: Sequence[Finding]) -> str:
    lines = []
    width = max(len(each.check) for each in found)
    for each in found:
        level = click.style(f"{each.level:<4}", fg=_COLOURS[each.level])
        lines.append(f"{level}  {each.check:<{width}}  {clean(each.found)}")
        if each.remedy:
            lines.append(f"{'':6}{'':{width}}  -> {each.remedy}")
    return "\n".join(lines)
