"""How fast Jumping VPN is beside its peers, measured in one run. `sudo make bench`.

Two namespaces on one veth pair; each contender in turn, in several rounds. WIREGUARD_GO=path in
the environment adds another wireguard-go. Exit status 1 if a contender failed, 2 for a mistake.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shlex
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

from bench import docs, table
from bench.chart import chart
from bench.peers import Peer, contenders
from bench.results import ROOT, Results
from bench.run import QUICK, Effort, run
from lab.namespace import sweep

DOCS = ROOT / "docs"
PAGE, CHART, VALUES = DOCS / "performance.md", DOCS / "throughput.svg", DOCS / "throughput.json"

BUSY = 0.5  # a load average at which others clearly take part of the machine


def options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmark.py", description=__doc__)
    parser.add_argument("--rounds", type=_positive, help=f"default {Effort.rounds}")
    parser.add_argument("--seconds", type=_positive, help=f"a TCP run, default {Effort.seconds}")
    parser.add_argument(
        "--only", metavar="NAME,..", default="*", help="these contenders; may have * and ?"
    )
    parser.add_argument("--list", action="store_true", help="tell the contenders' names, and end")
    parser.add_argument("--quick", action="store_true", help="one short round, rough figures")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every value")
    parser.add_argument("--chart", type=Path, metavar="PATH", help="write an SVG picture")
    parser.add_argument(
        "--docs", action="store_true", help="write the table, the picture and the values into docs/"
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def effort(wanted: argparse.Namespace) -> Effort:
    base = QUICK if wanted.quick else Effort()
    return replace(
        base, rounds=wanted.rounds or base.rounds, seconds=wanted.seconds or base.seconds
    )


def choose(peers: list[Peer], patterns: str) -> list[Peer]:
    """Those whose name one of the patterns has; ValueError for a pattern that nobody has."""
    chosen: set[str] = set()
    for pattern in patterns.split(","):
        found = fnmatch.filter([peer.name for peer in peers], pattern)
        if not found:
            names = ", ".join(peer.name for peer in peers)
            raise ValueError(f"--only {pattern}: nobody has that name (there are {names})")
        chosen.update(found)
    return [peer for peer in peers if peer.name in chosen]


def command(arguments: list[str]) -> str:
    """How to do it again; where a newer wireguard-go is, is this machine's own affair."""
    more = f' ARGS="{shlex.join(arguments)}"' if arguments else ""
    newer = " WIREGUARD_GO=path" if os.environ.get("WIREGUARD_GO") else ""
    return f"sudo make bench{newer}{more}"


def write(results: Results, wanted: argparse.Namespace) -> None:
    values = json.dumps(results.json(), indent=1) + "\n"
    picture = chart(results)
    for path, text in ((wanted.json, values), (wanted.chart, picture)):
        if path:
            path.write_text(text)
    if wanted.docs:
        VALUES.write_text(values)
        CHART.write_text(picture)
        docs.rewrite(PAGE, docs.section(results))


def benchmark(arguments: list[str]) -> int:
    wanted = options(arguments)
    everybody = contenders()
    try:
        peers = choose(everybody, wanted.only)
    except ValueError as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 2
    missing = {peer.name: why for peer in peers if (why := peer.missing())}
    if wanted.list:
        for peer in peers:
            print(f"{peer.name:<20} {missing.get(peer.name) or peer.label}")
        return 0
    if problem := _unfit():
        print(f"benchmark.py: {problem}", file=sys.stderr)
        return 2
    present = [peer for peer in peers if peer.name not in missing]
    results = Results(present, command(arguments), skipped=missing)
    if results.machine["load_average"] > BUSY:
        print(
            f"the machine is busy (load average {results.machine['load_average']}): "
            "figures will be worse than they could be, and far apart"
        )
    for name, why in missing.items():
        print(f"skipped: {name}: {why}", flush=True)
    run(present, effort(wanted), results, lambda line: print(line, flush=True))
    write(results, wanted)
    print(f"\n{table.medians(results)}\n\n{table.ratios(results)}")
    for name, problems in results.failures.items():
        print(f"FAILED: {name}: {problems[0]}", file=sys.stderr)
    return 1 if results.failures else 0


def _unfit() -> str:
    """Why nothing can be measured here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root: it builds network namespaces (sudo make bench)"
    tools = [tool for tool in ("ip", "ping", "gcc", "iperf3") if shutil.which(tool) is None]
    return f"not installed: {', '.join(tools)} (make bench installs them)" if tools else ""


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        status = benchmark(sys.argv[1:])
    except KeyboardInterrupt:
        status = 130
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not spoil this
        sweep()
    if status == 130:
        print("\nstopped; everything is put back")
    return status


if __name__ == "__main__":
    sys.exit(main())
