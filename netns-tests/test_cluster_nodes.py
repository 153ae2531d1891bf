"""Nodes of a real cluster and their operator: names, a new client's file, the doctor."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.clusternet import OUTSIDE, Cluster, ClusterNet

from jvpnd.config import load
from jvpnd.core.nodes import node_tag

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
CONFIG = 2  # exit status


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNet]:
    with ClusterNet(tmp_path_factory.mktemp("etcd")) as net:
        yield net


def test_a_gateway_with_anothers_name_does_not_start_and_leaves_nothing(net: ClusterNet) -> None:
    with Cluster(net) as cluster:
        cluster.start("a")
        second = cluster.nodes["b"]
        text = second.config_file.read_text()
        second.config_file.write_text(text.replace('node = "b"', 'node = "a"'))
        with pytest.raises(AssertionError):
            second.start()
        assert second.process is not None
        assert second.process.returncode == CONFIG
        last = second.log.splitlines()[-1]
        assert last.startswith("jvpnd: node = 'a': another gateway of this cluster has that name")
        assert f"udp {OUTSIDE['a']}:7700" in last
        assert "Traceback" not in second.log
        assert "jvpn0" not in net.nodes["b"].run("ip", "-br", "link").stdout
        status = cluster.nodes["a"].ask("cluster")
        assert (status["sessions"], status["problem"]) == (1, "")
        assert [each["name"] for each in status["nodes"]] == ["a"]


def test_a_new_clients_file_and_the_doctor_know_the_other_node(
    net: ClusterNet, tmp_path: Path
) -> None:
    with Cluster(net) as cluster:
        cluster.start()
        a, made = cluster.nodes["a"], tmp_path / "new.toml"
        # the lab's tunnel has few addresses
        words = ("client", "add", "phone", "--address", "192.168.50.203", "-o", str(made))
        done = a.ctl(*words, "--config", str(a.config_file))
        assert (done.returncode, "warning" in done.stderr) == (0, False), done.stderr
        gateway = load(made).gateway
        assert gateway is not None
        assert [(each.address, each.node) for each in gateway.endpoints] == [
            (OUTSIDE[label], node_tag(label)) for label in "ab"
        ]
        doctor = net.nodes["a"].run(
            *(sys.executable, "-m", "jvpnd.cli.main", "--socket", str(a.socket_file)),
            *("doctor", "--json", "--config", str(a.config_file)),
            check=False,
        )
        rows = {each["check"]: each for each in json.loads(doctor.stdout)["checks"]}
        for check in ("etcd", "clock of etcd", "cluster nodes", "node name"):
            assert rows[check]["level"] == "ok", rows[check]
        assert rows["cluster nodes"]["found"] == "b alive"
