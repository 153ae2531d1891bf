"""Everything that a story may do to a network, by its first word; the other words are strings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import TypeAlias

from jvpnd.core.gateway import Stored
from jvpnd.core.policy import Policy

from .net import WELL, Net
from .world import BLACKHOLE, Conditions, Direction

ATTACKER = ("203.0.113.66", 666)

Action: TypeAlias = Callable[..., None]


def _change(net: Net, name: str, way: str, conditions: Conditions) -> None:
    path = net.world.paths[name]
    if way in ("up", "both"):
        path.up = conditions
    if way in ("down", "both"):
        path.down = conditions


def cut(net: Net, name: str, way: str) -> None:
    """A blackhole: nobody is told."""
    _change(net, name, way, BLACKHOLE)


def rough(net: Net, name: str, way: str, *fields: str) -> None:
    """Conditions by name, as in loss=0.3 burst_ms=40."""
    values = {key: json.loads(value) for key, _, value in (f.partition("=") for f in fields)}
    _change(net, name, way, replace(WELL, **values))


def heal(net: Net, name: str) -> None:
    net.heal(name)


def link(net: Net, name: str, how: str) -> None:
    """The uplink comes or goes, and the client's kernel says so."""
    if (how == "up") != (name in net.up):
        (net.link_up if how == "up" else net.link_down)(name)


def rebind(net: Net, name: str) -> None:
    """Its NAT takes another port."""
    net.world.rebind(name)


def crash(net: Net, node: str) -> None:
    net.world.crash(node)


def boot(net: Net, node: str) -> None:
    net.world.restart(node)


def freeze(net: Net, node: str) -> None:
    """SIGSTOP, suspend: packets, timers and orders wait."""
    net.world.freeze(node)


def thaw(net: Net, node: str) -> None:
    net.world.thaw(node)


def table(net: Net, how: str, late_ms: str = "0") -> None:
    """The gateway's session table answers `ok`, `conflict` or `unavailable`, so much later."""
    net.table.answer = None if how == "ok" else Stored(how)
    net.table.late_ms = lambda: int(late_ms)


def switch(net: Net, path: str) -> None:
    """The operator wants this path, or `best`."""
    wanted = None if path == "best" else path
    net.world.call("client", lambda end, now_ms: end.core.switch(now_ms, wanted) and None)


def terminate(net: Net, node: str) -> None:
    """The operator ends the session. At the client nothing begins again before the next boot."""
    if node == "client":
        net.world.call("client", lambda end, now_ms: end.core.terminate(now_ms) and None)
        return

    def end_all(end: object, now_ms: int) -> None:
        for session_id in list(net.gateway.gateway.sessions):
            net.gateway.gateway.terminate(now_ms, session_id)

    net.world.call("gateway", end_all)


def apply(net: Net, node: str, policy: str) -> None:
    """Another policy (JSON, no blanks) at run time; a node that crashes begins with its first."""
    applied = Policy.from_table(json.loads(policy))
    net.world.call(node, lambda end, now_ms: end.core.apply_policy(now_ms, applied))


def load(net: Net, up_every_ms: str, answered: str, down_every_ms: str) -> None:
    """Traffic in the tunnel from now on: intervals in ms, 0 is none; answered 0 or 1."""
    net.load.up_every_ms, net.load.down_every_ms = int(up_every_ms), int(down_every_ms)
    net.load.answered = answered == "1"
    for node in ("client", "gateway"):
        net.world.call(node, lambda end, now_ms: end.loaded(now_ms))


def attack(net: Net, seed: str, count: str) -> None:
    """So many packets that an end sent before, as they were or not, either way, from anywhere."""
    dice = Random(f"attack {seed}")
    for _ in range(int(count)):
        inject(net, dice)


def inject(net: Net, dice: Random) -> None:
    """One such packet."""
    direction: Direction = dice.choice(["up", "down"])
    node = "client" if direction == "up" else "gateway"
    end = net.world.endpoint(node)
    if end is None or not end.sent:
        return
    packet = bytearray(dice.choice(end.sent if dice.random() < 0.5 else end.sent[-20:]))
    kind = dice.choice(["as it was", "spoilt", "cut", "another type", "noise"])
    if kind == "spoilt":
        packet[dice.randrange(len(packet))] ^= 1 << dice.randrange(8)
    elif kind == "cut":
        del packet[dice.randrange(len(packet)) :]
    elif kind == "another type":
        packet[0] = dice.randrange(10)
    elif kind == "noise":
        packet[1:] = dice.randbytes(dice.randrange(1_400))
    remote = ATTACKER if dice.random() < 0.7 else None
    net.world.inject(dice.choice(sorted(net.world.paths)), direction, bytes(packet), remote)


def wait(net: Net) -> None:
    """Nothing: the end of the story is not before this."""


ACTIONS: dict[str, Action] = {
    action.__name__: action
    for action in (
        cut,
        rough,
        heal,
        link,
        rebind,
        crash,
        boot,
        freeze,
        thaw,
        table,
        switch,
        terminate,
        apply,
        load,
        attack,
        wait,
    )
}


def mend(net: Net) -> None:
    """Everything is well again, but nobody has noticed yet. A client that rests is started anew."""
    table(net, "ok")
    for node in ("gateway", "client"):
        net.world.thaw(node)
        if net.world.endpoint(node) is None:
            net.world.restart(node)
    for name in net.world.paths:
        net.heal(name)
        link(net, name, "up")
    for node, policy in (("gateway", net.gateway_policy), ("client", net.policy)):
        end = net.world.endpoint(node)
        if end.inspected.own_policy != policy:
            end.core.apply_policy(net.now_ms, policy)
    if net.agent.is_resting:
        net.world.restart("client")


def is_well(net: Net) -> bool:
    """Whether no fault of the network, the nodes or the table is in force."""
    return (
        net.table.answer is None
        and net.table.late_ms() == 0
        and net.up == set(net.world.paths)
        and all(net.world.is_running(node) for node in ("client", "gateway"))
        and all(path.up == path.down == WELL for path in net.world.paths.values())
    )
