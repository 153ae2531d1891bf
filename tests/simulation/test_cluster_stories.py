"""Made-up stories of clusters end well; `make soak CLUSTER=1` plays many more."""

from __future__ import annotations

import pytest

from .clusterfaults import ACTIONS
from .clusterplayer import ClusterPlayer
from .clusterteller import STICKY_EVERY, tell_cluster
from .story import Story
from .teller import policies
from .trial import Failure, attempt

SEEDS = (0, 1, 3, STICKY_EVERY - 1)  # two and three nodes, one and two clients, one sticky


@pytest.mark.parametrize("seed", SEEDS)
def test_a_story_of_a_cluster_ends_well(seed: int) -> None:
    result = attempt(tell_cluster(seed), ClusterPlayer)
    assert not isinstance(result, Failure), result.text


def test_the_teller_says_the_same_again_and_knows_every_fault() -> None:
    stories = [tell_cluster(seed) for seed in range(200)]
    assert stories == [tell_cluster(seed) for seed in range(200)]
    assert {fault.words[0] for story in stories for fault in story.faults} == set(ACTIONS)
    for story in stories:
        policies(story)  # PolicyError if one is not valid
        assert Story.parse(str(story)) == story
        times = [fault.at_ms for fault in story.faults]
        assert times == sorted(times)


def test_the_same_story_of_a_cluster_is_played_the_same_way() -> None:
    def played() -> list[object]:
        player = ClusterPlayer(tell_cluster(1))
        player.play()
        return [*player.world.trace, *player.cluster.owners._bound.items()]

    assert played() == played()
