"""Makes stories of clusters up: the same seed always gives the same one."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from .story import Fault, Story

STICKY_EVERY = 8  # one in so many stories is of a cluster without a shared table


def nodes_of(seed: int) -> list[str]:
    return ["gw1", "gw2", "gw3"][: 2 + seed % 2]


def clients_of(seed: int) -> list[str]:
    return ["c1", "c2"][: 1 + seed // 2 % 2]


def is_sticky(seed: int) -> bool:
    return seed % STICKY_EVERY == STICKY_EVERY - 1


def tell_cluster(seed: int) -> Story:
    """The story of this seed. Its paths are the uplinks of each client."""
    return _Teller(seed).tell()


class _Teller:
    def __init__(self, seed: int) -> None:
        self._seed, self._dice = seed, Random(f"cluster story {seed}")
        self._nodes, self._clients = nodes_of(seed), clients_of(seed)
        self._uplinks = self._dice.choice(["a", "a", "ab"])
        self._at_ms = 0
        self._faults: list[Fault] = []

    def tell(self) -> Story:
        dice = self._dice
        self._say("load", str(dice.choice([0, 500, 100, 100, 25])))
        self._pass(dice.choice([0, 15, 1_500, 1_500]))
        for _ in range(dice.randrange(2, 9)):
            dice.choice(EPISODES)(self)
            self._pass(self._while())
        self._say("wait")
        policy = self._policy()
        return Story(self._seed, len(self._uplinks), policy, policy, tuple(self._faults))

    def _say(self, *words: str) -> None:
        self._faults.append(Fault(self._at_ms, words))

    def _pass(self, for_ms: float) -> None:
        self._at_ms += int(for_ms)

    def _while(self) -> float:
        """A time in which something may be half done, or long over."""
        long_ms = self._dice.choice([900, 3_000, 8_000, 20_000])
        short_ms = self._dice.choice([0, 1, 5, 12, 20, 60, 150, 400])
        return short_ms if self._dice.random() < 0.5 else long_ms * self._dice.uniform(0.5, 1.5)

    def _policy(self) -> dict[str, object]:
        pick = self._dice.choice
        return {
            "transport_loss_ttl_ms": pick([5_000, 20_000, 60_000]),
            "store_loss_ttl_ms": pick([1_000, 5_000, 30_000]),
            "rekey_after_ms": pick([3_000, 10_000, 120_000]),
            "max_switches_per_minute": pick([3, 8, 30]),
            "switch_cooldown_ms": pick([0, 500]),
            "drain_ms": pick([0, 100, 500]),
        }

    def _node(self) -> str:
        return self._dice.choice(self._nodes)

    def _client(self) -> str:
        return self._dice.choice(self._clients)

    def _where(self) -> str:
        return self._dice.choice([*self._nodes, *self._nodes, *self._uplinks])

    def _after(self, *words: str) -> None:
        """Most troubles end some time; the others at the end of the story."""
        if self._dice.random() < 0.8:
            self._pass(self._while())
            self._say(*words)

    # --- episodes ---

    def cut(self) -> None:
        where = self._where()
        self._say("cut", where)
        self._after("heal", where)

    def rough(self) -> None:
        where, pick = self._where(), self._dice.choice
        fields = {
            "delay_ms": pick([1, 10, 80, 250]),
            "jitter_ms": pick([0, 5, 40]),
            "loss": pick([0.0, 0.05, 0.3]),
            "duplicate": pick([0.0, 0.3]),
        }
        self._say("rough", where, *(f"{key}={value}" for key, value in fields.items()))
        self._after("heal", where)

    def crash(self) -> None:
        node = self._dice.choice([self._node(), self._node(), self._client()])
        self._say("crash", node)
        self._pass(self._while())
        self._say("boot", node)

    def reboot(self) -> None:
        self._say("reboot", self._client())

    def freeze(self) -> None:
        node = self._dice.choice([self._node(), self._node(), self._client()])
        self._say("freeze", node)
        self._pass(self._dice.choice([25, 300, 3_000, 15_000, 40_000]))
        self._say("thaw", node)

    def away(self) -> None:
        node = self._node()
        self._say("away", node)
        if self._dice.random() < 0.5:
            self._pass(self._while())
            self._say("switch", self._client(), self._node())
        self._after("back", node)

    def outage(self) -> None:
        """Of the table, for all."""
        for node in self._nodes:
            self._say("away", node)
        self._pass(self._dice.choice([500, 3_000, 20_000, 35_000]))
        for node in self._nodes:
            self._say("back", node)

    def slow(self) -> None:
        pick = self._dice.choice
        weather = str(pick([0, 5, 40, 200])), str(pick([0, 10, 80])), str(pick([0.0, 0.1, 0.4]))
        some = self._dice.sample(self._nodes, self._dice.randint(1, len(self._nodes)))
        for node in some:
            self._say("slow", node, *weather)
        if self._dice.random() < 0.6:
            self._pass(self._dice.choice([0, 5, 100]))
            pick([_Teller.cut, _Teller.crash, _Teller.switch, _Teller.leave])(self)
        self._pass(self._while())
        for node in some:
            self._say("back", node)

    def leave(self) -> None:
        node = self._node()
        self._say("leave", node)
        self._after("stay", node)

    def switch(self) -> None:
        for _ in range(self._dice.choice([1, 1, 3])):
            self._say("switch", self._client(), self._node())
            self._pass(self._dice.choice([0, 5, 15, 300]))

    def terminate(self) -> None:
        self._say("terminate", self._node())

    def roll(self) -> None:
        """One node after the other is drained and started again."""
        for node in self._nodes:
            self._say("leave", node)
            self._pass(self._dice.choice([30, 1_500, 4_000]))
            self._say("crash", node)
            self._pass(self._dice.choice([100, 3_000]))
            self._say("boot", node)
            self._pass(self._dice.choice([10, 1_500]))


Episode = Callable[[_Teller], None]
EPISODES: tuple[Episode, ...] = (
    *[_Teller.cut] * 4,
    *[_Teller.rough] * 2,
    *[_Teller.crash] * 4,
    *[_Teller.freeze] * 3,
    *[_Teller.away] * 3,
    *[_Teller.slow] * 4,
    *[_Teller.leave] * 2,
    *[_Teller.switch] * 3,
    _Teller.outage,
    _Teller.terminate,
    _Teller.reboot,
    _Teller.roll,
)
