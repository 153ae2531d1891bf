"""One lab for many tests: daemons with the wanted policy, traffic, and what happened meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lab.daemons import INNER, Daemon, Event, Pair
from lab.schema import assert_valid
from lab.topology import Lab, Uplink
from lab.traffic import Traffic
from lab.wire import Conditions

ECHO_HZ = "100"


def until(condition: Callable[[], Any], what: str, timeout_s: float = 20) -> Any:
    """Wait for something that has no event of its own; its first true value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.05)
    return value


def transitions(events: list[Event], session: str | None = None) -> list[str]:
    """The state changes, each as `FROM -> TO REASON`."""
    return [
        f"{e['from']} -> {e['to']} {e['reason']}"
        for e in events
        if e["event_type"] == "STATE_CHANGE" and session in (None, e["session_id"])
    ]


def assert_versions_rise_by_one(events: list[Event]) -> None:
    """Each transition of each session raises state_version by exactly one, from 1 on, or from where
    a daemon that was started again took it up."""
    last: dict[str, int] = {}
    for event in events:
        if event["event_type"] != "STATE_CHANGE" or event["session_id"] is None:
            continue
        version = event["state_version"]
        is_taken_up = event["details"].get("why", "").endswith("started again")
        before = last.get(event["session_id"], version - 1 if is_taken_up else 0)
        assert version == before + 1, event
        last[event["session_id"]] = version


@dataclass
class Watch:
    """One test's view: the session and the events as they were, and traffic that must go on."""

    pair: Pair
    echo: Traffic | None = None
    tcp: Traffic | None = None
    session: str = field(init=False)
    addresses: list[str] = field(init=False)
    _seqs: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """From here on."""
        session = self.pair.client.status()["session"]
        self.session, self.addresses = session["id"], session["inner_addresses"]
        daemons = {"client": self.pair.client, "gateway": self.pair.gateway}
        self._seqs = {side: daemon.last_seq() for side, daemon in daemons.items()}

    def seq(self, side: str = "client") -> int:
        return self._seqs[side]

    def events(self, side: str) -> list[Event]:
        daemon: Daemon = getattr(self.pair, side)
        return [event for event in daemon.events() if event["seq"] > self._seqs[side]]

    def story(self, side: str) -> list[str]:
        return transitions(self.events(side), self.session)

    def wait_attached(self, timeout_s: float = 20) -> Event:
        return self.pair.client.wait_state("ATTACHED", timeout_s, self._seqs["client"])

    def assert_flows(self, timeout_s: float = 20) -> None:
        """The TCP connection carries its text on, and echoes come back."""
        assert self.tcp is not None
        assert self.echo is not None
        self.tcp.report()
        reports = self.tcp.wait_until("bytes", above=200_000, timeout_s=timeout_s)
        assert {report["problem"] for report in reports} == {""}
        self.echo.report()
        self.echo.wait_until("received", above=10, timeout_s=timeout_s)

    def assert_same_session(self) -> None:
        """One identity, at both ends, no version was skipped, and every event is as documented."""
        status = self.pair.client.status()["session"]
        assert (status["id"], status["inner_addresses"]) == (self.session, self.addresses)
        (row,) = self.pair.gateway.status()["sessions"]
        assert (row["id"], row["inner_addresses"]) == (self.session, self.addresses)
        for daemon in (self.pair.client, self.pair.gateway):
            assert_versions_rise_by_one(daemon.events())
            assert_valid(daemon.events())

    def binding(self) -> dict[str, str]:
        """What carries the session: path, transport, uplink, local, remote; {} if nothing does."""
        return self.pair.client.status()["session"]["binding"] or {}

    def bound(self) -> str:
        """The uplink that carries the session."""
        return self.binding()["uplink"]

    def transport(self) -> str:
        """The transport that carries it, as both ends say; "" while they do not agree."""
        (row,) = self.pair.gateway.status()["sessions"]
        ours, theirs = self.binding(), row["binding"]
        return ours["transport"] if ours and ours["transport"] == theirs["transport"] else ""


class Stage:
    """A lab and the daemons of the moment; tests that ask for the same ones share them."""

    def __init__(self) -> None:
        self.lab = Lab()
        self._pair: Pair | None = None
        self._wanted: dict[str, Any] = {}

    def pair(self, paths: int = 2, **wanted: Any) -> Pair:
        """Daemons with these options of Pair, attached; the lab is well, that many paths are up."""
        self.heal()
        if self._pair is None or wanted != self._wanted or not self._is_usable(self._pair):
            self.strike()
            self._pair, self._wanted = Pair(self.lab.client, self.lab.gateway, **wanted), wanted
            self._pair.start()
        self.wait_paths(paths)
        return self._pair

    @staticmethod
    def _is_usable(pair: Pair) -> bool:
        running = all(d.process and d.process.poll() is None for d in (pair.client, pair.gateway))
        return running and pair.client.status()["state"] == "ATTACHED"

    def wait_paths(self, number: int) -> None:
        """Until this many paths have been heard of lately."""
        assert self._pair is not None
        client = self._pair.client

        def up() -> bool:
            rows = client.status()["paths"]
            heard = [p for p in rows if p["state"] != "down" and p["last_heard_ms"] is not None]
            return sum(p["last_heard_ms"] < 2000 for p in heard) == number

        until(up, f"{number} paths are up")

    def heal(self) -> None:
        for uplink in (self.lab.a, self.lab.b):
            uplink.wire.set_both(Conditions())
            uplink.set_up()

    def uplink(self, device: str) -> Uplink:
        return next(u for u in (self.lab.a, self.lab.b) if u.device == device)

    def other(self, device: str) -> Uplink:
        return next(u for u in (self.lab.a, self.lab.b) if u.device != device)

    @contextlib.contextmanager
    def watch(self, pair: Pair, family: int = 0) -> Iterator[Watch]:
        """Traffic through the tunnel (family 0: IPv4 inside, 1: IPv6), running while inside."""
        inner = INNER["gateway"][family]
        lab = self.lab
        with (
            Traffic("echo", lab.client, lab.gateway, inner, ECHO_HZ) as echo,
            Traffic("tcp", lab.client, lab.gateway, inner) as tcp,
        ):
            watch = Watch(pair, echo, tcp)
            watch.assert_flows()
            watch.begin()
            yield watch

    def strike(self) -> None:
        """End the daemons."""
        if self._pair is not None:
            self._pair.close()
            self._pair = None

    def close(self) -> None:
        self.strike()
        self.lab.close()

