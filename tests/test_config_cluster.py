"""The table [cluster]: what it means, what is refused, and that docs/ has all of it."""

from __future__ import annotations

import base64
import importlib.util
import re
from pathlib import Path

import pytest

from jvpnd.config import ConfigError, load
from jvpnd.configcluster import CLUSTER_KEYS, ClusterSettings, EtcdAccess
from jvpnd.keyfile import MAX_KEYS

from .test_config import CLIENT, DOCS, GATEWAY, SECRET, write_key

KEYS = (b"1" * 32, b"2" * 32)
ETCD = 'store = "etcd"\nendpoints = ["http://10.0.0.1:2379"]\nkey_file = "cluster.key"\n'
PLAIN = EtcdAccess((("http", "10.0.0.1", 2379),))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_key(tmp_path / "private.key", SECRET)
    secret(tmp_path / "cluster.key", "\n".join(base64.b64encode(key).decode() for key in KEYS))
    secret(tmp_path / "password", "s3cret")
    for name in ("ca.pem", "end.pem", "end.key"):
        secret(tmp_path / name, "PEM")
    secret(tmp_path / "hook", "#!/bin/sh", 0o755)
    secret(tmp_path / "tool", "#!/bin/sh", 0o777)
    secret(tmp_path / "note", "text")
    return tmp_path


def secret(file: Path, text: str, mode: int = 0o600) -> None:
    file.write_text(text + "\n")
    file.chmod(mode)


def loaded(folder: Path, text: str, role: str = GATEWAY) -> ClusterSettings | None:
    file = folder / "jvpnd.toml"
    file.write_text(f"{role}[cluster]\n{text.replace('FOLDER', str(folder))}\n")
    return load(file).cluster


def test_by_itself_a_gateway_is_in_no_cluster(folder: Path) -> None:
    file = folder / "jvpnd.toml"
    file.write_text(GATEWAY)
    assert load(file).cluster is None


def test_a_cluster_without_a_store_needs_nothing_else(folder: Path) -> None:
    assert loaded(folder, 'store = "none"') == ClusterSettings(None)


def test_few_keys_are_enough(folder: Path) -> None:
    assert loaded(folder, ETCD) == ClusterSettings(PLAIN, KEYS, "/jvpn/", 10, (), (), None)


def test_every_key_is_taken(folder: Path) -> None:
    text = """
store = "etcd"
endpoints = ["https://etcd1.example:2380", "https://[2001:db8::1]", "https://10.0.0.3/"]
key_file = "cluster.key"
ca_file = "ca.pem"
certificate_file = "end.pem"
certificate_key_file = "end.key"
username = "gateway"
password_file = "password"
prefix = "/vpn/east/"
node_ttl_s = 3
address = ["192.168.7.1", "2001:DB8::7"]
announce = ["eth1", "eth2"]
hook = "FOLDER/hook"
"""
    access = EtcdAccess(
        (
            ("https", "etcd1.example", 2380),
            ("https", "2001:db8::1", 2379),
            ("https", "10.0.0.3", 2379),
        ),
        folder / "ca.pem",
        (folder / "end.pem", folder / "end.key"),
        "gateway",
        "s3cret",
    )
    addresses = ("192.168.7.1", "2001:db8::7")
    settings = loaded(folder, text)
    assert settings == ClusterSettings(
        access, KEYS, "/vpn/east/", 3, addresses, ("eth1", "eth2"), folder / "hook"
    )
    assert set(re.findall(r"^(\w+) =", text, re.MULTILINE)) == set(CLUSTER_KEYS)
    assert "s3cret" not in repr(settings)
    assert repr(KEYS[0]) not in repr(settings)


def more(line: str, told: str) -> tuple[str, str]:
    return ETCD + line, told


def url(text: str, told: str = "is not an endpoint of etcd (allowed: URLs") -> tuple[str, str]:
    return ETCD.replace('"http://10.0.0.1:2379"', text), f"cluster.endpoints: {told}"


TLS = ETCD.replace("http://", "https://")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "cluster.store: is missing (allowed: etcd, none)"),
        ('store = "redis"', "cluster.store: 'redis' is not supported (allowed: etcd, none)"),
        ('store = "none"\nprefix = "/x/"', "cluster.prefix: has no meaning with store = 'none'"),
        ('store = "etcd"', "cluster.endpoints: is missing"),
        ('store = "etcd"\nendpoints = ["http://a"]', "cluster.key_file: is missing"),
        more("ttl = 5", "cluster.ttl: unknown key (allowed: store, endpoints,"),
        url("", "is empty"),
        url("7", "[7] is of the wrong type"),
        url('"http://a", "http://a:2379"', "http://a:2379 is there twice"),
        url(", ".join(f'"http://h{n}"' for n in range(10)), "10 of them (allowed: at most 9)"),
        *(
            url(f'"{each}"', f"'{each}' is not an endpoint of etcd (allowed: URLs like")
            for each in (
                *("", "10.0.0.1:2379", "etcd://10.0.0.1", "http://", "http://:2379"),
                *("http://a:70000", "http://a:x", "http://u:p@a", "http://a/v3", "http://a?b=c"),
                *("http://a#b", "http://a b", "http://[::1", "http://-a", "http://[::1%eth0]"),
            )
        ),
        more('ca_file = "ca.pem"', "cluster.ca_file: has no meaning with http://"),
        (f'{TLS}ca_file = "no.pem"', "no.pem: No such file or directory (allowed: a PEM file"),
        (f'{TLS}ca_file = "."', "is not a file that can be read"),
        (f'{TLS}certificate_file = "end.pem"', "has no certificate_key_file (allowed: both or"),
        (f'{TLS}certificate_key_file = "end.key"', "has no certificate_file (allowed: both or"),
        more('username = "gw"', "cluster.username: has no password_file (allowed: both or"),
        more('password_file = "password"', "cluster.password_file: has no username"),
        more('username = ""\npassword_file = "password"', "cluster.username: '' is not a name"),
        more('username = "g"\npassword_file = "x"', "cluster.password_file: "),
        more('username = "g"\npassword_file = "tool"', "is open to others (mode 0777)"),
        more('username = "g"\npassword_file = "cluster.key"', "holds no such line"),
        more('prefix = "jvpn/"', "cluster.prefix: 'jvpn/' is not a prefix (allowed: 2 to 64"),
        more('prefix = "/"', "cluster.prefix: '/' is not a prefix"),
        more('prefix = "/jvpn"', "cluster.prefix: '/jvpn' is not a prefix"),
        more('prefix = "/j v/"', "cluster.prefix: '/j v/' is not a prefix"),
        more("node_ttl_s = 2", "cluster.node_ttl_s: 2 is out of range (allowed: a whole number"),
        more("node_ttl_s = 601", "cluster.node_ttl_s: 601 is out of range"),
        more('address = ["gw1"]', "cluster.address: 'gw1' is not a host's address (allowed: at"),
        more('address = ["127.0.0.1"]', "'127.0.0.1' is not a host's address"),
        more('address = ["::"]', "'::' is not a host's address"),
        more('address = ["10.0.0.1", "10.0.0.2"]', "cluster.address: has two of one family"),
        more('announce = ["jvpn0"]', "cluster.announce: jvpn0 is the tunnel itself"),
        more('announce = ["a/b"]', "cluster.announce: 'a/b' is not an interface name"),
        more('announce = ["e", "e"]', "cluster.announce: e is there twice"),
        more('hook = "FOLDER/none"', "No such file or directory (allowed: the absolute name of a"),
        more('hook = "hook"', "cluster.hook: 'hook'"),
        more('hook = "FOLDER/note"', "is not a program with its absolute name"),
        more('hook = "FOLDER/tool"', "can be written by others (allowed: chmod go-w"),
        more('hook = "FOLDER"', "is not a program with its absolute name"),
    ],
)
def test_what_makes_no_sense_is_refused(folder: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        loaded(folder, text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has 0, or one of them twice (allowed: a file with 1 to 8 different keys"),
        ("AAAA", "line 1 of"),
        ("\n".join([base64.b64encode(KEYS[0]).decode(), "?"]), "line 2 of"),
        ("\n".join([base64.b64encode(KEYS[0]).decode()] * 2), "has 2, or one of them twice"),
        (
            "\n".join(base64.b64encode(bytes([n]) * 32).decode() for n in range(1, 10)),
            f"has {MAX_KEYS + 1}, or one",
        ),
    ],
)
def test_a_file_without_good_keys_is_refused(folder: Path, text: str, told: str) -> None:
    secret(folder / "cluster.key", text)
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        loaded(folder, ETCD)
    assert base64.b64encode(KEYS[0]).decode() not in str(caught.value)


@pytest.mark.parametrize("name", ["cluster.key", "end.key"])
def test_secrets_that_others_may_read_are_refused(folder: Path, name: str) -> None:
    (folder / name).chmod(0o640)
    text = f'{TLS}certificate_file = "end.pem"\ncertificate_key_file = "end.key"'
    with pytest.raises(ConfigError, match=re.escape(f"chmod 600 {folder / name}")):
        loaded(folder, text)


def test_without_etcd3gw_it_says_how_to_get_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "etcd3gw" else there(name)
    )
    with pytest.raises(ConfigError, match=r"cluster\.store: .*pip install 'jvpn\[cluster\]'"):
        loaded(folder, ETCD)
    assert loaded(folder, 'store = "none"') == ClusterSettings(None)


def test_a_client_is_in_no_cluster(folder: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape("cluster: is for role = 'gateway'")):
        loaded(folder, 'store = "none"', CLIENT)


def test_the_docs_have_every_key_and_default() -> None:
    section = DOCS.read_text().split("## `[cluster]`")[1].split("\n## ")[0]
    rows = " ".join(re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", rows)) == set(CLUSTER_KEYS)
    assert f"| `prefix` | `{ClusterSettings().prefix}` |" in section
    assert f"| `node_ttl_s` | {ClusterSettings().node_ttl_s} |" in section
