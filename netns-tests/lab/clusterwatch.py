"""What becomes of a session, and of the traffic in it, while its cluster suffers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lab.cluster import HOST
from lab.clusternet import Cluster
from lab.daemons import Daemon, Event
from lab.schema import assert_valid
from lab.stage import assert_versions_rise_by_one, until
from lab.story import Fate
from lab.traffic import SETTLED_S, Traffic

ECHO_HZ = "200"


@dataclass
class ClusterWatch:
    """One test's view: the session and the events as they were, and traffic that must go on."""

    cluster: Cluster
    echo: Traffic
    tcp: Traffic
    session: str = field(init=False)
    addresses: list[str] = field(init=False)
    _seqs: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """From here on."""
        session = self.cluster.client.status()["session"]
        self.session, self.addresses = session["id"], session["inner_addresses"]
        self._seqs = {side: _last_seq(self._daemon(side)) for side in self._sides()}

    def restarted(self, label: str) -> None:
        """The node tells from the beginning again."""
        self._seqs[label] = 0

    def forget(self) -> None:
        """What the echo has sent before is counted no more."""
        self.echo.report()
        self.echo.wait_until("sent", above=float(ECHO_HZ) * (SETTLED_S + 0.1))

    def events(self, side: str, kind: str) -> list[Event]:
        """Of the `client` or a node."""
        events = self._daemon(side).events()
        return [e for e in events if e["seq"] > self._seqs[side] and e["event_type"] == kind]

    def ownership(self, label: str) -> list[str]:
        """What the node tells of it, in order."""
        return [e["details"]["what"] for e in self.events(label, "OWNERSHIP")]

    def wait_ownership(self, label: str, what: str, timeout_s: float = 20) -> Event:
        """Until the node says so of the session."""
        return self._daemon(label).wait_for(
            lambda e: e["event_type"] == "OWNERSHIP"
            and (e["session_id"], e["details"].get("what")) == (self.session, what),
            timeout_s,
            self._seqs[label],
        )

    def wait_client(self, kind: str, reason: str, timeout_s: float = 20) -> Event:
        wanted = (kind, reason)
        return self.cluster.client.wait_for(
            lambda e: (e["event_type"], e["reason"]) == wanted, timeout_s, self._seqs["client"]
        )

    def wait_owner(self, label: str, timeout_s: float = 20) -> None:
        """Until the session is bound there."""
        until(lambda: self.cluster.owner() == label, f"the client is at {label}", timeout_s)

    def switch(self, label: str) -> None:
        """Order the client to a node."""
        done = self.cluster.client.ctl("switch", self.cluster.path(label))
        assert done.returncode == 0, done.stderr

    def fate(self, more: int = 100) -> Fate:
        """What became of the echoes since the last report, once `more` of them have come back."""
        reports = self.echo.wait_until("received", above=more, timeout_s=30)
        sent, received = (sum(r[what] for r in reports) for what in ("sent", "received"))
        return Fate(sent, sent - received, max(r["longest_gap_ms"] for r in reports))

    def assert_flows(self) -> None:
        """The TCP connection carries its text on, and echoes come back."""
        self.tcp.report()
        reports = self.tcp.wait_until("bytes", above=200_000, timeout_s=20)
        assert {report["problem"] for report in reports} == {""}
        self.fate(more=20)

    def assert_same_session(self, owner: str) -> None:
        """One identity, and of the running nodes only `owner` has it; no version was skipped, and
        every event is as documented."""
        assert self.cluster.owner() == owner
        status = self.cluster.client.status()["session"]
        assert (status["id"], status["inner_addresses"]) == (self.session, self.addresses)
        assert self.holders() == {owner: [(self.session, self.addresses)]}
        for side in self._sides():
            assert_valid(self._daemon(side).events())
        assert_versions_rise_by_one(self.cluster.client.events())

    def holders(self) -> dict[str, list[tuple[str, list[str]]]]:
        """Of the running nodes those that have sessions, with ids and addresses."""
        found: dict[str, list[Any]] = {
            label: self.cluster.nodes[label].status()["sessions"]
            for label in self.cluster.running()
        }
        return {
            label: [(row["id"], row["inner_addresses"]) for row in rows]
            for label, rows in found.items()
            if rows
        }

    def _sides(self) -> list[str]:
        return ["client", *self.cluster.running()]

    def _daemon(self, side: str) -> Daemon:
        return self.cluster.client if side == "client" else self.cluster.nodes[side]


def _last_seq(daemon: Daemon) -> int:
    """0: a node that no session has come to."""
    return daemon.last_seq() if daemon.events() else 0


@contextlib.contextmanager
def watching(cluster: Cluster) -> Iterator[ClusterWatch]:
    """With a host of the LAN: an echo at 200 Hz, and a TCP connection."""
    net = cluster.net
    with (
        Traffic("echo", net.client, net.host, HOST[0], ECHO_HZ) as echo,
        Traffic("tcp", net.client, net.host, HOST[0]) as tcp,
    ):
        watch = ClusterWatch(cluster, echo, tcp)
        watch.assert_flows()
        watch.begin()
        yield watch
