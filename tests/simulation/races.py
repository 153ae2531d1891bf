"""Races for the ownership of sessions, as many as possible: make races N=1000000.

A race: two or three nodes get requests for one live session at about the same time, of one attempt
or of several, in any order, while their ways to the table are slow, lossy or cut, and nodes hang,
die and start again. The sessions are real and go on from race to race; the client is no more than
what it needs for asking. After each step the invariants of a cluster hold (owners.py).

    python -m tests.simulation.races 100000            so many, from seed 0
    python -m tests.simulation.races 500 --seed 17     the block of this seed again
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from .arena import BLOCK, Arena, Score


@dataclass
class Total:
    """What all blocks came to."""

    score: Score = field(default_factory=Score)
    failures: list[str] = field(default_factory=list)


def block(seed: int, races: int) -> tuple[Score, str]:
    """The races of one seed, and what went wrong if something did."""
    arena = Arena(seed)
    try:
        arena.open()
        for _ in range(races):
            arena.race()
    except Exception as error:
        where = "".join(traceback.format_tb(error.__traceback__)[-4:])
        again = f"python -m tests.simulation.races {races} --seed {seed}"
        text = f"race {arena.score.races} of {again}\n{where}{type(error).__name__}: {error}"
        return arena.score, text
    return arena.score, ""


def run(races: int, jobs: int, first_seed: int = 0) -> Total:
    """All races, in blocks of one seed each."""
    total = Total()
    blocks = [min(BLOCK, races - begun) for begun in range(0, races, BLOCK)]
    for score, failure in _results(range(first_seed, first_seed + len(blocks)), blocks, jobs):
        total.score.add(score)
        if failure:
            total.failures.append(failure)
    return total


def _results(seeds: range, blocks: list[int], jobs: int) -> Iterator[tuple[Score, str]]:
    if jobs == 1:
        yield from itertools.starmap(block, zip(seeds, blocks, strict=True))
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(block, seeds, blocks)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("races", type=int)
    parser.add_argument("--seed", type=int, default=0, help="of the first block")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    args = parser.parse_args()
    began_s = time.monotonic()
    total = run(args.races, args.jobs, args.seed)
    took_s = time.monotonic() - began_s
    for failure in total.failures[:5]:
        print(failure, end="\n\n")
    score = total.score
    dual = sum("dual owner" in failure for failure in total.failures)
    print(
        f"{score.races} races in {took_s:.0f} s on {args.jobs} cores "
        f"({score.races / max(took_s, 0.001):.0f} a second): {dual} dual owners, "
        f"{len(total.failures)} blocks that broke another invariant or none\n"
        f"{score.requests} requests, {score.takeovers} takeovers, {score.conflicts} conflicts, "
        f"{score.accepted} bindings that the client took, {score.refused} refusals, "
        f"{score.unknown} writes of unknown outcome, {score.crashes} crashes, "
        f"{score.freezes} freezes"
    )
    return int(bool(total.failures))


if __name__ == "__main__":
    sys.exit(main())
