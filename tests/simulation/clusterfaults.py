"""Everything that a story may do to a cluster, by its first word; the other words are strings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from .cluster import Cluster
from .net import WELL
from .sharedtable import Weather
from .world import BLACKHOLE, Conditions

Action: TypeAlias = Callable[..., None]


def _change(cluster: Cluster, where: str, conditions: Conditions) -> None:
    """All paths of an uplink, or all to a node."""
    for name, path in cluster.world.paths.items():
        uplink = name.partition("@")[0].rpartition(".")[2]
        if where in (path.far, uplink):
            path.up = path.down = conditions


def cut(cluster: Cluster, where: str) -> None:
    """Nothing comes through, nobody is told."""
    _change(cluster, where, BLACKHOLE)


def rough(cluster: Cluster, where: str, *words: str) -> None:
    """Conditions by name, as in loss=0.3 burst_ms=40."""
    values = {key: json.loads(value) for key, _, value in (w.partition("=") for w in words)}
    _change(cluster, where, replace(WELL, **values))


def heal(cluster: Cluster, where: str) -> None:
    _change(cluster, where, WELL)


def away(cluster: Cluster, node: str) -> None:
    """The node cannot reach the table."""
    cluster.table_away(node)


def slow(cluster: Cluster, node: str, delay_ms: str, jitter_ms: str, loss: str) -> None:
    """The node's way to the table is bad."""
    cluster.table_rough(node, Weather(int(delay_ms), int(jitter_ms), float(loss)))


def back(cluster: Cluster, node: str) -> None:
    """The node's way to the table is well again."""
    cluster.table_rough(node, Weather())


def crash(cluster: Cluster, node: str) -> None:
    cluster.crash(node)


def boot(cluster: Cluster, node: str) -> None:
    cluster.boot(node)


def reboot(cluster: Cluster, client: str) -> None:
    """Its host starts again: what it kept of its session is gone."""
    cluster.clients[client].kept.clear()
    cluster.boot(client)


def freeze(cluster: Cluster, node: str) -> None:
    cluster.freeze(node)


def thaw(cluster: Cluster, node: str) -> None:
    cluster.thaw(node)


def leave(cluster: Cluster, node: str) -> None:
    """Drain it."""
    cluster.leave(node)


def stay(cluster: Cluster, node: str) -> None:
    cluster.leave(node, False)


def switch(cluster: Cluster, client: str, node: str) -> None:
    """The operator wants the client's first path to this node."""
    path = next(name for name in cluster.path_names(client) if name.endswith(f"@{node}"))
    cluster.world.call(client, lambda end, now_ms: end.core.switch(now_ms, path) and None)


def terminate(cluster: Cluster, node: str) -> None:
    """The operator ends every session of the node."""
    cluster.world.call(node, lambda end, now_ms: end.terminate_all(now_ms))


def load(cluster: Cluster, up_every_ms: str) -> None:
    """Echoes in the tunnel from now on: one in so many ms, 0 is none."""
    cluster.load.up_every_ms = int(up_every_ms)
    for client in cluster.clients:
        cluster.world.call(client, lambda end, now_ms: end.loaded(now_ms))


def wait(cluster: Cluster) -> None:
    """Nothing: the end of the story is not before this."""


ACTIONS: dict[str, Action] = {
    action.__name__: action
    for action in (
        cut,
        rough,
        heal,
        away,
        slow,
        back,
        crash,
        boot,
        reboot,
        freeze,
        thaw,
        leave,
        stay,
        switch,
        terminate,
        load,
        wait,
    )
}


def mend(cluster: Cluster) -> None:
    """Everything is well again, but nobody has noticed yet. A client that rests is started anew."""
    for path in cluster.world.paths.values():
        path.up = path.down = WELL
    for node in cluster.nodes:
        cluster.thaw(node)
        back(cluster, node)
        if cluster.world.endpoint(node) is None:
            cluster.boot(node)
        stay(cluster, node)
    for client in cluster.clients:
        cluster.thaw(client)
        end = cluster.world.endpoint(client)
        if end is None or end.agent.is_resting:
            cluster.boot(client)
