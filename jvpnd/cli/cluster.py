"""jvpnctl drain and jvpnctl cluster: a gateway among others."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from jvpnd.cli.options import Options, json_option
from jvpnd.cli.text import NONE, ago, clean, table

Json = dict[str, Any]
LOOK_S = 0.2  # between two looks at how many sessions are left


@click.command()
@click.option("--stop", is_flag=True, help="Take sessions again.")
@click.option(
    "--timeout", "timeout_s", metavar="SECONDS", type=click.FloatRange(0), default=60,
    show_default=True, help="Wait so long for the sessions to leave; 0: do not wait.",
)
@json_option
@click.pass_obj
def drain(options: Options, stop: bool, timeout_s: float) -> None:
    """Have a gateway give its sessions to the other nodes of its cluster.

    Each client is asked to move, make before break, so nothing is lost. From now on the node takes
    no session, until --stop or its next start. Returns once no session is left: then it can be
    stopped or upgraded. Exit status 1 where some are left after the time-out.
    """
    answer: Json = options.ask("drain", leave=not stop)
    if stop:
        options.show(answer, lambda _: "the node takes sessions again")
        return
    began, answer = answer["sessions"], _wait(options, answer, timeout_s)
    options.show(answer, lambda last: _drained(began, last))
    if answer["sessions"] and timeout_s:
        sys.exit(1)


def _wait(options: Options, answer: Json, timeout_s: float) -> Json:
    """The last look: no session is left, or the time is over. Tells how it goes on stderr."""
    deadline, told = time.monotonic() + timeout_s, None
    while answer["sessions"] and time.monotonic() < deadline:
        if answer["sessions"] != told:
            told = answer["sessions"]
            click.echo(f"{told} sessions are left", err=True)
        time.sleep(LOOK_S)
        answer = options.ask("cluster")
        answer = {"draining": answer["draining"], "sessions": answer["sessions"]}
    return answer


def _drained(began: int, answer: Json) -> str:
    left = answer["sessions"]
    if not left:
        return f"all {began} sessions have left"
    why = "their clients reach no other node, or do not answer"
    return f"{left} of {began} sessions are left: {why}"


@click.group()
def cluster() -> None:
    """The cluster that a gateway is a node of."""


@cluster.command("status")
@json_option
@click.pass_obj
def status(options: Options) -> None:
    """The nodes, and how this one reaches the shared session table."""
    options.show(options.ask("cluster"), shown)


def shown(answer: Json) -> str:
    """What `cluster status` prints."""
    store, state = answer["store"], "draining" if answer["draining"] else "ready"
    lines = [
        f"node     {clean(answer['node'])}: {state}, {answer['sessions']} sessions",
        f"table    {clean(store['kind'])}: {_reached(store)}",
    ]
    if answer["problem"]:
        lines.append(f"problem  {clean(answer['problem'])}")
    rows = [
        (
            node["name"] + (" *" if node["is_self"] else ""),
            node["state"],
            node["sessions"],
            ", ".join(node["address"]) or NONE,
            ", ".join(node["endpoints"]) or NONE,
        )
        for node in answer["nodes"]
    ]
    if rows:
        lines += ["", table(("NODE", "STATE", "SESSIONS", "ADDRESS", "ENDPOINTS"), rows)]
    return "\n".join(lines)


def _reached(store: Json) -> str:
    if store["problem"]:
        return clean(store["problem"])
    if store["kind"] == "none":
        return "each node has its own"
    return f"reached {ago(store['seen_ms'])}"
