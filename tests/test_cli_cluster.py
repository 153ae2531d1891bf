"""jvpnctl at a node of a cluster, as processes of their own, with a daemon that answers as told."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from jvpnd.config import load
from jvpnd.control.protocol import Refused
from jvpnd.core.nodes import node_tag
from jvpnd.enrol import files
from jvpnd.enrol.keys import new_key
from jvpnd.enrol.texts import GatewayAnswers, gateway_text

from .served import served
from .test_cli import jvpnctl
from .test_cli_enrol import ctl, ok

PROBLEM = "node = 'gw1': another gateway of this cluster has that name, at 10.0.0.8"


def node_row(name: str, *endpoints: str, **more: Any) -> dict[str, Any]:
    return {
        **{"name": name, "is_self": name == "gw1", "state": "ready", "sessions": 3},
        **{"address": ["10.0.0.7"], "endpoints": list(endpoints), **more},
    }


class Daemon:
    """A node with sessions that leave one by one with each look, once they are asked to."""

    def __init__(self, sessions: int, stay: int = 0) -> None:
        self.sessions, self.stay = sessions, stay
        self.draining = False
        self.problem = self.store_problem = ""
        self.kind, self.seen_ms = "etcd", 1_200
        self.nodes = [
            node_row("gw1", "udp 203.0.113.7:7700"),
            node_row("gw2", "udp 198.51.100.9:7700", "tls [2001:db8::9]:443", state="draining"),
        ]
        self.handlers = {"cluster": self.cluster, "drain": self.drain, "reload": self.reload}

    async def cluster(self, _: Mapping[str, Any]) -> Any:
        if self.draining and self.sessions > self.stay:
            self.sessions -= 1
        store = {"kind": self.kind, "problem": self.store_problem, "seen_ms": self.seen_ms}
        return {
            **{"node": "gw1", "draining": self.draining, "sessions": self.sessions},
            **{"problem": self.problem, "store": store, "nodes": self.nodes, "traffic": {}},
        }

    async def reload(self, _: Mapping[str, Any]) -> Any:
        return {"file": "/none", "needs_restart": []}

    async def drain(self, args: Mapping[str, Any]) -> Any:
        self.draining = args["leave"]
        return {"draining": self.draining, "sessions": self.sessions}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(3)
    with served(tmp_path / "sock", daemon.handlers):
        yield daemon


def say(tmp_path: Path, *words: str) -> tuple[int, str, str]:
    done = jvpnctl("--socket", str(tmp_path / "sock"), *words)
    return done.returncode, done.stdout, done.stderr


# --- status ---


@pytest.mark.usefixtures("daemon")
def test_the_nodes_and_the_table_in_words_and_as_json(tmp_path: Path) -> None:
    status, out, _ = say(tmp_path, "cluster", "status")
    first, table, blank, header, gw1, gw2 = out.splitlines()
    assert (status, blank) == (0, "")
    assert first == "node     gw1: ready, 3 sessions"
    assert table == "table    etcd: reached 1.2 s ago"
    assert header.split() == ["NODE", "STATE", "SESSIONS", "ADDRESS", "ENDPOINTS"]
    assert re.fullmatch(r"gw1 \* +ready +3 +10\.0\.0\.7 +udp 203\.0\.113\.7:7700", gw1)
    assert re.fullmatch(r"gw2 +draining .*udp 198\.51\.100\.9:7700, tls \[2001:db8::9\]:443", gw2)
    answer = json.loads(say(tmp_path, "cluster", "status", "--json")[1])
    assert [each["name"] for each in answer["nodes"]] == ["gw1", "gw2"]


def test_what_is_wrong_is_told_and_moves_no_cursor(tmp_path: Path, daemon: Daemon) -> None:
    daemon.problem, daemon.store_problem = PROBLEM, "etcd: \x1b[2JConnection refused"
    daemon.draining, daemon.sessions, daemon.nodes = True, 1, [node_row("gw\x1b1")]
    status, out, _ = say(tmp_path, "cluster", "status")
    assert status == 0
    assert "gw1: draining, 0 sessions" in out
    assert "table    etcd: etcd: ?[2JConnection refused\n" in out
    assert f"problem  {PROBLEM}\n" in out
    assert re.search(r"gw\?1 +ready +3 +10\.0\.0\.7 +-", out)


def test_nodes_that_share_nothing_have_no_list(tmp_path: Path, daemon: Daemon) -> None:
    daemon.kind, daemon.nodes = "none", []
    _, out, _ = say(tmp_path, "cluster", "status")
    assert out == "node     gw1: ready, 3 sessions\ntable    none: each node has its own\n"


@pytest.mark.parametrize("words", [("cluster", "status"), ("drain",)])
def test_a_gateway_that_is_alone_refuses_and_none_at_all_is_exit_3(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    async def alone(_: Mapping[str, Any]) -> Any:
        raise Refused("WRONG_ROLE", "this gateway is alone")

    assert say(tmp_path, *words)[0] == 3
    with served(tmp_path / "sock", {"cluster": alone, "drain": alone}):
        status, out, said = say(tmp_path, *words)
    assert (status, out, said) == (1, "", "jvpnctl: WRONG_ROLE: this gateway is alone\n")


# --- drain ---


def test_a_drain_returns_when_all_have_left(tmp_path: Path, daemon: Daemon) -> None:
    status, out, said = say(tmp_path, "drain")
    assert (status, out) == (0, "all 3 sessions have left\n")
    assert said.splitlines() == [f"{left} sessions are left" for left in (3, 2, 1)]
    assert daemon.draining
    assert say(tmp_path, "drain") == (0, "all 0 sessions have left\n", "")


def test_a_drain_whose_sessions_cannot_leave_ends_with_its_time(
    tmp_path: Path, daemon: Daemon
) -> None:
    daemon.stay = 2
    status, out, _ = say(tmp_path, "drain", "--timeout", "1")
    assert status == 1
    assert out.startswith("2 of 3 sessions are left: their clients reach no other node")
    status, out, _ = say(tmp_path, "drain", "--timeout", "0.5", "--json")
    assert (status, json.loads(out)) == (1, {"draining": True, "sessions": 2})


def test_a_drain_need_not_be_waited_for_and_can_be_ended(tmp_path: Path, daemon: Daemon) -> None:
    status, out, said = say(tmp_path, "drain", "--timeout", "0")
    assert (status, said, daemon.sessions) == (0, "", 3)
    assert out.startswith("3 of 3 sessions are left")
    assert say(tmp_path, "drain", "--stop") == (0, "the node takes sessions again\n", "")
    assert not daemon.draining
    assert say(tmp_path, "drain", "--timeout", "-1")[0] == 2


@pytest.mark.parametrize(
    ("words", "offered"), [("jvpnctl cl", "cluster"), ("jvpnctl cluster ", "status"),
    ("jvpnctl dr", "drain"), ("jvpnctl drain --", "--timeout")],
)  # fmt: skip
def test_a_shell_completes_the_commands(words: str, offered: str) -> None:
    program = "from jvpnd.cli.main import main; main(prog_name='jvpnctl')"
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **asked, "_JVPNCTL_COMPLETE": "bash_complete"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"plain,{offered}" in done.stdout.splitlines()


# --- a client's file ---


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The configuration of a gateway of a cluster."""
    file = tmp_path / "etc" / "jvpnd.toml"
    answers = GatewayAnswers("gw1", ("10.77.0.1/24",), "203.0.113.7", 7700)
    files.create(file, gateway_text(answers), file.parent / "private.key", new_key, False)
    key = file.parent / "cluster.key"
    files.create_secret(key, base64.b64encode(b"k" * 32).decode())
    table = '[cluster]\nstore = "etcd"\nendpoints = ["http://10.0.0.9"]\nkey_file = "cluster.key"\n'
    file.write_text(f"{file.read_text()}\n{table}")
    return file


def endpoints_in(file: Path) -> list[tuple[str, str, int, int]]:
    gateway = load(file).gateway
    assert gateway is not None
    return [(each.transport, each.address, each.port, each.node) for each in gateway.endpoints]


OWN = [(transport, "203.0.113.7", 7700, node_tag("gw1")) for transport in ("udp", "tcp")]


@pytest.mark.parametrize("command", ["add", "rotate"])
def test_a_clients_file_has_the_endpoints_of_all_nodes_that_are_alive(
    file: Path, tmp_path: Path, daemon: Daemon, command: str
) -> None:
    if command == "rotate":
        ok(file, "client", "add", "laptop")
    daemon.nodes += [node_row("gw3", "udp *:7700"), node_row("gw4", "tcp 203.0.113.7:7700")]
    done = ctl(file, "client", command, "laptop", "-o", str(tmp_path / "made.toml"))
    assert endpoints_in(tmp_path / "made.toml") == [
        *OWN,
        ("udp", "198.51.100.9", 7700, node_tag("gw2")),
        ("tls", "2001:db8::9", 443, node_tag("gw2")),
    ]
    assert 'node = "gw2"' in (tmp_path / "made.toml").read_text()
    assert "warning: gw3 tells no address" in done.stderr


def test_without_the_daemon_it_has_its_own_and_says_so(file: Path, tmp_path: Path) -> None:
    made = str(tmp_path / "made.toml")
    done = ctl(file, "client", "add", "laptop", "-o", made, "--endpoint", "vpn.example.org")
    assert (done.returncode, "only gw1 is in the file" in done.stderr) == (0, True)
    assert endpoints_in(tmp_path / "made.toml") == [
        (transport, "vpn.example.org", port, node) for transport, _, port, node in OWN
    ]


def test_another_instance_that_runs_is_not_asked_for_its_nodes(
    file: Path, tmp_path: Path, daemon: Daemon
) -> None:
    file.write_text(file.read_text().replace('node = "gw1"', 'node = "gw7"'))
    done = ctl(file, "client", "add", "laptop", "-o", str(tmp_path / "made.toml"))
    assert "gw1 is what runs: only gw7 is in the file" in done.stderr
    assert {each[3] for each in endpoints_in(tmp_path / "made.toml")} == {node_tag("gw7")}
