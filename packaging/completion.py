"""Writes a shell's completion of one of our programs: SHELL PROGRAM=MODULE FOLDER."""

import sys
from importlib import import_module
from pathlib import Path

from click.shell_completion import get_completion_class

NAMES = {"bash": "{}", "zsh": "_{}", "fish": "{}.fish"}


def main(shell: str, what: str, folder: Path) -> None:
    program, module = what.split("=")
    command = import_module(module).main
    complete = get_completion_class(shell)
    assert complete is not None
    source = complete(command, {}, program, f"_{program.upper()}_COMPLETE").source()
    file = folder / shell / NAMES[shell].format(program)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
