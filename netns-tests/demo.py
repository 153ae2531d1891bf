"""The demonstration: one session, two uplinks, and faults. Run it with `sudo make demo`.

A TCP transfer and a 100 Hz echo run through the tunnel while the active uplink is cut and then the
other one is blackholed. Exit status 0 only if the TCP connection and the SessionID survived both.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import ExitStack

from lab.daemons import INNER, Pair
from lab.namespace import sweep
from lab.topology import Lab, Uplink
from lab.traffic import Traffic
from lab.wire import Conditions

DELAY_MS = 10
STEP_S = 5
SAMPLE_S = 0.5
TERMINAL = sys.stdout.isatty() and "NO_COLOR" not in os.environ
_COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_STATE_COLOURS = {"ATTACHED": "green", "RECOVERING": "yellow", "VOLATILE": "yellow"}


def paint(text: str, colour: str) -> str:
    return f"\033[{_COLOURS[colour]}m{text}\033[0m" if TERMINAL else text


def heading(text: str) -> None:
    print(f"\n{paint(text, 'bold')}", flush=True)


class Show:
    """Watches the client and the traffic, a line a sample."""

    def __init__(self, pair: Pair, echo: Traffic, tcp: Traffic) -> None:
        self._pair, self._echo, self._tcp = pair, echo, tcp
        echo.wait_until("received", above=10)  # what is shown begins with steady traffic
        tcp.report()
        self._start = self._last = time.monotonic()
        self.lost, self.longest_gap_ms, self.problem = 0, 0.0, ""
        self.step_bytes = 0  # of the TCP connection, since the last fault
        self.session_ids: set[str] = set()

    def columns(self) -> None:
        names = f"{'time':>6}  {'state':<11}{'path':<8}{'RTT':>9}{'lost':>7}{'gap':>10}{'TCP':>13}"
        print(paint(names, "dim"), flush=True)

    def watch(self, seconds: float) -> None:
        end, self.step_bytes = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            time.sleep(SAMPLE_S)
            self.sample()

    def sample(self) -> None:
        status, echo, tcp = self._pair.client.status(), self._echo.report(), self._tcp.report()
        session = status["session"] or {}
        self.session_ids.add(str(session.get("id")))
        self.lost += echo["sent"] - echo["received"]
        self.longest_gap_ms = max(self.longest_gap_ms, echo["longest_gap_ms"])
        self.problem = self.problem or tcp["problem"]
        self.step_bytes += tcp["bytes"]
        self._print(status["state"], session.get("binding"), echo, tcp)

    def _print(
        self,
        state: str,
        binding: dict[str, str] | None,
        echo: dict[str, float],
        tcp: dict[str, float],
    ) -> None:
        rtt = "-" if echo["rtt_ms"] is None else f"{echo['rtt_ms']:.1f} ms"
        lost, gap = int(echo["sent"] - echo["received"]), echo["longest_gap_ms"]
        now = time.monotonic()
        rate = f"{tcp['bytes'] / (now - self._last) / 1e6:.1f} MB/s"
        self._last = now
        path = binding["uplink"] if binding else "-"
        print(
            f"{now - self._start:5.1f}s  "
            + paint(f"{state:<11}", _STATE_COLOURS.get(state, "red"))
            + paint(f"{path:<8}", "cyan")
            + f"{rtt:>9}"
            + paint(f"{lost:>7}", "red" if lost > 1 else "dim")
            + paint(f"{gap:>7.0f} ms", "yellow" if gap > 50 else "dim")
            + f"{rate:>13}",
            flush=True,
        )


def active(lab: Lab, pair: Pair) -> Uplink:
    """The uplink that carries the session now."""
    return lab.uplink(pair.client.status()["session"]["binding"]["uplink"])


def faults(lab: Lab, pair: Pair, show: Show) -> None:
    heading("Both uplinks are well: one carries the session, the other is kept as a candidate.")
    show.columns()
    show.watch(STEP_S)
    first = active(lab, pair)
    heading(f"Cut: ip link set {first.device} down. The kernel tells, the session moves.")
    first.set_down()
    show.watch(STEP_S)
    heading(f"Restored: {first.device} is a candidate again.")
    first.set_up()
    show.watch(STEP_S)
    second = active(lab, pair)
    heading(f"Blackhole behind {second.device}: the link stays up, nothing passes, nobody tells.")
    second.silence()
    show.watch(STEP_S)
    heading(f"Restored: {second.device} answers again.")
    second.wire.set_both(Conditions(delay_ms=DELAY_MS))
    show.watch(STEP_S)


def verdict(pair: Pair, show: Show, before: str) -> int:
    heading("The session's timeline")
    print(pair.client.ctl("timeline", before).stdout)
    checks = {
        f"the SessionID stayed {before[:8]}": show.session_ids == {before},
        "the TCP connection goes on, content checked": not show.problem and show.step_bytes > 0,
    }
    heading("Verdict")
    for what, good in checks.items():
        print(f"  {paint('yes', 'green') if good else paint('NO ', 'red')}  {what}")
    print(f"  lost {show.lost} echoes, longest gap {show.longest_gap_ms:.0f} ms")
    if show.problem:
        print(f"  TCP: {show.problem}")
    return 0 if all(checks.values()) else 1


def run() -> int:
    if os.geteuid() != 0:
        print("the demo needs root: it builds network namespaces (sudo make demo)")
        return 2
    print("Building a client with two uplinks, two routers and a gateway ...", flush=True)
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(Conditions(delay_ms=DELAY_MS)))
        pair = stack.enter_context(Pair(lab.client, lab.gateway))
        pair.start()
        inner = INNER["gateway"][0]
        echo = stack.enter_context(Traffic("echo", lab.client, lab.gateway, inner, "100"))
        tcp = stack.enter_context(Traffic("tcp", lab.client, lab.gateway, inner))
        before = pair.client.status()["session"]["id"]
        show = Show(pair, echo, tcp)
        faults(lab, pair, show)
        return verdict(pair, show, before)


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        status = run()
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
