"""What is lost on one path, in each direction: the fate of probes, rates, and the loss floor.

All times are milliseconds of the caller's monotonic clock. Up is from the client to the gateway.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

from jvpnd.core.constants import REORDER_MS
from jvpnd.core.dataclass import dataclass
from jvpnd.core.rtt import RTO_MAX_MS

MAX_PROBES = 1024  # remembered by one ProbeLog; beyond that the oldest go first
REPORT_BITS = 32  # probes that one report tells of, besides the newest
SLOTS = 20  # a window is counted in so many parts
EXCESS_LIMIT = 6.0  # losses above the reference that are no chance any more (Page 1954)
EXCESS_DOUBT = 2.0
EXCESS_REFERENCE = 0.7  # of the floor: between a path that is well and one below the floor


@dataclass(slots=True)
class _Probe:
    sent_ms: float
    heard: bool = False
    arrived: bool | None = None  # at the gateway, as far as it has told
    up_counted: bool = False
    down_counted: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """Which probes of a path came to the gateway: the newest, and bit i for newest - 1 - i."""

    newest: int
    mask: int


class ProbeLog:
    """The probes of the last `window_ms` of one path, and what became of each."""

    def __init__(self, window_ms: float) -> None:
        if window_ms <= 0:
            raise ValueError(f"window_ms: {window_ms}, must be above 0")
        self.window_ms = window_ms
        self._probes: OrderedDict[int, _Probe] = OrderedDict()  # by number, in order of sending
        self._open: dict[int, _Probe] = {}  # those whose fate is not known in both directions

    def sent(self, number: int, now_ms: float) -> None:
        """A probe went out. `number` names it, is not used twice, and rises by one each time."""
        self._forget_before(now_ms - self.window_ms - RTO_MAX_MS)
        if number in self._probes:
            raise ValueError(f"probe {number} was sent already")
        self._probes[number] = self._open[number] = _Probe(now_ms)
        if len(self._probes) > MAX_PROBES:
            self._pop_oldest()

    def answered(self, number: int, now_ms: float) -> float | None:
        """An answer came: the RTT in ms, late or not; None for a duplicate or an unknown number."""
        self._forget_before(now_ms - self.window_ms - RTO_MAX_MS)
        probe = self._probes.get(number)
        if probe is None or probe.heard:
            return None
        probe.heard = probe.arrived = True
        return now_ms - probe.sent_ms

    def told(self, report: Report, now_ms: float, rto_ms: float) -> None:
        """The gateway says what it has. What is young enough may still be on its way."""
        for number, probe in self._open.items():
            age = report.newest - number
            if age == 0 or (0 < age <= REPORT_BITS and report.mask >> (age - 1) & 1):
                probe.arrived = True
            elif age <= REPORT_BITS and not probe.arrived and now_ms - probe.sent_ms > rto_ms:
                probe.arrived = False

    def loss(self, now_ms: float, rto_ms: float) -> float | None:
        """Lost / (lost + heard), 0 to 1, both ways together; None while nothing can be said.

        A probe without an answer is lost once it is older than the RTO and says nothing before
        that. The window reaches back one RTO further, so that a slow path is judged as well.
        """
        oldest_ms, lost, heard = now_ms - self.window_ms - rto_ms, 0, 0
        for probe in reversed(self._probes.values()):
            if probe.sent_ms < oldest_ms:
                break
            if probe.heard:
                heard += 1
            elif now_ms - probe.sent_ms > rto_ms:
                lost += 1
        return lost / (lost + heard) if lost + heard else None

    def evidence(self, after_ms: float, before_ms: float) -> tuple[int, int]:
        """How many of the probes sent in between were (lost, heard). Younger ones than the RTO
        would show the quick answers only."""
        sent = [p for p in self._probes.values() if after_ms <= p.sent_ms < before_ms]
        heard = sum(probe.heard for probe in sent)
        return len(sent) - heard, heard

    def overdue(self, now_ms: float, rto_ms: float, after_ms: float) -> tuple[int, float]:
        """Probes older than the RTO since the last that was answered: how many in a row, and when
        the first of them was sent. What was sent before `after_ms` does not count."""
        count, since_ms = 0, now_ms
        for probe in reversed(self._probes.values()):
            if probe.heard or probe.sent_ms < after_ms:
                break
            if now_ms - probe.sent_ms > rto_ms:
                count, since_ms = count + 1, probe.sent_ms
        return count, since_ms

    def fates(self, now_ms: float, patience_ms: float) -> Iterator[tuple[bool, bool]]:
        """(up?, lost?) for every probe and direction whose fate has become known, each once."""
        for number, probe in list(self._open.items()):
            late = now_ms - probe.sent_ms > patience_ms
            if not probe.up_counted and (probe.arrived or (late and probe.arrived is False)):
                probe.up_counted = True
                yield True, not probe.arrived
            if not probe.down_counted and (probe.heard or (late and probe.arrived)):
                probe.down_counted = True
                yield False, not probe.heard
            if probe.up_counted and probe.down_counted:
                del self._open[number]

    def silent_way(self, since_ms: float) -> str:
        """Which way the probes sent since then are lost: up, down, or none can tell."""
        told = {p.arrived for p in self._probes.values() if p.sent_ms >= since_ms and not p.heard}
        known = told - {None}
        return "unknown" if len(known) != 1 else "down" if known.pop() else "up"

    def forget(self) -> None:
        """Nobody listened for a while: answers that come now say nothing."""
        self._probes.clear()
        self._open.clear()

    def _forget_before(self, time_ms: float) -> None:
        while self._probes and next(iter(self._probes.values())).sent_ms < time_ms:
            self._pop_oldest()

    def _pop_oldest(self) -> None:
        number, _ = self._probes.popitem(last=False)
        self._open.pop(number, None)


class ArrivalWindow:
    """The gateway's side of a Report: which of one path's probes came."""

    __slots__ = ("mask", "newest")

    def __init__(self, first: int) -> None:
        self.newest, self.mask = first, 0

    def note(self, number: int) -> None:
        ahead = number - self.newest
        if 0 < ahead <= REPORT_BITS:
            self.mask = (self.mask << ahead | 1 << (ahead - 1)) & (1 << REPORT_BITS) - 1
            self.newest = number
        elif -REPORT_BITS <= ahead < 0:
            self.mask |= 1 << (-ahead - 1)
        elif ahead:  # far off: where it is behind, the path's number names another one now
            self.newest, self.mask = number, 0

    def before(self, number: int) -> int:
        """The mask of a report whose newest is `number`, which has come."""
        ahead = self.newest - number
        if ahead < 0:
            return 0
        # bit i of what is returned stands for number - 1 - i
        return self.mask >> ahead if ahead <= REPORT_BITS else 0


@dataclass(slots=True)
class _Look:
    at_ms: float
    records: int
    missing: int
    in_ms: float


class RecordLog:
    """The data plane's totals of one direction of one epoch, look by look.

    What is missing below the highest counter may only be late, all the more when a path becomes
    slower at once: so a look is counted REORDER_MS later, by what is missing then.
    """

    def __init__(self) -> None:
        self._looks: deque[_Look] = deque()  # the first one is counted already

    def look(
        self, now_ms: float, records: int, missing: int, in_ms: float
    ) -> Iterator[tuple[int, int, float]]:
        """The totals now, and the time in which the newest records came; of each look that is old
        enough (came, lost, in_ms). `lost` is below 0 when late ones turn up after all."""
        looks = self._looks
        if looks and records < looks[-1].records:
            looks.clear()
        for late in list(looks)[1:]:
            late.missing = min(late.missing, missing)
        if not looks or records > looks[-1].records:
            looks.append(_Look(now_ms, records, missing, in_ms))
        while len(looks) > 1 and now_ms - looks[1].at_ms >= REORDER_MS:
            before = looks.popleft()
            now = looks[0]
            yield now.records - before.records, now.missing - before.missing, now.in_ms


class DirectionLoss:
    """One direction of one path: the loss rate over a window, and whether the floor is violated.

    The floor is watched by a cumulative sum: what arrives takes out of it, what is lost puts in.
    Chance losses drain away; what goes on fills it within some 40 packets at 30 % loss.
    """

    def __init__(self, window_ms: float) -> None:
        self.window_ms = window_ms
        self._slots: deque[tuple[int, float, float]] = deque(maxlen=SLOTS)  # number, arrived, lost
        self._lost_ms = 0.0
        self.excess = 0.0
        self._run_arrived = self._run_lost = 0.0  # since the sum was last empty

    def count(self, now_ms: float, arrived: float, lost: float, floor: float) -> None:
        """So many more came and did not come. `lost` is below 0 when late ones turn up after all.
        `floor` 0 is off."""
        self._add(now_ms, arrived, lost)
        if lost > 0:
            self._lost_ms = now_ms
        self._run_arrived += arrived
        self._run_lost += lost
        self.excess += lost - EXCESS_REFERENCE * floor * (arrived + lost)
        if self.excess <= 0 or floor <= 0:
            self.forgive()
        elif self.excess > 2 * EXCESS_LIMIT:  # so that it is empty again soon after the trouble
            self.excess = 2 * EXCESS_LIMIT

    def forgive(self) -> None:
        """What was lost says nothing of what will be."""
        self.excess = self._run_arrived = self._run_lost = 0.0

    def forgive_after(self, now_ms: float, quiet_ms: float) -> None:
        """Nothing was lost for so long, and perhaps little was sent: do not wait for more."""
        if self.excess > 0 and now_ms - self._lost_ms >= quiet_ms:
            self.forgive()

    def violation(self, floor: float) -> float | None:
        """The loss since the trouble began, where it is above the floor beyond chance."""
        run = self._run_arrived + self._run_lost
        if floor <= 0 or self.excess < EXCESS_LIMIT or self._run_lost <= floor * run:
            return None
        return self._run_lost / run

    @property
    def is_doubtful(self) -> bool:
        """On the way to a violation: time to look at the other paths."""
        return self.excess >= EXCESS_DOUBT

    def rate(self, now_ms: float) -> float | None:
        """Lost / all over the window, 0 to 1; None while nothing can be said."""
        oldest = self._number(now_ms) - SLOTS + 1
        rows = [(arrived, lost) for number, arrived, lost in self._slots if number >= oldest]
        arrived, lost = sum(row[0] for row in rows), max(0.0, sum(row[1] for row in rows))
        return lost / (arrived + lost) if arrived + lost > 0 else None

    def _add(self, now_ms: float, arrived: float, lost: float) -> None:
        number = self._number(now_ms)
        if self._slots and self._slots[-1][0] == number:
            _, before, gone = self._slots.pop()
            arrived, lost = arrived + before, lost + gone
        self._slots.append((number, arrived, lost))

    def _number(self, now_ms: float) -> int:
        return int(now_ms * SLOTS // self.window_ms)
