"""A story: what the network does to a session, as plain data that prints as a short script."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

NAMES = "abcdefgh"  # of the paths, and of their uplinks


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens at this time. Words as faults.py explains them."""

    at_ms: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"at {self.at_ms} {' '.join(self.words)}"


@dataclass(frozen=True, slots=True)
class Story:
    """Faults, in order of time, and where they happen. After the last of them all is mended.

    `client` and `gateway` are policy tables as a configuration file has them.
    """

    seed: int
    paths: int = 2
    client: Mapping[str, object] = field(default_factory=dict)
    gateway: Mapping[str, object] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()

    def __str__(self) -> str:
        tables = [
            f"{name} {json.dumps(table)}"
            for name, table in (("client", self.client), ("gateway", self.gateway))
            if table
        ]
        return "\n".join(
            [f"seed {self.seed}", f"paths {self.paths}", *tables, *map(str, self.faults)]
        )

    @property
    def names(self) -> str:
        return NAMES[: self.paths]

    @classmethod
    def parse(cls, script: str) -> Story:
        """The story that prints as `script`; ValueError names the line that is none of one."""
        heads: dict[str, object] = {"seed": 0}
        faults: list[Fault] = []
        for line in filter(None, map(str.strip, script.splitlines())):
            word, _, rest = line.partition(" ")
            try:
                if word == "at":
                    at, *words = rest.split()
                    faults.append(Fault(int(at), tuple(words)))
                elif word in ("seed", "paths", "client", "gateway"):
                    heads[word] = json.loads(rest)
                else:
                    raise ValueError(word)
            except ValueError as error:
                raise ValueError(f"not a line of a story: {line!r}") from error
        return cls(faults=tuple(faults), **heads)  # type: ignore[arg-type]
