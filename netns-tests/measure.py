"""How long traffic stops: a 200 Hz echo over 10 ms one-way wires, and a fault. `make measure`.

For each fault the longest time between two answers and how many were lost, over several runs, each
with a network and daemons of its own; where the tunnel is idle, the time until the client is
ATTACHED again. `--soak` looks for false switches on lossy, jittery wires instead.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.daemons import INNER, UDP, Daemon, Pair
from lab.firewall import UDP as UDP_DROPPED
from lab.firewall import block
from lab.stage import until
from lab.topology import Lab, Uplink
from lab.traffic import Traffic
from lab.wire import Conditions

DELAY_MS = 10
RATE_HZ = 200
SETTLE_S = 3.0
IDLE_S = 2.0  # after which the heartbeat is the idle one
SOAK = Conditions(delay_ms=DELAY_MS, jitter_ms=20, loss=0.03)
SILENT = Conditions(delay_ms=DELAY_MS, loss=1.0)
SPIKE = Conditions(delay_ms=DELAY_MS, loss=0.3)
WELL = Conditions(delay_ms=DELAY_MS)
SPIKE_S = 3.0
DOWN_S = 1.0


@dataclass(frozen=True)
class Scene:
    """What there is to strike at, and the uplink that carries the session."""

    lab: Lab
    uplink: Uplink
    pair: Pair


def _spike(scene: Scene) -> None:
    scene.uplink.wire.set_both(SPIKE)
    time.sleep(SPIKE_S)
    scene.uplink.wire.set_both(WELL)


def _switch(scene: Scene) -> None:
    done = scene.pair.client.ctl("switch", "--best")
    assert done.returncode == 0, done.stderr


def _block_udp(scene: Scene) -> None:
    for uplink in (scene.lab.a, scene.lab.b):
        block(uplink, UDP_DROPPED)


def _kill(daemon: Daemon) -> None:
    daemon.stop(signal.SIGKILL)
    time.sleep(DOWN_S)
    daemon.start()


def _restart(daemon: Daemon) -> None:
    daemon.stop()
    daemon.start()


@dataclass(frozen=True)
class Fault:
    """What happens to the uplink that carries the session, and whether there is a second one."""

    strike: Callable[[Scene], None]
    second_uplink: bool = True
    watch_s: float = 1.0  # so long is counted from the fault on, at least
    idle: bool = False  # the echo has ended: what counts is when the client is ATTACHED again
    transports: tuple[str, ...] = UDP
    client_policy: str = ""
    connections: int = 0  # beside UDP, once the session has settled
    new_client: bool = False  # it is another process afterwards, with events of its own


ANY = ("udp", "tcp", "tls")
AFTER: dict[str, Any] = {"watch_s": 3.0}
AGAIN: dict[str, Any] = {"watch_s": 3.0, "new_client": True}
COLD = "warm_connections = 0\n"
FAULTS = {
    "link down": Fault(lambda scene: scene.uplink.set_down()),
    "address change": Fault(lambda scene: scene.uplink.change_address(77), second_uplink=False),
    "NAT rebinding": Fault(lambda scene: scene.uplink.rebind()),
    "blackhole": Fault(lambda scene: scene.uplink.silence()),
    "blackhole, up only": Fault(lambda scene: scene.uplink.wire.set(a_to_b=SILENT)),
    "blackhole, down only": Fault(lambda scene: scene.uplink.wire.set(b_to_a=SILENT)),
    "blackhole, idle": Fault(lambda scene: scene.uplink.silence(), idle=True),
    "planned switch": Fault(_switch),
    "30 % loss for 3 s": Fault(_spike, watch_s=10.0),
    "UDP blocked, warm": Fault(_block_udp, watch_s=3.0, transports=ANY, connections=4),
    "UDP blocked, cold": Fault(_block_udp, watch_s=3.0, transports=ANY, client_policy=COLD),
    "gateway killed, started after 1 s": Fault(lambda scene: _kill(scene.pair.gateway), **AFTER),
    "gateway restarted": Fault(lambda scene: _restart(scene.pair.gateway), **AFTER),
    "client killed, started after 1 s": Fault(lambda scene: _kill(scene.pair.client), **AGAIN),
    "client restarted": Fault(lambda scene: _restart(scene.pair.client), **AGAIN),
}


def one_run(fault: Fault) -> dict[str, Any]:
    """One fault in a network of its own; what the echo saw of it."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(WELL))
        if not fault.second_uplink:
            lab.b.set_down()
        for uplink in (lab.a, lab.b):
            uplink.translate()
        options = {"transports": fault.transports, "client_policy": fault.client_policy}
        pair = stack.enter_context(Pair(lab.client, lab.gateway, **options))  # type: ignore[arg-type]
        pair.start()
        inner = INNER["gateway"][0]
        echo = stack.enter_context(
            Traffic("echo", lab.client, lab.gateway, inner, str(RATE_HZ))
        )
        time.sleep(SETTLE_S)  # what is measured begins with steady traffic
        if fault.idle:
            echo.close()
            time.sleep(IDLE_S + random.random())  # anywhere between two heartbeats
        until(lambda: _connections(pair) == fault.connections, "the session has settled")
        session, seq = pair.client.status()["session"], pair.client.last_seq()
        if not fault.idle:
            echo.report()
        began_s, began_ms = time.monotonic(), time.time() * 1000
        fault.strike(Scene(lab, lab.uplink(session["binding"]["uplink"]), pair))
        seq = 0 if fault.new_client else seq
        back = pair.client.wait_state("ATTACHED", after=seq)
        time.sleep(max(0.0, fault.watch_s - (time.monotonic() - began_s)))
        reports = [] if fault.idle else echo.wait_until("received", above=RATE_HZ)
        sent, received = (sum(r[what] for r in reports) for what in ("sent", "received"))
        gaps_ms = [report["longest_gap_ms"] for report in reports]
        return {
            "gap_ms": max(gaps_ms, default=round(back["ts_ms"] - began_ms, 1)),
            "sent": sent,
            "lost": sent - received,
            "recovery_ms": _recovery_ms(pair.client, seq),
            "survived": pair.client.status()["session"]["id"] == session["id"],
        }


def _connections(pair: Pair) -> int:
    rows = pair.client.status()["paths"]
    return sum(row["transport"] != "udp" and row["state"] != "closed" for row in rows)


def _recovery_ms(client: Daemon, seq: int) -> float:
    """From leaving ATTACHED to being back, as the client's own events tell."""
    switch = next(
        e for e in client.events() if e["seq"] > seq and e["event_type"] == "TRANSPORT_SWITCH"
    )
    return float(switch["details"]["recovery_ms"])


def gaps(runs: int, names: Collection[str]) -> dict[str, Any]:
    """Every fault in turn, `runs` times over."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for run in range(runs):
        for name in names:
            result = one_run(FAULTS[name])
            found[name].append(result)
            told = f"{result['gap_ms']:7.1f} ms, {result['lost']} of {result['sent']} lost"
            print(f"run {run + 1}/{runs}  {name:<20} {told}", flush=True)
    return {
        name: {
            "median_ms": statistics.median(r["gap_ms"] for r in results),
            "min_ms": min(r["gap_ms"] for r in results),
            "max_ms": max(r["gap_ms"] for r in results),
            "lost": statistics.median(r["lost"] for r in results),
            "most_lost": max(r["lost"] for r in results),
            "sent": statistics.median(r["sent"] for r in results),
            "survived": all(r["survived"] for r in results),
            "runs": results,
        }
        for name, results in found.items()
    }


def table(results: dict[str, Any]) -> str:
    lines = [
        "| fault | median | least | most | lost (most) | session kept |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        kept = "yes" if row["survived"] else "NO"
        lines.append(
            f"| {name} | {row['median_ms']:.0f} ms | {row['min_ms']:.0f} ms "
            f"| {row['max_ms']:.0f} ms | {row['lost']:.0f} ({row['most_lost']}) of "
            f"{row['sent']:.0f} | {kept} |"
        )
    return "\n".join(lines)


def soak(seconds: float) -> dict[str, Any]:
    """3 % loss and 20 ms jitter on every wire, half of the time busy, half idle: what moved?"""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(SOAK))
        pair = stack.enter_context(Pair(lab.client, lab.gateway))
        pair.start()
        seq = pair.client.last_seq()
        with Traffic("echo", lab.client, lab.gateway, INNER["gateway"][0], str(RATE_HZ)) as echo:
            time.sleep(seconds / 2)
            seen = echo.report()
        time.sleep(seconds / 2)
        events = [e for e in pair.client.events() if e["seq"] > seq]
        reasons = [e["reason"] for e in events if e["event_type"] == "STATE_CHANGE"]
        return {
            "seconds": seconds,
            "switches": sum(e["event_type"] == "TRANSPORT_SWITCH" for e in events),
            "deaths": reasons.count("TRANSPORT_DEAD"),
            "volatile": reasons.count("VOLATILITY_SIGNAL"),
            "echo": seen,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--only", action="append", choices=FAULTS, help="this fault; may be said several times"
    )
    parser.add_argument("--json", type=Path, help="write the results here too")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="look for false switches")
    options = parser.parse_args()
    if options.soak:
        results = soak(options.soak)
        print(json.dumps(results, indent=2))
        good = results["switches"] == 0
    else:
        results = gaps(options.runs, options.only or FAULTS)
        print(f"\n{table(results)}")
        good = all(row["survived"] for row in results.values())
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
