"""Cores that are broken on purpose: the invariants of a cluster notice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jvpnd.core.gatewaystate import GatewayState
from jvpnd.core.ownership import Ownership
from jvpnd.core.peer import Peer, Stored

from .cluster import Cluster


def take_over(cluster: Cluster) -> None:
    cluster.attach()
    cluster.crash(cluster.home())
    cluster.run(3_000)
    cluster.check_rest()


def lose(cluster: Cluster) -> None:
    cluster.attach()
    cluster.cut(cluster.home())
    cluster.run(3_000)
    cluster.check_rest()


def lose_the_table(cluster: Cluster) -> None:
    cluster.attach()
    cluster.client().busy = False
    cluster.table_away(cluster.home())
    cluster.run(40_000)


def race(cluster: Cluster) -> None:
    """Two nodes are asked by attempts that follow each other quicker than the table answers."""
    cluster.attach()
    home = cluster.home()
    for node in cluster.nodes:
        link = cluster.links[node]
        link.weather.delay_ms, link.weather.jitter_ms = 80, 80
    cluster.cut(home)
    cluster.run(3_000)


def bind_before_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the table says, and before it has said anything."""
    swap = GatewayState.swap

    def hasty(state: GatewayState, now_ms: float, peer: Peer, future, follow) -> None:  # type: ignore[no-untyped-def]
        if peer.is_visiting:
            follow(now_ms, Stored.OK)
        else:
            swap(state, now_ms, peer, future, follow)

    monkeypatch.setattr(GatewayState, "swap", hasty)


def take_a_conflict_for_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = GatewayState._answered

    def deaf(state, now_ms, peer, outcome, version, tries):  # type: ignore[no-untyped-def]
        answered(state, now_ms, peer, Stored.OK, version, tries)

    monkeypatch.setattr(GatewayState, "_answered", deaf)


def go_on_when_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GatewayState, "lost_to", lambda *_: None)


def say_lost_and_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GatewayState, "_stop_sending", lambda *_: None)


def go_on_without_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ownership, "is_cut_off", lambda *_: False)


Plot = Callable[[Cluster], None]
Mutation = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize(
    ("mutation", "plot", "found"),
    [
        (bind_before_the_answer, take_over, "the table does not have"),
        (take_a_conflict_for_agreement, race, "the table does not have|taken from"),
        (go_on_when_lost, lose, "has a session of"),
        (say_lost_and_go_on, lose, "the events tell of other|has lost"),
        (go_on_without_the_table, lose_the_table, "goes on without the table"),
    ],
)
def test_a_broken_core_is_found(
    monkeypatch: pytest.MonkeyPatch, mutation: Mutation, plot: Plot, found: str
) -> None:
    mutation(monkeypatch)
    with pytest.raises(AssertionError, match=found):
        plot(Cluster(nodes=3))


@pytest.mark.parametrize("plot", [take_over, lose, lose_the_table, race])
def test_the_same_plot_with_the_true_core_ends_well(plot: Plot) -> None:
    plot(Cluster(nodes=3))
