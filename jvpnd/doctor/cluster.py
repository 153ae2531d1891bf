"""Judges a node of a cluster: its etcd, its clock, its name, and what it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from jvpnd.core.dataclass import dataclass
from jvpnd.doctor.finding import Finding, fail, ok, warn
from jvpnd.store.namesake import place
from jvpnd.store.observer import NodeInfo

Listed: TypeAlias = Mapping[str, NodeInfo | None]
"""Nodes that are alive, by name; None: the cluster key does not open what is there."""

CLOCK_S: Final = 1.0
_REMEDIES: Final = {
    "certificate verify failed": "ca_file has to hold who signed etcd's certificate, and the URL a "
    "name that is in it",
    **dict.fromkeys(
        ("wrong version number", "record layer failure", "connection has been closed"),
        "does etcd speak TLS there (or http://)?",
    ),
    **dict.fromkeys(("HTTP status 400", "closed connection"), "does etcd want TLS (https://)?"),
    "reset by peer": "does etcd speak TLS there (https://), or does it not (http://)?",
    "alert": "certificate_file: etcd wants one that is signed by whom it trusts (its "
    "--trusted-ca-file)",
    "timed out": "is there a way to it, does a firewall let it through, and has etcd a leader "
    "(etcdctl endpoint health)?",
}
_ELSE: Final = "does etcd run there, and listen on that address (its --listen-client-urls)?"


@dataclass(frozen=True, slots=True)
class MemberFacts:
    """A member of etcd. `problem`: why this node cannot use it; `refused`: it answers, and says no.
    `ahead_s`: so much at least our clock is ahead of its own, None where that is not known."""

    url: str
    problem: str = ""
    refused: bool = False
    ahead_s: float | None = None


def members(facts: Sequence[MemberFacts], prefix: str) -> list[Finding]:
    """One that cannot be used is passed over; without any nothing is bound."""
    works = any(not each.problem for each in facts)
    found = []
    for each in facts:
        if not each.problem:
            found.append(ok("etcd", f"{each.url} takes reads and writes"))
            continue
        told = f"{each.url}: {each.problem}"
        if each.refused:
            remedy = f"username and password_file: of a user who may read and write {prefix}*"
            found.append(fail("etcd", told, remedy))
            continue
        remedy = next((what for words, what in _REMEDIES.items() if words in each.problem), _ELSE)
        found.append((warn if works else fail)("etcd", told, remedy))
    return found


def clock(facts: Sequence[MemberFacts]) -> list[Finding]:
    """The table's times are wall times of whoever wrote them; other nodes' clocks cannot be asked,
    etcd's can."""
    known = [(each.ahead_s, each.url) for each in facts if each.ahead_s is not None]
    if not known:
        return []
    ahead_s, url = max(known, key=lambda each: abs(each[0]))
    if abs(ahead_s) <= CLOCK_S:
        return [ok("clock of etcd", "within a second or two of this host's")]
    what = f"this host is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} {url}"
    return [warn("clock of etcd", what, "NTP on both: all nodes have to agree to a second or two")]


def nodes(alive: Listed, node: str) -> Finding:
    """Who else is there, and whether all have one cluster key."""
    closed = sorted(name for name, info in alive.items() if info is None)
    if closed:
        what = f"the cluster key does not open what is of {', '.join(closed)}"
        return fail("cluster nodes", what, "the same key_file on all nodes")
    others = sorted(alive.keys() - {node})
    return ok("cluster nodes", f"{', '.join(others) or 'no other'} alive")


def name(alive: Listed, own: NodeInfo, node: str) -> Finding:
    """For a daemon that does not run. `own`: as it would say of itself."""
    check, there = "node name", alive.get(node)
    if there is None:
        return ok(check, f"{node} is free")
    if (there.endpoints, there.address) != (own.endpoints, own.address):
        return fail(check, f"another gateway is {node}, {place(there)}", "node: a name of its own")
    what = f"{node} is alive with the addresses of this one, which does not run here"
    remedy = "goes with its lease (node_ttl_s) if it was killed; else a copy of it runs elsewhere"
    return warn(check, what, remedy)


def running_name(problem: str, node: str) -> Finding:
    """`problem`: what the daemon says."""
    if problem:
        return fail("node name", problem, "stop one of them, and give it a name of its own")
    return ok("node name", f"{node} is this node's alone")


def hook(problem: str | None, program: str) -> Finding:
    """`problem`: why root must not run it."""
    if problem is None:
        return ok("hook", program)
    return fail("hook", problem, "chown root and chmod go-w, the folders above it too")
