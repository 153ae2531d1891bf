"""Two gateways that are one to their client, a real etcd, and what kills them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from lab.cluster import HOST
from lab.clusternet import Cluster, ClusterNet
from lab.traffic import Traffic

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNet]:
    with ClusterNet(tmp_path_factory.mktemp("etcd")) as net:
        yield net


def test_a_connection_survives_the_death_of_its_gateway(net: ClusterNet) -> None:
    with Cluster(net) as cluster:
        cluster.start()
        session, owner = cluster.session(), cluster.owner()
        other = cluster.other()
        echo = Traffic("echo", net.client, net.host, HOST[0], "200")
        tcp = Traffic("tcp", net.client, net.host, HOST[0])
        with echo, tcp:
            echo.wait_until("received", 100)
            tcp.wait_until("bytes", 1_000_000)
            echo.report()
            cluster.nodes[owner].stop(signal.SIGKILL)
            reports = echo.wait_until("received", 200)
            print(max(r["longest_gap_ms"] for r in reports), [e for e in cluster.client.events()][-14:])
            tcp.wait_until("bytes", 1_000_000)
            assert tcp.report()["problem"] == ""
        assert cluster.session() == session
        assert cluster.owner() == other
        assert cluster.ownership(other) == ["taken over"]
