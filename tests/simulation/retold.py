"""The history that the events tell, as they leave the daemon, against the one that was."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jvpnd.core.client import ClientAgent
from jvpnd.core.effects import Emit, host_port
from jvpnd.core.gateway import Gateway
from jvpnd.core.peer import Stored
from jvpnd.core.reasons import Reason
from jvpnd.core.session import Session
from jvpnd.core.states import State
from jvpnd.core.wire import PacketType
from jvpnd.observe.log import Event, EventLog
from jvpnd.observe.story import Stretch, bindings, carrier, states
from jvpnd.observe.timeline import timeline
from jvpnd.shell import write

KEPT = 1 << 20  # events
Span = tuple[int, str]  # since, what


@dataclass
class Facts:
    """What is known of one session by its events alone."""

    state: str = "BIRTH"
    version: int = 0
    epoch: int = 0
    path: str | None = None
    remote: str | None = None
    switches: int = 0
    rekeys: int = 0

    def add(self, event: Event) -> None:
        kind, details = event["event_type"], event["details"]
        self.path = carrier(event, self.path)
        if kind == "STATE_CHANGE":
            self.state, self.version, self.epoch = event["to"], self.version + 1, details["epoch"]
            if event["to"] == State.ATTACHED:  # else it is where a request came from
                self.remote = details.get("remote", self.remote)
        elif kind == "REKEY":
            self.epoch, self.rekeys = details["epoch"], self.rekeys + 1
        elif kind == "TRANSPORT_SWITCH":
            self.switches += 1
            self.remote = details.get("remote")
        assert event["state_version"] == self.version, f"{event}, but version {self.version}"


@dataclass
class Seen:
    """What was true of a session: changes in order, each with the time."""

    states: list[Span] = field(default_factory=list)
    paths: list[Span] = field(default_factory=list)


class Retold:
    """One end's events as lines of JSON, and what follows from them."""

    def __init__(self) -> None:
        self._now_ms = 0
        self.log = EventLog("node", lambda: self._now_ms, KEPT)
        self._facts: defaultdict[str, Facts] = defaultdict(Facts)
        self._seen: defaultdict[str, Seen] = defaultdict(Seen)
        self._present: str | None = None  # a client's session
        self._live: set[str] = set()  # a gateway's

    def note(self, now_ms: int, event: Emit) -> None:
        self._now_ms = now_ms
        told = json.loads(json.dumps(write(self.log, event, policy_version=1)))
        if event.session_id is not None and event.state_version is not None:
            # An offer whose birth the table refused was no session yet.
            if event.event_type != "OWNERSHIP" or told["session_id"] in self._facts:
                self._facts[told["session_id"]].add(told)

    def events(self) -> list[Event]:
        """Read back from their lines."""
        return [json.loads(json.dumps(event)) for event in self.log.recent()]

    # --- after each step ---

    def check_client(self, now_ms: int, agent: ClientAgent) -> None:
        session = agent.session
        assert session is not None
        present = session.id.hex() if session.id is not None else None
        if self._present not in (None, present):  # in the step that ended it the next one began
            self._saw(now_ms, self._present, State.TERMINATED, "")
        self._present = present
        if present is None:
            return
        facts = self._facts[present]
        path = agent.bound.id if agent.bound is not None else None
        self._check(session, facts)
        assert facts.path == path, f"told of {facts.path}, bound to {path}"
        assert facts.switches == session.switches
        self._saw(now_ms, present, session.state, path or "")

    def _saw(self, now_ms: int, session_id: str, state: State, path: str) -> None:
        _add(self._seen[session_id].states, now_ms, str(state))
        _add(self._seen[session_id].paths, now_ms, path)

    def restored(self, row: Mapping[str, Any]) -> None:
        """What the table held is the truth, whatever was told of that could not be written."""
        facts = self._facts[str(row["session_id"])]
        facts.state, facts.remote = str(row["state"]), host_port(*row["remote"])
        facts.version, facts.epoch, facts.rekeys = (
            int(str(row[name])) for name in ("state_version", "epoch", "rekeys")
        )

    def rebooted(self) -> None:
        """Nobody told of the end of the sessions that there were."""
        self._present = None
        self._live = set()

    def check_gateway(self, now_ms: int, gateway: Gateway) -> None:
        live = {session_id.hex(): peer for session_id, peer in gateway.sessions.items()}
        for gone in self._live - live.keys():
            self._saw(now_ms, gone, State.TERMINATED, "")
        self._live = set(live)
        for session_id, peer in live.items():
            facts = self._facts[session_id]
            self._check(peer.session, facts)
            assert facts.remote == str(peer.origin), f"told {facts}, bound to {peer.origin}"
            self._saw(now_ms, session_id, peer.session.state, "")

    @staticmethod
    def _check(session: Session, facts: Facts) -> None:
        told = facts.state, facts.version, facts.epoch, facts.rekeys
        true = session.state, session.state_version, session.epoch, session.rekeys
        assert told == true, f"{session}, but told {facts}"

    # --- at the end ---

    def check_timeline(self, is_client: bool) -> None:
        """What `jvpnctl timeline` draws is what was. A gateway knows of no path that is dead: what
        it is bound to stays until the next move."""
        for told in timeline(self.events()).sessions:
            if told.session_id is None:
                continue
            seen, end_ms = self._seen[told.session_id], self._now_ms + 1
            if not told.is_complete:  # no session of ours: asked for in vain, or not to be stored
                assert not any(event["to"] for event in told.entries)
                assert seen == Seen()
                continue
            assert told.switches == self._facts[told.session_id].switches
            assert _spans(states(told, end_ms), "TERMINATED", end_ms) == _visible(seen.states)
            if is_client:
                assert _spans(bindings(told, end_ms), "", end_ms) == _visible(seen.paths)


def _add(spans: list[Span], now_ms: int, what: str) -> None:
    if not spans or spans[-1][1] != what:
        spans.append((now_ms, what))


def _visible(spans: Iterable[Span]) -> list[Span]:
    """Of several changes in one millisecond the last one, and only what is a change then."""
    changes: list[Span] = []
    for since_ms, what in dict(spans).items():
        _add(changes, since_ms, what)
    return changes


def _spans(stretches: list[Stretch], nothing: str, end_ms: int) -> list[Span]:
    """The changes that these stretches mean; between them there is `nothing`."""
    spans: list[Span] = []
    for one, after in itertools.zip_longest(stretches, stretches[1:]):
        spans.append((one.begin_ms, one.what))
        if one.end_ms < (after.begin_ms if after is not None else end_ms):
            spans.append((one.end_ms, nothing))
    return _visible(spans)


class Books:
    """One life of an end: what it did, and whether it told each of that exactly once."""

    def __init__(self) -> None:
        self._did: Counter[str] = Counter()
        self._told: Counter[str] = Counter()

    def sent(self, packet: bytes) -> None:
        self._did[PacketType(packet[0]).name] += 1

    def stored(self, outcome: Stored) -> None:
        self._did["not stored"] += outcome is not Stored.OK

    def told(self, event: Emit) -> None:
        name = event.event_type
        if name == "REATTACH_RESULT":
            name = "accepted" if event.reason is Reason.REATTACH_ACCEPT else "refused"
        self._told[name] += 1

    def check(self, dropped: Mapping[str, int]) -> None:
        """`dropped`: what was counted instead, as too much to tell."""
        did, told = self._did, self._told
        assert did["REATTACH_REQUEST"] == told["REATTACH_ATTEMPT"]
        assert did["not stored"] == told["OWNERSHIP"]
        if did["REATTACH_REQUEST"]:
            return  # a client: what it is told, not what it says
        refused = told["refused"] + dropped.get("reattach refused", 0)
        assert did["REATTACH_ACK"] == told["TRANSPORT_SWITCH"] == told["accepted"]
        assert did["REATTACH_REJECT"] == refused
