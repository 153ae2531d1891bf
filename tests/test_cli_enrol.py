"""jvpnctl init and jvpnctl client, as processes of their own."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from jvpnd.config import load
from jvpnd.configdns import DnsSettings
from jvpnd.core.noise import public_key
from jvpnd.enrol import files
from jvpnd.enrol.keys import key_text, new_key, public_text
from jvpnd.enrol.texts import GatewayAnswers, gateway_text

from .served import served
from .test_cli import command, jvpnctl


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A gateway's first configuration."""
    file = tmp_path / "etc" / "jvpnd.toml"
    answers = GatewayAnswers("gw", ("10.77.0.1/24", "fd77::1/64"), "203.0.113.7", 7700)
    files.create(file, gateway_text(answers), file.parent / "private.key", new_key, False)
    return file


class Daemon:
    """Says what it is asked to say to `sessions` and `reload`."""

    def __init__(self, file: Path) -> None:
        self.file, self.reloads = file, 0
        self.restart: list[str] = []

    async def reload(self, _: Mapping[str, Any]) -> Any:
        self.reloads += 1
        return {"file": str(self.file), "needs_restart": self.restart}

    async def sessions(self, _: Mapping[str, Any]) -> Any:
        return [{"client": "laptop", "state": "ATTACHED"}]


@pytest.fixture
def daemon(file: Path, tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(file)
    handlers = {"reload": daemon.reload, "sessions": daemon.sessions}
    with served(tmp_path / "sock", handlers):
        yield daemon


def ctl(file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    socket = file.parent.parent / "sock"
    return jvpnctl("--socket", str(socket), *words, "--config", str(file))


def ok(file: Path, *words: str) -> str:
    done = ctl(file, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- init ---


def test_a_gateway_needs_one_answer_and_says_what_to_do_next(tmp_path: Path) -> None:
    file = tmp_path / "jvpnd.toml"
    done = jvpnctl("init", "gateway", "--config", str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert "--public-address is missing" in done.stderr
    assert os.listdir(tmp_path) == []
    done = jvpnctl("init", "gateway", "--config", str(file), "--public-address", "10.1.2.3")
    assert done.returncode == 0
    config = load(file)
    assert key_text(public_key(config.private_key)) in done.stdout
    assert f"jvpnctl client add NAME --config {file}" in done.stdout
    assert "10.1.2.3 is a private address" in done.stdout
    again = jvpnctl("init", "gateway", "--config", str(file), "--public-address", "10.1.2.3")
    assert again.returncode == 2
    assert "--force" in again.stderr


def test_a_client_that_makes_its_own_key_is_told_the_gateways_command(tmp_path: Path) -> None:
    file, gateway = tmp_path / "jvpnd.toml", public_text(new_key())
    words = ("init", "client", "--config", str(file), "--node", "laptop", "--json")
    done = jvpnctl(*words, "--gateway-address", "vpn.example.org")
    assert (done.returncode, "--gateway-key is missing" in done.stderr) == (2, True)
    done = jvpnctl(
        *words, "--gateway-address", "vpn.example.org", "--gateway-key", gateway,
        "--networks", "10.20.0.0/16,10.30.0.0/16",
    )  # fmt: skip
    answer, config = json.loads(done.stdout), load(file)
    assert f"client add laptop --public-key {answer['public_key']}" in answer["next"][0]
    assert answer["public_key"] == key_text(public_key(config.private_key))
    assert config.routes.networks == ("10.20.0.0/16", "10.30.0.0/16")
    assert "private_key" not in {*answer} - {"private_key_file"}


def test_each_instance_has_its_own_key_and_interface(tmp_path: Path) -> None:
    for name, interface in (("jvpnd", "jvpn0"), ("office", "jvpn1")):
        file = tmp_path / f"{name}.toml"
        words = ("--public-address", "203.0.113.7", "--interface", interface)
        done = jvpnctl("init", "gateway", "--config", str(file), *words)
        assert (done.returncode, load(file).interface.name) == (0, interface)
        assert load(file).forwarding.nat
    keys = {(tmp_path / name).read_bytes() for name in ("private.key", "office.key")}
    assert len(keys) == 2


def test_a_node_of_a_cluster_gets_its_table_and_a_key(tmp_path: Path) -> None:
    file, key = tmp_path / "jvpnd.toml", tmp_path / "cluster.key"
    words = ("init", "gateway", "--public-address", "203.0.113.7", "--config")
    etcd = ("--cluster-etcd", "http://10.9.0.1:2379,https://10.9.0.2")
    wrong = jvpnctl(*words, str(file), "--cluster-etcd", "10.9.0.1")
    assert (wrong.returncode, "is not an endpoint of etcd" in wrong.stderr) == (2, True)
    alone = jvpnctl(*words, str(file), "--cluster-address", "10.0.0.1")
    assert (alone.returncode, "go with --cluster-etcd" in alone.stderr) == (2, True)
    assert os.listdir(tmp_path) == []
    done = jvpnctl(*words, str(file), *etcd, "--cluster-address", "10.0.0.1,fd00::1", "--json")
    assert done.returncode == 0, done.stderr
    first = load(file)
    assert first.cluster is not None
    assert first.cluster.etcd is not None
    assert first.cluster.etcd.endpoints == (("http", "10.9.0.1", 2379), ("https", "10.9.0.2", 2379))
    assert first.cluster.address == ("10.0.0.1", "fd00::1")
    assert key.stat().st_mode & 0o777 == 0o600
    assert first.private_key not in first.cluster.keys
    (note,) = (each for each in json.loads(done.stdout)["notes"] if str(key) in each)
    networks = re.findall(r"--network \S+", note)

    other = tmp_path / "other.toml"
    absent = jvpnctl(*words, str(other), *etcd, "--cluster-key", str(tmp_path / "cluser.key"))
    assert (absent.returncode, "No such file" in absent.stderr) == (2, True)
    told = [word for each in networks for word in each.split()]
    done = jvpnctl(*words, str(other), *etcd, "--cluster-key", str(key), "--node", "gw2", *told)
    assert done.returncode == 0, done.stderr
    second = load(other)
    assert second.cluster is not None
    assert (second.cluster.keys, second.cluster.address) == (first.cluster.keys, ())
    assert second.interface.address == first.interface.address
    assert sorted(os.listdir(tmp_path)) == [
        *("cluster.key", "jvpnd.toml", "other.key", "other.toml", "private.key")
    ]


def test_on_a_terminal_it_asks_and_offers_what_is_likely(tmp_path: Path) -> None:
    file = tmp_path / "jvpnd.toml"
    main, other = pty.openpty()
    with subprocess.Popen(
        command("init", "gateway", "--config", str(file)),
        stdin=other, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        os.close(other)
        os.write(main, b"gw9\nvpn.example.org\n7801\n10.99.0.0/24 fd99::/64\nn\n")
        out, questions = process.communicate(timeout=60)
    os.close(main)
    assert process.returncode == 0, questions
    config = load(file)
    assert (config.node, config.listen[0].port) == ("gw9", 7801)
    assert config.listen[0].advertise == "vpn.example.org"
    assert config.interface.address == ("10.99.0.1/24", "fd99::1/64")
    assert not config.forwarding.nat
    assert "Name of this gateway [" in questions
    assert "gateway gw9" in out


# --- clients ---


def test_a_client_is_added_in_force_and_gets_one_file_that_works(
    file: Path, daemon: Daemon, tmp_path: Path
) -> None:
    made = tmp_path / "laptop.toml"
    done = ctl(file, "client", "add", "laptop", "--full", "--kill-switch", "--psk", "-o", str(made))
    assert (done.returncode, done.stdout) == (0, "")
    assert "in force" in done.stderr
    assert daemon.reloads == 1
    assert made.stat().st_mode & 0o777 == 0o600
    client, gateway = load(made), load(file)
    (listed,) = gateway.clients
    assert client.gateway is not None
    assert listed.public_key == public_key(client.private_key)
    assert client.gateway.public_key == public_key(gateway.private_key)
    assert client.gateway.preshared_key == listed.preshared_key is not None
    assert [(e.transport, e.address) for e in client.gateway.endpoints] == [
        ("udp", "203.0.113.7"),
        ("tcp", "203.0.113.7"),
    ]
    assert (client.node, client.routes.mode) == ("laptop", "full")
    assert client.routes.kill_switch
    secret = key_text(client.private_key)
    assert secret not in file.read_text() + done.stderr


def test_the_printed_file_is_the_whole_output(file: Path, tmp_path: Path) -> None:
    words = ("--networks", "10.20.0.0/16", "--dns", "10.20.0.53", "--dns-domains", "a.b,c.d")
    out = ok(file, "client", "add", "phone", *words)
    made = tmp_path / "phone.toml"
    made.write_text(out)
    made.chmod(0o600)
    assert load(made).routes.networks == ("10.20.0.0/16",)
    assert load(made).dns == DnsSettings(("10.20.0.53",), ("a.b", "c.d"))
    answer = json.loads(ok(file, "client", "add", "tablet", "--json"))
    assert answer["configuration"].startswith("# Jumping VPN client")
    assert "not running" in answer["note"]


def test_who_has_keys_already_keeps_the_private_one(file: Path) -> None:
    key = public_text(new_key())
    out = ok(file, "client", "add", "phone", "--public-key", key)
    assert 'private_key_file = "private.key"' in out
    assert "private_key =" not in out
    assert key_text(load(file).clients[0].public_key) == key


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("add", "laptop"), "is there already"),
        (("add", "x", "--public-key", "abc"), "client[2].public_key"),
        (("add", "x y"), "node: 'x y' is not a name"),
        (("add", "x", "--address", "192.0.2.1"), "outside [interface] address"),
        (("add", "x", "--behind", "10.77.0.0/16"), "overlaps the tunnel's own network"),
        (("add", "x", "--networks", "10.0.0.1/8"), "has host bits set"),
        (("add", "x", "--endpoint", "203.0.113.300"), "is not an address"),
        (("add", "x", "--full", "--networks", "10.0.0.0/8"), "one of them"),
        (("add", "x", "--dns", "dns.example"), "dns.servers: 'dns.example' is not an address"),
        (("add", "x", "--dns-domains", "corp"), "dns.servers: is empty"),
        (("add", "x", "--kill-switch"), "no meaning with mode = 'split'"),
        (("remove", "x"), "no client 'x' (allowed: laptop)"),
        (("rotate", "x"), "no client 'x' (allowed: laptop)"),
    ],
)
def test_what_cannot_be_done_changes_nothing(
    file: Path, daemon: Daemon, words: tuple[str, ...], why: str
) -> None:
    ok(file, "client", "add", "laptop")
    before = file.read_bytes()
    done = ctl(file, "client", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert file.read_bytes() == before
    assert daemon.reloads == 1


def test_an_output_that_is_there_is_not_overwritten_and_nobody_is_added(
    file: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("precious")
    done = ctl(file, "client", "add", "laptop", "-o", str(tmp_path / "mine"))
    assert (done.returncode, load(file).clients) == (2, ())
    assert (tmp_path / "mine").read_text() == "precious"


def test_the_list_tells_who_is_connected_if_the_gateway_runs(
    file: Path, tmp_path: Path
) -> None:
    ok(file, "client", "add", "laptop")
    ok(file, "client", "add", "phone", "--behind", "192.168.5.0/24")
    assert "the daemon is not running" in ok(file, "client", "list")
    daemon = Daemon(file)
    with served(tmp_path / "sock", {"sessions": daemon.sessions}):
        rows = json.loads(ok(file, "client", "list", "--json"))
        assert [(r["name"], r["connected"], r["state"]) for r in rows] == [
            ("laptop", True, "ATTACHED"),
            ("phone", False, None),
        ]
        text = ok(file, "client", "list")
    assert re.search(r"laptop +10\.77\.\d+\.2 fd\S+::2 +- +ATTACHED|laptop .*ATTACHED", text)
    assert "192.168.5.0/24" in text


def test_who_is_removed_leaves_the_file_as_it_was(file: Path, daemon: Daemon) -> None:
    before = file.read_bytes()
    ok(file, "client", "add", "laptop")
    ok(file, "client", "add", "phone")
    daemon.restart = ["listen"]
    out = ok(file, "client", "remove", "laptop")
    assert "removed; in force (other changes need a restart: listen)" in out
    ok(file, "client", "remove", "phone")
    assert (file.read_bytes(), daemon.reloads) == (before, 4)


def test_new_keys_come_with_a_new_file_and_the_addresses_stay(file: Path, tmp_path: Path) -> None:
    ok(file, "client", "add", "laptop", "--psk")
    (before,) = load(file).clients
    made = tmp_path / "new.toml"
    ok(file, "client", "rotate", "laptop", "-o", str(made))
    (after,), client = load(file).clients, load(made)
    assert client.gateway is not None
    assert after.address == before.address
    assert after.public_key == public_key(client.private_key) != before.public_key
    assert after.preshared_key == client.gateway.preshared_key != before.preshared_key


def test_a_daemon_that_reads_another_file_is_told_of(
    file: Path, daemon: Daemon, tmp_path: Path
) -> None:
    daemon.file = tmp_path / "other.toml"
    done = ctl(file, "client", "add", "laptop")
    assert "the running daemon reads" in done.stderr


def test_a_gateway_that_nobody_can_reach_says_what_is_missing(file: Path) -> None:
    text = re.sub(r"(?m)^advertise.*\n", "", file.read_text())
    file.write_text(text)
    done = ctl(file, "client", "add", "laptop")
    assert (done.returncode, "listen[1].advertise is missing" in done.stderr) == (2, True)
    assert "203.0.113.9" in ok(file, "client", "add", "laptop", "--endpoint", "203.0.113.9")


def test_a_clients_own_file_lists_nobody(tmp_path: Path, file: Path) -> None:
    made = tmp_path / "laptop.toml"
    ok(file, "client", "add", "laptop", "-o", str(made))
    for words in (("add", "x"), ("remove", "x"), ("list",)):
        done = jvpnctl("client", *words, "--config", str(made))
        assert (done.returncode, "on their gateway" in done.stderr) == (2, True)


def test_a_qr_code_is_drawn_and_needs_its_library(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("segno")
    out = ok(file, "client", "add", "phone", "--qr")
    assert set(out) <= set("█▀▄ \n")
    assert len(out.splitlines()) > 20
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "segno.py").write_text("raise ImportError\n")
    hide = tmp_path / "bare" / "sitecustomize.py"
    hide.write_text(
        "import importlib.util as u\nfound = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'segno' else found(name, *a)\n"
    )
    words = ("client", "add", "tablet", "--qr", "--config", str(file))
    done = jvpnctl(*words, PYTHONPATH=str(tmp_path / "bare"))
    assert (done.returncode, "pip install 'jvpn[qr]'" in done.stderr) == (2, True)
    assert len(load(file).clients) == 1
