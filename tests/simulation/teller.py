"""Makes stories up: the same seed always gives the same one."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from jvpnd.core.policy import Policy

from .story import Fault, Story

PACES = (1, 1, 1, 3, 10, 30)  # how much longer than the defaults everything takes
DAY_MS = 86_400_000
# Up, answered, down; seldom enough that the client counts as idle most of the time.
QUIET_LOADS = ((0, 1, 0), (0, 1, 0), (0, 1, 0), (0, 1, 30), (20, 1, 0), (45, 0, 0), (15, 1, 20))
BUSY_LOADS = ("20 1 0", "50 1 0", "30 0 0", "0 1 40", "25 1 60")


def tell(seed: int) -> Story:
    """The story of this seed."""
    return _Teller(seed).tell()


class _Teller:
    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._dice = Random(f"story {seed}")
        self._pace = self._dice.choice(PACES)
        self._paths = self._dice.choice([1, 2, 2, 2, 3, 3, 4, 5, 8])
        self._names = list("abcdefgh"[: self._paths])
        self._at_ms = 0
        self._faults: list[Fault] = []

    def tell(self) -> Story:
        dice = self._dice
        client = self._health()
        gateway = dice.choices(
            [client, {**client, **self._bounds()}, self._health()], [3, 1, 1]
        )[0]
        self._quiet()
        self._pass(dice.choice([0, 30, 2_000, 2_000, 10_000]))
        for _ in range(dice.randrange(3, 16)):
            dice.choices(EPISODES, WEIGHTS)[0](self)
            self._pass(self._while())
        self._say("wait")
        return Story(self._seed, self._paths, client, gateway, tuple(self._faults))

    # --- telling ---

    def _say(self, *words: str) -> None:
        self._faults.append(Fault(self._at_ms, words))

    def _pass(self, for_ms: float) -> None:
        self._at_ms += int(for_ms)

    def _while(self) -> float:
        """A time in which something may be half done, or long over."""
        short = self._dice.choice([0, 1, 5, 12, 20, 60, 150, 400])
        long = self._dice.choice([900, 3_000, 8_000, 20_000, 70_000]) * self._pace
        return short if self._dice.random() < 0.4 else long * self._dice.uniform(0.5, 1.5)

    def _path(self) -> str:
        return self._dice.choice(self._names)

    def _way(self) -> str:
        return self._dice.choice(["up", "down", "both", "both"])

    # --- policies ---

    def _some(self, values: dict[str, object]) -> dict[str, object]:
        share = self._dice.choice([0.0, 0.3, 0.7, 1.0])
        return {key: value for key, value in values.items() if self._dice.random() < share}

    def _health(self) -> dict[str, object]:
        """A whole policy table, slower than the defaults by the pace."""
        pick, pace = self._dice.choice, self._pace
        active = min(pick([50, 100, 300]) * pace, 10_000)
        idle = min(max(active, pick([300, 1_000, 3_000]) * pace), 30_000)
        volatile = min(idle + pick([1, 500, 2_000]) * pace, 60_000)
        table: dict[str, object] = {
            "heartbeat_active_ms": active,
            "heartbeat_idle_ms": idle,
            "volatile_after_ms": volatile,
            "volatile_to_degraded_ms": min(volatile * pick([1, 2, 3]), 120_000),
        }
        if pace == 1 and self._dice.random() < 0.3:
            table = {}
        floors: dict[str, object] = {
            "stability_window_ms": min(pick([500, 3_000, 10_000]) * pace, 600_000),
            "loss_floor": pick([0.0, 0.05, 0.2, 0.5, 1.0]),
            "latency_floor_ms": pick([0, 100, 300]),
            "jitter_floor_ms": pick([0, 30, 100]),
            "loss_window_ms": min(pick([500, 2_000, 10_000]) * pace, 60_000),
            "improvement_factor": pick([1.0, 1.1, 2.0]),
            "max_candidates": pick([1, 2, 8]),
        }
        return {**table, **self._bounds(), **self._some(floors), **self._uplinks()}

    def _bounds(self) -> dict[str, object]:
        """What a gateway holds its clients to."""
        pick, pace = self._dice.choice, self._pace
        loss_ttl = pick([3_000, 20_000, 60_000]) * pace
        table: dict[str, object] = {
            "transport_loss_ttl_ms": loss_ttl,
            "session_ttl_ms": max(loss_ttl, pick([30_000, 300_000, DAY_MS]) * pace),
            "max_recovery_window_ms": min(pick([1_000, 8_000, 20_000]) * pace, 600_000),
            "switch_cooldown_ms": pick([0, 500, 5_000]),
            "proof_max_age_ms": pick([1_000, 5_000, 20_000]),
            "drain_ms": pick([0, 100, 500, 1_000]),
            "rekey_after_ms": min(pick([3_000, 20_000, 120_000]) * pace, 3_600_000),
            "max_switches_per_minute": pick([1, 3, 8, 30, 600]),
        }
        bounds = {"session_ttl_ms": DAY_MS, **self._some(table)}
        bounds["session_ttl_ms"] = max(loss_ttl, 60_000, int(str(bounds["session_ttl_ms"])))
        return bounds

    def _uplinks(self) -> dict[str, object]:
        kinds: dict[str, object] = {
            "preferred_uplinks": [self._path()],
            "metered_uplinks": [self._path()],
        }
        if self._paths > 1:
            kinds["forbidden_uplinks"] = [self._path()]
        return self._some(kinds) if self._dice.random() < 0.4 else {}

    # --- episodes ---

    def _after(self, *words: str) -> None:
        """Most troubles end some time; the others at the end of the story."""
        if self._dice.random() < 0.85:
            self._pass(self._while())
            self._say(*words)

    def cut(self) -> None:
        path = self._path()
        self._say("cut", path, self._way())
        self._after("heal", path)

    def rough(self) -> None:
        path, pick = self._path(), self._dice.choice
        fields = {
            "delay_ms": pick([1, 10, 80, 250, 600]),
            "jitter_ms": pick([0, 5, 40, 200]),
            "loss": pick([0.0, 0.02, 0.3, 0.8]),
            "duplicate": pick([0.0, 0.1, 0.5]),
            "burst_ms": pick([0, 0, 40, 500]),
        }
        self._say("rough", path, self._way(), *(f"{k}={v}" for k, v in fields.items()))
        self._after("heal", path)

    def link(self) -> None:
        path = self._path()
        self._say("link", path, "down")
        self._after("link", path, "up")

    def flap(self) -> None:
        path, gap_ms = self._path(), self._dice.choice([3, 50, 400, 2_000])
        for _ in range(self._dice.randrange(2, 12)):
            self._say("link", path, "down")
            self._pass(self._dice.uniform(0, gap_ms))
            self._say("link", path, "up")
            self._pass(self._dice.uniform(0, 2 * gap_ms))

    def swizzle(self) -> None:
        """Some paths die one after the other, and heal in another order."""
        some = self._dice.sample(self._names, self._dice.randint(1, self._paths))
        silent = self._dice.random() < 0.6
        gap_ms = self._dice.choice([1, 30, 500, 4_000])
        for path in some:
            self._say(*(("cut", path, "both") if silent else ("link", path, "down")))
            self._pass(self._dice.uniform(0, gap_ms))
        self._pass(self._while())
        self._dice.shuffle(some)
        for path in some:
            self._say(*(("heal", path) if silent else ("link", path, "up")))
            self._pass(self._dice.uniform(0, gap_ms))

    def blackout(self) -> None:
        way = self._way()
        for path in self._names:
            self._say("cut", path, way)
        self._pass(self._dice.choice([500, 5_000, 15_000, 70_000]) * self._pace)
        for path in self._names:
            self._say("heal", path)

    def rebind(self) -> None:
        path = self._path()
        for _ in range(self._dice.choice([1, 1, 2, 5])):
            self._say("rebind", path)
            self._pass(self._dice.choice([0, 15, 300]))

    def crash(self) -> None:
        node = self._dice.choice(["client", "gateway"])
        self._say("crash", node)
        self._pass(self._while())
        self._say("boot", node)

    def freeze(self) -> None:
        node = self._dice.choice(["client", "client", "gateway"])
        self._say("freeze", node)
        self._pass(self._dice.choice([25, 300, 3_000, 30_000, 120_000]))
        self._say("thaw", node)

    def table(self) -> None:
        how = self._dice.choice(["ok", "ok", "unavailable", "conflict"])
        self._say("table", how, str(self._dice.choice([0, 5, 300, 900])))
        self._pass(self._while())
        if self._dice.random() < 0.5:
            self._say("link", path := self._path(), "down")
            self._after("link", path, "up")
        self._say("table", "ok")

    def switch(self) -> None:
        for _ in range(self._dice.choice([1, 1, 3, 10])):
            self._say("switch", self._dice.choice([*self._names, "best"]))
            self._pass(self._dice.choice([0, 15, 300, 3_000]))

    def terminate(self) -> None:
        node = self._dice.choice(["client", "gateway"])
        self._say("terminate", node)
        if node == "client":
            self._pass(self._while())
            self._say("boot", "client")

    def apply(self) -> None:
        node = self._dice.choice(["client", "gateway"])
        self._say("apply", node, json.dumps(self._health(), separators=(",", ":")))

    def busy(self) -> None:
        self._say("load", *self._dice.choice(BUSY_LOADS).split())
        other = self._dice.choice([_Teller.cut, _Teller.rough, _Teller.link, _Teller.switch, None])
        self._pass(self._dice.choice([100, 1_000, 2_500]))
        if other is not None:
            self._faults_within(other)
        self._pass(self._dice.choice([100, 1_000, 5_000]))
        self._quiet()

    def _quiet(self) -> None:
        up_s, answered, down_s = self._dice.choice(QUIET_LOADS)
        every_ms = 1_000 * self._pace
        self._say("load", str(up_s * every_ms), str(answered), str(down_s * every_ms))

    def _faults_within(self, episode: Callable[[_Teller], None]) -> None:
        """At most some seconds of it: busy time is dear."""
        pace, self._pace = self._pace, 1
        episode(self)
        self._pace = pace

    def attack(self) -> None:
        for _ in range(self._dice.randrange(1, 6)):
            self._say("attack", str(self._dice.randrange(10**6)), str(self._dice.randrange(1, 30)))
            self._pass(self._dice.choice([0, 1, 5, 200]))


EPISODES = (
    _Teller.cut,
    _Teller.rough,
    _Teller.link,
    _Teller.flap,
    _Teller.swizzle,
    _Teller.blackout,
    _Teller.rebind,
    _Teller.crash,
    _Teller.freeze,
    _Teller.table,
    _Teller.switch,
    _Teller.terminate,
    _Teller.apply,
    _Teller.busy,
    _Teller.attack,
)
WEIGHTS = (4, 5, 3, 2, 4, 2, 2, 2, 2, 1, 2, 1, 1, 2, 2)


def policies(story: Story) -> tuple[Policy, Policy]:
    """Of the client and of the gateway."""
    return Policy.from_table(story.client), Policy.from_table(story.gateway)
