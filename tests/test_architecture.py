"""Who may import whom: the core stays without input and output, and nothing goes in circles."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
# What would let the core wait, look at a clock, draw a random number or talk to the host.
WORLDLY = {
    *("asyncio", "concurrent", "ctypes", "datetime", "fcntl", "io", "logging", "multiprocessing"),
    *("os", "pathlib", "pyroute2", "pytun", "queue", "random", "secrets", "select", "selectors"),
    *("shutil", "signal", "socket", "sqlite3", "subprocess", "sys", "tempfile", "threading"),
    *("time", "uuid"),
}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "jvpnd").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(name: str) -> set[str]:
    """Modules, ours by their full name, that are imported anywhere in this one."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {each for each in found if not each.startswith("jvpnd") or each in MODULES} - {name}



def test_the_core_imports_nothing_that_waits_looks_at_a_clock_or_draws() -> None:
    core = [name for name in MODULES if name.startswith("jvpnd.core")]
    assert len(core) > 20
    for name in core:
        for other in imported(name):
            top = other.split(".")[0]
            assert top not in WORLDLY, f"{name} imports {other}"
            assert top != "jvpnd" or other.startswith("jvpnd.core") or other == "jvpnd", (
                f"{name} imports {other}"
            )


def test_the_command_line_reaches_the_daemon_through_the_control_socket_only() -> None:
    for name in MODULES:
        if name.startswith("jvpnd.cli"):
            for other in imported(name):
                assert other not in ("jvpnd.daemon", "jvpnd.client", "jvpnd.gateway"), name


def test_imports_never_go_in_circles() -> None:
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for other in sorted(imported(name) & MODULES.keys()):
                if not name.startswith(f"{other}."):  # a package is there before its modules
                    visit(other, (*above, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())
