"""Whatever happens to a run, its namespaces and the processes in them go with it."""

from __future__ import annotations

from lab.namespace import sweep


def pytest_unconfigure() -> None:
    sweep()
