"""Plays made-up stories on all cores: seeds in a row (make simulate), or random ones (make soak).

A seed that fails prints its shortest story. From the top of the repository:

    python -m tests.simulation.soak --seeds 0:500          these seeds
    python -m tests.simulation.soak --seconds 3600         random ones, for so long
    python -m tests.simulation.soak --story FILE           one story again (FILE - is stdin)

With --cluster they are stories of clusters.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from random import SystemRandom

from .clusterplayer import ClusterPlayer
from .clusterteller import tell_cluster
from .player import Player, Tally
from .story import Story
from .teller import tell
from .trial import Failure, attempt, shortest

HOUR_MS = 3_600_000
FAILURES_MAX = 5  # more are not told
SEED_MAX = 10**9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seeds", metavar="FROM:TO", type=_span, help="every seed of this range")
    what.add_argument("--seconds", type=float, help="random seeds for so long")
    what.add_argument("--story", type=Path, help="a file with one story, as a failure prints it")
    parser.add_argument("--cluster", action="store_true", help="stories of clusters")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--long", action="store_true", help="do not shorten what fails")
    args = parser.parse_args()
    if args.story is not None:
        script = sys.stdin.read() if str(args.story) == "-" else args.story.read_text()
        result = attempt(Story.parse(script), ClusterPlayer if args.cluster else Player)
        print(result.text if isinstance(result, Failure) else "it ends well")
        return int(isinstance(result, Failure))
    seeds = args.seeds if args.seeds is not None else _random_seeds(args.seconds)
    return _run(seeds, args.jobs, not args.long, args.cluster)


def _run(seeds: Iterable[int], jobs: int, shorten: bool, cluster: bool) -> int:
    """Returns the exit status: 1 if any story failed."""
    total, failures, began_s = Tally(), list[Failure](), time.monotonic()
    play = play_cluster_seed if cluster else play_seed
    for result in _results(seeds, jobs, play):
        if isinstance(result, Tally):
            total.add(result)
            continue
        print(f"seed {result.story.seed} fails: {result.kind}", flush=True)
        failures.append(result)
        if len(failures) == FAILURES_MAX:
            print("enough of that", flush=True)
            break
    kind = ClusterPlayer if cluster else Player
    for failure in failures:
        print("\n" + (shortest(failure, kind) if shorten else failure).text, flush=True)
    print(_summary(total, time.monotonic() - began_s, jobs))
    return int(bool(failures))


def _results(
    seeds: Iterable[int], jobs: int, play: Callable[[int], Tally | Failure]
) -> Iterator[Tally | Failure]:
    """In the order in which they come; a few seeds more than processes are under way."""
    left, under_way = iter(seeds), set[Future[Tally | Failure]]()
    with ProcessPoolExecutor(jobs) as pool:
        while True:
            for seed in itertools.islice(left, 2 * jobs - len(under_way)):
                under_way.add(pool.submit(play, seed))
            if not under_way:
                return
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)


def play_seed(seed: int) -> Tally | Failure:
    return attempt(tell(seed))


def play_cluster_seed(seed: int) -> Tally | Failure:
    return attempt(tell_cluster(seed), ClusterPlayer)


def _summary(total: Tally, took_s: float, jobs: int) -> str:
    hours, volatile = total.simulated_ms / HOUR_MS, total.volatile_ms / HOUR_MS
    brisk = f", {volatile:.1f} of them volatile ({total.brisk_ms / HOUR_MS:.1f} at a brisk pace)"
    lines = [
        f"{total.stories} stories in {took_s:.0f} s on {jobs} cores: {hours:.1f} hours"
        + (brisk if volatile else ""),  # which nobody counts in a cluster
        ", ".join(f"{count} {name}" for name, count in sorted(total.events.items())),
    ]
    return "\n".join(lines)


def _span(text: str) -> range:
    first, _, last = text.partition(":")
    return range(int(first), int(last))


def _random_seeds(for_s: float) -> Iterator[int]:
    end_s, dice = time.monotonic() + for_s, SystemRandom()
    return itertools.takewhile(
        lambda _: time.monotonic() < end_s, iter(lambda: dice.randrange(SEED_MAX), -1)
    )


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the description."""


if __name__ == "__main__":
    sys.exit(main())
